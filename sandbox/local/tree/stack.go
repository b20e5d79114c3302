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
	"time"

	"golang.org/x/sys/unix"
)

// StackOptions of PackStack.
type StackOptions struct {
	// Dirs are layers as an overlay has them, the topmost first.
	Dirs []string `json:"dirs"`
	// Shift says whose their files are on disk.
	Shift IDShift `json:"shift"`
	// Alone: nothing lies below them, so that what they remove and hide is not
	// mentioned.
	Alone bool `json:"alone,omitempty"`
	// Own: for UnpackLayer with Own, which takes all extended attributes, and all
	// names: what is removed is told by the record paxRemoved instead.
	Own bool `json:"own,omitempty"`
}

// StackSummary tells what was packed.
type StackSummary struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"` // of files, without holes
	// Sockets were left out, and so were Names, which would mean a removal in
	// a layer (".wh.x"), and Attributes, which have no meaning elsewhere.
	Sockets    int64 `json:"sockets,omitempty"`
	Names      int64 `json:"names,omitempty"`
	Attributes int64 `json:"attributes,omitempty"`
}

// PackStack writes what layers of an overlay hold together as one layer of an
// image: a tar stream in which a name that was removed is a file ".wh.NAME", and
// a directory that hides what lies below it holds ".wh..wh..opq". Owners are
// those inside. Holes are kept, as GNU tar writes them.
func PackStack(w io.Writer, o StackOptions) (StackSummary, error) {
	s := stacker{o: o, w: w, tw: tar.NewWriter(w), links: map[inode]*place{}, buf: make([]byte, 256<<10)}
	defer func() {
		for _, fd := range s.roots {
			_ = unix.Close(fd)
		}
	}()
	var all []int
	for i, dir := range o.Dirs {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return s.sum, &fs.PathError{Op: "pack", Path: dir, Err: err}
		}
		s.roots = append(s.roots, fd)
		all = append(all, i)
	}
	if len(all) > 0 {
		if err := s.directory(&found{layers: all}, "", nil, s.o.Alone, 0); err != nil {
			return s.sum, err
		}
	}
	return s.sum, s.tw.Close()
}

// PackStack is the function PackStack. a.Shift is used instead of o.Shift.
func (a As) PackStack(ctx context.Context, w io.Writer, o StackOptions) (StackSummary, error) {
	o.Shift = a.Shift
	if a.Map == nil {
		return PackStack(ctxWriter{ctx, w}, o)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return StackSummary{}, err
	}
	ans, err := a.ask(ctx, nil, w, "stack", string(text))
	return ans.Stack, err
}

type stacker struct {
	o     StackOptions
	w     io.Writer
	tw    *tar.Writer
	roots []int
	links map[inode]*place
	buf   []byte
	sum   StackSummary
}

// overlayAttrs are overlay's own attributes, as root and in a user namespace.
var overlayAttrs = []string{"trusted.overlay.", "user.overlay."}

// paxRemoved says of an entry that its name is removed ("name"), or that the
// directory of that name hides what lies below it ("below").
const paxRemoved = "BERTH.removed"

// found is what a name is in a stack.
type found struct {
	name   string
	layer  int // in which it is seen
	st     unix.Stat_t
	layers []int // of a directory: those that are seen through one another
	hides  bool  // what lies below all layers is not seen
}

