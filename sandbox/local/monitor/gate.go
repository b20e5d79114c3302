//go:build linux

package monitor

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// Bounds of a gate's life.
const (
	gateIdle     = 30 * time.Second
	gateWait     = 5 * time.Second // for the gate, or init on its behalf, to answer
	gateRestart  = 200 * time.Millisecond
	gateMaxFrame = 1 << 20
	gateSockets  = 1024
	gateTries    = 3 // failed starts in a row before what waits is refused
)

// gatekeeper holds the sockets of the egress gate. It runs the gate, a process
// without rights, while there are connections, and none while there are not:
// then it waits, with one goroutine, for the first.
type gatekeeper struct {
	m      *monitor
	files  []*os.File
	epoll  *os.File // of the sockets
	asking chan struct{}
	making chan struct{} // sockets that init is asked for

	mu      sync.Mutex
	network wire.Network
	state   wire.GateState
	conn    *wire.Conn    // to the running gate
	gone    chan struct{} // closed when that gate, and so its connections, are no more
	ids     uint64
	calls   map[uint64]chan *wire.Error
	refused []wire.Refusal // oldest first
	lost    int64
}

// openGate begins to serve the sandbox's network, when it has one.
func (m *monitor) openGate() {
	files := m.box.Gate()
	if len(files) == 0 || m.launch.Network == nil {
		closeFiles(files)
		return
	}
	k := &gatekeeper{m: m, files: files, network: *m.launch.Network, calls: map[uint64]chan *wire.Error{}, asking: make(chan struct{}, 16), making: make(chan struct{}, gateSockets)}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		for i, f := range files {
			raw, rerr := f.SyscallConn()
			if rerr != nil {
				err = rerr
				break
			}
			_ = raw.Control(func(s uintptr) {
				_ = unix.SetNonblock(int(s), true)
				if cerr := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(s), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); cerr != nil {
					err = cerr
				}
			})
		}
		_ = unix.SetNonblock(fd, true)
		k.epoll = os.NewFile(uintptr(fd), "gate")
	}
	if err != nil {
		closeFiles(files)
		_, _ = os.Stderr.WriteString("watch the network: " + err.Error() + "\n")
		return
	}
	m.gate = k
	go k.run()
}

// run starts a gate whenever something wants out.
func (k *gatekeeper) run() {
	raw, err := k.epoll.SyscallConn()
	if err != nil {
		return
	}
	failed := 0
	for {
		err := raw.Read(func(fd uintptr) bool {
			var events [4]unix.EpollEvent
			n, err := unix.EpollWait(int(fd), events[:], 0)
			return err == nil && n > 0 || err != nil && err != unix.EINTR
		})
		if err != nil {
			return
		}
		begin := time.Now()
		if err := k.serve(); err == nil {
			failed = 0
		} else {
			_, _ = os.Stderr.WriteString("the egress gate: " + cut(err.Error(), 500) + "\n")
			if failed++; failed >= gateTries && time.Since(begin) < 5*time.Second {
				k.turnAway("the egress gate cannot be run: " + err.Error())
			}
		}
		if wait := gateRestart - time.Since(begin); wait > 0 {
			time.Sleep(wait) // it died at once: not again and again
		}
	}
}

// serve runs one gate until it ends.
func (k *gatekeeper) serve() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(pair[1]), "gate")
	conn, err := wire.Socket(pair[0], gateMaxFrame)
	if err != nil {
		_ = theirs.Close()
		return err
	}
	attr := &os.ProcAttr{Dir: "/", Files: []*os.File{nil, nil, os.Stderr, theirs}, Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: 0},
		Env: []string{"GOMAXPROCS=2", "GODEBUG=containermaxprocs=0,updatemaxprocs=0", "GOTRACEBACK=single"}}
	if os.Geteuid() == 0 {
		// The last id of the sandbox's own range, which nobody inside has.
		id := uint32(65534)
		if ids := k.m.launch.IDs; ids.Base > 0 && ids.Count > 0 {
			id = ids.Base + ids.Count - 1
		}
		attr.Sys.Credential = &syscall.Credential{Uid: id, Gid: id}
	}
	exe := "/proc/self/exe"
	p, err := os.StartProcess(exe, []string{"box", "gate"}, attr)
	_ = theirs.Close()
	if err != nil {
		_ = conn.Close()
		return err
	}
	gone := make(chan struct{})
	k.mu.Lock()
	k.conn, k.gone = conn, gone
	start := wire.GateStart{Network: k.network, Resolvers: resolvers(), IdleMS: gateIdle.Milliseconds(), State: k.state}
	// Under the lock, so that no change of the policy comes before it.
	_ = conn.File().SetWriteDeadline(time.Now().Add(gateWait))
	err = conn.Send(wire.Header{Op: wire.OpGateStart}, start, nil, k.files...)
	k.mu.Unlock()
	started := err == nil
	for err == nil {
		var f *wire.Frame
		if f, err = conn.Recv(); err == nil {
			k.handle(conn, f)
		}
	}
	_ = conn.Close()
	_ = p.Kill()
	state, werr := p.Wait()
	close(gone)
	k.mu.Lock()
	k.conn = nil
	calls := k.calls
	k.calls = map[uint64]chan *wire.Error{}
	k.mu.Unlock()
	for _, ch := range calls {
		ch <- nil // the next gate has the new policy from its start
	}
	if !started {
		return err
	}
	if werr == nil && !state.Success() && !k.ending() {
		k.note(wire.Refusal{Host: "open connections", Proto: "tcp", Rule: "the egress gate died (" + state.String() + "), and with it what was open; another serves new connections"})
	}
	if werr == nil && !state.Success() && !state.Sys().(syscall.WaitStatus).Signaled() {
		return &wire.Error{Text: "it ended by itself: " + state.String()}
	}
	return nil
}

