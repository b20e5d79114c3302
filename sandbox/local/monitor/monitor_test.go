//go:build linux

package monitor

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// gone is a sandbox whose init never answers.
type gone struct{}

func (gone) Conn() *wire.Conn  { return nil }
func (gone) Gate() []*os.File  { return nil }
func (gone) Ready() wire.Ready { return wire.Ready{} }
func (gone) Kill()             {}
func (gone) Wait() error       { return nil }
func (gone) Usage() wire.Usage { return wire.Usage{} }
func (gone) Close() error      { return nil }

func idle(t *testing.T, after time.Duration) *monitor {
	m := newMonitor(&wire.Launch{Dir: t.TempDir(), Intervals: wire.Intervals{AutoStopMS: after.Milliseconds()}})
	m.box, m.guest = gone{}, &guest{gone: true}
	var err error
	if m.journal, err = journal.Open(m.dir, nil); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.touch()
	m.mu.Unlock()
	return m
}

func ended(m *monitor) bool {
	synctest.Wait()
	select {
	case <-m.quit:
		return true
	default:
		return false
	}
}

func TestIdleStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := idle(t, 15*time.Minute)
		time.Sleep(14 * time.Minute)
		m.mu.Lock()
		m.touch()
		m.mu.Unlock()
		time.Sleep(14 * time.Minute)
		if ended(m) {
			t.Fatal("stopped 14 minutes after a request")
		}
		p := &proc{busy: true, info: wire.Process{ID: "p", State: journal.Running}}
		m.mu.Lock()
		m.busy++
		m.mu.Unlock()
		time.Sleep(24 * time.Hour)
		if ended(m) {
			t.Fatal("stopped beside a busy process")
		}
		m.mu.Lock()
		m.unbusy(p)
		m.mu.Unlock()
		time.Sleep(15*time.Minute - time.Second)
		if ended(m) {
			t.Fatal("stopped less than 15 minutes after the busy process")
		}
		time.Sleep(time.Second)
		if !ended(m) {
			t.Fatal("not stopped when idle")
		}
		r, err := journal.ReadRecord(m.dir)
		if err != nil || r.Reason != "idle for 15 minutes" || r.Stopped == 0 {
			t.Fatalf("record = %+v, %v", r, err)
		}
	})
}

func TestIdleStopIsOffAndSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := idle(t, 0)
		time.Sleep(1000 * time.Hour)
		if ended(m) {
			t.Fatal("stopped although that is off")
		}
		m.configure(wire.Intervals{AutoStopMS: 60000})
		time.Sleep(time.Minute + time.Second)
		if !ended(m) {
			t.Fatal("not stopped by a new interval")
		}
	})
}

// What init tells of processes that are not there, twice, or in nonsense
// changes nothing.
func TestHostileEvents(t *testing.T) {
	m := newMonitor(&wire.Launch{Dir: t.TempDir()})
	for _, body := range []string{`{}`, `null`, `[]`, `"x"`, `{"id":"none","code":3}`, `{"id":5}`, `{"id":"none","leftovers":[1]}`} {
		for _, op := range []string{wire.OpExited, wire.OpGone, wire.OpSpawn, "nonsense", ""} {
			m.event(&wire.Frame{Header: wire.Header{Op: op, Body: json.RawMessage(body)}})
		}
	}
	p := &proc{info: wire.Process{State: journal.Running}}
	var many []string
	for range 1000 {
		many = append(many, string(make([]byte, 1000))+"\xff")
	}
	p.fates(&wire.Exited{Code: 1 << 40, Signal: 1 << 20, CPUNS: -1 << 60, Leftovers: many}, &wire.Limits{})
	if n := len(p.info.Leftovers); n != 20 || len(p.info.Leftovers[0]) > 200 || p.info.CPUNS != -1 || *p.info.ExitCode > 255 || p.info.Signal != "" {
		t.Fatalf("kept %d leftovers, %+v", n, p.info)
	}
}

// A connection that sends what is no frame is closed, and the others go on.
func FuzzConnection(f *testing.F) {
	frame := func(head string, data string) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(4+len(head)+len(data)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(head)))
		return append(append(b, head...), data...)
	}
	f.Add(frame(`{"id":1,"op":"hello","body":{"version":1}}`, ""))
	f.Add(frame(`{"id":1,"op":"stdin","body":{"id":"p"}}`, "data"))
	f.Add(frame(`{"id":2,"op":"wait","body":{"id":"p"}}`, ""))
	f.Add(frame(`{"id":3,"op":"spawn","body":{"id":"p","shell":"x","cwd":"/"}}`, ""))
	f.Add(frame(`{"id":4,"op":"commit","body":{"token":7}}`, ""))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMonitor(&wire.Launch{Dir: t.TempDir()})
		m.box, m.guest = gone{}, &guest{gone: true}
		var err error
		if m.journal, err = journal.Open(m.dir, nil); err != nil {
			t.Fatal(err)
		}
		m.stopping = true // a stop would end the monitor, which is not tried here
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		peer := os.NewFile(uintptr(fds[1]), "peer")
		m.welcome(fds[0])
		_, _ = peer.Write(b)
		_ = unix.Shutdown(fds[1], unix.SHUT_WR)
		_ = peer.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 4096)
		for {
			if _, err := unix.Read(fds[1], buf); err != nil && err != unix.EINTR {
				break
			} else if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fds[1]), Events: unix.POLLRDHUP}}, 10000); n == 0 {
				t.Fatal("the connection was not closed")
			}
			m.mu.Lock()
			left := len(m.peers)
			m.mu.Unlock()
			if left == 0 {
				break
			}
		}
		_ = peer.Close()
	})
}