// directory packs what the layers have at name, a directory in each of them.
// hidden tells that what lies below all layers is hidden by one further up, or
// that nothing does.
func (s *stacker) directory(d *found, name string, at *place, hidden bool, depth int) error {
	if depth > maxDepth || len(name) > maxName {
		return fmt.Errorf("%.80s…: %w", name, ErrTooDeep)
	}
	var subs []found
	err := func() error {
		fds := make([]int, 0, len(d.layers))
		defer func() {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}()
		for _, l := range d.layers {
			fd, err := s.open(l, name)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		st := &d.st // from before it was opened up
		if name == "" {
			if err := unix.Fstat(fds[0], st); err != nil {
				return err
			}
		}
		if err := s.header(s.base(st, name+"/"), magic(fds[0])); err != nil {
			return err
		}
		if d.hides && !hidden {
			if err := s.mark(name, opaque, st); err != nil {
				return err
			}
		}
		entries, err := s.list(name, fds, d.layers)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.layers != nil {
				subs = append(subs, e)
				continue
			}
			fd := fds[slices.Index(d.layers, e.layer)]
			if isWhiteout(&e.st) && (d.hides || hidden) {
				continue
			}
			if err := s.entry(fd, path.Join(name, e.name), at, &e); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) || errors.Is(err, ErrTooDeep) {
			return err
		}
		return &fs.PathError{Op: "pack", Path: "/" + name, Err: err}
	}
	for _, e := range subs {
		sub := path.Join(name, e.name)
		closed := s.openUp(sub, e.layers)
		err := s.directory(&e, sub, &place{at, e.name}, d.hides || hidden, depth+1)
		closed()
		if err != nil {
			return err
		}
	}
	return nil
}

// open opens a directory of a layer. Layers are written inside: nothing in
// them may lead out.
func (s *stacker) open(layer int, name string) (int, error) {
	if name == "" {
		name = "."
	}
	return unix.Openat2(s.roots[layer], name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
}

// openUp lets a user other than root into its own closed directories until
// closed is called.
func (s *stacker) openUp(name string, layers []int) (closed func()) {
	if os.Geteuid() == 0 {
		return func() {}
	}
	var undo []func()
	for _, l := range layers {
		var st unix.Stat_t
		if unix.Fstatat(s.roots[l], name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&0o500 == 0o500 {
			continue
		}
		if unix.Fchmodat(s.roots[l], name, st.Mode&0o7777|0o500, 0) == nil {
			undo = append(undo, func() { _ = unix.Fchmodat(s.roots[l], name, st.Mode&0o7777, 0) })
		}
	}
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

// list finds what is seen in a directory, by name. fds are that of layers.
func (s *stacker) list(name string, fds, layers []int) ([]found, error) {
	var names []string
	for _, fd := range fds {
		n, err := readNames(fd, 0)
		if err != nil {
			return nil, err
		}
		names = append(names, n...)
	}
	slices.Sort(names)
	var out []found
	for _, n := range slices.Compact(names) {
		e := found{name: n, layer: -1}
		for i, fd := range fds {
			var st unix.Stat_t
			err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW)
			if err == unix.ENOENT {
				continue
			}
			if err != nil {
				return nil, &fs.PathError{Op: "pack", Path: path.Join("/", name, n), Err: err}
			}
			dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			if e.layer < 0 {
				e.layer, e.st = layers[i], st
			}
			if !dir {
				e.hides = e.layers != nil
				break
			}
			e.layers = append(e.layers, layers[i])
			if e.hides, err = s.opaque(magic(fd)+"/"+n, path.Join(name, n)); err != nil {
				return nil, err
			}
			if e.hides {
				break
			}
		}
		if e.layer >= 0 {
			out = append(out, e)
		}
	}
	return out, nil
}

// opaque tells whether a directory hides what lies below it. Layers that need
// more than that to be read cannot be packed.
func (s *stacker) opaque(at, name string) (bool, error) {
	var v [16]byte
	hides := false
	for _, prefix := range overlayAttrs {
		if n, err := unix.Lgetxattr(at, prefix+"opaque", v[:]); err == nil && n == 1 && v[0] == 'y' {
			hides = true
		}
		if n, err := unix.Lgetxattr(at, prefix+"redirect", nil); err == nil && n > 0 {
			return false, fmt.Errorf("the directory /%s was renamed in a way (overlay's redirect_dir) that a layer of an image cannot tell", name)
		}
	}
	return hides, nil
}

func (s *stacker) base(st *unix.Stat_t, name string) *tar.Header {
	p := packer{shift: s.o.Shift}
	h := p.base(st, name)
	if name == "/" {
		h.Name = "./"
	}
	h.ModTime = time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	return h
}

// mark writes an empty file that means a removal: of a name in the directory
// dir, or with opaque of all that lies below it.
func (s *stacker) mark(dir, name string, st *unix.Stat_t) error {
	h := &tar.Header{Name: path.Join(dir, name), Typeflag: tar.TypeReg, Mode: 0o600, ModTime: time.Unix(st.Mtim.Sec, 0), Format: tar.FormatPAX}
	switch {
	case s.o.Own && name == opaque:
		h.Name, h.PAXRecords = dir, map[string]string{paxRemoved: "below"}
	case s.o.Own:
		h.PAXRecords = map[string]string{paxRemoved: "name"}
	case name != opaque:
		h.Name = path.Join(dir, whiteout+name)
	}
	s.sum.Entries++
	return s.tw.WriteHeader(h)
}

// header writes an entry's header, with the attributes of at unless it is empty.
func (s *stacker) header(h *tar.Header, at string) error {
	if at != "" {
		if err := s.xattrs(h, at); err != nil {
			return err
		}
	}
	s.sum.Entries++
	return s.tw.WriteHeader(h)
}

// entry packs what is no directory, and is in the directory in.
func (s *stacker) entry(dir int, name string, in *place, e *found) error {
	st := &e.st
	base := path.Base(name)
	if isWhiteout(st) {
		return s.mark(path.Dir(name), base, st)
	}
	if strings.HasPrefix(base, whiteout) && !s.o.Own {
		s.sum.Names++
		return nil
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		key := inode{st.Dev, st.Ino}
		if first, ok := s.links[key]; ok {
			h := s.base(st, name)
			h.Typeflag, h.Linkname = tar.TypeLink, first.String()
			return s.header(h, "")
		}
		s.links[key] = &place{in, e.name}
	}
	h := s.base(st, name)
	at := magic(dir) + "/" + base
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return s.file(dir, base, at, h, st)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, base, buf)
		if err != nil {
			return err
		}
		h.Linkname = string(buf[:n])
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		s.sum.Sockets++
		return nil
	}
	return s.header(h, at)
}

