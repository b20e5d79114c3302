//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"berth/sandbox/local/tree"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// te is an entry of a layer.
type te struct {
	name, link, body string
	kind             byte
	mode             int64
	uid, gid         int
	pax              map[string]string
	size             int64 // in the header; 0: of body
}

func layerTar(t testing.TB, entries ...te) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o644
			if e.kind == tar.TypeDir {
				e.mode = 0o755
			}
		}
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Uid: e.uid, Gid: e.gid, Size: int64(len(e.body)), PAXRecords: e.pax, Format: tar.FormatPAX}
		if e.size != 0 {
			h.Size = e.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close() // entries may be cut short
	return b.Bytes()
}

// listing tells what lies below dir.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		line := rel
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			line += "/"
			var v [1]byte
			for _, a := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
				if n, err := unix.Lgetxattr(p, a, v[:]); err == nil && n == 1 {
					line += " opaque"
				}
			}
		case unix.S_IFLNK:
			to, _ := os.Readlink(p)
			line += " -> " + to
		case unix.S_IFCHR:
			line += fmt.Sprintf(" device %d", st.Rdev)
		case unix.S_IFIFO:
			line += " fifo"
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(list)
	return list
}

// shift is what the test's user can do.
func shift() tree.IDShift { return tree.IDShift{Single: os.Geteuid() != 0} }

func TestUnpackLayer(t *testing.T) {
	dir := func(name string) te { return te{name: name, kind: tar.TypeDir} }
	for _, tt := range []struct {
		name    string
		entries []te
		want    []string
		opaque  bool
	}{
		{"files", []te{dir("./"), dir("./a/"), {name: "./a/b", body: "1"}, {name: "c", body: "2"}}, []string{"a/", `a/b "1"`, `c "2"`}, false},
		{"parents_without_entries", []te{{name: "a/b/c", body: "1"}}, []string{"a/", "a/b/", `a/b/c "1"`}, false},
		{"absolute_names_count_from_the_root", []te{{name: "/etc/passwd", body: "x"}}, []string{"etc/", `etc/passwd "x"`}, false},
		{"the_last_entry_counts", []te{{name: "a", body: "1"}, {name: "a", body: "2"}, dir("d"), {name: "d/x"}, {name: "d", body: "3"}, {name: "l", kind: tar.TypeSymlink, link: "/etc"}, dir("l"), {name: "l/y"}},
			[]string{`a "2"`, `d "3"`, "l/", `l/y ""`}, false},
		{"links", []te{{name: "a", body: "1"}, {name: "h", kind: tar.TypeLink, link: "/a"}, {name: "s", kind: tar.TypeSymlink, link: "/etc/shadow"}, {name: "hs", kind: tar.TypeLink, link: "s"}},
			[]string{`a "1"`, `h "1"`, "hs -> /etc/shadow", "s -> /etc/shadow"}, false},
		{"through_a_link_within", []te{dir("usr/lib"), {name: "lib", kind: tar.TypeSymlink, link: "usr/lib"}, {name: "lib/x", body: "1"}},
			[]string{"lib -> usr/lib", "usr/", "usr/lib/", `usr/lib/x "1"`}, false},
		{"whiteouts", []te{{name: ".wh.a"}, {name: "d/.wh.b"}, {name: "d/c"}, {name: ".wh..wh.plnk/x"}}, []string{".wh..wh.plnk/", `.wh..wh.plnk/x ""`, "a device 0", "d/", "d/b device 0", `d/c ""`}, false},
		{"opaque", []te{dir("d"), {name: "d/.wh..wh..opq"}, {name: "d/x"}, {name: "e/y"}, {name: "e/.wh..wh..opq"}}, []string{"d/ opaque", `d/x ""`, "e/ opaque", `e/y ""`}, false},
		{"opaque_root", []te{{name: ".wh..wh..opq"}, {name: "x"}}, []string{`x ""`}, true},
		{"whiteout_then_new", []te{{name: ".wh.a"}, {name: "a", body: "1"}, {name: ".wh.d"}, dir("d"), {name: ".wh.e"}, {name: "e/x"}},
			[]string{`a "1"`, "d/ opaque", "e/ opaque", `e/x ""`}, false},
		{"new_then_whiteout", []te{{name: "a", body: "1"}, {name: ".wh.a"}, {name: "d/x"}, {name: ".wh.d"}}, []string{`a "1"`, "d/ opaque", `d/x ""`}, false},
		{"written_over_a_hard_link_to_a_link", []te{{name: "s", kind: tar.TypeSymlink, link: "/etc/shadow"}, {name: "h", kind: tar.TypeLink, link: "s"}, {name: "h", body: "1"}},
			[]string{`h "1"`, "s -> /etc/shadow"}, false},
		{"written_over_a_hard_link", []te{{name: "a", body: "1"}, {name: "h", kind: tar.TypeLink, link: "a"}, {name: "h", body: "2"}}, []string{`a "1"`, `h "2"`}, false},
		{"whiteouts_through_a_link_within", []te{dir("d"), {name: "l", kind: tar.TypeSymlink, link: "d"}, {name: "l/.wh.x"}, {name: "l/.wh..wh..opq"}, {name: ".wh.l"}},
			[]string{"d/ opaque", "d/x device 0", "l -> d"}, false},
		{"a_link_that_changes", []te{dir("d"), dir("e"), {name: "l", kind: tar.TypeSymlink, link: "d"}, {name: "l/x"}, {name: "l", kind: tar.TypeSymlink, link: "e"}, {name: "l/y"}},
			[]string{"d/", `d/x ""`, "e/", `e/y ""`, "l -> e"}, false},
		{"devices_are_left_out", []te{{name: "sda", kind: tar.TypeBlock}, {name: "null", kind: tar.TypeChar}, {name: "f", kind: tar.TypeFifo}}, []string{"f fifo"}, false},
		{"closed_directories", []te{{name: "d", kind: tar.TypeDir, mode: 0o500}, {name: "d/e", kind: tar.TypeDir, mode: 0o100}, {name: "d/e/x"}}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			to := t.TempDir()
			sum, err := tree.UnpackLayer(bytes.NewReader(layerTar(t, tt.entries...)), to, tree.LayerOptions{UserXattr: os.Geteuid() != 0, Shift: shift(), Count: 65536})
			must(t, err)
			if tt.want == nil {
				for p, mode := range map[string]uint32{"d": 0o500, "d/e": 0o100} {
					var st unix.Stat_t
					must(t, unix.Lstat(filepath.Join(to, p), &st))
					if st.Mode&0o7777 != mode {
						t.Errorf("mode of %s = %o, want %o", p, st.Mode&0o7777, mode)
					}
				}
				must(t, tree.Remove(to))
				return
			}
			if diff := cmp.Diff(tt.want, listing(t, to)); diff != "" {
				t.Errorf("unpacked (-want +got):\n%s", diff)
			}
			if sum.Opaque != tt.opaque {
				t.Errorf("opaque = %t, want %t", sum.Opaque, tt.opaque)
			}
		})
	}
}

