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
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth/sandbox/local/tree"
)

// overlayAttr is the attribute of directories that hide what lies below.
func overlayAttr() string {
	if os.Geteuid() == 0 {
		return "trusted.overlay.opaque"
	}
	return "user.overlay.opaque"
}

// layDown makes what lines say in dir: "a=text" a file, "d/" a directory, "d/!"
// a directory that hides what is below it, "-a" a removal.
func layDown(t *testing.T, dir string, lines ...string) string {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	for _, l := range lines {
		at := filepath.Join(dir, strings.TrimRight(strings.TrimPrefix(l, "-"), "/!"))
		switch name, text, file := strings.Cut(l, "="); {
		case file:
			mustWrite(t, filepath.Join(dir, name), text)
		case strings.HasPrefix(l, "-"):
			must(t, os.MkdirAll(filepath.Dir(at), 0o755))
			if err := unix.Mknod(at, unix.S_IFCHR|0o600, 0); err != nil {
				t.Fatal(err) // anyone may since Linux 5.8
			}
		default:
			must(t, os.MkdirAll(at, 0o755))
			if strings.HasSuffix(l, "!") {
				must(t, unix.Setxattr(at, overlayAttr(), []byte("y"), 0))
			}
		}
	}
	return dir
}

func packStack(t *testing.T, o tree.StackOptions) ([]byte, tree.StackSummary) {
	t.Helper()
	var b bytes.Buffer
	o.Shift = shift()
	sum, err := tree.PackStack(&b, o)
	must(t, err)
	return b.Bytes(), sum
}

// names lists what is in a tar stream, but for its root.
func names(t *testing.T, b []byte) []string {
	t.Helper()
	var list []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		if h.Name == "./" {
			continue
		}
		line := h.Name
		if h.Typeflag == tar.TypeReg && len(body) > 0 {
			line += "=" + string(body)
		}
		list = append(list, line)
	}
	sort.Strings(list)
	return list
}

func TestPackStack(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers [][]string // the topmost first
		alone  bool
		want   []string
	}{
		{"one", [][]string{{"a=1", "d/b=2", "-gone", "h/!", "h/x=3"}}, false, []string{".wh.gone", "a=1", "d/", "d/b=2", "h/", "h/.wh..wh..opq", "h/x=3"}},
		{"one_alone", [][]string{{"a=1", "d/b=2", "-gone", "h/!", "h/x=3"}}, true, []string{"a=1", "d/", "d/b=2", "h/", "h/x=3"}},
		{"the_topmost_counts", [][]string{{"a=new"}, {"a=old", "b=old"}}, false, []string{"a=new", "b=old"}},
		{"merged", [][]string{{"d/a=1"}, {"d/b=2"}, {"d/c=3"}}, false, []string{"d/", "d/a=1", "d/b=2", "d/c=3"}},
		{"removed", [][]string{{"-a", "d/", "-d/b"}, {"a=1", "d/b=2", "d/c=3"}}, false, []string{".wh.a", "d/", "d/.wh.b", "d/c=3"}},
		{"removed_alone", [][]string{{"-a", "-d/b"}, {"a=1", "d/b=2", "d/c=3"}}, true, []string{"d/", "d/c=3"}},
		{"hides", [][]string{{"d/!", "d/a=1"}, {"d/b=2"}}, false, []string{"d/", "d/.wh..wh..opq", "d/a=1"}},
		{"hides_in_the_middle", [][]string{{"d/a=1"}, {"d/!", "d/b=2"}, {"d/c=3"}}, false, []string{"d/", "d/.wh..wh..opq", "d/a=1", "d/b=2"}},
		{"made_again", [][]string{{"d/a=1"}, {"-d"}, {"d/c=3"}}, false, []string{"d/", "d/.wh..wh..opq", "d/a=1"}},
		{"directory_over_file", [][]string{{"d/a=1"}, {"d=file"}, {"d/c=3"}}, false, []string{"d/", "d/.wh..wh..opq", "d/a=1"}},
		{"file_over_directory", [][]string{{"d=file"}, {"d/c=3"}}, false, []string{"d=file"}},
		{"nothing_said_twice", [][]string{{"d/!", "d/e/!", "-d/x", "d/e/f=1"}}, false, []string{"d/", "d/.wh..wh..opq", "d/e/", "d/e/f=1"}},
		{"names_that_mean_removal", [][]string{{".wh.a=1", "b=2"}}, false, []string{"b=2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			var dirs []string
			for i, l := range tt.layers {
				dirs = append(dirs, layDown(t, filepath.Join(top, fmt.Sprint(i)), l...))
			}
			b, _ := packStack(t, tree.StackOptions{Dirs: dirs, Alone: tt.alone})
			if diff := cmp.Diff(tt.want, names(t, b)); diff != "" {
				t.Errorf("packed (-want +got):\n%s", diff)
			}
		})
	}
}

