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
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Our PAX records. Extended attributes are hex both ways, since their names may
// hold "=" and their values anything; an empty value must survive too.
const (
	paxXattr  = "BERTH.xattr."
	paxSparse = "BERTH.sparse" // the file's size; its body is extents, see writeSparse
)

const (
	// maxName bounds an entry's path, so that unpacking can reach it in one
	// system call.
	maxName = 4000
	// maxDepth bounds the descriptors that packing holds.
	maxDepth = 900
)

// ErrTooDeep is returned by Pack for a tree nested deeper than an archive can
// hold.
var ErrTooDeep = errors.New("directories are nested too deep to be packed")

// Summary tells what was packed or unpacked.
type Summary struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"` // of file contents, without holes
	Skipped int64 `json:"skipped,omitempty"`
}

// IDShift changes owners on their way into or out of an archive, which always
// holds the ids of the sandbox's inside.
type IDShift struct {
	// Single marks a tree whose files all belong to the caller and mean the
	// inside's root.
	Single bool `json:"single,omitempty"`
	// Base is the owner outside of what inside's root owns; 0 where the ids on
	// disk are the inside's.
	Base int `json:"base,omitempty"`
}

// Pack writes the tree under dir as a tar stream: owners, modes, times to the
// nanosecond, extended attributes, hard links, holes, devices (overlay's
// whiteouts are such) and FIFOs. Sockets are skipped, nobody listens on them
// any more. What overlay notes about origins is dropped; it is only a hint, and
// untrue after a restore.
func Pack(w io.Writer, dir string, shift IDShift) (Summary, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Summary{}, &fs.PathError{Op: "pack", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	p := packer{tw: tar.NewWriter(w), shift: shift, links: map[inode]*place{}, buf: make([]byte, 128<<10)}
	if err := p.directory(fd, "", nil, 0); err != nil {
		return p.sum, err
	}
	return p.sum, p.tw.Close()
}

// CheckDepth returns ErrTooDeep for a tree under dir that Pack would return it
// for, and looks at directories only. It passes over what it may not read.
func CheckDepth(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	return checkDepth(f, "", 0)
}

func checkDepth(dir *os.File, name string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%.80s…: %w", name, ErrTooDeep)
	}
	entries, _ := dir.ReadDir(-1) // as far as it goes
	for _, e := range entries {
		path := filepath.Join(name, e.Name())
		if len(path) > maxName {
			return fmt.Errorf("%.80s…: %w", path, ErrTooDeep)
		}
		if !e.IsDir() {
			continue
		}
		fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		sub := os.NewFile(uintptr(fd), path)
		err = checkDepth(sub, path, depth+1)
		_ = sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type packer struct {
	tw    *tar.Writer
	shift IDShift
	links map[inode]*place
	buf   []byte
	sum   Summary
}

// directory packs the contents of fd, whose path in the archive is name ("" at
// the top, whose own attributes are packed as "."), and is that of at.
func (p *packer) directory(fd int, name string, at *place, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%.80s…: %w", name, ErrTooDeep)
	}
	if name == "" {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if err := p.header(p.base(&st, "./"), "/proc/self/fd/"+strconv.Itoa(fd), true); err != nil {
			return err
		}
	}
	names, err := readNames(fd, 0)
	if err != nil {
		return &fs.PathError{Op: "pack", Path: name, Err: err}
	}
	for _, n := range names {
		if err := p.entry(fd, n, filepath.Join(name, n), at, depth); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) base(st *unix.Stat_t, name string) *tar.Header {
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX, Typeflag: tar.TypeDir}
	if p.shift.Single {
		h.Uid, h.Gid = 0, 0
	} else if p.shift.Base != 0 {
		h.Uid, h.Gid = max(0, h.Uid-p.shift.Base), max(0, h.Gid-p.shift.Base)
	}
	return h
}

func (p *packer) entry(dir int, name, path string, in *place, depth int) error {
	if len(path) > maxName {
		return fmt.Errorf("%.80s…: %w", path, ErrTooDeep)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "pack", Path: path, Err: err}
	}
	h := p.base(&st, path)
	at := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFSOCK {
		p.sum.Skipped++
		return nil
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		key := inode{uint64(st.Dev), st.Ino}
		if first, ok := p.links[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first.String()
			return p.header(h, "", false)
		}
		p.links[key] = &place{in, name}
	}
	switch kind {
	case unix.S_IFDIR:
		h.Name += "/"
		if err := p.header(h, at, true); err != nil {
			return err
		}
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.EACCES || err == nil && st.Mode&0o100 == 0 && os.Geteuid() != 0 {
			// Opened up for the time of packing; the true mode is in h.
			if err == nil {
				_ = unix.Close(fd)
			}
			fd, err = openDir(dir, name, st.Mode)
			if err == nil {
				defer func() { _ = unix.Fchmodat(dir, name, st.Mode&0o7777, 0) }()
			}
		}
		if err != nil {
			return &fs.PathError{Op: "pack", Path: path, Err: err}
		}
		defer unix.Close(fd)
		return p.directory(fd, path, &place{in, name}, depth+1)
	case unix.S_IFREG:
		return p.file(dir, name, at, &st, h)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return &fs.PathError{Op: "pack", Path: path, Err: err}
		}
		h.Linkname = string(buf[:n])
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return p.header(h, at, true)
}

