//go:build linux

// Package monitor is the program that watches over one sandbox from outside:
// it starts it, keeps the table of its processes, what they print and how they
// end, times them out, and stops the sandbox when it has been idle. It
// outlives the berth that started it and serves any number of them, through a
// unix socket.
//
// One lock, monitor.mu, guards the table. What a process prints goes from its
// pipe to its log without it. Everything from init is hostile; berth processes
// are trusted as their user is, but must not be able to hang or crash a
// monitor by a mistake.
package monitor

import (
	"encoding/json"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/logs"
	"berth/sandbox/local/wire"
)

// Defaults and limits.
const (
	defaultKeep      = 200
	defaultKeepBytes = 1 << 30
	stopGrace        = 2 * time.Second
	killWait         = 5 * time.Second  // for what should end at once
	signalWait       = 40 * time.Second // for init to find all of a tree, and to end what forks on
	treeWait         = 2 * time.Second  // for init to describe a tree
	restAfter        = 2 * time.Second  // idle time after which memory is given back
	maxPeers         = 1000
)

// Starter starts the sandbox. It is called from the goroutine that called Run,
// which stays on its thread until the monitor ends, so that a parent-death
// signal set there holds for the monitor's whole life.
type Starter func(*wire.Launch) (Sandbox, error)

type monitor struct {
	dir     string // Launch.Dir
	logDir  string
	launch  *wire.Launch
	box     Sandbox
	guest   *guest
	gate    *gatekeeper // nil without one
	journal *journal.Journal
	record  wire.Record
	quit    chan struct{} // closed when all is done

	logBytes  atomic.Int64
	relieving atomic.Bool
	lastUse   atomic.Int64 // for giving memory back; monotonic nanoseconds
	resting   atomic.Bool
	ending    sync.WaitGroup // exits being recorded
	buckets   buckets
	pidSpace  string // of what is inside

	mu        sync.Mutex
	procs     map[string]*proc
	order     []*proc // oldest first
	peers     map[*peer]struct{}
	intervals wire.Intervals
	active    time.Time // last request that counts
	busy      int       // running Busy processes
	idle      *time.Timer
	stopping  bool
	stopWaits []func(*wire.Error) // OpStop requests
	kept      bool                // what is to be deleted on a stop stays
	freezer   *peer               // who has the sandbox frozen,
	freezing  bool                // or is just about to
	melts     *time.Timer         // thaws it, come what may

	// Of a resident.
	foreign   bool
	spare     *logs.Spare
	forgotten ring // processes that are kept no more
	onces     onces
	files     keeper
}

// Run is the program: it reads the Launch from FDLaunch, starts the sandbox,
// answers on FDReady, serves the socket FDListen, and returns the exit code
// when the sandbox has ended.
func Run(start Starter) int {
	runtime.LockOSThread()
	closeStrays()
	// A heap of a few hundred KiB must not grow to Go's usual 4 MiB first.
	debug.SetGCPercent(20)
	// Caught and dropped. Ignored ones would stay ignored in every command,
	// as would those that our creator ignores.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT)
	ready, err := wire.Socket(wire.FDReady, 1<<20)
	if err != nil {
		return 2
	}
	m, err := launch(start)
	if err != nil {
		e, ok := err.(*wire.Error)
		if !ok {
			e = &wire.Error{Code: wire.CodeInternal, Text: err.Error()}
		}
		_ = ready.Send(wire.Header{Error: e}, nil, nil)
		_ = ready.Close()
		return 1
	}
	m.heedTerm()
	// A creator that was killed meanwhile does not matter: the record says that
	// the sandbox runs, and whoever comes next uses it.
	_ = ready.Send(wire.Header{}, m.record.Ready, nil)
	_ = ready.Close()
	m.rest()
	<-m.quit
	return 0
}

// heedTerm ends the sandbox in order when this program is told to end.
func (m *monitor) heedTerm() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	go func() {
		<-term
		m.stop("the monitor was told to end by SIGTERM", nil)
	}()
}

