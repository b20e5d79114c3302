//go:build linux

// Package monitortest holds a stand-in for a sandbox: it speaks to the monitor
// as init does, and runs commands as plain processes of the host. It isolates
// nothing.
package monitortest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/monitor"
	"berth/sandbox/local/wire"
)

// Guest is a stand-in for init. Its paths are those of the host.
type Guest struct {
	mon, own *wire.Conn // the monitor's end, and ours
	dead     chan struct{}
	once     sync.Once
	spawns   chan func() // runs on a thread that never ends, for the parent-death signal

	mu     sync.Mutex
	procs  map[string]*child
	writes map[uint64]write
	token  uint64
}

type child struct {
	pid    int
	exited bool
}

type write struct {
	tmp, path string
}

// Start is a monitor.Starter.
func Start(l *wire.Launch) (monitor.Sandbox, error) { return New() }

// New makes a Guest.
func New() (*Guest, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mon, err := wire.Socket(fds[0], 0)
	if err != nil {
		return nil, err
	}
	own, err := wire.Socket(fds[1], 0)
	if err != nil {
		return nil, err
	}
	g := &Guest{mon: mon, own: own, dead: make(chan struct{}), spawns: make(chan func()), procs: map[string]*child{}, writes: map[uint64]write{}}
	go func() {
		runtime.LockOSThread()
		for f := range g.spawns {
			f()
		}
	}()
	go g.serve()
	return g, nil
}

// Conn is the monitor's end of the connection.
func (g *Guest) Conn() *wire.Conn { return g.mon }

// Gate is empty: there is no egress gate here.
func (g *Guest) Gate() []*os.File { return nil }

// Ready tells that nothing is held.
func (g *Guest) Ready() wire.Ready {
	no := wire.Held{State: "not enforced", Detail: "a stand-in"}
	return wire.Ready{Memory: no, PIDs: no, CPU: no, Tree: no, Seccomp: no, InitPID: os.Getpid()}
}

// Kill ends the guest and all its processes, as the end of init does.
func (g *Guest) Kill() {
	g.once.Do(func() {
		g.mu.Lock()
		for _, c := range g.procs {
			_ = unix.Kill(-c.pid, unix.SIGKILL)
		}
		g.mu.Unlock()
		_ = g.own.Close()
		close(g.dead)
	})
}

// Wait returns after Kill.
func (g *Guest) Wait() error { <-g.dead; return nil }

// Usage is not known.
func (g *Guest) Usage() wire.Usage { return wire.Usage{CPUNS: -1, Memory: -1, Processes: -1} }

// Close has nothing to remove.
func (g *Guest) Close() error { return nil }

func (g *Guest) serve() {
	for {
		f, err := g.own.Recv()
		if err != nil {
			g.Kill()
			return
		}
		if f.Op == wire.OpStart {
			g.start(f)
		} else {
			go g.handle(f)
		}
	}
}

func (g *Guest) answer(id uint64, body any, err error, files ...*os.File) {
	h := wire.Header{ID: id}
	if err != nil {
		h.Error, body = failure(err), nil
	}
	_ = g.own.Send(h, body, nil, files...)
}

func failure(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	code := wire.CodeInternal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = wire.CodeNotExist
	case errors.Is(err, fs.ErrPermission):
		code = wire.CodePermission
	}
	return &wire.Error{Code: code, Text: err.Error()}
}

func (g *Guest) start(f *wire.Frame) {
	var s wire.StartProcess
	defer func() {
		for _, file := range f.Files {
			file.Close()
		}
	}()
	if err := json.Unmarshal(f.Body, &s); err != nil {
		g.answer(f.ID, nil, err)
		return
	}
	argv := s.Argv
	if s.Shell != "" {
		argv = []string{"/bin/bash", "-c", s.Shell}
	}
	path, err := lookPath(argv[0])
	if err != nil {
		g.answer(f.ID, nil, &wire.Error{Code: wire.CodeNoProgram, Text: argv[0] + ": no such program"})
		return
	}
	if st, err := os.Stat(s.Cwd); err != nil || !st.IsDir() {
		g.answer(f.ID, nil, &wire.Error{Code: wire.CodeBadCwd, Text: s.Cwd + ": no such directory"})
		return
	}
	attr := &os.ProcAttr{Dir: s.Cwd, Env: []string{"PATH=/usr/bin:/bin"}, Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}}
	for k, v := range s.Env {
		attr.Env = append(attr.Env, k+"="+v)
	}
	var master *os.File
	switch {
	case s.Cols > 0:
		var slave *os.File
		if master, slave, err = pty(s.Cols, s.Rows); err != nil {
			g.answer(f.ID, nil, err)
			return
		}
		defer master.Close()
		defer slave.Close()
		attr.Files = []*os.File{slave, slave, slave}
		attr.Sys.Setctty = true
	case s.NullStdin:
		null, err := os.Open("/dev/null")
		if err != nil {
			g.answer(f.ID, nil, err)
			return
		}
		defer null.Close()
		attr.Files = append([]*os.File{null}, f.Files...)
	default:
		attr.Files = f.Files
	}
	var p *os.Process
	done := make(chan struct{})
	g.spawns <- func() { p, err = os.StartProcess(path, argv, attr); close(done) }
	<-done
	if err != nil {
		g.answer(f.ID, nil, &wire.Error{Code: wire.CodeNoProgram, Text: err.Error()})
		return
	}
	c := &child{pid: p.Pid}
	g.mu.Lock()
	g.procs[s.ID] = c
	g.mu.Unlock()
	var files []*os.File
	if master != nil {
		files = append(files, master)
	}
	g.answer(f.ID, wire.Started{PID: p.Pid}, nil, files...)
	go g.reap(s.ID, c, p)
}

