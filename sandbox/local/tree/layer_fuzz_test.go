//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/tree"
)

// fuzzRoom is a directory in memory, where there is one: the disk would be
// what the fuzzer waits for.
func fuzzRoom(t testing.TB) string {
	t.Helper()
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) != nil || st.Type != unix.TMPFS_MAGIC || unix.Access("/dev/shm", unix.W_OK) != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "berth-layer-") //nolint:usetesting // see above
	must(t, err)
	t.Cleanup(func() { must(t, tree.Remove(dir)) })
	return dir
}

const (
	fuzzBytes   = 1 << 20
	fuzzEntries = 200
)

// unpackHostile unpacks b and fails the test when anything but the layer's own
// directory changed, or when there is in it what no layer may make.
func unpackHostile(t *testing.T, b []byte) {
	t.Helper()
	top := fuzzRoom(t)
	outside, to := filepath.Join(top, "outside"), filepath.Join(top, "layer")
	must(t, os.Mkdir(to, 0o755))
	mustWrite(t, filepath.Join(outside, "precious"), "precious")
	before := stateOf(t, outside)
	sum, err := tree.UnpackLayer(bytes.NewReader(b), to, tree.LayerOptions{UserXattr: os.Geteuid() != 0, Shift: shift(), Count: 65536, MaxBytes: fuzzBytes, MaxEntries: fuzzEntries})
	if got := stateOf(t, outside); got != before {
		t.Errorf("outside: %s, was %s", got, before)
	}
	if names, _ := os.ReadDir(top); len(names) != 2 {
		t.Errorf("beside: %v", names)
	}
	if sum.Entries > fuzzEntries+1 || sum.Bytes > fuzzBytes {
		t.Errorf("summary = %+v, beyond the limits (%v)", sum, err)
	}
	checkLaid(t, to, sum, err)
	must(t, tree.Remove(to))
}

// stateOf tells everything of the directory outside and its file.
func stateOf(t testing.TB, dir string) string {
	t.Helper()
	text := ""
	for _, p := range []string{dir, filepath.Join(dir, "precious")} {
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		text += fmt.Sprintf("%s %o %d:%d links %d size %d changed %v; ", filepath.Base(p), st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Ctim)
	}
	names, err := os.ReadDir(dir)
	must(t, err)
	return text + fmt.Sprint(names)
}

// checkLaid looks at what was made below dir: no device but whiteouts, no note
// of overlay's but "opaque", no more bytes than were counted.
func checkLaid(t *testing.T, dir string, sum tree.LayerSummary, err error) {
	t.Helper()
	var bytes int64
	links := map[uint64]bool{}
	var walk func(path string, depth int)
	walk = func(path string, depth int) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return // longer than a path may be
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			if st.Rdev != 0 {
				t.Errorf("%s is a device %x", path, st.Rdev)
			}
		case unix.S_IFBLK, unix.S_IFSOCK:
			t.Errorf("%s is of the kind %o", path, st.Mode)
		case unix.S_IFREG:
			if !links[st.Ino] {
				links[st.Ino] = true
				bytes += st.Size
			}
		}
		list := make([]byte, 4096)
		if n, err := unix.Llistxattr(path, list); err == nil {
			for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
				if strings.Contains(name, ".overlay.") && !strings.HasSuffix(name, ".overlay.opaque") || strings.HasSuffix(name, ".overlay.opaque") && st.Mode&unix.S_IFMT != unix.S_IFDIR {
					t.Errorf("%s has the attribute %s", path, name)
				}
			}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth > 100 {
			return
		}
		if os.Geteuid() != 0 && depth > 0 {
			_ = os.Chmod(path, 0o700) // so that the test may look into it
		}
		names, _ := os.ReadDir(path)
		for _, n := range names {
			walk(filepath.Join(path, n.Name()), depth+1)
		}
	}
	walk(dir, 0)
	// The file at which it was refused is not counted.
	if bytes > fuzzBytes || err == nil && bytes > sum.Bytes {
		t.Errorf("%d bytes were laid down, and %d counted (%v)", bytes, sum.Bytes, err)
	}
}

// squeeze shortens a tar stream, which is zeros for the most part: the fuzzer is
// at its best with small inputs. A zero is followed by how many more there are, or
// by 255 for all up to the next block.
func squeeze(b []byte) []byte {
	var out []byte
	for at := 0; at < len(b); {
		if b[at] != 0 {
			out = append(out, b[at])
			at++
			continue
		}
		end := at
		for end < len(b) && b[end] == 0 && (end == at || end%512 != 0) {
			end++
		}
		switch n := end - at; {
		case end%512 == 0:
			out = append(out, 0, 255)
		default:
			n = min(n, 255)
			out = append(out, 0, byte(n-1))
			end = at + n
		}
		at = end
	}
	return out
}

