//go:build linux

package resident

import (
	"encoding/json"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/guest"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// Call is `box call`. What it prints holds the answer.
func Call() int {
	c, data, err := wire.DecodeCall(os.Getenv(wire.CallVariable), func(name string) ([]byte, error) {
		b, err := os.ReadFile(name)
		if err == nil {
			_ = os.Remove(name)
		}
		return b, err
	})
	_ = os.Unsetenv(wire.CallVariable)
	if err != nil || !validSandbox(c.Sandbox) {
		_, _ = os.Stderr.WriteString("berth's helper was called in a way that it does not understand, or the call did not come whole; nothing was done\n")
		return 3
	}
	r := &caller{call: c, data: data, answer: &wire.Answer{ID: c.ID}}
	if err := r.do(); err != nil {
		e, ok := err.(*wire.Error)
		if !ok {
			e = &wire.Error{Code: wire.CodeInternal, Text: err.Error()}
		}
		r.answer.Error, r.out = e, nil
	}
	text, err := wire.EncodeAnswer(r.answer, r.out)
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	if _, err := os.Stdout.Write(text); err != nil {
		return 1
	}
	return 0
}

// caller carries out one call.
type caller struct {
	call   *wire.Call
	data   []byte
	conn   *wire.Conn
	dir    string // of the resident
	next   uint64
	answer *wire.Answer
	out    []byte
}

func (r *caller) do() error {
	c := r.call
	switch {
	case c.Facts != nil:
		r.facts()
		return nil
	case c.Start != nil:
		if e := start(c); e != nil {
			return e
		}
		c.Facts = &wire.CallFacts{WaitMS: 1000}
		r.facts()
		return nil
	case c.Reach != nil:
		return r.reach()
	}
	if r.conn, r.dir = connect(c); r.conn == nil {
		return &wire.Error{Code: wire.CodeNoResident, Text: "berth's helper does not run in the sandbox"}
	}
	defer r.conn.Close()
	switch {
	case c.Spawn != nil:
		return r.process(wire.OpSpawn, c.Spawn, "")
	case c.Stdin != nil:
		return r.process(wire.OpStdin, c.Stdin, c.ID)
	case c.Kill != nil:
		return r.process(wire.OpKill, c.Kill, c.ID)
	case c.Resize != nil:
		return r.process(wire.OpResize, c.Resize, "")
	case c.Watch != nil:
		return r.watch()
	case c.List:
		var all wire.Processes
		err := r.ask(wire.OpProcesses, struct{}{}, &all)
		r.answer.Processes = all.Processes
		return err
	case c.Usage:
		r.answer.Usage = &wire.Usage{}
		return r.ask(wire.OpUsage, struct{}{}, r.answer.Usage)
	case c.Stop != nil:
		return r.ask(wire.OpStop, c.Stop, nil)
	case c.Forget != nil:
		return r.act(wire.OpForget, c.Forget)
	case c.Remove != nil:
		return r.act(wire.OpRemove, c.Remove)
	case c.Rename != nil:
		return r.act(wire.OpRename, c.Rename)
	case c.Permit != nil:
		return r.act(wire.OpPermit, c.Permit)
	case c.File != nil:
		return r.file(c.File)
	}
	return &wire.Error{Code: wire.CodeUnsupported, Text: "berth's helper does not know what it is asked for; it is of another version of berth"}
}

// ask sends a request and waits for its answer.
func (r *caller) ask(op string, body, out any) error {
	f, err := r.request(wire.Header{Op: op}, body, nil)
	if err == nil {
		closeFiles(f)
		if out != nil {
			err = json.Unmarshal(f.Body, out)
		}
	}
	return err
}

// act is ask for what is done once, however often the call comes.
func (r *caller) act(op string, body any) error {
	f, err := r.request(wire.Header{Op: op, Once: r.call.ID}, body, nil)
	if err == nil {
		closeFiles(f)
	}
	return err
}

func closeFiles(f *wire.Frame) {
	for _, file := range f.Files {
		_ = file.Close()
	}
}

// request is ask for the frame of the answer.
func (r *caller) request(h wire.Header, body any, data []byte, files ...*os.File) (*wire.Frame, error) {
	r.next++
	h.ID = r.next
	if err := r.conn.Send(h, body, data, files...); err != nil {
		return nil, r.broken(err)
	}
	return r.receive(h.ID)
}

func (r *caller) receive(id uint64) (*wire.Frame, error) {
	for {
		f, err := r.conn.Recv()
		if err != nil {
			return nil, r.broken(err)
		}
		if f.ID != id {
			closeFiles(f)
			continue
		}
		if f.Error != nil {
			closeFiles(f)
			return nil, f.Error
		}
		return f, nil
	}
}

// broken says that the resident died under the call. A call is safe to send again.
func (r *caller) broken(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF || err == unix.EPIPE || err == unix.ECONNRESET {
		return &wire.Error{Code: wire.CodeNoResident, Text: "berth's helper in the sandbox has just ended"}
	}
	return failed("berth's helper in the sandbox does not answer", err)
}

// process does what is to be done to a process, and watches it.
func (r *caller) process(op string, body any, once string) error {
	f, err := r.request(wire.Header{Op: op, Once: once}, body, r.data)
	if err != nil {
		return err
	}
	closeFiles(f)
	if op == wire.OpSpawn {
		r.answer.Process = &wire.Process{}
		if err := json.Unmarshal(f.Body, r.answer.Process); err != nil {
			return err
		}
	}
	if r.call.Watch == nil {
		return nil
	}
	return r.watch()
}

// watch waits as Call.Watch says, and answers state and output.
func (r *caller) watch() error {
	w := r.call.Watch
	p := r.answer.Process
	if p == nil {
		p = &wire.Process{}
		if w.Bare && w.WaitMS <= 0 && !w.Ends {
			return r.output(w, p)
		}
		if w.WaitMS <= 0 {
			if err := r.ask(wire.OpProcess, wire.ProcessRef{ID: w.ID}, p); err != nil {
				return err
			}
		}
		r.answer.Process = p
	}
	measured := r.call.Spawn == nil && w.WaitMS <= 0
	if w.WaitMS > 0 && (p.State == "" || p.State == journal.Running) {
		late := time.Now().Add(time.Duration(w.WaitMS) * time.Millisecond)
		if err := r.wait(&wire.Wait{ID: w.ID, Stdout: w.Stdout, Stderr: w.Stderr, ExitOnly: w.ExitOnly}, p, late); err != nil {
			return err
		}
		r.settle(w, p, late)
	}
	if (p.State == journal.Running || len(p.Leftovers) > 0) && !measured {
		// Before the output is read, so that what is read is all there is when this
		// says that it has ended.
		if err := r.ask(wire.OpProcess, wire.ProcessRef{ID: w.ID}, p); err != nil {
			return err
		}
	}
	return r.output(w, p)
}

// wait asks for a wait, and ends it when it is late.
func (r *caller) wait(want *wire.Wait, p *wire.Process, late time.Time) error {
	r.next++
	id := r.next
	if err := r.conn.Send(wire.Header{ID: id, Op: wire.OpWait}, want, nil); err != nil {
		return r.broken(err)
	}
	cancelled := !r.readable(late)
	if cancelled {
		r.next++
		if err := r.conn.Send(wire.Header{ID: r.next, Op: wire.OpCancel}, wire.Cancel{Request: id}, nil); err != nil {
			return r.broken(err)
		}
	}
	f, err := r.receive(id)
	if err != nil {
		return err
	}
	if cancelled {
		// Its answer comes after the wait's; the next wait would take it for its own,
		// and never be cancelled.
		if _, err := r.receive(r.next); err != nil {
			return err
		}
	}
	*p = wire.Process{}
	return json.Unmarshal(f.Body, p)
}

// readable waits until the resident has said something. Nothing that it has said
// is unread then.
func (r *caller) readable(late time.Time) bool {
	raw, err := r.conn.File().SyscallConn()
	if err != nil {
		return true
	}
	ready := false
	_ = raw.Control(func(fd uintptr) {
		for {
			left := time.Until(late)
			if left < 0 {
				left = 0
			}
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, int((left+time.Millisecond-1)/time.Millisecond))
			if err == unix.EINTR {
				continue
			}
			ready = n > 0 || err != nil
			return
		}
	})
	return ready
}

