//go:build linux

package monitor

import (
	"encoding/json"
	"sync"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// handle answers one request, now or later. It does not wait, so that requests
// of one connection do not hold each other up.
func (p *peer) handle(f *wire.Frame) {
	m := p.m
	if f.Once != "" && !m.onces.first(p, f) {
		return
	}
	switch f.Op { // those that count as activity, since somebody works with the sandbox
	case wire.OpHello, wire.OpWait, wire.OpCancel, wire.OpProcess, wire.OpProcesses, wire.OpUsage, wire.OpConfigure, wire.OpLimit, wire.OpStop, wire.OpMakeWay, wire.OpFreeze, wire.OpThaw, wire.OpNetwork, wire.OpMounts:
	default:
		if !f.Aside {
			m.mu.Lock()
			m.touch()
			m.mu.Unlock()
		}
	}
	switch f.Op {
	case wire.OpStat, wire.OpOpen, wire.OpReadDir, wire.OpCreate, wire.OpCommit, wire.OpMkdir, wire.OpSymlink, wire.OpRemove, wire.OpRename, wire.OpPermit, wire.OpDial:
		p.forward(f)
		return
	case wire.OpKeep:
		p.answer(f.ID, nil, m.files.keep(f))
		return
	}
	if f.Op == wire.OpMount {
		p.mount(f)
		return
	}
	closeFiles(f.Files) // no other takes any
	done := func(e *wire.Error) { p.answer(f.ID, nil, e) }
	switch f.Op {
	case wire.OpHello:
		p.answer(f.ID, wire.Hello{Version: wire.Version, Boot: m.record.Boot, PID: m.record.MonitorPID, Started: m.record.Started}, nil)
	case wire.OpTouch:
		done(nil)
	case wire.OpSpawn:
		var c wire.Command
		if p.decode(f, &c) {
			m.spawn(&c, f.Data, func(i *wire.Process, e *wire.Error) {
				if e != nil || !m.await(p, f.ID, &c) {
					p.answer(f.ID, i, e)
				}
			})
		}
	case wire.OpWait:
		var w wire.Wait
		if p.decode(f, &w) {
			m.wait(p, f.ID, &w)
		}
	case wire.OpCancel:
		var c wire.Cancel
		if p.decode(f, &c) {
			m.mu.Lock()
			if w := p.waits[c.Request]; w != nil {
				m.endWait(w)
			}
			m.mu.Unlock()
			done(nil)
		}
	case wire.OpProcess:
		var ref wire.ProcessRef
		if p.decode(f, &ref) {
			go p.process(f.ID, ref.ID)
		}
	case wire.OpProcesses:
		go p.processes(f.ID)
	case wire.OpStdin:
		var s wire.Stdin
		if p.decode(f, &s) {
			p.stdin(f.ID, &s, f.Data)
		}
	case wire.OpResize:
		var r wire.Resize
		if p.decode(f, &r) {
			done(m.resize(&r))
		}
	case wire.OpKill:
		var k wire.Kill
		if p.decode(f, &k) {
			go func() { done(m.kill(&k)) }()
		}
	case wire.OpForget:
		var ref wire.ProcessRef
		if p.decode(f, &ref) {
			done(m.forgetEnded(ref.ID))
		}
	case wire.OpMounts:
		p.answer(f.ID, p.m.mountStates(), nil)
	case wire.OpUnmount:
		var u wire.Unmount
		if p.decode(f, &u) {
			go func() { done(p.m.unmount(u.Path)) }()
		}
	case wire.OpNetwork:
		var c wire.NetworkChange
		if p.decode(f, &c) {
			go p.network(f.ID, &c)
		}
	case wire.OpUsage:
		go p.usage(f.ID)
	case wire.OpConfigure:
		var i wire.Intervals
		if p.decode(f, &i) {
			m.configure(i)
			done(nil)
		}
	case wire.OpLimit:
		var c wire.LimitChange
		if p.decode(f, &c) {
			go func() { done(m.relimit(&c)) }()
		}
	case wire.OpStop:
		var s wire.Stop
		if p.decode(f, &s) {
			if s.Reason == "" {
				s.Reason = "asked to"
			}
			m.stop(cut(s.Reason, 1000), done)
		}
	case wire.OpMakeWay:
		m.makeWay(func(busy bool, e *wire.Error) { p.answer(f.ID, wire.MadeWay{Busy: busy}, e) })
	case wire.OpKept:
		var k wire.Kept
		if p.decode(f, &k) {
			file, e := m.files.find(k.Token)
			if e != nil {
				done(e)
				return
			}
			p.answer(f.ID, nil, nil, file)
		}
	case wire.OpUnkeep:
		var k wire.Kept
		if p.decode(f, &k) {
			m.files.drop(k.Token)
			done(nil)
		}
	case wire.OpFreeze:
		go func() { done(p.freeze()) }()
	case wire.OpThaw:
		go func() { done(p.thaw()) }()
	default:
		done(&wire.Error{Code: wire.CodeUnsupported, Text: "this sandbox's monitor does not know the request " + cut(f.Op, 40) + "; it was started by another version of berth: stop and start the sandbox"})
	}
}

func (p *peer) decode(f *wire.Frame, v any) bool {
	if len(f.Body) > 0 {
		if err := json.Unmarshal(f.Body, v); err == nil {
			return true
		}
	}
	p.answer(f.ID, nil, &wire.Error{Code: wire.CodeInvalid, Text: "the request " + cut(f.Op, 40) + " cannot be understood"})
	return false
}

// find finds a process that init has answered for.
func (m *monitor) find(id string) (*proc, *wire.Error) {
	m.mu.Lock()
	p := m.procs[id]
	m.mu.Unlock()
	if p == nil {
		return nil, noProcess(id)
	}
	if p.started != nil {
		<-p.started
	}
	if p.failed != nil {
		return nil, noProcess(id)
	}
	return p, nil
}

func (p *peer) process(id uint64, name string) {
	q, e := p.m.find(name)
	if e != nil {
		p.answer(id, nil, e)
		return
	}
	p.m.mu.Lock()
	i, gone := q.state(), q.gone
	p.m.mu.Unlock()
	if !gone {
		p.m.measure(&i)
	}
	p.answer(id, &i, nil)
}

func (p *peer) processes(id uint64) {
	m := p.m
	m.mu.Lock()
	all := wire.Processes{Processes: m.states()}
	var live []*wire.Process
	for i := range all.Processes {
		if !m.order[i].gone && all.Processes[i].State == "running" {
			live = append(live, &all.Processes[i])
		}
	}
	m.mu.Unlock()
	var wg sync.WaitGroup
	for _, i := range live {
		wg.Go(func() { m.measure(i) })
	}
	wg.Wait()
	p.answer(id, &all, nil)
}

// measure asks init what a tree uses. What it does not tell stays unknown.
func (m *monitor) measure(i *wire.Process) {
	f, e := m.guest.call(wire.OpTree, &wire.ProcessRef{ID: i.ID}, treeWait)
	if e != nil {
		return
	}
	t := wire.Tree{CPUNS: -1, Memory: -1}
	if json.Unmarshal(f.Body, &t) != nil {
		return
	}
	if i.State != "running" {
		i.Leftovers = bounded(t.Processes)
		return
	}
	i.CPUNS, i.Memory, i.Count = max(t.CPUNS, -1), max(t.Memory, -1), max(t.Count, 0)
}

func (p *peer) stdin(id uint64, s *wire.Stdin, data []byte) {
	m := p.m
	write := func(q *proc) *wire.Error {
		m.mu.Lock()
		running, in := q.running() && !q.ending, q.in
		m.mu.Unlock()
		switch {
		case !running:
			return &wire.Error{Code: wire.CodeExited, Text: "the process has exited"}
		case in == nil:
			return &wire.Error{Code: wire.CodeStdinClosed, Text: "stdin was never open; start the process with open_stdin"}
		}
		return in.write(data, s.End, s.At)
	}
	m.mu.Lock()
	q := m.procs[s.ID]
	m.mu.Unlock()
	if q == nil {
		p.answer(id, nil, noProcess(s.ID))
		return
	}
	if q.started != nil {
		select {
		case <-q.started: // written here, so that writes keep their order
		default:
			go func() {
				if _, e := m.find(s.ID); e != nil {
					p.answer(id, nil, e)
					return
				}
				p.answer(id, nil, write(q))
			}()
			return
		}
	}
	p.answer(id, nil, write(q))
}

func (m *monitor) resize(r *wire.Resize) *wire.Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.procs[r.ID]
	switch {
	case q == nil:
		return noProcess(r.ID)
	case !q.running():
		return &wire.Error{Code: wire.CodeExited, Text: "the process has exited"}
	case !q.info.TTY:
		return &wire.Error{Code: wire.CodeUnsupported, Text: "the process has no terminal; start it with tty"}
	case r.Cols == 0 || r.Rows == 0:
		return &wire.Error{Code: wire.CodeInvalid, Text: "cols and rows must be at least 1"}
	case q.out == nil:
		return &wire.Error{Code: wire.CodeStopping, Text: "the process is not started yet; try again"}
	}
	err := q.out.control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: r.Cols, Row: r.Rows})
	})
	if err != nil {
		return &wire.Error{Code: wire.CodeExited, Text: "the terminal is closed"}
	}
	q.info.Cols, q.info.Rows = r.Cols, r.Rows
	m.note(q)
	return nil
}

