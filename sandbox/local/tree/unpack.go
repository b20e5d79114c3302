//go:build linux

package tree

import (
	"archive/tar"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Unpack makes what Pack wrote, in the empty directory dir. An entry that leads
// outside dir, or through a link, is an error.
func Unpack(r io.Reader, dir string, shift IDShift) (Summary, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Summary{}, &fs.PathError{Op: "unpack", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	u := unpacker{root: fd, shift: shift, parent: -1, buf: make([]byte, 128<<10)}
	defer u.closeParent()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = u.entry(h, tr)
		}
		if err != nil {
			return u.sum, err
		}
		u.sum.Entries++
	}
	// Directories last, innermost first: making their contents changed their
	// times, and may need permissions that they do not have.
	for i := len(u.dirs) - 1; i >= 0; i-- {
		if err := u.finishDir(u.dirs[i]); err != nil {
			return u.sum, err
		}
	}
	return u.sum, nil
}

type unpacker struct {
	root   int
	shift  IDShift
	sum    Summary
	buf    []byte
	dirs   []dirEnd
	above  []within // the last directory and those it is in, the outermost first
	parent int      // the directory named by parentName, -1 when none
	name   string
}

// within is a directory in whose contents the archive is.
type within struct {
	path string
	at   *place
}

type dirEnd struct {
	at       *place
	mode     uint32
	uid, gid int
	sec      int64
	nsec     int64
}

func (u *unpacker) closeParent() {
	if u.parent >= 0 {
		_ = unix.Close(u.parent)
		u.parent = -1
	}
}

// open opens a directory below the root without passing any link.
func (u *unpacker) open(name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	return unix.Openat2(u.root, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
}

// split opens the parent of name and returns it with the last element.
func (u *unpacker) split(name string) (int, string, error) {
	name = strings.TrimSuffix(name, "/")
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if base == "" || base == "." || base == ".." {
		return -1, "", fmt.Errorf("%.200q is not a name inside the archive", name)
	}
	if u.parent < 0 || u.name != dir {
		u.closeParent()
		fd, err := u.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return -1, "", &fs.PathError{Op: "unpack", Path: name, Err: err}
		}
		u.parent, u.name = fd, dir
	}
	return u.parent, base, nil
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	if h.Name == "./" {
		return u.directory(h, "", "/proc/self/fd/"+strconv.Itoa(u.root))
	}
	dir, name, err := u.split(h.Name)
	if err != nil {
		return err
	}
	at := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	if err := u.node(h, body, dir, name, at); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			return err
		}
		return &fs.PathError{Op: "unpack", Path: h.Name, Err: err}
	}
	return nil
}

func (u *unpacker) node(h *tar.Header, body io.Reader, dir int, name, at string) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return err
		}
		return u.directory(h, strings.TrimSuffix(h.Name, "/"), at)
	case tar.TypeReg:
		return u.file(h, body, dir, name, at)
	case tar.TypeLink:
		d, base, err := u.openFor(h.Linkname)
		if err != nil {
			return err
		}
		defer unix.Close(d)
		return unix.Linkat(d, base, dir, name, 0)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, dir, name); err != nil {
			return err
		}
		return u.attributes(h, dir, name, at, false)
	case tar.TypeFifo:
		if err := unix.Mknodat(dir, name, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		return u.attributes(h, dir, name, at, true)
	case tar.TypeChar, tar.TypeBlock:
		// Only whiteouts can have been made inside; nothing else is made here.
		if h.Typeflag != tar.TypeChar || h.Devmajor != 0 || h.Devminor != 0 {
			u.sum.Skipped++
			return nil
		}
		if err := unix.Mknodat(dir, name, unix.S_IFCHR|0o600, 0); err != nil {
			return err
		}
		return u.attributes(h, dir, name, at, true)
	}
	return fmt.Errorf("unknown kind of entry %q", string(h.Typeflag))
}

// openFor is split for a second name, with a descriptor of its own.
func (u *unpacker) openFor(name string) (int, string, error) {
	dir, base := path.Split(name)
	if base == "" || base == "." || base == ".." {
		return -1, "", fmt.Errorf("%.200q is not a name inside the archive", name)
	}
	fd, err := u.open(strings.TrimSuffix(dir, "/"), unix.O_RDONLY|unix.O_DIRECTORY)
	return fd, base, err
}

