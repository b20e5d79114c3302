//go:build linux

package monitor

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

func TestRefusalsAreCountedOnce(t *testing.T) {
	k := &gatekeeper{}
	begin := time.Now().UnixNano()
	one := wire.Refusal{Host: "evil\x1b[2J.net", Proto: "dns", Rule: "no", Count: 1, Process: "forged", Last: 1 << 62}
	first := k.note(one)
	k.note(one)
	k.attribute(first, "p-1")
	got := k.of(&wire.Process{ID: "p-1", Started: begin})
	if len(got) != 2 || got[0].Process != "" || got[0].Count != 1 || got[1].Process != "p-1" || got[1].Count != 1 {
		t.Errorf("got %+v, want one of p-1 and one of nobody", got)
	}
	if h := got[0].Host; strings.ContainsRune(h, 0x1b) {
		t.Errorf("host %q", h)
	}
	if got[0].Last > time.Now().UnixNano() || got[0].First < begin {
		t.Errorf("times are the gate's own: %+v", got[0])
	}
	// A later process is told neither of another's nor of what was before it.
	if got := k.of(&wire.Process{ID: "p-2", Started: time.Now().UnixNano()}); len(got) != 0 {
		t.Errorf("another process is told %+v", got)
	}
	k.attribute(k.note(one), "p-1")
	if got := k.of(&wire.Process{ID: "p-1", Started: time.Now().UnixNano()}); len(got) != 1 || got[0].Count != 2 {
		t.Errorf("got %+v, want two of p-1 in one", got)
	}
	k.attribute(wire.Refusal{Host: "never noted"}, "p-1") // is nothing
	for i := range 3 * maxRefusals {
		k.note(wire.Refusal{Host: strconv.Itoa(i), Rule: "no", Count: 2})
	}
	if len(k.refused) != maxRefusals || k.lost < int64(4*maxRefusals) {
		t.Errorf("%d kept, %d lost", len(k.refused), k.lost)
	}
	if got := k.of(&wire.Process{ID: "p", Started: begin}); len(got) != maxRefusalsProcess {
		t.Errorf("a process is told %d", len(got))
	}
	var none *gatekeeper
	if got := none.of(&wire.Process{Refused: got}); len(got) == 0 {
		t.Error("what an earlier monitor recorded is gone")
	}
}

func TestTurnAwaySaysWhy(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	u, err := pc.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	k := &gatekeeper{files: []*os.File{f, u}}
	for _, file := range k.files {
		raw, _ := file.SyscallConn()
		_ = raw.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), true) })
	}
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := net.Dial("udp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	k.turnAway("it cannot be run")
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	if len(k.refused) != 2 || k.refused[0].Host != "127.0.0.1" || k.refused[0].Rule != "it cannot be run" || k.refused[1].Proto != "udp" {
		t.Errorf("%+v", k.refused)
	}
}

// A gate that asks for sockets without end, and takes no answer, makes no heap
// of waiting work here.
func TestSocketsAreAskedForWithinBounds(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, _ := wire.Socket(pair[0], 0)
	gate, _ := wire.Socket(pair[1], 0)
	defer ours.Close()
	defer gate.Close()
	k := &gatekeeper{making: make(chan struct{}, 1)}
	k.making <- struct{}{}
	answered := make(chan error, 1)
	go func() {
		f, err := gate.Recv()
		if err == nil && (f.ID != 7 || f.Error == nil || f.Error.Code != wire.CodeLimit) {
			err = errors.New("another answer")
		}
		answered <- err
	}()
	k.handle(ours, &wire.Frame{Header: wire.Header{ID: 7, Op: wire.OpGateSocket, Body: []byte(`{"at":"10.0.2.3:53","peer":""}`)}})
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