func (p *peer) usage(id uint64) {
	m := p.m
	u := m.box.Usage()
	if u.Memory < 0 {
		u.Memory, u.Processes = m.together()
	}
	m.mu.Lock()
	u.IdleSince = m.active.UnixNano()
	if m.busy > 0 {
		u.IdleSince = 0
	}
	m.mu.Unlock()
	p.answer(id, u, nil)
}

// forward hands a request for files or a socket on to init, and its answer back.
func (p *peer) forward(f *wire.Frame) {
	m := p.m
	var commit wire.Commit
	switch f.Op {
	case wire.OpCreate:
	case wire.OpCommit:
		if !p.decode(f, &commit) {
			closeFiles(f.Files)
			return
		}
		m.mu.Lock()
		known := p.tokens[commit.Token]
		delete(p.tokens, commit.Token)
		m.mu.Unlock()
		if !known {
			closeFiles(f.Files)
			p.answer(f.ID, nil, &wire.Error{Code: wire.CodeInvalid, Text: "this write is not known; it may have ended already, or taken longer than 10 minutes"})
			return
		}
	}
	want := 0
	if f.Op == wire.OpOpen || f.Op == wire.OpCreate || f.Op == wire.OpDial {
		want = 1
	}
	// In a goroutine, since init may be slow to take the request.
	go func() {
		m.guest.send(f.Op, f.Body, f.Data, f.Files, func(a *wire.Frame, e *wire.Error) {
			if e != nil {
				p.answer(f.ID, nil, e)
				return
			}
			if len(a.Files) != want {
				closeFiles(a.Files)
				p.answer(f.ID, nil, &wire.Error{Code: wire.CodeInternal, Text: "the sandbox's answer cannot be understood"})
				return
			}
			if f.Op == wire.OpCreate && !p.own(a) {
				closeFiles(a.Files)
				return
			}
			p.answer(f.ID, a.Body, nil, a.Files...)
		})
		closeFiles(f.Files)
	}()
}

// own notes the token of a write that was begun, or ends the write when the
// peer has left meanwhile.
func (p *peer) own(a *wire.Frame) bool {
	var c wire.Created
	if json.Unmarshal(a.Body, &c) != nil {
		c.Token = 0
	}
	m := p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.closed || p.tokens == nil {
		m.abort(c.Token)
		return false
	}
	p.tokens[c.Token] = true
	return true
}
