//go:build linux

package monitor

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/logs"
)

func testStream(t *testing.T, dir, id string) (s *stream, w *os.File) {
	t.Helper()
	r, w, err := newPipe(true)
	if err != nil {
		t.Fatal(err)
	}
	s, err = newStream(r, false, logs.NewWriter(dir, id, logs.Stdout, 0, nil), new(atomic.Int64), func() {})
	if err != nil {
		t.Fatal(err)
	}
	return s, w
}

// The last writer's end, the exit and the table's forgetting may come at once.
// Each closes the pipe or waits for those who use it; once they waited for one
// another.
func TestStreamEndsFromAllSides(t *testing.T) {
	dir := t.TempDir()
	for i := range 300 {
		s, w := testStream(t, dir, "p"+string(rune('a'+i%26)))
		var wg sync.WaitGroup
		wg.Go(s.run)
		wg.Go(func() {
			_, _ = w.Write(make([]byte, 5000))
			_ = w.Close()
		})
		wg.Go(s.drain)
		wg.Go(func() { _ = s.control(func(uintptr) {}) })
		if i%2 == 0 {
			wg.Go(s.forget)
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("round %d: the stream does not end", i)
		}
		if got := s.produced.Load(); i%2 == 1 && got != 5000 {
			t.Fatalf("round %d: %d bytes kept, want 5000", i, got)
		}
	}
}

// A full disk loses bytes, counts them, and keeps nobody waiting.
func TestStreamOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("berth-test", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	s, w := testStream(t, dir, "p")
	done := make(chan struct{})
	go func() { s.run(); close(done) }()
	const size = 300_000
	for range size / 1000 {
		if _, err := w.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the stream does not end")
	}
	if produced, lost, onDisk := s.produced.Load(), s.lost.Load(), s.size.Load(); produced != size || lost == 0 || onDisk == 0 || lost+onDisk != size {
		t.Errorf("produced %d, lost %d, on disk %d, want %d in all", produced, lost, onDisk, size)
	}
}

// Buffers that rest are as good as new.
func TestChunksAfterRest(t *testing.T) {
	for range 3 {
		buf := chunk()
		if len(buf) != chunkSize {
			t.Fatalf("a buffer of %d bytes", len(buf))
		}
		buf[0], buf[chunkSize-1] = 1, 1
		chunkPool <- buf
		restChunks()
		if n := len(chunkPool); n != chunks {
			t.Fatalf("%d buffers after the rest, want %d", n, chunks)
		}
	}
}

// The token of a file write that init made for a connection that has gone
// meanwhile is given up, so that init keeps no file for it.
func TestTokenOfAConnectionThatLeft(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, aborted := monitorWithGuest(t, fds)
	for _, left := range []bool{false, true} {
		p := &peer{m: m, tokens: map[uint64]bool{}, closed: left}
		if left {
			p.tokens = nil
		}
		if got := p.own(createdFrame(7)); got == left {
			t.Errorf("own with the connection closed %v = %v", left, got)
		}
		if !left {
			if !p.tokens[7] {
				t.Error("the token is not noted")
			}
			continue
		}
		select {
		case token := <-aborted:
			if token != 7 {
				t.Errorf("token %d was given up, want 7", token)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("init was not told to give the write up")
		}
	}
}