// ending tells that the sandbox is being stopped.
func (k *gatekeeper) ending() bool {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	return k.m.stopping
}

// handle takes what a gate says, which reads hostile bytes.
func (k *gatekeeper) handle(conn *wire.Conn, f *wire.Frame) {
	closeFiles(f.Files)
	// A gate that takes no answers is ended; nobody waits for it.
	reply := func(e *wire.Error, files ...*os.File) {
		_ = conn.File().SetWriteDeadline(time.Now().Add(gateWait))
		if err := conn.Send(wire.Header{ID: f.ID, Error: e}, nil, nil, files...); err != nil {
			_ = conn.Close()
		}
		closeFiles(files)
	}
	answer := func(e *wire.Error) { reply(e) }
	switch f.Op {
	case "":
		k.mu.Lock()
		ch := k.calls[f.ID]
		delete(k.calls, f.ID)
		k.mu.Unlock()
		if ch != nil {
			ch <- f.Error
		}
	case wire.OpGateState:
		var s wire.GateState
		if json.Unmarshal(f.Body, &s) == nil {
			k.mu.Lock()
			k.state = s
			k.mu.Unlock()
		}
	case wire.OpGateRefused:
		var r wire.GateRefused
		if json.Unmarshal(f.Body, &r) != nil {
			return
		}
		// Counted before anything else, so that the command which made it is told
		// even when it ends at once; whose it was may come later.
		noted := k.note(r.Refusal)
		select {
		case k.asking <- struct{}{}:
			go func() {
				defer func() { <-k.asking }()
				k.attribute(noted, k.owner(&r))
				if f.ID != 0 {
					answer(nil)
				}
			}()
		default:
			if f.ID != 0 {
				answer(nil)
			}
		}
	case wire.OpGateSocket:
		var r wire.GateSocket
		if json.Unmarshal(f.Body, &r) != nil {
			return
		}
		select {
		case k.making <- struct{}{}:
		default:
			reply(&wire.Error{Code: wire.CodeLimit, Text: "too many sockets are asked for at once"})
			return
		}
		go k.m.guest.send(wire.OpNetSocket, &r, nil, nil, func(a *wire.Frame, e *wire.Error) {
			var files []*os.File
			if e == nil {
				files = a.Files
			}
			go func() { // not here: this goroutine reads from init
				defer func() { <-k.making }()
				reply(e, files...)
			}()
		})
	}
}

// set makes n the policy; it holds when set returns.
func (k *gatekeeper) set(n wire.Network) *wire.Error {
	k.mu.Lock()
	k.network = n
	conn, gone := k.conn, k.gone
	if conn == nil {
		k.mu.Unlock()
		return nil
	}
	k.ids++
	id := k.ids
	ch := make(chan *wire.Error, 1)
	k.calls[id] = ch
	_ = conn.File().SetWriteDeadline(time.Now().Add(gateWait))
	err := conn.Send(wire.Header{ID: id, Op: wire.OpGatePolicy}, n, nil)
	k.mu.Unlock()
	if err == nil {
		select {
		case e := <-ch:
			return e
		case <-time.After(gateWait):
		}
	}
	// A gate that does not listen is not to be trusted with the old policy: it
	// ends, and the next has the new one.
	_ = conn.Close()
	<-gone
	return nil
}

// network is OpNetwork.
func (p *peer) network(id uint64, c *wire.NetworkChange) {
	k := p.m.gate
	s := wire.NetworkState{Held: p.m.record.Ready.Network}
	if k == nil {
		p.answer(id, &s, nil)
		return
	}
	if c.Set != nil {
		if e := k.set(*c.Set); e != nil {
			p.answer(id, nil, e)
			return
		}
	}
	k.mu.Lock()
	s.Network, s.Lost = k.network, k.lost
	s.Network.Proxy = ""
	for _, r := range k.refused {
		if r.Last >= c.Since {
			s.Refused = append(s.Refused, r)
		}
	}
	k.mu.Unlock()
	p.answer(id, &s, nil)
}

// resolvers are the host's name servers.
func resolvers() []netip.AddrPort {
	b, err := os.ReadFile("/etc/resolv.conf")
	var list []netip.AddrPort
	if err == nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] != "nameserver" || len(list) == 3 {
				continue
			}
			if a, err := netip.ParseAddr(f[1]); err == nil {
				list = append(list, netip.AddrPortFrom(a.Unmap(), 53))
			}
		}
	}
	if len(list) == 0 {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))
	}
	return list
}