// closeStrays closes what this program was started with beyond its own
// descriptors: files that berth's own starter, a shell perhaps, left open in
// it. They would stay open as long as the sandbox lives. What this program has
// opened itself is close-on-exec.
func closeStrays() {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, n := range names {
		fd, err := strconv.Atoi(n.Name())
		if err != nil || fd <= wire.FDReady {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
}

// launch does all that must succeed before the monitor is of use.
func launch(start Starter) (*monitor, error) {
	l, err := readLaunch(wire.FDLaunch)
	if err != nil {
		return nil, err
	}
	listen, err := listener(wire.FDListen)
	if err != nil {
		return nil, err
	}
	m := newMonitor(l)
	return m, m.open(listen, start)
}

func (m *monitor) open(listen *os.File, start Starter) error {
	// A resident is told from others by its lock.
	boot, err := journal.BootID()
	if err != nil && !m.foreign {
		return err
	}
	self, err := journal.StartTime(os.Getpid())
	if err != nil && !m.foreign {
		return err
	}
	if err := os.MkdirAll(m.logDir, 0o700); err != nil {
		return err
	}
	// The record comes before the sandbox, so that whoever finds a sandbox
	// half started finds its monitor too.
	m.record = wire.Record{Version: wire.Version, Boot: boot, MonitorPID: os.Getpid(), MonitorStart: self, Started: time.Now().UnixNano()}
	old, _ := journal.ReadRecord(m.dir)
	if err := journal.WriteRecord(m.dir, &m.record); err != nil {
		return err
	}
	// While init sets up there is nothing else to do.
	remembered := make(chan error, 1)
	go func() { remembered <- m.remember(old) }()
	m.box, err = start(m.launch)
	if rerr := <-remembered; err == nil && rerr != nil {
		m.endBox()
		err = rerr
	}
	if err != nil {
		return err
	}
	m.record.Ready = m.box.Ready()
	if err := journal.WriteRecord(m.dir, &m.record); err != nil {
		m.endBox()
		return err
	}
	m.begin()
	go m.accept(listen)
	return nil
}

// endBox ends a sandbox that is not served yet.
func (m *monitor) endBox() {
	m.box.Kill()
	_ = m.box.Wait()
	_ = m.box.Close()
}

func newMonitor(l *wire.Launch) *monitor {
	if l.KeepProcesses <= 0 {
		l.KeepProcesses = defaultKeep
	}
	if l.KeepLogBytes <= 0 {
		l.KeepLogBytes = defaultKeepBytes
	}
	return &monitor{dir: l.Dir, logDir: l.Dir + "/" + journal.OutputDir, launch: l, intervals: l.Intervals,
		quit: make(chan struct{}), procs: map[string]*proc{}, peers: map[*peer]struct{}{}, active: time.Now()}
}

// begin serves the started sandbox.
func (m *monitor) begin() {
	m.guest = &guest{conn: m.box.Conn(), calls: map[uint64]func(*wire.Frame, *wire.Error){}}
	m.pidSpace = pidSpaceOf(m.record.Ready.InitPID)
	m.openGate()
	go func() {
		m.guest.read(m.event)
		m.died()
	}()
	m.mu.Lock()
	m.watchIdle()
	m.mu.Unlock()
	m.watchLimits()
}

func readLaunch(fd int) (*wire.Launch, error) {
	f := os.NewFile(uintptr(fd), "launch")
	if f == nil {
		return nil, &wire.Error{Code: wire.CodeInvalid, Text: "box monitor is started by berth, not by hand"}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, wire.MaxFrame))
	if err != nil {
		return nil, err
	}
	l := &wire.Launch{}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, &wire.Error{Code: wire.CodeInvalid, Text: "launch: " + err.Error()}
	}
	if l.Version != wire.Version {
		return nil, &wire.Error{Code: wire.CodeInvalid, Text: "launch: this helper program does not fit this berth; build both anew"}
	}
	if len(l.Dir) == 0 || l.Dir[0] != '/' {
		return nil, &wire.Error{Code: wire.CodeInvalid, Text: "launch: dir must be absolute"}
	}
	return l, nil
}

// remember takes over the processes of earlier monitors of this sandbox.
func (m *monitor) remember(old *wire.Record) error {
	ps, err := journal.Load(m.dir)
	if err != nil {
		return err
	}
	journal.Lose(ps, m.lostReason(old))
	for _, i := range ps {
		p := recorded(i, m.logDir)
		m.procs[i.ID] = p
		m.order = append(m.order, p)
		m.logBytes.Add(p.size())
	}
	ids, err := logs.IDs(m.logDir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if m.procs[id] == nil { // reaped, but for its files
			_ = logs.Remove(m.logDir, id)
		}
	}
	m.journal, err = journal.Open(m.dir, m.states())
	if err != nil {
		return err
	}
	if m.foreign { // its commands write to the same disk
		m.spare = logs.NewSpare(m.logDir)
	}
	m.reap()
	return nil
}

