//go:build linux

package wire

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T, max int) (*Conn, *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Socket(fds[0], max)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Socket(fds[1], max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// Frames keep their order, data and descriptors, however they are glued
// together on the socket.
func TestConnKeepsFramesApart(t *testing.T) {
	a, b := pair(t, 0)
	big := bytes.Repeat([]byte("x"), 3<<20)
	go func() {
		for i := range 50 {
			var files []*os.File
			if i%3 == 0 {
				r, w, err := os.Pipe()
				if err != nil {
					t.Error(err)
					return
				}
				w.Close()
				files = append(files, r)
			}
			data := []byte(nil)
			if i%10 == 5 {
				data = big
			}
			if err := a.Send(Header{ID: uint64(i + 1), Op: OpSpawn}, ProcessRef{ID: "p"}, data, files...); err != nil {
				t.Errorf("Send %d: %v", i, err)
			}
			for _, f := range files {
				f.Close()
			}
		}
		a.Close()
	}()
	for i := range 50 {
		f, err := b.Recv()
		if err != nil {
			t.Fatalf("Recv %d: %v", i, err)
		}
		if got, want := f.ID, uint64(i+1); got != want {
			t.Fatalf("Recv %d: id %d, want %d", i, got, want)
		}
		wantFiles, wantData := 0, 0
		if i%3 == 0 {
			wantFiles = 1
		}
		if i%10 == 5 {
			wantData = len(big)
		}
		if len(f.Files) != wantFiles || len(f.Data) != wantData {
			t.Fatalf("Recv %d: %d files and %d bytes, want %d and %d", i, len(f.Files), len(f.Data), wantFiles, wantData)
		}
		for _, file := range f.Files {
			file.Close()
		}
	}
	if _, err := b.Recv(); err != io.EOF {
		t.Fatalf("Recv after close: %v, want EOF", err)
	}
}

// What is larger than the reader allows is refused before it is read.
func TestConnRefusesLargeFrames(t *testing.T) {
	a, b := pair(t, 1000)
	go func() { _ = a.Send(Header{ID: 1}, nil, make([]byte, 2000)) }()
	if _, err := b.Recv(); err == nil {
		t.Fatal("Recv of 2000 bytes with a bound of 1000: no error")
	}
}

// Descriptors reach the frame that they were sent with, whatever is buffered
// ahead when they come.
func TestConnDescriptorsStayWithTheirFrame(t *testing.T) {
	a, b := pair(t, 0)
	const n = 2000
	go func() {
		for i := range n {
			var files []*os.File
			for range i * 7 % 5 % 3 {
				r, w, err := os.Pipe()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = w.Write([]byte{byte(i), byte(i >> 8)})
				w.Close()
				files = append(files, r)
			}
			data := bytes.Repeat([]byte("y"), i*37%9000*(i%4/3))
			if err := a.Send(Header{ID: uint64(i + 1)}, nil, data, files...); err != nil {
				t.Error(err)
				return
			}
			for _, f := range files {
				f.Close()
			}
		}
	}()
	for i := range n {
		f, err := b.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if f.ID != uint64(i+1) || len(f.Files) != i*7%5%3 {
			t.Fatalf("frame %d came as %d with %d descriptors", i+1, f.ID, len(f.Files))
		}
		for _, r := range f.Files {
			mark, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(mark, []byte{byte(i), byte(i >> 8)}) {
				t.Fatalf("frame %d brought the descriptor of %v, %v", i+1, mark, err)
			}
			r.Close()
		}
	}
}

// Whoever sends and receives on a connection that is closed learns that, and not
// what package os makes of it.
func TestClosedConn(t *testing.T) {
	a, _ := pair(t, 0)
	sent := make(chan error, 1)
	go func() {
		for { // until nothing fits any more, and then until the end
			if err := a.Send(Header{ID: 1, Op: "x"}, nil, make([]byte, 1<<16)); err != nil {
				sent <- err
				return
			}
		}
	}()
	got := make(chan error, 1)
	go func() { _, err := a.Recv(); got <- err }()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Send": <-sent, "Recv": <-got, "Send later": a.Send(Header{ID: 2, Op: "x"}, nil, nil)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: got %v, want os.ErrClosed", what, err)
		}
	}
}