// What overlayfs shows of layers, it shows of the one that they were packed
// into, over the same lower one.
func TestPackStackMeansTheSame(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting an overlay needs root")
	}
	top := t.TempDir()
	lower := layDown(t, filepath.Join(top, "lower"), "a=1", "d/a=1", "d/b=1", "e/a=1", "f=1", "g/h/i=1", "g/h/j=1")
	dirs := []string{
		layDown(t, filepath.Join(top, "2"), "d/c=2", "-e/b", "f/x=2", "g/h/!", "g/h/k=2", "-m"),
		layDown(t, filepath.Join(top, "1"), "a=2", "-d", "e/b=1", "-f", "-g/h/i", "m/n=1", "o/!", "o/p=1"),
	}
	must(t, os.Chmod(filepath.Join(dirs[0], "d/c"), 0o4711))
	must(t, os.Link(filepath.Join(dirs[0], "d/c"), filepath.Join(dirs[0], "d/link")))
	b, _ := packStack(t, tree.StackOptions{Dirs: dirs, Own: true})
	one := filepath.Join(top, "one")
	must(t, os.Mkdir(one, 0o755))
	_, err := tree.UnpackLayer(bytes.NewReader(b), one, tree.LayerOptions{Count: 65536, Own: true})
	must(t, err)
	show := func(name string, layers ...string) []string {
		at := filepath.Join(top, name)
		must(t, os.Mkdir(at, 0o755))
		must(t, unix.Mount("overlay", at, "overlay", 0, "lowerdir="+strings.Join(append(layers, lower), ":")))
		defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
		return listing(t, at)
	}
	if diff := cmp.Diff(show("many", dirs...), show("single", one)); diff != "" {
		t.Errorf("shown (-of the layers +of one):\n%s", diff)
	}
}

// Holes, links, attributes, odd names and times come back.
func TestPackStackRoundTrip(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "in")
	layDown(t, dir, "a=1", "closed/in=2", "odd\n\xff=3", strings.Repeat("long/", 60)+"x=4", "empty=")
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	must(t, f.Truncate(12<<30))
	for _, at := range []int64{0, 5 << 30, 12<<30 - 3} {
		_, err := f.WriteAt([]byte("abc"), at)
		must(t, err)
	}
	must(t, f.Close())
	f, err = os.Create(filepath.Join(dir, strings.Repeat("n", 200)))
	must(t, err)
	must(t, f.Truncate(1<<30)) // nothing but a hole, under a long name
	must(t, f.Close())
	must(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "zlink")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "l")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o640))
	must(t, unix.Setxattr(filepath.Join(dir, "a"), "user.note", []byte("x\x00=y\n"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "sparse"), "user.note", []byte("s"), 0))
	must(t, os.Chmod(filepath.Join(dir, "a"), 0o4711))
	if os.Geteuid() == 0 {
		must(t, os.Lchown(filepath.Join(dir, "sparse"), 1000, 4_000_000))
	}
	for _, n := range []string{"a", "sparse", "closed"} {
		ts := []unix.Timespec{{}, {Sec: 1234567890, Nsec: 123456789}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, n), ts, 0))
	}
	must(t, os.Chmod(filepath.Join(dir, "closed"), 0o100))
	b, sum := packStack(t, tree.StackOptions{Dirs: []string{dir}})
	if sum.Bytes > 1<<20 || len(b) > 1<<20 {
		t.Errorf("holes were packed: %d bytes of content, a stream of %d", sum.Bytes, len(b))
	}
	must(t, os.Chmod(filepath.Join(dir, "closed"), 0o700)) // so that the test can look
	out := filepath.Join(top, "out")
	must(t, os.Mkdir(out, 0o755))
	_, err = tree.UnpackLayer(bytes.NewReader(b), out, tree.LayerOptions{Shift: shift(), Count: 5_000_000, UserXattr: os.Geteuid() != 0})
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(out, "closed"), &st))
	if st.Mode&0o7777 != 0o100 {
		t.Errorf("mode of the closed directory = %o, want 100", st.Mode&0o7777)
	}
	must(t, os.Chmod(filepath.Join(out, "closed"), 0o700))
	want, got := stats(t, dir), stats(t, out)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("unpacked (-want +got):\n%s", diff)
	}
	for _, at := range []int64{0, 5 << 30, 12<<30 - 3} {
		f, err := os.Open(filepath.Join(out, "sparse"))
		must(t, err)
		v := make([]byte, 3)
		if _, err := f.ReadAt(v, at); err != nil || string(v) != "abc" {
			t.Errorf("at %d of the sparse file: %q, %v", at, v, err)
		}
		must(t, f.Close())
	}
}

// stats tells of each file what a user can see of it but its content.
func stats(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		links, size := uint64(0), int64(0)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			links, size = uint64(st.Nlink), st.Size
		}
		value := make([]byte, 64)
		n, _ := unix.Lgetxattr(p, "user.note", value)
		list = append(list, fmt.Sprintf("%q %o %d:%d %d links %d bytes at %d.%09d %q", rel, st.Mode, st.Uid, st.Gid, links, size, st.Mtim.Sec, st.Mtim.Nsec, value[:max(0, n)]))
		return nil
	}))
	return list
}
