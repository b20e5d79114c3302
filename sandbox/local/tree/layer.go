//go:build linux

package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LayerOptions say how a layer of an image is laid down.
type LayerOptions struct {
	// UserXattr names overlay's attributes "user.overlay.…", for layers that
	// are mounted in a user namespace, instead of "trusted.overlay.…".
	UserXattr bool `json:"user_xattr,omitempty"`
	// Shift says whose the files are on disk.
	Shift IDShift `json:"shift"`
	// Count is how many ids a sandbox has; owners beyond them become nobody,
	// 65534, or root where there is none.
	Count int `json:"count"`
	// MaxBytes and MaxEntries bound what the layer unpacks to; 0: no bound.
	MaxBytes   int64 `json:"max_bytes,omitempty"`
	MaxEntries int64 `json:"max_entries,omitempty"`
}

// LayerSummary tells what a layer was.
type LayerSummary struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"` // of files, holes included
	// Opaque: the layer hides all that lies below it, which overlay cannot be
	// told at the root.
	Opaque bool `json:"opaque,omitempty"`
	// Devices were left out; Owners were beyond Count; Attributes could not be
	// kept here, such as a file's capabilities without the right to set them.
	Devices    int64 `json:"devices,omitempty"`
	Owners     int64 `json:"owners,omitempty"`
	Attributes int64 `json:"attributes,omitempty"`
}

// A LayerError is a fault of the layer itself, not of this machine.
type LayerError struct{ Text string }

func (e *LayerError) Error() string { return e.Text }

func badEntry(name, format string, args ...any) error {
	return &LayerError{fmt.Sprintf("entry %.200q: ", name) + fmt.Sprintf(format, args...)}
}

// The names by which a layer removes what lies below it.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// UnpackLayer lays an image's layer, a tar stream, down in the empty directory
// dir, as overlayfs wants it. Nothing outside dir is touched, whatever the
// stream holds: names with ".." and links that lead out are a *LayerError, names
// that begin with "/" count from dir, devices are left out. What follows the
// archive's end in r is not read.
func UnpackLayer(r io.Reader, dir string, o LayerOptions) (LayerSummary, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return LayerSummary{}, &fs.PathError{Op: "unpack", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	u := layerer{o: o, root: fd, parent: -1, dirs: map[string]layerDir{}, buf: make([]byte, 256<<10), uid: -1, gid: -1}
	defer u.closeParent()
	if !o.Shift.Single {
		u.uid, u.gid = o.Shift.Base, o.Shift.Base
	}
	if err := unix.Fchown(fd, u.uid, u.gid); err != nil {
		return u.sum, &fs.PathError{Op: "chown", Path: dir, Err: err}
	}
	if err := unix.Fchmod(fd, 0o755); err != nil { // unless the layer says otherwise
		return u.sum, &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = &LayerError{"it is no tar archive, or a damaged one: " + err.Error()}
			}
			return u.sum, err
		}
		if err := u.entry(h, tr); err != nil {
			return u.sum, err
		}
	}
	return u.sum, u.finish()
}

// UnpackLayer is the function UnpackLayer. a.Shift is used instead of o.Shift.
func (a As) UnpackLayer(ctx context.Context, r io.Reader, dir string, o LayerOptions) (LayerSummary, error) {
	o.Shift = a.Shift
	if a.Map == nil {
		return UnpackLayer(ctxReader{ctx, r}, dir, o)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return LayerSummary{}, err
	}
	ans, err := a.ask(ctx, r, nil, "layer", dir, string(text))
	return ans.Layer, err
}

type layerDir struct {
	ino      uint64
	mode     uint32
	sec, nse int64
}

// layerer unpacks one layer.
type layerer struct {
	o        LayerOptions
	root     int
	sum      LayerSummary
	buf      []byte
	uid, gid int // of directories that no entry names
	// dirs get their modes and times last, when nothing is made in them any
	// more; which they are is told by their inodes.
	dirs   map[string]layerDir
	order  []string
	parent int // the directory named by name, -1 when none
	name   string
}

func (u *layerer) closeParent() {
	if u.parent >= 0 {
		_ = unix.Close(u.parent)
		u.parent = -1
	}
}

