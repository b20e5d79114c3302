//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/tree"
)

// heap is the largest heap seen, of those looked at every so many calls.
type heap struct {
	every, calls int
	most         uint64
}

func (h *heap) look() {
	if h.calls++; h.calls%h.every != 0 {
		return
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.most = max(h.most, m.HeapAlloc)
}

// heapWriter and heapReader look at the heap while something is written or read.
type heapWriter struct{ *heap }

func (h heapWriter) Write(p []byte) (int, error) { h.look(); return len(p), nil }

type heapReader struct {
	*heap
	r io.Reader
}

func (h heapReader) Read(p []byte) (int, error) {
	h.look()
	return h.r.Read(p[:min(len(p), 512)]) // a header
}

// Names deep in a tree are kept as what they are in their directory: sandboxes
// can make millions of them, of 4,000 bytes each with those above.
func TestDeepNamesTakeNoMemory(t *testing.T) {
	const pairs = 2000 // whose paths have 7.5 MB
	top := filepath.Join(t.TempDir(), "top")
	must(t, os.MkdirAll(top, 0o755))
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 15 {
		must(t, unix.Mkdirat(fd, strings.Repeat("d", 250), 0o755))
		next, err := unix.Openat(fd, strings.Repeat("d", 250), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	for i := range pairs {
		f := fmt.Sprintf("f%d", i)
		must(t, unix.Mknodat(fd, f, unix.S_IFREG|0o644, 0))
		must(t, unix.Linkat(fd, f, fd, "l"+f, 0))
		must(t, unix.Mkdirat(fd, fmt.Sprintf("d%d", i), 0o755))
	}
	must(t, unix.Close(fd))
	var archive bytes.Buffer
	_, err = tree.Pack(&archive, top, shift())
	must(t, err)
	for name, do := range map[string]func(h *heap) error{
		"pack": func(h *heap) error { _, err := tree.Pack(heapWriter{h}, top, shift()); return err },
		"stack": func(h *heap) error {
			_, err := tree.PackStack(heapWriter{h}, tree.StackOptions{Dirs: []string{top}, Shift: shift()})
			return err
		},
		"unpack": func(h *heap) error {
			_, err := tree.Unpack(heapReader{h, bytes.NewReader(archive.Bytes())}, t.TempDir(), shift())
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := heap{every: 1}
			h.look()
			before := h.most
			h.every = 500
			if err := do(&h); err != nil || h.calls < 5*h.every || h.most > before+(4<<20) {
				t.Errorf("%d calls, %v; the heap grew from %d to %d bytes", h.calls, err, before, h.most)
			}
		})
	}
}

// A layer whose directories have names that take gigabytes is refused, though each
// leads to a directory that is there.
func TestLayerOfLongNames(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("d", 250)+"/", 15), "/")
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		err := tw.WriteHeader(&tar.Header{Name: long, Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX})
		for l := 'a'; err == nil && l <= 'z'; l++ {
			err = tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/%c", long, l), Typeflag: tar.TypeSymlink, Linkname: ".", Format: tar.FormatPAX})
		}
		for i := 0; err == nil && i < 26*26*26*26; i++ {
			name := fmt.Sprintf("%s/%c/%c/%c/%c/d", long, 'a'+i%26, 'a'+i/26%26, 'a'+i/26/26%26, 'a'+i/26/26/26)
			err = tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX})
		}
		_ = w.CloseWithError(errors.Join(err, tw.Close()))
	}()
	h := heap{every: 20_000}
	_, err := tree.UnpackLayer(heapReader{&h, r}, t.TempDir(), tree.LayerOptions{UserXattr: os.Geteuid() != 0, Shift: shift(), Count: 65536, MaxEntries: 4_000_000})
	_ = r.Close()
	var le *tree.LayerError
	if !errors.As(err, &le) || !strings.Contains(le.Text, "names of its directories") || h.most > 200<<20 {
		t.Errorf("UnpackLayer = %v, with a heap of %d bytes", err, h.most)
	}
}
