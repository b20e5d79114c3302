//go:build linux

package logs

import (
	"os"

	"golang.org/x/sys/unix"
)

// Writer appends to one stream of one process. It is not safe for concurrent
// use.
type Writer struct {
	dir    string // the process's
	stream Stream
	bound  int64
	seg    int64 // size of a segment
	segs   []segment
	fd     int   // the last segment; -1: none open
	pos    int64 // offset after the last byte given to Write
	size   int64 // bytes on disk
	lost   int64
	spare  *Spare
	last   bool // words: the spare is used
}

type segment struct{ start, size int64 }

// NewWriter makes a Writer for a stream that holds nothing yet. It keeps at
// most bound bytes (0: DefaultBound) and makes files when there is something
// to put in. On a full disk it takes one of spare, which may be nil.
func NewWriter(dir, id string, s Stream, bound int64, spare *Spare) *Writer {
	if bound <= 0 {
		bound = DefaultBound
	}
	return &Writer{dir: dir + "/" + id, stream: s, bound: bound, seg: max(bound/segments, 1), fd: -1, spare: spare}
}

// Write appends p. What cannot be written, since the disk is full, is counted
// as lost and leaves a hole; so Write never fails and never waits.
func (w *Writer) Write(p []byte) {
	for len(p) > 0 {
		if err := w.ready(); err != nil {
			if w.borrow() {
				continue
			}
			w.lose(len(p))
			return
		}
		last := &w.segs[len(w.segs)-1]
		n, err := unix.Pwrite(w.fd, p[:min(int64(len(p)), w.seg-last.size)], last.size)
		if n > 0 {
			last.size += int64(n)
			w.size += int64(n)
			w.pos += int64(n)
			p = p[n:]
		}
		if err == unix.EINTR {
			continue
		}
		if (err != nil || n == 0) && !w.borrow() {
			w.lose(len(p))
			return
		}
	}
}

// Produced is how many bytes were ever given to Write.
func (w *Writer) Produced() int64 { return w.pos }

// Range is what readers find.
func (w *Writer) Range() Range {
	r := Range{Size: w.size, Lost: w.lost}
	if n := len(w.segs); n > 0 {
		r.Oldest, r.End = w.segs[0].start, w.segs[n-1].start+w.segs[n-1].size
	}
	return r
}

// DropOldest deletes the oldest segment, but never the one being written, and
// tells how many bytes that freed.
func (w *Writer) DropOldest() int64 {
	if len(w.segs) < 2 {
		return 0
	}
	old := w.segs[0]
	_ = unix.Unlink(w.path(old.start))
	w.segs = append(w.segs[:0], w.segs[1:]...)
	w.size -= old.size
	return old.size
}

// Close lets go of the files; they stay.
func (w *Writer) Close() {
	if w.fd >= 0 {
		_ = unix.Close(w.fd)
		w.fd = -1
	}
}

func (w *Writer) path(start int64) string { return w.dir + "/" + name(w.stream, start) }

// lose counts n bytes as lost and moves the end that readers see past them.
func (w *Writer) lose(n int) {
	w.pos += int64(n)
	w.lost += int64(n)
	_ = w.begin() // an empty segment takes no room
}

// ready makes the last segment one that takes a byte at pos.
func (w *Writer) ready() error {
	if n := len(w.segs); n > 0 && w.fd >= 0 {
		last := w.segs[n-1]
		if last.size < w.seg && last.start+last.size == w.pos {
			return nil
		}
	}
	return w.begin()
}

// begin starts a segment at pos.
func (w *Writer) begin() error {
	if n := len(w.segs); n > 0 && w.segs[n-1].size == 0 && w.fd >= 0 {
		last := &w.segs[n-1]
		if last.start == w.pos {
			return nil
		}
		if err := unix.Rename(w.path(last.start), w.path(w.pos)); err != nil {
			return err
		}
		last.start = w.pos
		return nil
	}
	for len(w.segs) > 1 && (w.size+w.seg > w.bound || len(w.segs) >= maxSegments) {
		w.DropOldest()
	}
	fd, err := w.create()
	if err == unix.ENOENT && len(w.segs) == 0 {
		if err = unix.Mkdir(w.dir, 0o700); err == nil || err == unix.EEXIST {
			fd, err = w.create()
		}
	}
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	w.Close()
	w.fd = fd
	w.segs = append(w.segs, segment{start: w.pos})
	return nil
}

// borrow makes a spare the segment at pos, once.
func (w *Writer) borrow() bool {
	if w.last {
		return false
	}
	fd := w.spare.take(w.dir, name(w.stream, w.pos))
	if fd < 0 {
		return false
	}
	w.Close()
	w.fd, w.last = fd, true
	if n := len(w.segs); n > 0 && w.segs[n-1].start == w.pos {
		w.segs = w.segs[:n-1] // an empty one, of the same name
	}
	w.segs = append(w.segs, segment{start: w.pos})
	return true
}

func (w *Writer) create() (int, error) {
	for {
		fd, err := unix.Open(w.path(w.pos), unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