// expand is the inverse of squeeze.
func expand(b []byte) []byte {
	var out []byte
	for ; len(b) > 0 && len(out) < 256<<10; b = b[1:] {
		switch {
		case b[0] != 0 || len(b) == 1:
			out = append(out, b[0])
			continue
		case b[1] == 255:
			out = append(out, make([]byte, 512-len(out)%512)...)
		default:
			out = append(out, make([]byte, int(b[1])+1)...)
		}
		b = b[1:]
	}
	return out
}

// FuzzUnpackLayer unpacks streams of bytes. The checksums of what may be headers
// are put right, or no change would get past them.
func FuzzUnpackLayer(f *testing.F) {
	for _, entries := range [][]te{
		{{name: "a/b", body: "x"}, {name: "a/.wh.c"}, {name: "l", kind: tar.TypeSymlink, link: "../.."}, {name: "l/x"}},
		{{name: ".wh.a"}, {name: "a/b/c", body: "x"}, {name: "h", kind: tar.TypeLink, link: "a/b/c"}},
		{{name: "d", kind: tar.TypeDir}, {name: "d/.wh..wh..opq"}, {name: "d", kind: tar.TypeSymlink, link: "/"}, {name: "d/etc/x"}},
		{{name: "x", body: "1", pax: map[string]string{"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.security.capability": "\x01"}}},
		{{name: "f", kind: tar.TypeFifo, mode: 0o7777}, {name: "c", kind: tar.TypeChar}, {name: strings.Repeat("n", 120), body: "long"}},
	} {
		b := layerTar(f, entries...)
		if !bytes.Equal(expand(squeeze(b)), b) {
			f.Fatal("a squeezed stream is not what it was")
		}
		f.Add(squeeze(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = expand(b)
		for at := 0; at+512 <= len(b); at += 512 {
			if block := b[at : at+512]; string(block[257:262]) == "ustar" {
				sign(block)
			}
		}
		unpackHostile(t, b)
	})
}

// sign writes a header's checksum.
func sign(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// The parts that the names of fuzzLayer's entries are made of.
var fuzzParts = []string{"a", "b", "l", "d", "..", ".", "", ".wh.a", ".wh.l", ".wh..wh..opq", ".wh..", ".wh...", ".wh.", ".wh..wh.plnk", "precious", "outside"}

// fuzzLayer makes a layer of a program: three bytes an entry.
func fuzzLayer(program []byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	path := func(c byte) string {
		name := fuzzParts[c&15]
		if more := fuzzParts[c>>4]; c>>4 != 6 {
			name += "/" + more
		}
		return name
	}
	kinds := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeReg, tar.TypeFifo, tar.TypeChar, tar.TypeSymlink}
	for ; len(program) >= 3; program = program[3:] {
		how := program[0]
		h := &tar.Header{Name: path(program[1]), Typeflag: kinds[how&7], Mode: 0o644, Format: tar.FormatPAX}
		body := ""
		switch h.Typeflag {
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = path(program[2])
			switch {
			case how&8 != 0:
				h.Linkname = "../" + h.Linkname
			case how&16 != 0:
				h.Linkname = "/" + h.Linkname
			}
		case tar.TypeReg:
			body = strings.Repeat("x", int(program[2])%3)
			h.Size = int64(len(body))
			if how&8 != 0 {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.overlay.redirect": "/a", "SCHILY.xattr.trusted.overlay.opaque": "y"}
			}
		case tar.TypeDir:
			h.Mode = int64(program[2]) << 1 & 0o777
		}
		if h.Name == "" {
			h.Name = "/"
		}
		if how&32 != 0 {
			h.Name = "l/" + h.Name
		}
		if w.WriteHeader(h) != nil {
			continue
		}
		_, _ = w.Write([]byte(body))
	}
	_ = w.Close()
	return b.Bytes()
}

// FuzzLayerEntries unpacks layers of odd entries in odd orders: links and what
// goes through them, whiteouts, names again and again.
func FuzzLayerEntries(f *testing.F) {
	f.Add([]byte{2, 0x62, 0x64, 0, 0xe2, 1})                      // l -> .., l/precious
	f.Add([]byte{10, 0x62, 0x6f, 0, 0xe2, 1, 3, 0x60, 0xe2})      // l -> ../outside, a hard link by it
	f.Add([]byte{18, 0x62, 0x66, 32, 0x6e, 1})                    // l -> /, through it
	f.Add([]byte{1, 0x62, 0, 2, 0x62, 0x60, 0, 0x12, 1})          // a directory, then a link, of one name
	f.Add([]byte{0, 0x67, 0, 0, 0x10, 2, 0, 0x67, 0, 0, 0x95, 0}) // whiteouts before and after
	f.Add([]byte{2, 0x62, 0x61, 3, 0x60, 0x62, 0, 0x60, 2})       // a hard link to a link, written over
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 150 {
			return
		}
		unpackHostile(t, fuzzLayer(program))
	})
}