// states lists all processes, oldest first; m.mu is held.
func (m *monitor) states() []wire.Process {
	ps := make([]wire.Process, 0, len(m.order))
	for _, p := range m.order {
		ps = append(ps, p.state())
	}
	return ps
}

// note writes p's state to the journal; m.mu is held, which keeps the lines of
// a process in order.
func (m *monitor) note(p *proc) {
	i := p.state()
	m.journal.Put(&i)
	m.tidy()
}

func (m *monitor) tidy() {
	if m.journal.Stale(len(m.order)) {
		_ = m.journal.Compact(m.states()) // a full disk may let it pass later
	}
}

// reap forgets the oldest finished processes beyond what is kept, those with
// leftovers last; m.mu is held.
func (m *monitor) reap() {
	finished := 0
	for _, p := range m.order {
		if !p.running() {
			finished++
		}
	}
	for _, leftovers := range []bool{false, true} {
		for i := 0; i < len(m.order); {
			if finished <= m.launch.KeepProcesses && m.logBytes.Load() <= m.launch.KeepLogBytes {
				return
			}
			p := m.order[i]
			if held := !p.gone || p.printing(); p.running() || p.ending || held != leftovers {
				i++
				continue
			}
			m.forget(p)
			finished--
		}
	}
}

// forget drops p from the table, with its logs; m.mu is held.
func (m *monitor) forget(p *proc) {
	delete(m.procs, p.info.ID)
	if m.foreign && p.failed == nil {
		m.forgotten.add(p.info.ID)
	}
	m.order = slices.DeleteFunc(m.order, func(o *proc) bool { return o == p })
	for _, s := range []*stream{p.out, p.err} {
		if s != nil {
			s.forget()
		}
	}
	m.logBytes.Add(-p.size())
	p.out, p.err = nil, nil
	_ = logs.Remove(m.logDir, p.info.ID)
	m.journal.Drop(p.info.ID)
	m.tidy()
}

// forgetEnded is OpForget.
func (m *monitor) forgetEnded(id string) *wire.Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.procs[id]
	switch {
	case p == nil:
		return noProcess(id)
	case p.running() || p.ending:
		return &wire.Error{Code: wire.CodeBusy, Text: "process " + cut(id, 80) + " still runs; kill it first"}
	}
	m.forget(p)
	return nil
}

// relieve keeps the logs of all processes within their bound: finished ones
// go first, then the oldest part of the longest log.
func (m *monitor) relieve() {
	if m.logBytes.Load() <= m.launch.KeepLogBytes || !m.relieving.CompareAndSwap(false, true) {
		return
	}
	defer m.relieving.Store(false)
	m.mu.Lock()
	m.reap()
	var streams []*stream
	for _, p := range m.order {
		for _, s := range []*stream{p.out, p.err} {
			if s != nil {
				streams = append(streams, s)
			}
		}
	}
	m.mu.Unlock()
	for m.logBytes.Load() > m.launch.KeepLogBytes {
		var longest *stream
		for _, s := range streams {
			if longest == nil || s.size.Load() > longest.size.Load() {
				longest = s
			}
		}
		if longest == nil {
			return
		}
		if !longest.shrink() {
			streams = slices.DeleteFunc(streams, func(s *stream) bool { return s == longest })
		}
	}
}

// used notes that the monitor works, and sees that memory is given back when
// it does not any more.
func (m *monitor) used() {
	m.lastUse.Store(time.Now().UnixNano())
	m.rest()
}

func (m *monitor) rest() {
	if m.resting.CompareAndSwap(false, true) {
		time.AfterFunc(restAfter, m.release)
	}
}

func (m *monitor) release() {
	if time.Now().UnixNano()-m.lastUse.Load() < int64(restAfter) {
		time.AfterFunc(restAfter, m.release)
		return
	}
	m.resting.Store(false)
	restChunks()
	debug.FreeOSMemory()
}
