//go:build linux

package monitor

import (
	"encoding/json"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/logs"
	"berth/sandbox/local/wire"
)

// spawn puts c into the table and starts it, or finds the process already
// started under its id. The table is changed before spawn returns, so that
// requests that follow on the same connection find the process.
func (m *monitor) spawn(c *wire.Command, data []byte, answer func(*wire.Process, *wire.Error)) {
	if e := validate(c); e != nil {
		answer(nil, e)
		return
	}
	m.mu.Lock()
	if p := m.procs[c.ID]; p != nil {
		m.mu.Unlock()
		m.whenStarted(p, answer)
		return
	}
	if m.forgotten.has(c.ID) {
		m.mu.Unlock()
		answer(nil, &wire.Error{Code: wire.CodeMaybe, Text: "process " + c.ID + " was started before, and is kept no more"})
		return
	}
	if m.stopping {
		m.mu.Unlock()
		answer(nil, &wire.Error{Code: wire.CodeStopping, Text: "the sandbox is being stopped; the command was not started"})
		return
	}
	p := &proc{gate: m.gate, busy: c.Busy, started: make(chan struct{}), waiters: map[*waiter]struct{}{}}
	p.info = wire.Process{ID: c.ID, Display: c.Display, Note: c.Note, Cwd: c.Cwd, User: c.User, State: journal.Running,
		Started: time.Now().UnixNano(), TTY: c.Cols > 0, Cols: c.Cols, Rows: c.Rows, CPUNS: -1, Memory: -1}
	if p.info.User == "" {
		p.info.User = m.launch.User
	}
	m.procs[c.ID] = p
	m.order = append(m.order, p)
	if p.busy {
		m.busy++
	}
	m.note(p) // before it runs: what is not in the journal never ran
	m.mu.Unlock()
	go func() {
		m.start(p, c, data)
		m.whenStarted(p, answer)
	}()
}

func (m *monitor) whenStarted(p *proc, answer func(*wire.Process, *wire.Error)) {
	reply := func() {
		m.mu.Lock()
		i, e := p.state(), p.failed
		m.mu.Unlock()
		if e != nil {
			answer(nil, e)
			return
		}
		answer(&i, nil)
	}
	if p.started == nil {
		reply()
		return
	}
	select {
	case <-p.started:
		reply()
	default:
		go func() { <-p.started; reply() }()
	}
}

// maxNote is sandbox.MaxNote.
const maxNote = 64 << 10

func validate(c *wire.Command) *wire.Error {
	bad := func(text string) *wire.Error { return &wire.Error{Code: wire.CodeInvalid, Text: text} }
	switch {
	case !logs.ValidID(c.ID):
		return bad("id: allowed are 1 to 64 letters, digits, '.', '_' and '-'")
	case (c.Shell == "") == (len(c.Argv) == 0):
		return bad("exactly one of shell and argv must be given")
	case c.Cwd == "" || c.Cwd[0] != '/':
		return bad("cwd: must be absolute")
	case len(c.Note) > maxNote:
		return bad("note: at most 65,536 bytes")
	case c.TimeoutMS < 0:
		return bad("timeout_ms: must not be negative")
	}
	c.Display = cut(c.Display, 4096)
	return nil
}