func TestLayerAttributes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners")
	}
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	b := layerTar(t,
		te{name: "su", mode: 0o4755, uid: 0, body: "x"},
		te{name: "mine", uid: 1000, gid: 1001, pax: map[string]string{"SCHILY.xattr.user.note": "n", "SCHILY.xattr.security.capability": caps,
			"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.metacopy": "y", "SCHILY.xattr.security.selinux": "z"}},
		te{name: "far", uid: 70000, gid: 3},
		te{name: "zeros", body: strings.Repeat("\x00", 1<<20) + "end"},
		te{name: "hole", body: strings.Repeat("\x00", 1<<20)},
	)
	to := t.TempDir()
	sum, err := tree.UnpackLayer(bytes.NewReader(b), to, tree.LayerOptions{Shift: tree.IDShift{Base: 100000}, Count: 65536})
	must(t, err)
	if sum.Owners != 1 || sum.Attributes != 3 {
		t.Errorf("summary = %+v, want 1 owner and 3 attributes left out", sum)
	}
	stat := func(name string) (st unix.Stat_t) {
		must(t, unix.Lstat(filepath.Join(to, name), &st))
		return st
	}
	if st := stat("su"); st.Mode&0o7777 != 0o4755 || st.Uid != 100000 {
		t.Errorf("su: mode %o, owner %d", st.Mode, st.Uid)
	}
	if st := stat("mine"); st.Uid != 101000 || st.Gid != 101001 {
		t.Errorf("mine: owner %d:%d", st.Uid, st.Gid)
	}
	if st := stat("far"); st.Uid != 165534 || st.Gid != 100003 {
		t.Errorf("far: owner %d:%d", st.Uid, st.Gid)
	}
	var v [64]byte
	if n, err := unix.Lgetxattr(filepath.Join(to, "mine"), "security.capability", v[:]); err != nil || string(v[:n]) != caps {
		t.Errorf("capabilities = %q, %v", v[:n], err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(to, "mine"), "user.note", v[:]); err != nil || string(v[:n]) != "n" {
		t.Errorf("user.note = %q, %v", v[:n], err)
	}
	for _, no := range []string{"trusted.overlay.redirect", "user.overlay.metacopy"} {
		if _, err := unix.Lgetxattr(filepath.Join(to, "mine"), no, v[:]); err == nil {
			t.Errorf("%s was set", no)
		}
	}
	for name, size := range map[string]int64{"zeros": 1<<20 + 3, "hole": 1 << 20} {
		if st := stat(name); st.Size != size || st.Blocks*512 > 256<<10 {
			t.Errorf("%s: %d bytes in %d blocks, want %d with a hole", name, st.Size, st.Blocks, size)
		}
	}
	got, err := os.ReadFile(filepath.Join(to, "zeros"))
	if err != nil || string(got) != strings.Repeat("\x00", 1<<20)+"end" {
		t.Errorf("zeros: another content, %v", err)
	}
}
