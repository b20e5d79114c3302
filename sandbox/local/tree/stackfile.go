//go:build linux

package tree

import (
	"archive/tar"
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

func (s *stacker) file(dir int, name, at string, h *tar.Header, st *unix.Stat_t) error {
	h.Typeflag = tar.TypeReg
	if st.Mode&0o400 == 0 && os.Geteuid() != 0 {
		if unix.Fchmodat(dir, name, st.Mode&0o7777|0o400, 0) == nil {
			defer func() { _ = unix.Fchmodat(dir, name, st.Mode&0o7777, 0) }()
		}
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "pack", Path: "/" + h.Name, Err: err}
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	for _, prefix := range overlayAttrs {
		if _, err := unix.Lgetxattr(at, prefix+"metacopy", nil); err == nil {
			return &fs.PathError{Op: "pack", Path: "/" + h.Name, Err: errors.New("its content lies in another layer (overlay's metacopy)")}
		}
	}
	if st.Size-st.Blocks*512 >= sparseFrom {
		extents, err := dataOf(f, st.Size)
		if err != nil {
			return &fs.PathError{Op: "pack", Path: "/" + h.Name, Err: err}
		}
		if err := s.xattrs(h, at); err != nil {
			return err
		}
		s.sum.Entries++
		return s.sparse(h, f, st.Size, extents)
	}
	h.Size = st.Size
	if err := s.header(h, at); err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{s.tw}, io.LimitReader(f, st.Size), s.buf)
	s.sum.Bytes += n
	if err == nil && n != st.Size {
		err = &fs.PathError{Op: "pack", Path: "/" + h.Name, Err: io.ErrUnexpectedEOF}
	}
	return err
}

// dataOf lists what of a file is no hole.
func dataOf(f *os.File, size int64) ([]extent, error) {
	var extents []extent
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		end = min(end, size)
		extents = append(extents, extent{start, end - start})
		off = end
	}
	return extents, nil
}

// sparse writes a file with holes in the form of POSIX archives that GNU tar
// calls 1.0, which archive/tar reads and does not write: the extents stand as
// text before their bytes.
func (s *stacker) sparse(h *tar.Header, f *os.File, size int64, extents []extent) error {
	var list strings.Builder
	fmt.Fprintf(&list, "%d\n", len(extents)+1)
	var data int64
	for _, e := range extents {
		fmt.Fprintf(&list, "%d\n%d\n", e.off, e.len)
		data += e.len
	}
	fmt.Fprintf(&list, "%d\n0\n", size)
	text := padded([]byte(list.String()))
	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name, "GNU.sparse.realsize": strconv.FormatInt(size, 10),
		"uid": strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid), "size": strconv.FormatInt(int64(len(text))+data, 10),
		"mtime": fmt.Sprintf("%d.%09d", h.ModTime.Unix(), h.ModTime.Nanosecond()),
	}
	if h.ModTime.Unix() < 0 {
		records["mtime"] = strconv.FormatInt(h.ModTime.Unix(), 10)
	}
	for k, v := range h.PAXRecords {
		records[k] = v
	}
	var pax []byte
	for _, k := range sortedKeys(records) {
		pax = append(pax, paxRecord(k, records[k])...)
	}
	if err := s.tw.Flush(); err != nil {
		return err
	}
	short := path.Base(h.Name)
	short = short[:min(len(short), 60)]
	for _, b := range [][]byte{
		block("PaxHeaders.0/"+short, 0o644, int64(len(pax)), tar.TypeXHeader), padded(pax),
		block("GNUSparseFile.0/"+short, h.Mode, int64(len(text))+data, tar.TypeReg), text,
	} {
		if _, err := s.w.Write(b); err != nil {
			return err
		}
	}
	for _, e := range extents {
		n, err := io.CopyBuffer(onlyWriter{s.w}, io.NewSectionReader(f, e.off, e.len), s.buf)
		s.sum.Bytes += n
		if err == nil && n != e.len {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	_, err := s.w.Write(make([]byte, (512-data%512)%512))
	return err
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// padded fills b up to whole blocks.
func padded(b []byte) []byte { return append(b, make([]byte, (512-len(b)%512)%512)...) }

// paxRecord is "LENGTH KEY=VALUE\n", where the length counts itself.
func paxRecord(k, v string) string {
	n := len(k) + len(v) + 3
	size := n + len(strconv.Itoa(n))
	if len(strconv.Itoa(size)) != size-n {
		size++
	}
	return strconv.Itoa(size) + " " + k + "=" + v + "\n"
}

// block is a header of a POSIX archive. What does not fit into it stands in
// the extended header before it.
func block(name string, mode, size int64, kind byte) []byte {
	b := make([]byte, 512)
	copy(b[0:100], name)
	octal := func(field []byte, v int64) { copy(field, fmt.Sprintf("%0*o", len(field)-1, v)) }
	octal(b[100:108], mode&0o7777)
	octal(b[108:116], 0)
	octal(b[116:124], 0)
	if size < 1<<33 {
		octal(b[124:136], size)
	} else {
		octal(b[124:136], 0)
	}
	octal(b[136:148], 0)
	b[156] = kind
	copy(b[257:265], "ustar\x0000")
	octal(b[329:337], 0)
	octal(b[337:345], 0)
	copy(b[148:156], "        ")
	var sum int64
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}
