//go:build unix

package providertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"berth/sandbox"
)

// stdinBacklog is how many bytes may wait for a process that does not read.
const stdinBacklog = 1 << 20

// fakeProcess is a host process and what it has written.
type fakeProcess struct {
	id    sandbox.ProcessID
	pid   int
	born  int // see born
	store *fakeStore
	done  chan struct{} // closed when the exit is recorded

	mu      sync.Mutex
	st      sandbox.ProcessInfo
	out     [2]fakeLog
	changed chan struct{} // closed and replaced at each change

	killSignal string // the last signal sent by us
	killReason string

	stdin      *os.File
	stdinQueue []byte
	stdinEnd   bool
	stdinWake  chan struct{}
}

// fakeLog keeps the newest bytes of a stream; base is the offset of data[0].
type fakeLog struct {
	base int64
	data []byte
}

func (l *fakeLog) end() int64 { return l.base + int64(len(l.data)) }

func (l *fakeLog) add(p []byte, limit int64) {
	l.data = append(l.data, p...)
	if over := int64(len(l.data)) - limit; over > 0 {
		l.base += over
		l.data = append([]byte(nil), l.data[over:]...)
	}
}

func startFake(b *fakeBox, c sandbox.Command) (*fakeProcess, error) {
	cwd, err := b.resolve(c.Cwd)
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(cwd); err != nil || !st.IsDir() {
		return nil, &fs.PathError{Op: "chdir", Path: c.Cwd, Err: fs.ErrNotExist}
	}
	if c.TTY != nil {
		return nil, fmt.Errorf("terminals: %w", sandbox.ErrUnsupported)
	}
	if c.User != "" && c.User != accountOf(b.spec) && c.User != "root" {
		return nil, &sandbox.FieldError{Field: "user", Problem: fmt.Sprintf("there is no user %q", c.User), Allowed: accountOf(b.spec) + ", root"}
	}
	argv := c.Argv
	if c.Shell != "" {
		shell := fakeRuntimes()[sandbox.Bash]
		if len(c.Shell) <= 100<<10 {
			argv = []string{shell, "-c", "--", c.Shell}
		} else {
			f, err := os.CreateTemp(b.root+"/tmp", "command-*")
			if err != nil {
				return nil, err
			}
			_, err = f.WriteString(c.Shell)
			if err := errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
			argv = []string{shell, f.Name()}
		}
	}
	env := map[string]string{"HOME": b.home, "PATH": os.Getenv("PATH"), "USER": accountOf(b.spec), "LANG": "C.UTF-8", "TERM": "dumb"}
	for k, v := range c.Env {
		env[k] = v
	}
	for _, k := range c.Unset {
		delete(env, k)
	}
	env[treeMark] = string(c.ID)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = cwd
	cmd.Env = []string{"PWD=" + cwd}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	p := &fakeProcess{id: c.ID, store: b.store, done: make(chan struct{}), changed: make(chan struct{}), stdinWake: make(chan struct{}, 1)}
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	pipe := func() (*os.File, *os.File, error) {
		r, w, err := os.Pipe()
		if err == nil {
			files = append(files, r, w)
		}
		return r, w, err
	}
	or, ow, err1 := pipe()
	er, ew, err2 := pipe()
	if err := errors.Join(err1, err2); err != nil {
		closeAll()
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = ow, ew
	if c.Merge {
		cmd.Stderr = ow
	}
	var ir *os.File
	if len(c.Stdin) > 0 || c.OpenStdin {
		r, w, err := pipe()
		if err != nil {
			closeAll()
			return nil, err
		}
		ir = r
		cmd.Stdin, p.stdin = r, w
		p.stdinQueue, p.stdinEnd = append([]byte(nil), c.Stdin...), !c.OpenStdin
	}
	if err := cmd.Start(); err != nil {
		closeAll()
		return nil, &sandbox.UserError{Text: fmt.Sprintf("%s cannot be run: %v", argv[0], errors.Unwrap(err))}
	}
	_, _ = ow.Close(), ew.Close()
	if ir != nil {
		_ = ir.Close()
	}
	p.pid = cmd.Process.Pid
	p.born = born(p.pid)
	p.st = sandbox.ProcessInfo{ID: c.ID, Command: c.Display, Note: c.Note, Cwd: c.Cwd, User: c.User, State: sandbox.ProcessRunning,
		Started: b.store.options.Now(), StdinOpen: c.OpenStdin, CPU: -1, Memory: -1}
	if p.stdin != nil {
		go p.feed()
	}
	var readers sync.WaitGroup
	for i, r := range []*os.File{or, er} {
		readers.Go(func() { p.collect(i, r) })
	}
	var timer *time.Timer
	if c.Timeout > 0 {
		timer = time.AfterFunc(c.Timeout, func() {
			p.mu.Lock()
			late := p.st.State != sandbox.ProcessRunning
			if !late {
				p.st.TimedOut = true
			}
			p.mu.Unlock()
			if !late {
				_ = p.kill("KILL", 0, fmt.Sprintf("timed out after %v", c.Timeout))
			}
		})
	}
	go func() {
		err := cmd.Wait()
		if timer != nil {
			timer.Stop()
		}
		p.drain(0, or)
		p.drain(1, er)
		p.exited(cmd.ProcessState, err)
		readers.Wait() // leftovers may go on writing
		_, _ = or.Close(), er.Close()
	}()
	return p, nil
}

// collect appends to a log what the pipe gives. Read and append are one step
// under the lock, so that drain leaves nothing in between.
func (p *fakeProcess) collect(stream int, r *os.File) {
	rc, err := r.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n := 0
		err := rc.Read(func(fd uintptr) bool {
			n = p.readInto(stream, int(fd), buf)
			return n >= 0
		})
		if err != nil || n == 0 {
			return
		}
	}
}

