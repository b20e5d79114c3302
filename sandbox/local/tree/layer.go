//go:build linux

package tree

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
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
	// Own: it is of PackStack with Own, and all extended attributes are kept.
	Own bool `json:"own,omitempty"`
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
	hr := &headerReader{r: r}
	tr := tar.NewReader(hr)
	for {
		hr.left = maxHeaders
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
		hr.left = -1
		if err := u.entry(h, tr); err != nil {
			return u.sum, err
		}
	}
	return u.sum, u.finish()
}

// maxHeaders bounds what stands between the contents of two files, in bytes: long
// names, extended attributes, headers that only announce another, and what is
// passed over.
const maxHeaders = 8 << 20

// headerReader ends a stream in which headers follow headers.
type headerReader struct {
	r    io.Reader
	left int64 // negative: no bound
}

func (h *headerReader) Read(p []byte) (int, error) {
	if h.left < 0 {
		return h.r.Read(p)
	}
	if h.left == 0 && len(p) > 0 {
		return 0, &LayerError{fmt.Sprintf("more than %d MiB of headers stand before one of its files", maxHeaders>>20)}
	}
	n, err := h.r.Read(p[:min(int64(len(p)), h.left)])
	h.left -= int64(n)
	return n, err
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
	noted  int64
	parent int // the directory named by name, -1 when none
	name   string
	stale  bool // a name may lead elsewhere than it did
}

// What is noted of directories is bounded, in bytes: an entry of a few bytes, as
// it is transferred, can have a name of 4,000, and lead to a directory that is
// there already.
const (
	maxNoted    = 64 << 20
	notedBeside = 64 // a name's inode, mode and times
)

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
	u.sum.Entries++
	if u.o.MaxEntries > 0 && u.sum.Entries > u.o.MaxEntries {
		return &LayerError{fmt.Sprintf("it has more than %d files, the limit", u.o.MaxEntries)}
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // it is no file, but must not go on for ever either
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
	rest, white := strings.CutPrefix(base, whiteout)
	switch {
	case u.o.Own && h.PAXRecords[paxRemoved] == "below":
		fd, oerr := u.open(name)
		if err = oerr; err == nil {
			err = u.hide(fd)
			_ = unix.Close(fd)
		}
	case u.o.Own && h.PAXRecords[paxRemoved] != "":
		err = unix.Mknodat(dir, base, unix.S_IFCHR|0o600, 0)
	case white && !u.o.Own:
		err = u.whiteout(name, dir, base, rest)
	default:
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
	if u.parent >= 0 && u.name == name && !u.stale {
		return u.parent, nil
	}
	u.stale = false
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
