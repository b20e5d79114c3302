//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/sandbox/local/tree"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// No layer reaches anything outside of its directory.
func TestHostileLayers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries []te
		want    string // in the error
	}{
		{"dots", []te{{name: "../precious", body: "x"}}, "out of the image"},
		{"dots_within", []te{{name: "a/../../precious", body: "x"}}, "out of the image"},
		{"absolute_link", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/precious", body: "x"}}, "through a link"},
		{"relative_link", []te{{name: "l", kind: tar.TypeSymlink, link: "../outside"}, {name: "l/precious", body: "x"}}, "through a link"},
		{"link_of_links", []te{{name: "a", kind: tar.TypeSymlink, link: "b"}, {name: "b", kind: tar.TypeSymlink, link: "../outside"}, {name: "a/x/y", body: "x"}}, "through a link"},
		{"loop", []te{{name: "a", kind: tar.TypeSymlink, link: "a"}, {name: "a/x", body: "x"}}, "entry"},
		{"hard_link_outside", []te{{name: "h", kind: tar.TypeLink, link: "../outside/precious"}}, "no target"},
		{"hard_link_by_link", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "h", kind: tar.TypeLink, link: "l/precious"}}, "through a link"},
		{"hard_link_to_nothing", []te{{name: "h", kind: tar.TypeLink, link: "a/b"}}, "does not have"},
		{"hard_link_to_a_directory", []te{{name: "d", kind: tar.TypeDir}, {name: "h", kind: tar.TypeLink, link: "d"}}, "no file"},
		{"whiteout_outside", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/.wh.precious"}}, "through a link"},
		{"opaque_outside", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/.wh..wh..opq"}}, "through a link"},
		{"whiteout_of_dots", []te{{name: "a/.wh..."}}, "removes no name"},
		{"whiteout_of_nothing", []te{{name: "a/.wh."}}, "removes no name"},
		{"root_replaced", []te{{name: ".", body: "x"}}, "root directory"},
		{"file_as_directory", []te{{name: "a", body: "1"}, {name: "a/b", body: "x"}}, "entry"},
		{"huge", []te{{name: "a", size: 1 << 50}}, "the limit"},
		{"many", func() (l []te) {
			for i := range 200 {
				l = append(l, te{name: fmt.Sprint(i)})
			}
			return l
		}(), "more than 100 files"},
		{"long_name", []te{{name: strings.Repeat("d/", 3000) + "x"}}, "bytes"},
		{"long_part", []te{{name: strings.Repeat("d", 300)}}, "entry"},
		{"cut_short", []te{{name: "a", body: "abc", size: 10}}, "ends within"},
		{"link_in_place_of_a_directory", []te{{name: "d/x", body: "1"}, {name: "d", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "d/precious", body: "x"}}, "through a link"},
		{"link_of_a_parent", []te{{name: "d/e/f", body: "1"}, {name: "d", kind: tar.TypeSymlink, link: ".."}, {name: "d/outside/precious", body: "x"}}, "through a link"},
		{"link_that_was_safe", []te{{name: "d/x"}, {name: "l", kind: tar.TypeSymlink, link: "d"}, {name: "l/y"}, {name: "l", kind: tar.TypeSymlink, link: "../outside"}, {name: "l/precious", body: "x"}}, "through a link"},
		{"directory_through_a_link", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/new", kind: tar.TypeDir}}, "through a link"},
		{"fifo_through_a_link", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/new", kind: tar.TypeFifo}}, "through a link"},
		{"link_through_a_link", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/new", kind: tar.TypeSymlink, link: "x"}}, "through a link"},
		{"absolute_link_to_the_layer", []te{{name: "d/x"}, {name: "l", kind: tar.TypeSymlink, link: "/d"}, {name: "l/y"}}, "through a link"},
		{"proc", []te{{name: "l", kind: tar.TypeSymlink, link: "/proc/self/cwd"}, {name: "l/x"}}, "through a link"},
		{"hard_link_from_a_link", []te{{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "a"}, {name: "l/h", kind: tar.TypeLink, link: "a"}}, "through a link"},
		{"hard_link_to_the_root", []te{{name: "h", kind: tar.TypeLink, link: "/"}}, "no target"},
		{"hard_link_to_a_whiteout", []te{{name: ".wh.a"}, {name: "h", kind: tar.TypeLink, link: "a"}}, "no file"},
		{"opaque_beside_a_link", []te{{name: "l", kind: tar.TypeSymlink, link: ".."}, {name: "l/outside/.wh..wh..opq"}}, "through a link"},
		{"socket", []te{{name: "s", kind: 's'}}, "kind"},
		{"no_target", []te{{name: "l", kind: tar.TypeSymlink, link: ""}}, "no target of a link"},
		{"huge_in_parts", []te{{name: "a", body: "abc"}, {name: "b", size: 1<<30 - 2}}, "the limit"},
		{"root_removed", []te{{name: ".wh..", body: ""}}, "removes no name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			outside, to := filepath.Join(top, "outside"), filepath.Join(top, "layer")
			must(t, os.Mkdir(to, 0o755))
			mustWrite(t, filepath.Join(outside, "precious"), "precious")
			for i := range tt.entries {
				if tt.entries[i].link == "OUTSIDE" {
					tt.entries[i].link = outside
				}
			}
			_, err := tree.UnpackLayer(bytes.NewReader(layerTar(t, tt.entries...)), to,
				tree.LayerOptions{UserXattr: os.Geteuid() != 0, Shift: shift(), Count: 65536, MaxBytes: 1 << 30, MaxEntries: 100})
			var le *tree.LayerError
			if !errors.As(err, &le) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want a LayerError with %q", err, tt.want)
			}
			if diff := cmp.Diff([]string{`precious "precious"`}, listing(t, outside)); diff != "" {
				t.Errorf("outside (-want +got):\n%s", diff)
			}
		})
	}
}

// Streams that no honest program writes.
func TestHostileStreams(t *testing.T) {
	block := func(kind byte, size int64, magic string) []byte {
		b := make([]byte, 512)
		copy(b, "name")
		copy(b[100:], "0000644\x00")
		copy(b[108:], "0000000\x000000000\x00")
		copy(b[124:], fmt.Sprintf("%011o\x00", size))
		copy(b[136:], "00000000000\x00")
		b[156] = kind
		copy(b[257:], magic)
		sign(b)
		return b
	}
	const ustar = "ustar\x0000"
	note := "19 comment=" + strings.Repeat("x", 7) + "\n"
	padded := make([]byte, 512)
	copy(padded, note)
	pax := func(kind byte) []byte { return append(block(kind, int64(len(note)), ustar), padded...) }
	sparse := func(size int64) []byte {
		b := block(tar.TypeGNUSparse, 0, "ustar  \x00")
		copy(b[483:], fmt.Sprintf("%011o\x00", size)) // its size with holes
		sign(b)
		return b
	}
	for _, tt := range []struct {
		name, want string
		stream     io.Reader
	}{
		{"endless_extended_headers", "MiB of headers", &again{b: pax('x')}},
		{"endless_long_names", "MiB of headers", &again{b: append(block('L', 5, "ustar  \x00"), append([]byte("named"), make([]byte, 507)...)...)}},
		{"endless_global_headers", "more than 100 files", &again{b: pax('g')}},
		{"one_header_without_end", "no tar archive", bytes.NewReader(append(block('x', 1<<30, ustar), make([]byte, 4096)...))},
		{"content_of_a_whiteout", "MiB of headers", io.MultiReader(bytes.NewReader(func() []byte {
			b := block(tar.TypeReg, 64<<20, ustar)
			copy(b, ".wh.a")
			sign(b)
			return b
		}()), &again{b: make([]byte, 4096)})},
		{"sparse_beyond_the_limit", "the limit", bytes.NewReader(sparse(5 << 30))},
		{"negative_size", "", bytes.NewReader(func() []byte {
			b := block(tar.TypeReg, 0, ustar)
			copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
			sign(b)
			return b
		}())},
		{"wrong_checksum", "no tar archive", bytes.NewReader(append([]byte("x"), block('0', 0, ustar)[1:]...))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tree.UnpackLayer(tt.stream, t.TempDir(), tree.LayerOptions{UserXattr: os.Geteuid() != 0, Shift: shift(), Count: 65536, MaxBytes: 1 << 30, MaxEntries: 100})
			var le *tree.LayerError
			if !errors.As(err, &le) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want a LayerError with %q", err, tt.want)
			}
		})
	}
	t.Run("sparse_within_the_limit", func(t *testing.T) {
		to := t.TempDir()
		_, err := tree.UnpackLayer(bytes.NewReader(sparse(1<<29)), to, tree.LayerOptions{UserXattr: os.Geteuid() != 0, Shift: shift(), Count: 65536, MaxBytes: 1 << 30})
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(to, "name"), &st))
		if st.Size != 1<<29 || st.Blocks*512 > 1<<20 {
			t.Errorf("%d bytes in %d blocks, want a hole of %d", st.Size, st.Blocks, 1<<29)
		}
	})
}

// again is a stream without an end.
type again struct {
	b  []byte
	at int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.b[a.at:])
	a.at = (a.at + n) % len(a.b)
	return n, nil
}