// readInto moves what one read gives into the log; -1: nothing yet, 0: end.
func (p *fakeProcess) readInto(stream, fd int, buf []byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := syscall.Read(fd, buf)
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return -1
	case err != nil || n <= 0:
		return 0
	}
	p.out[stream].add(buf[:n], p.store.options.LogLimit)
	p.notify()
	return n
}

func (p *fakeProcess) drain(stream int, r *os.File) {
	rc, err := r.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	_ = rc.Control(func(fd uintptr) {
		// A leftover that writes without end must not hold the exit back.
		for range 64 {
			if p.readInto(stream, int(fd), buf) <= 0 {
				return
			}
		}
	})
}

// notify wakes all waiters; p.mu is held.
func (p *fakeProcess) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *fakeProcess) exited(ps *os.ProcessState, err error) {
	left := treeCommands(p.id, p.pid, p.born)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.st.State != sandbox.ProcessRunning {
		close(p.done)
		return
	}
	p.st.State, p.st.Ended, p.st.StdinOpen = sandbox.ProcessExited, p.store.options.Now(), false
	p.st.Leftovers = left
	code := -1
	if ps != nil {
		code = ps.ExitCode()
		if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.st.Signal = signalName(ws.Signal())
			code = 128 + int(ws.Signal())
		}
	} else if err != nil {
		p.st.Reason = err.Error()
	}
	switch {
	case p.st.TimedOut:
		code, p.st.Killed, p.st.Reason = 124, true, p.killReason
	case p.killSignal != "" && p.st.Signal != "":
		code, p.st.Killed, p.st.Reason = 137, true, p.killReason
	}
	if code >= 0 {
		p.st.ExitCode = &code
	}
	p.notify()
	close(p.done)
}

// lose forgets how the process ends, as the death of a machine does.
func (p *fakeProcess) lose(reason string) {
	p.mu.Lock()
	if p.st.State == sandbox.ProcessRunning {
		p.st.State, p.st.Reason, p.st.Ended, p.st.StdinOpen = sandbox.ProcessLost, reason, p.store.options.Now(), false
		p.notify()
	}
	p.mu.Unlock()
	_ = killTree(p.id, p.pid, p.born, "KILL")
}

