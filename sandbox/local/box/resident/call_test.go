//go:build linux

package resident

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// Output that comes just when a wait for more of it is given up leaves the answer
// to the cancel unread. The wait after it must end all the same.
func TestSettleWhenOutputAndCancelCross(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*wire.Conn
	for i, fd := range fds {
		if ends[i], err = wire.Socket(fd, 0); err != nil {
			t.Fatal(err)
		}
		defer ends[i].Close()
	}
	peer := ends[1]
	go func() {
		var waiting uint64
		printed := int64(1)
		for {
			f, err := peer.Recv()
			if err != nil {
				return
			}
			if f.Op == wire.OpWait {
				waiting = f.ID
				continue
			}
			printed = min(printed+1, 3) // twice it prints in the instant of a cancel
			_ = peer.Send(wire.Header{ID: waiting}, wire.Process{State: journal.Running, Stdout: printed}, nil)
			time.Sleep(5 * time.Millisecond) // so that the two answers do not come as one
			_ = peer.Send(wire.Header{ID: f.ID}, nil, nil)
		}
	}()
	r := &caller{conn: ends[0]}
	p := &wire.Process{State: journal.Running, Stdout: 1}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.settle(&wire.CallWatch{SettleMS: 10}, p, time.Now().Add(time.Hour))
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for ever")
	}
	if p.Stdout != 3 {
		t.Errorf("output to %d is told, of 3", p.Stdout)
	}
}