func (u *unpacker) owner(h *tar.Header) (int, int) {
	if u.shift.Single {
		return -1, -1
	}
	return h.Uid + u.shift.Base, h.Gid + u.shift.Base
}

// directory sets what must not wait and notes the rest.
func (u *unpacker) directory(h *tar.Header, name, at string) error {
	if err := writeXattrs(at, h); err != nil {
		return err
	}
	uid, gid := u.owner(h)
	u.dirs = append(u.dirs, dirEnd{u.place(name), uint32(h.Mode & 0o7777), uid, gid, h.ModTime.Unix(), int64(h.ModTime.Nanosecond())})
	return nil
}

// place is that of a directory, "" at the top. Pack writes what a directory has
// after it, and before anything else.
func (u *unpacker) place(name string) *place {
	if name == "" {
		return nil
	}
	p := &place{name: name}
	for n := len(u.above); n > 0; n-- {
		in := u.above[n-1]
		if base, ok := strings.CutPrefix(name, in.path); ok && strings.HasPrefix(base, "/") {
			p = &place{in.at, base[1:]}
			break
		}
		u.above = u.above[:n-1]
	}
	p.name = strings.Clone(p.name)
	u.above = append(u.above, within{name, p})
	return p
}

func (u *unpacker) finishDir(d dirEnd) error {
	name := d.at.String()
	fd, err := u.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return &fs.PathError{Op: "unpack", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, d.uid, d.gid); err != nil {
		return &fs.PathError{Op: "unpack", Path: name, Err: err}
	}
	if err := unix.Fchmod(fd, d.mode); err != nil {
		return &fs.PathError{Op: "unpack", Path: name, Err: err}
	}
	return utimes(fd, "", d.sec, d.nsec)
}

func utimes(dir int, name string, sec, nsec int64) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: nsec}}
	if name == "" {
		return unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(dir), ts, 0)
	}
	return unix.UtimesNanoAt(dir, name, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// attributes sets owner, mode, extended attributes and times, in the order in
// which none undoes another. chmod is for what is no link: those have no mode.
func (u *unpacker) attributes(h *tar.Header, dir int, name, at string, chmod bool) error {
	uid, gid := u.owner(h)
	if err := unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := writeXattrs(at, h); err != nil {
		return err
	}
	if chmod {
		// Nothing else writes here: name is the node just made, no link.
		if err := unix.Fchmodat(dir, name, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
	}
	return utimes(dir, name, h.ModTime.Unix(), int64(h.ModTime.Nanosecond()))
}

func (u *unpacker) file(h *tar.Header, body io.Reader, dir int, name, at string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), h.Name)
	if s, ok := h.PAXRecords[paxSparse]; ok {
		err = u.sparse(f, s, body)
	} else {
		var n int64
		n, err = io.CopyBuffer(onlyWriter{f}, body, u.buf)
		u.sum.Bytes += n
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return u.attributes(h, dir, name, at, true)
}

func (u *unpacker) sparse(f *os.File, size string, body io.Reader) error {
	total, err := strconv.ParseInt(size, 10, 64)
	if err != nil || total < 0 {
		return fmt.Errorf("%.40q is not a file's size", size)
	}
	if err := f.Truncate(total); err != nil {
		return err
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(body, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		off, n := int64(binary.BigEndian.Uint64(head[:])), int64(binary.BigEndian.Uint64(head[8:]))
		if off < 0 || n < 0 || off > total-n {
			return errors.New("an extent lies outside its file")
		}
		got, err := io.CopyBuffer(onlyWriter{io.NewOffsetWriter(f, off)}, io.LimitReader(body, n), u.buf)
		u.sum.Bytes += got
		if err == nil && got != n {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
}

func writeXattrs(at string, h *tar.Header) error {
	for k, v := range h.PAXRecords {
		hexName, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		name, err := hex.DecodeString(hexName)
		if err != nil || v == "" {
			return errors.New("malformed extended attribute")
		}
		value, err := hex.DecodeString(v[1:])
		if err != nil {
			return errors.New("malformed extended attribute")
		}
		if err := unix.Lsetxattr(at, string(name), value, 0); err != nil {
			return fmt.Errorf("extended attribute %.80q: %w", name, err)
		}
	}
	return nil
}