func (p *fakeProcess) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.st.State == sandbox.ProcessRunning
}

func (p *fakeProcess) info() sandbox.ProcessInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.st
	i.Produced = sandbox.Cursor{Stdout: p.out[0].end(), Stderr: p.out[1].end()}
	i.Kept = sandbox.Cursor{Stdout: p.out[0].base, Stderr: p.out[1].base}
	return i
}

func (p *fakeProcess) ID() sandbox.ProcessID { return p.id }

func (p *fakeProcess) Info(context.Context) (sandbox.ProcessInfo, error) { return p.info(), nil }

func (p *fakeProcess) Read(ctx context.Context, c sandbox.Cursor, max int64) (sandbox.Output, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Output{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	o := sandbox.Output{}
	take := func(l *fakeLog, at int64) ([]byte, int64) {
		if at < l.base {
			o.Dropped += l.base - at
			at = l.base
		}
		n := min(max, l.end()-at)
		if n <= 0 {
			return nil, at
		}
		max -= n
		return append([]byte(nil), l.data[at-l.base:at-l.base+n]...), at + n
	}
	o.Stdout, o.Next.Stdout = take(&p.out[0], c.Stdout)
	o.Stderr, o.Next.Stderr = take(&p.out[1], c.Stderr)
	return o, nil
}

func (p *fakeProcess) Wait(ctx context.Context, c sandbox.Cursor, exitOnly bool) error {
	for {
		p.mu.Lock()
		ready := p.st.State != sandbox.ProcessRunning ||
			!exitOnly && (p.out[0].end() > c.Stdout || p.out[1].end() > c.Stderr)
		changed := p.changed
		p.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *fakeProcess) Write(ctx context.Context, b []byte, end bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.st.State != sandbox.ProcessRunning:
		return sandbox.ErrExited
	case p.stdin == nil || p.stdinEnd:
		return sandbox.ErrStdinClosed
	case len(p.stdinQueue) >= stdinBacklog:
		return sandbox.ErrLimit
	}
	p.stdinQueue = append(p.stdinQueue, b...)
	if end {
		p.stdinEnd, p.st.StdinOpen = true, false
	}
	select {
	case p.stdinWake <- struct{}{}:
	default:
	}
	return nil
}

// feed writes what is queued for stdin until the end or the exit.
func (p *fakeProcess) feed() {
	go func() { <-p.done; _ = p.stdin.Close() }()
	for {
		p.mu.Lock()
		n := min(len(p.stdinQueue), 64<<10)
		chunk := append([]byte(nil), p.stdinQueue[:n]...)
		end := p.stdinEnd && n == 0
		p.mu.Unlock()
		switch {
		case end:
			_ = p.stdin.Close()
			return
		case n == 0:
			select {
			case <-p.stdinWake:
			case <-p.done:
				return
			}
			continue
		}
		if _, err := p.stdin.Write(chunk); err != nil {
			p.mu.Lock()
			p.stdinEnd, p.st.StdinOpen, p.stdinQueue = true, false, nil
			p.mu.Unlock()
			return
		}
		p.mu.Lock()
		p.stdinQueue = p.stdinQueue[n:]
		p.mu.Unlock()
	}
}

func (p *fakeProcess) Resize(context.Context, sandbox.WindowSize) error {
	return fmt.Errorf("terminals: %w", sandbox.ErrUnsupported)
}

func (p *fakeProcess) Kill(ctx context.Context, sig string, grace time.Duration, reason string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.kill(sig, grace, reason)
}

func (p *fakeProcess) kill(sig string, grace time.Duration, reason string) error {
	p.mu.Lock()
	if p.st.State == sandbox.ProcessRunning {
		p.killSignal, p.killReason = sig, reason
	}
	p.mu.Unlock()
	if err := killTree(p.id, p.pid, p.born, sig); err != nil {
		return err
	}
	if grace > 0 {
		time.AfterFunc(grace, func() { _ = killTree(p.id, p.pid, p.born, "KILL") })
	}
	return nil
}