func (g *Guest) reap(id string, c *child, p *os.Process) {
	st, err := p.Wait()
	if err != nil {
		return
	}
	ws := st.Sys().(syscall.WaitStatus)
	e := wire.Exited{ID: id, Code: st.ExitCode(), CPUNS: int64(st.UserTime() + st.SystemTime()), Leftovers: group(c.pid)}
	if ws.Signaled() {
		e.Code, e.Signal = -1, int(ws.Signal())
	}
	g.mu.Lock()
	c.exited = true
	g.mu.Unlock()
	_ = g.own.Send(wire.Header{Op: wire.OpExited}, e, nil)
	for len(group(c.pid)) > 0 {
		time.Sleep(10 * time.Millisecond)
	}
	_ = g.own.Send(wire.Header{Op: wire.OpGone}, wire.ProcessRef{ID: id}, nil)
}

// lookPath does not look at PATH, since a monitor has no environment.
func lookPath(name string) (string, error) {
	if !strings.Contains(name, "/") {
		if path, err := exec.LookPath("/usr/bin/" + name); err == nil {
			return path, nil
		}
		name = "/bin/" + name
	}
	return exec.LookPath(name)
}

// group lists the live processes of a session.
func group(sid int) (list []string) {
	if unix.Kill(-sid, 0) == unix.ESRCH {
		return nil // looking through /proc is slow
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		open, shut := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
		rest := strings.Fields(string(b[shut+1:]))
		if len(rest) > 3 && rest[3] == strconv.Itoa(sid) && rest[0] != "Z" && rest[0] != "X" {
			list = append(list, strings.TrimSpace(string(b[:open]))+" "+string(b[open+1:shut]))
		}
	}
	return list
}

func (g *Guest) signal(id string, sig int) int {
	g.mu.Lock()
	c := g.procs[id]
	g.mu.Unlock()
	if c == nil || unix.Kill(-c.pid, unix.Signal(sig)) != nil {
		return 0
	}
	return 1
}

func (g *Guest) handle(f *wire.Frame) {
	switch f.Op {
	case wire.OpSignal:
		var s wire.Signal
		_ = json.Unmarshal(f.Body, &s)
		g.answer(f.ID, wire.Signalled{Count: g.signal(s.ID, s.Signal)}, nil)
	case wire.OpTree:
		var r wire.ProcessRef
		_ = json.Unmarshal(f.Body, &r)
		g.mu.Lock()
		c := g.procs[r.ID]
		g.mu.Unlock()
		if c == nil {
			g.answer(f.ID, nil, &wire.Error{Code: wire.CodeNoProcess, Text: "none"})
			return
		}
		list := group(c.pid)
		g.answer(f.ID, wire.Tree{Count: len(list), CPUNS: 1, Memory: 4096, Processes: list}, nil)
	case wire.OpHalt:
		var h wire.Halt
		_ = json.Unmarshal(f.Body, &h)
		g.halt(time.Duration(h.GraceMS) * time.Millisecond)
		g.answer(f.ID, nil, nil)
	default:
		g.file(f)
	}
}

func (g *Guest) halt(grace time.Duration) {
	end := time.Now().Add(grace)
	for sig := unix.SIGTERM; ; {
		left := 0
		g.mu.Lock()
		for _, c := range g.procs {
			if !c.exited || len(group(c.pid)) > 0 {
				left++
				_ = unix.Kill(-c.pid, sig)
			}
		}
		g.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			sig = unix.SIGKILL
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func pty(cols, rows uint16) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}
