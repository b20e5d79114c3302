//go:build linux

package image

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// room refuses a pull that cannot fit: compressed and, at the least twice as
// large, unpacked.
func (p *pull) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.s.o.Dir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: p.s.o.Dir, Err: err}
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < p.total*3 {
		return fault("%s needs at least %d MiB on the file system of %s, and %d MiB are free; free some space (berth images prune, berth prune), or move the state directory with BERTH_STATE",
			p.n.Full, p.total*3>>20, p.s.o.Dir, free>>20)
	}
	return nil
}

// Of a file system that other things live on too, pulls leave this much free: a
// share, and no more than that many bytes.
const (
	floorShare = 20
	floorBytes = 1 << 30
)

// floor refuses to go on where the disk is nearly full: an image that is larger
// than it says must not take the last of it from everybody else.
func (s *Store) floor() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.o.Dir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: s.o.Dir, Err: err}
	}
	size := int64(st.Bsize)
	if least := min(int64(st.Blocks)*size/floorShare, floorBytes); int64(st.Bavail)*size < least {
		return &floorError{least}
	}
	if st.Files > 0 && st.Ffree < st.Files/(5*floorShare) {
		return &floorError{}
	}
	return nil
}

// floorError: less than these bytes are free; 0: too few files can be made.
type floorError struct{ least int64 }

func (e *floorError) Error() string {
	if e.least == 0 {
		return "hardly any more files can be made"
	}
	return fmt.Sprintf("less than %d MiB are free", max(e.least>>20, 1))
}
