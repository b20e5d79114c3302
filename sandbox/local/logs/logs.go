//go:build linux

// Package logs keeps what processes print, on disk and bounded.
//
// A process has a directory of its name, and each of its streams is a row of
// segment files in it, "out.<start>" and "err.<start>": start is the absolute
// offset of the segment's first byte. All there is to know is in names and
// sizes, so that a writer that is killed loses nothing that it wrote: the
// oldest byte kept is the first segment's start, the end is the last one's
// start and size, and where a segment ends before the next one starts, the
// bytes between were lost to a full disk. A stream that printed nothing has no
// files.
//
// One Writer appends; any number of readers, also in other processes, read at
// the same time without a lock.
package logs

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultBound is how many bytes of one stream are kept.
const DefaultBound = 64 << 20

const (
	segments    = 8  // a bound is cut into so many segments
	maxSegments = 32 // holes make segments short; no more than these are kept
)

// Stream names one of a process's output streams.
type Stream string

// The streams.
const (
	Stdout Stream = "out"
	Stderr Stream = "err"
)

// Range is what a stream holds, in absolute offsets.
type Range struct {
	Oldest int64 // offset of the oldest byte kept
	End    int64 // offset after the newest
	Size   int64 // bytes on disk
	Lost   int64 // bytes of holes between Oldest and End
}

// ValidID reports whether id can name a process's directory.
func ValidID(id string) bool {
	if len(id) == 0 || len(id) > 64 || id[0] == '.' {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

func name(s Stream, start int64) string { return string(s) + "." + strconv.FormatInt(start, 10) }

// starts lists the segments of stream s in process directory dir, oldest
// first; none when there is no directory. The names fit one read of the
// directory, which the kernel makes atomic against creation and removal.
func starts(dir string, s Stream) ([]int64, error) {
	d, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var at []int64
	for _, n := range names {
		rest, ok := strings.CutPrefix(n, string(s)+".")
		if !ok {
			continue
		}
		v, err := strconv.ParseInt(rest, 10, 64)
		if err == nil && v >= 0 && name(s, v) == n {
			at = append(at, v)
		}
	}
	slices.Sort(at)
	return at, nil
}

// Stat tells what process id's stream s holds below dir. A stream without
// files has the zero Range.
func Stat(dir, id string, s Stream) (Range, error) {
	for range retries {
		r, again, err := stat(dir+"/"+id, s)
		if err != nil || !again {
			return r, err
		}
	}
	return Range{}, errBusy
}

func stat(dir string, s Stream) (r Range, again bool, err error) {
	at, err := starts(dir, s)
	if err != nil || len(at) == 0 {
		return r, false, err
	}
	r.Oldest, r.End = at[0], at[0]
	for _, start := range at {
		var st unix.Stat_t
		if err := unix.Stat(dir+"/"+name(s, start), &st); err != nil {
			if err == unix.ENOENT {
				return r, true, nil
			}
			return r, false, &os.PathError{Op: "stat", Path: dir + "/" + name(s, start), Err: err}
		}
		r.Lost += start - r.End
		r.Size += st.Size
		r.End = start + st.Size
	}
	return r, false, nil
}

// Remove deletes all that process id printed.
func Remove(dir, id string) error { return os.RemoveAll(dir + "/" + id) }

// IDs lists the processes below dir that have printed something.
func IDs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && ValidID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