func (p *packer) header(h *tar.Header, at string, attrs bool) error {
	if attrs {
		if err := readXattrs(at, h); err != nil {
			return &fs.PathError{Op: "pack", Path: h.Name, Err: err}
		}
	}
	p.sum.Entries++
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%.200q: %w", h.Name, err)
	}
	return nil
}

func (p *packer) file(dir int, name, at string, st *unix.Stat_t, h *tar.Header) error {
	h.Typeflag = tar.TypeReg
	if st.Mode&0o400 == 0 && os.Geteuid() != 0 {
		// Our own file without read permission; its true mode is in h, and
		// is set again afterwards.
		if unix.Fchmodat(dir, name, st.Mode&0o7777|0o400, 0) == nil {
			defer func() { _ = unix.Fchmodat(dir, name, st.Mode&0o7777, 0) }()
		}
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "pack", Path: h.Name, Err: err}
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	if st.Blocks*512 >= st.Size {
		h.Size = st.Size
		if err := p.header(h, at, true); err != nil {
			return err
		}
		n, err := io.CopyBuffer(onlyWriter{p.tw}, io.LimitReader(f, st.Size), p.buf)
		p.sum.Bytes += n
		if err == nil && n != st.Size {
			err = &fs.PathError{Op: "pack", Path: h.Name, Err: io.ErrUnexpectedEOF}
		}
		return err
	}
	return p.sparse(f, st.Size, at, h)
}

type extent struct{ off, len int64 }

// sparse writes a file with holes: each extent as its offset and length (eight
// bytes each, big endian), then its bytes.
func (p *packer) sparse(f *os.File, size int64, at string, h *tar.Header) error {
	var extents []extent
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return &fs.PathError{Op: "pack", Path: h.Name, Err: err}
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return &fs.PathError{Op: "pack", Path: h.Name, Err: err}
		}
		end = min(end, size)
		extents = append(extents, extent{start, end - start})
		h.Size += 16 + end - start
		off = end
	}
	h.PAXRecords = map[string]string{paxSparse: strconv.FormatInt(size, 10)}
	if err := p.header(h, at, true); err != nil {
		return err
	}
	for _, e := range extents {
		var head [16]byte
		binary.BigEndian.PutUint64(head[:], uint64(e.off))
		binary.BigEndian.PutUint64(head[8:], uint64(e.len))
		if _, err := p.tw.Write(head[:]); err != nil {
			return err
		}
		n, err := io.CopyBuffer(onlyWriter{p.tw}, io.NewSectionReader(f, e.off, e.len), p.buf)
		p.sum.Bytes += n
		if err != nil {
			return err
		}
		if n != e.len {
			return &fs.PathError{Op: "pack", Path: h.Name, Err: io.ErrUnexpectedEOF}
		}
	}
	return nil
}

// onlyWriter hides ReadFrom, which would ignore the buffer.
type onlyWriter struct{ io.Writer }

// dropped are overlay's notes about lower files, by the last part of the name.
func droppedXattr(name string) bool {
	for _, prefix := range []string{"trusted.overlay.", "user.overlay."} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			switch rest {
			case "origin", "impure", "nlink", "uuid", "upper":
				return true
			}
		}
	}
	return false
}

func readXattrs(at string, h *tar.Header) error {
	size, err := unix.Llistxattr(at, nil)
	if err != nil || size == 0 {
		if err == unix.ENOTSUP || err == unix.EPERM || err == unix.EACCES {
			return nil
		}
		return err
	}
	list := make([]byte, size+256)
	n, err := unix.Llistxattr(at, list)
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if name == "" || droppedXattr(name) || strings.HasPrefix(name, "security.selinux") {
			continue
		}
		value := make([]byte, 64<<10) // the kernel's own bound
		n, err := unix.Lgetxattr(at, name, value)
		if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES || err == unix.ENOTSUP {
			continue
		}
		if err != nil {
			return err
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+hex.EncodeToString([]byte(name))] = "x" + hex.EncodeToString(value[:n])
	}
	return nil
}