// open opens a directory of the layer. Links within the layer are followed,
// as they will be inside; one that leads out of it is EXDEV.
func (u *layerer) open(name string) (int, error) {
	if name == "" {
		name = "."
	}
	return unix.Openat2(u.root, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
}

// clean checks an entry's name and returns it relative to the layer, "" for
// the layer itself.
func clean(name string) (string, error) {
	if len(name) > maxName {
		return "", badEntry(name[:200], "its name has %d bytes; at most %d are allowed", len(name), maxName)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", badEntry(name, "its name holds a NUL byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", badEntry(name, "its name leads out of the image")
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func (u *layerer) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	u.sum.Entries++
	if u.o.MaxEntries > 0 && u.sum.Entries > u.o.MaxEntries {
		return &LayerError{fmt.Sprintf("it has more than %d files, the limit", u.o.MaxEntries)}
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if h.Size < 0 || u.o.MaxBytes > 0 && h.Size > u.o.MaxBytes-u.sum.Bytes {
		return badEntry(name, "with it the layer unpacks to more than %d MiB, the limit", u.o.MaxBytes>>20)
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return badEntry(h.Name, "it would replace the root directory")
		}
		return u.attributes(h, "", u.root, unix.S_IFDIR)
	}
	above, base := path.Split(name)
	dir, err := u.directory(strings.TrimSuffix(above, "/"))
	if err != nil {
		return u.explain(h.Name, err)
	}
	if rest, ok := strings.CutPrefix(base, whiteout); ok {
		err = u.whiteout(name, dir, base, rest)
	} else {
		err = u.node(h, body, name, dir, base)
	}
	return u.explain(h.Name, err)
}

// explain tells faults of the layer from those of the machine.
func (u *layerer) explain(name string, err error) error {
	var le *LayerError
	var errno unix.Errno
	switch {
	case err == nil || errors.As(err, &le):
		return err
	case errors.As(err, &errno):
		switch errno {
		case unix.EXDEV:
			return badEntry(name, "its path leads out of the image through a link")
		case unix.ELOOP, unix.ENOTDIR, unix.EISDIR, unix.ENAMETOOLONG, unix.EEXIST, unix.ENOENT, unix.EMLINK, unix.EINVAL, unix.EILSEQ:
			return badEntry(name, "%s", errno.Error())
		}
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return err
	}
	return &fs.PathError{Op: "unpack", Path: name, Err: err}
}

// directory opens the directory name of the layer, and makes it, with its
// parents, when no entry has. The descriptor is u's own.
func (u *layerer) directory(name string) (int, error) {
	if u.parent >= 0 && u.name == name {
		return u.parent, nil
	}
	fd, err := u.open(name)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		if err = u.mkdirAll(name); err == nil {
			fd, err = u.open(name)
		}
	}
	if err != nil {
		return -1, err
	}
	u.closeParent()
	u.parent, u.name = fd, name
	return fd, nil
}

// mkdirAll makes the directories of name that are not there. A whiteout in its
// way becomes a directory that hides what is below it.
func (u *layerer) mkdirAll(name string) error {
	at, err := u.open("")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	done := ""
	for part := range strings.SplitSeq(name, "/") {
		done = path.Join(done, part)
		next, err := u.open(done)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			hides, werr := u.unwhite(at, part)
			if werr != nil {
				return werr
			}
			if err := unix.Mkdirat(at, part, 0o755); err != nil {
				return err
			}
			if next, err = unix.Openat(at, part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			if hides {
				err = u.hide(next)
			}
			if err == nil {
				err = unix.Fchown(next, u.uid, u.gid)
			}
			if err == nil {
				err = unix.Fchmod(next, 0o755)
			}
			if err != nil {
				_ = unix.Close(next)
				return err
			}
		} else if err != nil {
			return err
		}
		_ = unix.Close(at)
		at = next
	}
	return nil
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// unwhite removes a whiteout and tells whether there was one.
func (u *layerer) unwhite(dir int, name string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || !isWhiteout(&st) {
		return false, nil //nolint:nilerr // then there is none
	}
	return true, unix.Unlinkat(dir, name, 0)
}

// hide makes the directory fd hide what lies below it.
func (u *layerer) hide(fd int) error {
	attr := "trusted.overlay.opaque"
	if u.o.UserXattr {
		attr = "user.overlay.opaque"
	}
	return unix.Fsetxattr(fd, attr, []byte("y"), 0)
}

func (u *layerer) whiteout(name string, dir int, base, rest string) error {
	switch {
	case base == opaque:
		if path.Dir(name) == "." {
			u.sum.Opaque = true
			return nil
		}
		return u.hide(dir)
	case strings.HasPrefix(rest, whiteout):
		return nil // aufs's own notes
	case rest == "" || rest == "." || rest == "..":
		return badEntry(name, "it removes no name")
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, rest, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return unix.Mknodat(dir, rest, unix.S_IFCHR|0o600, 0)
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil // what this layer has itself stays
	}
	fd, err := unix.Openat(dir, rest, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.hide(fd)
}

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
		u.order = append(u.order, name)
	}
	sec, nsec := times(h)
	u.dirs[name] = layerDir{st.Ino, mode, sec, nsec}
	return nil
}

// xattr sets what an image may say of a file: a user's own notes and
// capabilities, but nothing that overlay would take for its own.
func (u *layerer) xattr(fd int, attr, value string) error {
	if attr != "security.capability" && (!strings.HasPrefix(attr, "user.") || strings.HasPrefix(attr, "user.overlay.")) {
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

// finish gives the directories their modes and times, innermost first.
func (u *layerer) finish() error {
	slices.SortFunc(u.order, func(a, b string) int { return strings.Compare(b, a) })
	for _, name := range u.order {
		fd, err := u.open(name)
		if err != nil {
			continue // a later entry has taken its place
		}
		var st unix.Stat_t
		d := u.dirs[name]
		err = unix.Fstat(fd, &st)
		if err == nil && st.Ino == d.ino {
			if err = unix.Fchmod(fd, d.mode); err == nil {
				err = utimes(fd, "", d.sec, d.nse)
			}
		}
		_ = unix.Close(fd)
		if err != nil {
			return u.explain(name, err)
		}
	}
	return nil
}

// layerHelper is UnpackLayer in the helper process.
func layerHelper(dir, options string) (LayerSummary, error) {
	var o LayerOptions
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return LayerSummary{}, err
	}
	sum, err := UnpackLayer(os.Stdin, dir, o)
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	return sum, err
}
