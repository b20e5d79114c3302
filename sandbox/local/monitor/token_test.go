//go:build linux

package monitor

import (
	"encoding/json"
	"testing"

	"berth/sandbox/local/wire"
)

// monitorWithGuest is a monitor whose init is the other end of fds, which
// tells the tokens of writes that it is to give up.
func monitorWithGuest(t *testing.T, fds [2]int) (*monitor, <-chan uint64) {
	t.Helper()
	ours, err := wire.Socket(fds[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := wire.Socket(fds[1], 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
	m := newMonitor(&wire.Launch{Dir: t.TempDir()})
	m.guest = &guest{conn: ours, calls: map[uint64]func(*wire.Frame, *wire.Error){}}
	aborted := make(chan uint64, 10)
	go func() {
		for {
			f, err := theirs.Recv()
			if err != nil {
				return
			}
			var c wire.Commit
			if f.Op == wire.OpCommit && json.Unmarshal(f.Body, &c) == nil && c.Abort {
				aborted <- c.Token
			}
		}
	}()
	return m, aborted
}

func createdFrame(token uint64) *wire.Frame {
	b, _ := json.Marshal(wire.Created{Token: token})
	return &wire.Frame{Header: wire.Header{Body: b}}
}
