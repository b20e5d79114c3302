//go:build linux

package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (u *layerer) node(h *tar.Header, body io.Reader, name string, dir int, base string) error {
	kind := h.Typeflag
	switch kind {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, '\x00', tar.TypeCont, tar.TypeGNUSparse:
	case tar.TypeChar, tar.TypeBlock:
		u.sum.Devices++
		return nil
	default:
		return badEntry(name, "its kind %q is not known", string(kind))
	}
	hides := false
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		hides = isWhiteout(&st)
		if !(kind == tar.TypeDir && st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			// The last entry of a name counts.
			u.stale = true
			if err := Remove("/proc/self/fd/" + strconv.Itoa(dir) + "/" + base); err != nil {
				return err
			}
		}
	}
	switch kind {
	case tar.TypeDir:
		return u.mkdir(h, name, dir, base, hides)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) >= unix.PathMax || strings.IndexByte(h.Linkname, 0) >= 0 {
			return badEntry(name, "%.80q is no target of a link", h.Linkname)
		}
		if err := unix.Symlinkat(h.Linkname, dir, base); err != nil {
			return err
		}
		uid, gid := u.owner(h)
		if err := unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return layerTimes(dir, base, h, unix.AT_SYMLINK_NOFOLLOW)
	case tar.TypeLink:
		return u.link(h, name, dir, base)
	case tar.TypeFifo:
		if err := unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		uid, gid := u.owner(h)
		if err := unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		// Nothing else writes here: base is the node just made, no link.
		if err := unix.Fchmodat(dir, base, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
		return layerTimes(dir, base, h, unix.AT_SYMLINK_NOFOLLOW)
	}
	return u.file(h, body, name, dir, base)
}

func (u *layerer) mkdir(h *tar.Header, name string, dir int, base string, hides bool) error {
	if err := unix.Mkdirat(dir, base, 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if hides {
		if err := u.hide(fd); err != nil {
			return err
		}
	}
	return u.attributes(h, name, fd, unix.S_IFDIR)
}

// link makes a hard link to what this layer has already.
func (u *layerer) link(h *tar.Header, name string, dir int, base string) error {
	to, err := clean(h.Linkname)
	if err != nil || to == "" {
		return badEntry(name, "%.200q is no target of a hard link", h.Linkname)
	}
	above, last := path.Split(to)
	from, err := u.open(strings.TrimSuffix(above, "/"))
	if err != nil {
		if err == unix.ENOENT {
			return badEntry(name, "it is a hard link to %.200q, which this layer does not have", to)
		}
		return err
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstatat(from, last, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || isWhiteout(&st) || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return badEntry(name, "it is a hard link to %.200q, which is no file of this layer", to)
	}
	return unix.Linkat(from, last, dir, base, 0)
}

func (u *layerer) file(h *tar.Header, body io.Reader, name string, dir int, base string) error {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.content(fd, body); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return badEntry(name, "the archive ends within it")
		}
		return err
	}
	u.sum.Bytes += h.Size
	return u.attributes(h, name, fd, unix.S_IFREG)
}

// sparseFrom is the size from which zeros are left out as a hole.
const sparseFrom = 64 << 10

var zeros [64 << 10]byte

// content writes body to fd, long runs of zeros as holes.
func (u *layerer) content(fd int, body io.Reader) error {
	var at int64
	hole := false
	for {
		n, err := io.ReadFull(body, u.buf)
		for b := u.buf[:n]; len(b) > 0; {
			piece := b[:min(len(b), sparseFrom)]
			if hole = len(piece) == sparseFrom && bytes.Equal(piece, zeros[:]); hole {
				at += sparseFrom
				b = b[sparseFrom:]
				continue
			}
			// All that follows up to the next run of zeros, in one go.
			end := len(piece)
			for end+sparseFrom <= len(b) && !bytes.Equal(b[end:end+sparseFrom], zeros[:]) {
				end += sparseFrom
			}
			if len(b)-end < sparseFrom {
				end = len(b)
			}
			if err := writeAt(fd, b[:end], at); err != nil {
				return err
			}
			at += int64(end)
			b = b[end:]
		}
		switch {
		case err == io.EOF:
		case err == io.ErrUnexpectedEOF && n < len(u.buf):
			// The end, or the archive's: the body tells at the next read.
			var one [1]byte
			if m, rerr := body.Read(one[:]); m > 0 || rerr != io.EOF {
				return io.ErrUnexpectedEOF
			}
		case err != nil:
			return err
		default:
			continue
		}
		if hole {
			return unix.Ftruncate(fd, at)
		}
		return nil
	}
}

func writeAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// owner is whose an entry is on disk; -1 leaves it to the caller.
func (u *layerer) owner(h *tar.Header) (uid, gid int) {
	if u.o.Shift.Single {
		return -1, -1
	}
	uid, gid = h.Uid, h.Gid
	strange := false
	for _, id := range []*int{&uid, &gid} {
		if *id < 0 || *id >= u.o.Count {
			strange = true
			*id = 65534
			if *id >= u.o.Count {
				*id = 0
			}
		}
		*id += u.o.Shift.Base
	}
	if strange {
		u.sum.Owners++
	}
	return uid, gid
}

// attributes sets owner, extended attributes, mode and times, in the order in
// which none undoes another; mode and times of a directory come last of all.
func (u *layerer) attributes(h *tar.Header, name string, fd int, kind uint32) error {
	uid, gid := u.owner(h)
	if uid >= 0 {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return err
		}
	}
	for k, v := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if err := u.xattr(fd, attr, v); err != nil {
				return err
			}
		}
	}
	mode := uint32(h.Mode & 0o7777)
	if kind == unix.S_IFREG {
		if err := unix.Fchmod(fd, mode); err != nil {
			return err
		}
		return layerTimes(fd, "", h, unix.AT_EMPTY_PATH)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if _, had := u.dirs[name]; !had {
		if u.noted += int64(len(name) + notedBeside); u.noted > maxNoted {
			return badEntry(name, "the names of its directories have more than %d MiB together", maxNoted>>20)
		}
		u.order = append(u.order, name)
	}
	sec, nsec := times(h)
	u.dirs[name] = layerDir{st.Ino, mode, sec, nsec}
	return nil
}

// xattr sets what an image may say of a file: a user's own notes and
// capabilities, but nothing that overlay would take for its own.
func (u *layerer) xattr(fd int, attr, value string) error {
	overlays := strings.HasPrefix(attr, overlayAttrs[0]) || strings.HasPrefix(attr, overlayAttrs[1])
	if overlays || attr != "security.capability" && !strings.HasPrefix(attr, "user.") && !u.o.Own {
		u.sum.Attributes++
		return nil
	}
	switch err := unix.Fsetxattr(fd, attr, []byte(value), 0); err {
	case nil:
	case unix.EPERM, unix.ENOTSUP, unix.EINVAL, unix.ERANGE, unix.E2BIG, unix.ENOSPC, unix.ENAMETOOLONG:
		u.sum.Attributes++
	default:
		return fmt.Errorf("extended attribute %.80q: %w", attr, err)
	}
	return nil
}

func times(h *tar.Header) (sec, nsec int64) {
	if h.ModTime.IsZero() {
		return 0, 0
	}
	return h.ModTime.Unix(), int64(h.ModTime.Nanosecond())
}

func layerTimes(dir int, name string, h *tar.Header, flags int) error {
	sec, nsec := times(h)
	return setTimes(dir, name, sec, nsec, flags)
}

func setTimes(dir int, name string, sec, nsec int64, flags int) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: nsec}}
	if flags == unix.AT_EMPTY_PATH {
		return utimes(dir, "", sec, nsec)
	}
	err := unix.UtimesNanoAt(dir, name, ts, flags)
	if err == unix.EINVAL || err == unix.ERANGE { // a time that this file system cannot hold
		return nil
	}
	return err
}