// start makes p's pipes and asks init to run it. It returns when init has
// answered.
func (m *monitor) start(p *proc, c *wire.Command, data []byte) {
	req := wire.StartProcess{ID: c.ID, Shell: c.Shell, Argv: c.Argv, Cwd: c.Cwd, Env: c.Env, Unset: c.Unset, User: p.info.User, Cols: c.Cols, Rows: c.Rows}
	var theirs, ours []*os.File
	fail := func(e *wire.Error) {
		closeFiles(ours)
		m.notStarted(p, e)
	}
	pipe := func(read bool) (*os.File, error) {
		r, w, err := newPipe(read)
		if err != nil {
			return nil, err
		}
		mine, other := r, w
		if !read {
			mine, other = w, r
		}
		ours, theirs = append(ours, mine), append(theirs, other)
		return mine, nil
	}
	var in, out, errs *os.File
	var err error
	if c.Cols == 0 {
		if c.HasStdin || c.OpenStdin || len(data) > 0 {
			in, err = pipe(false)
		} else {
			req.NullStdin = true
		}
		if err == nil {
			out, err = pipe(true)
		}
		switch {
		case err == nil && c.Merge:
			var both *os.File
			if both, err = duplicate(theirs[len(theirs)-1]); err == nil {
				theirs = append(theirs, both)
			}
		case err == nil:
			errs, err = pipe(true)
		}
	}
	if err != nil {
		closeFiles(theirs)
		fail(&wire.Error{Code: wire.CodeInternal, Text: "pipe: " + err.Error()})
		return
	}
	m.guest.send(wire.OpStart, &req, nil, theirs, func(f *wire.Frame, e *wire.Error) {
		if e == nil {
			var st wire.Started
			if json.Unmarshal(f.Body, &st) != nil || c.Cols > 0 && len(f.Files) != 1 {
				e = &wire.Error{Code: wire.CodeInternal, Text: "the sandbox's answer to the start cannot be understood"}
			}
		}
		if f != nil && (c.Cols == 0 || e != nil) {
			closeFiles(f.Files)
		}
		if e == nil && c.Cols > 0 {
			in, e = terminal(f.Files[0])
			out = in
			ours = []*os.File{in}
		}
		if e != nil {
			if e == errGone { // it may have run: died tells that it is lost
				closeFiles(ours)
				close(p.started)
				return
			}
			fail(e)
			return
		}
		m.isStarted(p, c, data, in, out, errs)
	})
	closeFiles(theirs)
	<-p.started
}

