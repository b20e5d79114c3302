//go:build linux

package guest

import "golang.org/x/sys/unix"

// appendAll adds all of the source to the target. What went wrong half way is
// taken back, unless others have appended meanwhile.
func (w *write) appendAll() error {
	mode := uint32(0o644)
	if w.mode >= 0 {
		mode = uint32(w.mode)
	}
	to, err := unix.Openat(w.dir, w.name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, mode&0o777)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(to, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.ENXIO
	}
	if err == nil && w.mode >= 0 && st.Mode&0o7777 != mode {
		err = unix.Fchmod(to, mode)
	}
	var offset, added int64
	buf := make([]byte, 64<<10)
	for err == nil {
		var n int
		n, err = unix.Pread(w.file, buf, offset)
		if err == unix.EINTR {
			err = nil
			continue
		}
		if n == 0 && err == nil {
			_ = unix.Close(w.file)
			w.file = to
			return nil
		}
		offset += int64(n)
		for p := buf[:max(n, 0)]; len(p) > 0 && err == nil; {
			var m int
			if m, err = unix.Write(to, p); err == unix.EINTR {
				err = nil
			}
			p = p[max(m, 0):]
			added += int64(max(m, 0))
		}
	}
	var now unix.Stat_t
	if added > 0 && unix.Fstat(to, &now) == nil && now.Size == st.Size+added {
		_ = unix.Ftruncate(to, st.Size)
	}
	_ = unix.Close(to)
	return err
}