// settle waits until output that has come pauses.
func (r *caller) settle(w *wire.CallWatch, p *wire.Process, late time.Time) {
	pause := time.Duration(w.SettleMS) * time.Millisecond
	most := time.Now().Add(8 * pause)
	if most.After(late) {
		most = late
	}
	for pause > 0 && p.State == journal.Running && (p.Stdout > w.Stdout || p.Stderr > w.Stderr) && time.Now().Before(most) {
		next := time.Now().Add(pause)
		if next.After(most) {
			next = most
		}
		out, errs := p.Stdout, p.Stderr
		if r.wait(&wire.Wait{ID: w.ID, Stdout: out, Stderr: errs}, p, next) != nil || p.Stdout == out && p.Stderr == errs {
			return
		}
	}
}

func (r *caller) facts() {
	c := r.call
	u := user()
	f := &wire.Facts{User: u.Name, UID: int(u.UID), GID: int(u.GID), Home: u.Home, Arch: runtime.GOARCH, Program: program()}
	f.Cwd, _ = os.Getwd()
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		f.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	for _, name := range c.Facts.Programs {
		if file := guest.FindProgram(name, os.Getenv("PATH")); file != "" && !strings.Contains(name, "/") {
			if f.Programs == nil {
				f.Programs = map[string]string{}
			}
			f.Programs[name] = file
		}
	}
	if dir := serving(c, time.Duration(c.Facts.WaitMS)*time.Millisecond); dir != "" {
		if f.Resident = readRecord(dir); f.Resident == nil {
			f.Resident = &wire.Resident{Version: wire.CallVersion, Base: path.Dir(dir)}
		}
	}
	r.answer.Facts = f
}