// newPipe makes a pipe of which our end does not block; the mode of the other
// one is what the command sees.
func newPipe(read bool) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	// A pipe is its maker's, and a command's user is another: opening
	// /dev/stdout would be denied. Who may see the descriptor may open it.
	_ = unix.Fchmod(fds[0], 0o666)
	mine := fds[1]
	if read {
		mine = fds[0]
	}
	if err := unix.SetNonblock(mine, true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// duplicate is another descriptor of what f is.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// terminal makes a received master one that does not block.
func terminal(f *os.File) (*os.File, *wire.Error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "terminal: " + err.Error()}
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

func (m *monitor) notStarted(p *proc, e *wire.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.failed = e
	if m.procs[p.info.ID] == p {
		p.info.State = journal.Lost // for those who wait
		m.answerWaiters(p)
		m.forget(p)
		m.unbusy(p)
	}
	close(p.started)
}

// isStarted runs in the goroutine that reads from init.
func (m *monitor) isStarted(p *proc, c *wire.Command, data []byte, in, out, errs *os.File) {
	moved := func() {
		m.wake(p)
		m.relieve()
	}
	m.spare.Fill()
	m.mu.Lock()
	var err error
	p.out, err = newStream(out, c.Cols > 0, logs.NewWriter(m.logDir, c.ID, logs.Stdout, m.launch.LogBytes, m.spare), &m.logBytes, moved)
	if err == nil {
		go p.out.run()
		if errs != nil {
			if p.err, err = newStream(errs, false, logs.NewWriter(m.logDir, c.ID, logs.Stderr, m.launch.LogBytes, m.spare), &m.logBytes, moved); err == nil {
				go p.err.run()
			}
		}
	}
	if in != nil {
		p.in = &stdin{file: in, tty: c.Cols > 0}
		_ = p.in.write(data, !c.OpenStdin, nil)
	}
	if c.TimeoutMS > 0 {
		after := time.Duration(min(c.TimeoutMS, int64(1<<62)/int64(time.Millisecond))) * time.Millisecond
		p.timer = time.AfterFunc(after, func() { m.timeout(p, after) })
	}
	early := p.early
	close(p.started)
	m.mu.Unlock()
	if early != nil {
		m.exited(early)
	}
}

func (m *monitor) timeout(p *proc, after time.Duration) {
	m.mu.Lock()
	if !p.running() || p.ending {
		m.mu.Unlock()
		return
	}
	p.info.TimedOut = true
	p.killSignal, p.killReason = unix.SIGKILL, "timed out after "+after.String()
	m.mu.Unlock()
	m.signal(p.info.ID, unix.SIGKILL)
}

// signal sends to p's tree, without waiting.
func (m *monitor) signal(id string, sig unix.Signal) {
	go m.guest.send(wire.OpSignal, &wire.Signal{ID: id, Signal: int(sig)}, nil, nil, func(f *wire.Frame, _ *wire.Error) {
		if f != nil {
			closeFiles(f.Files)
		}
	})
}

// kill is OpKill: the answer comes when the signal was sent.
func (m *monitor) kill(k *wire.Kill) *wire.Error {
	sig, ok := parseSignal(k.Signal)
	if !ok {
		return &wire.Error{Code: wire.CodeInvalid, Text: "signal: " + cut(k.Signal, 40) + " is none; allowed are names such as TERM, KILL, INT, HUP"}
	}
	m.mu.Lock()
	p := m.procs[k.ID]
	if p == nil {
		m.mu.Unlock()
		return noProcess(k.ID)
	}
	started := p.started
	m.mu.Unlock()
	if started != nil {
		<-started
	}
	m.mu.Lock()
	if p.gone && !p.running() || p.failed != nil {
		m.mu.Unlock()
		return nil //nolint:nilerr // there is nothing to kill
	}
	if p.running() && !p.ending {
		p.killSignal, p.killReason = sig, cut(k.Reason, 1000)
	}
	if k.GraceMS > 0 {
		if p.grace != nil {
			p.grace.Stop()
		}
		p.grace = time.AfterFunc(time.Duration(min(k.GraceMS, 1<<40))*time.Millisecond, func() {
			m.mu.Lock()
			gone := p.gone && !p.running()
			m.mu.Unlock()
			if !gone {
				m.signal(k.ID, unix.SIGKILL)
			}
		})
	}
	m.mu.Unlock()
	_, e := m.guest.call(wire.OpSignal, &wire.Signal{ID: k.ID, Signal: int(sig)}, signalWait)
	if e != nil && (e.Code == wire.CodeNoProcess || e == errGone) {
		return nil // it has just ended
	}
	return e
}

func noProcess(id string) *wire.Error {
	return &wire.Error{Code: wire.CodeNoProcess, Text: "there is no process " + cut(id, 80)}
}

// event takes what init tells by itself.
func (m *monitor) event(f *wire.Frame) {
	switch f.Op {
	case wire.OpExited:
		e := &wire.Exited{}
		if json.Unmarshal(f.Body, e) == nil {
			m.exited(e)
		}
	case wire.OpGone:
		var ref wire.ProcessRef
		if json.Unmarshal(f.Body, &ref) != nil {
			return
		}
		m.mu.Lock()
		if p := m.procs[ref.ID]; p != nil && !p.gone {
			p.gone = true // also while its exit is on its way to the table
			if !p.running() {
				p.info.Leftovers = nil
				if p.grace != nil {
					p.grace.Stop()
				}
				m.note(p)
			}
		}
		m.mu.Unlock()
	}
}

// exited takes the end of a main program: what it printed goes to the log, and
// then its end into the table.
func (m *monitor) exited(e *wire.Exited) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.procs[e.ID]
	if p == nil || !p.running() || p.ending {
		return
	}
	select {
	case <-p.started:
	default:
		p.early = e
		return
	}
	if p.out == nil {
		return
	}
	p.ending = true
	m.ending.Add(1)
	go func() {
		defer m.ending.Done()
		p.out.drain()
		if p.err != nil {
			p.err.drain()
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		p.fates(e, &m.launch.Limits)
		m.finish(p)
	}()
}

// finish records that p has ended, p.info saying how; m.mu is held.
func (m *monitor) finish(p *proc) {
	p.info.Ended = time.Now().UnixNano()
	p.info.Refused = m.gate.of(&p.info)
	p.ending = false
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	if p.grace != nil && p.gone {
		p.grace.Stop()
		p.grace = nil
	}
	if p.in != nil {
		p.in.close()
	}
	m.note(p)
	m.unbusy(p)
	m.answerWaiters(p)
	p.in, p.waiters = nil, nil // many ended processes are kept
	m.reap()
	m.used()
}

func (m *monitor) unbusy(p *proc) {
	if !p.busy {
		return
	}
	p.busy = false
	m.busy--
	if m.busy == 0 {
		m.active = time.Now()
		m.watchIdle()
	}
}
