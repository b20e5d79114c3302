//go:build linux

package monitor

import (
	"encoding/json"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// serve starts a bucketd for the bucket and mounts it. b.op is held.
func (b *bucket) serve() (*wire.Mounted, *wire.Fault, *wire.Error) {
	m := b.m
	f, e := m.guest.call(wire.OpPlace, &wire.Place{Path: b.path}, bucketInit)
	if e != nil {
		return nil, nil, e
	}
	var ids wire.Placed
	if json.Unmarshal(f.Body, &ids) != nil {
		return nil, nil, &wire.Error{Code: wire.CodeInternal, Text: "the sandbox's answer cannot be understood"}
	}
	b.ids = ids
	s, err := b.start(&ids)
	if err != nil {
		return nil, nil, &wire.Error{Code: wire.CodeInternal, Text: "start the program that serves the bucket: " + err.Error()}
	}
	r, e := s.report(bucketCheck)
	if e != nil || r.Fault != nil {
		s.end()
		return nil, r.Fault, e
	}
	fd, e := m.fuseMount(&wire.FUSEMount{Path: b.path, Source: b.order.Source, ReadOnly: b.order.ReadOnly})
	if e != nil {
		s.end()
		return nil, nil, e
	}
	number := connection(fd)
	err = s.hand(fd)
	_ = fd.Close()
	if err != nil {
		s.end()
		return nil, nil, &wire.Error{Code: wire.CodeInternal, Text: "hand the mount over: " + err.Error()}
	}
	r, e = s.report(bucketCheck)
	if e == nil && r.Fault == nil {
		widen(number)
		if e = m.answers(b.path); e != nil {
			e = &wire.Error{Code: wire.CodeInternal, Text: "the mounted bucket does not answer: " + e.Text}
		}
	}
	if e != nil || r.Fault != nil {
		s.end()
		_, _ = m.guest.call(wire.OpFUSEDetach, &wire.FUSEDetach{Path: b.path, Force: true, Keep: true}, bucketInit)
		return nil, r.Fault, e
	}
	b.mu.Lock()
	b.served = s
	b.state = wire.MountState{Path: b.path, Print: b.order.Print, Mounted: true, Entries: r.Entries, More: r.More}
	if b.restart > 0 {
		b.state.Reason = "the program that serves it died and was started anew; files that were open then give ENOTCONN, and what no close or fsync had acknowledged is lost"
	}
	b.mu.Unlock()
	go b.watch(s)
	return &wire.Mounted{Entries: r.Entries, More: r.More}, nil, nil
}

// fuseMount asks init for the mount and takes the descriptor that serves it.
func (m *monitor) fuseMount(r *wire.FUSEMount) (*os.File, *wire.Error) {
	f, e := m.guest.callFiles(wire.OpFUSEMount, r, bucketInit)
	if e != nil {
		return nil, e
	}
	if len(f.Files) != 1 || !isFUSE(f.Files[0]) {
		closeFiles(f.Files)
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "the sandbox sent no mount"}
	}
	return f.Files[0], nil
}

// isFUSE tells whether a descriptor is of /dev/fuse: init may send another.
func isFUSE(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var st unix.Stat_t
	var serr error
	if raw.Control(func(fd uintptr) { serr = unix.Fstat(int(fd), &st) }) != nil || serr != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && unix.Major(st.Rdev) == 10 && unix.Minor(st.Rdev) == 229
}

// watch waits for a bucketd's end, and serves the bucket anew when it was none
// that was asked for.
func (b *bucket) watch(s *served) {
	<-s.gone
	b.mu.Lock()
	if b.served != s || s.expected {
		b.mu.Unlock()
		return
	}
	b.served = nil
	b.restart++
	b.trying = true
	quit := make(chan struct{})
	b.quit = quit
	b.state.Mounted, b.state.Reason = false, "the program that serves it has died: "+s.errs.String()
	b.mu.Unlock()
	_, _ = os.Stderr.WriteString("the program that serves the bucket at " + b.path + " died: " + s.errs.String() + "\n")
	for wait := bucketAgain; ; wait = min(2*wait, bucketSlow) {
		select {
		case <-quit:
			return
		case <-time.After(wait):
		}
		b.op.Lock()
		b.mu.Lock()
		still := b.trying && b.quit == quit
		b.mu.Unlock()
		if !still {
			b.op.Unlock()
			return
		}
		_, fault, e := b.serve()
		b.mu.Lock()
		switch {
		case fault != nil:
			b.state.Reason = cut(fault.Message, 1000)
		case e != nil:
			b.state.Reason = cut(e.Text, 1000)
		default:
			b.trying = false
		}
		over := !b.trying
		b.mu.Unlock()
		b.op.Unlock()
		if over {
			return
		}
	}
}