// xattrs takes along what means something elsewhere: a user's notes, access
// control lists and capabilities.
func (s *stacker) xattrs(h *tar.Header, at string) error {
	get, list := unix.Lgetxattr, unix.Llistxattr
	if strings.Count(at, "/") == 4 { // a descriptor's own name, which is a link
		get, list = unix.Getxattr, unix.Listxattr
	}
	names := make([]byte, 4096)
	n, err := list(at, names)
	if err == unix.ERANGE {
		names = make([]byte, 64<<10)
		n, err = list(at, names)
	}
	if err == unix.ENOTSUP || err == unix.EPERM || err == unix.EACCES || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	for attr := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(attr, overlayAttrs[0]) || strings.HasPrefix(attr, overlayAttrs[1]) {
			continue
		}
		known := strings.HasPrefix(attr, "user.") || attr == "security.capability" || s.o.Own && attr != "security.selinux"
		if !known || strings.Contains(attr, "=") {
			s.sum.Attributes++
			continue
		}
		value := make([]byte, 64<<10)
		n, err := get(at, attr, value)
		if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES {
			continue
		}
		if err != nil {
			return err
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+attr] = string(capability(attr, value[:n]))
	}
	return nil
}

// capability makes a file's capabilities those of any root, where they name one.
func capability(attr string, v []byte) []byte {
	if attr == "security.capability" && len(v) == 24 && v[3] == 3 {
		v = slices.Clone(v[:20])
		v[3] = 2
	}
	return v
}

// stackHelper is PackStack in the helper process.
func stackHelper(w io.Writer, options string) (StackSummary, error) {
	var o StackOptions
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return StackSummary{}, err
	}
	return PackStack(w, o)
}
