//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/sandbox/local/tree"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRemoveHostileTrees(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	mustWrite(t, filepath.Join(outside, "precious"), "x")
	tests := []struct {
		name string
		make func(t *testing.T, dir string)
	}{
		{"file", func(t *testing.T, dir string) { mustWrite(t, dir, "x") }},
		{"link", func(t *testing.T, dir string) { must(t, os.Symlink(outside, dir)) }},
		{"links", func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir, 0o755))
			must(t, os.Symlink(outside, filepath.Join(dir, "a")))
			must(t, os.Symlink("/", filepath.Join(dir, "b")))
		}},
		{"closed_directories", func(t *testing.T, dir string) {
			must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
			mustWrite(t, filepath.Join(dir, "a", "b", "c"), "x")
			must(t, os.Chmod(filepath.Join(dir, "a", "b"), 0))
			must(t, os.Chmod(filepath.Join(dir, "a"), 0o500))
		}},
		{"deeper_than_any_path", func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o755))
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			must(t, err)
			name := strings.Repeat("d", 200)
			for range 2000 {
				must(t, unix.Mkdirat(fd, name, 0o755))
				next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
				must(t, err)
				must(t, unix.Close(fd))
				fd = next
			}
			must(t, unix.Close(fd))
		}},
		{"many_names", func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir, 0o755))
			for i := range 10_000 {
				must(t, os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o755))
			}
		}},
		{"not_there", func(*testing.T, string) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			dir := filepath.Join(top, "tree")
			tt.make(t, dir)
			if err := tree.Remove(dir); err != nil {
				t.Fatalf("Remove(%s): %v", tt.name, err)
			}
			left, err := os.ReadDir(top)
			must(t, err)
			if len(left) != 0 {
				t.Errorf("Remove(%s) left %v", tt.name, left)
			}
			if _, err := os.Stat(filepath.Join(outside, "precious")); err != nil {
				t.Fatalf("Remove(%s) reached outside: %v", tt.name, err)
			}
		})
	}
}

// hostileTree makes one of everything that can be in an upper directory.
func hostileTree(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	mustWrite(t, filepath.Join(dir, "a/plain"), "hello")
	mustWrite(t, filepath.Join(dir, "a/empty"), "")
	mustWrite(t, filepath.Join(dir, "a/bytes-\xff\xfe\n"), "odd name")
	must(t, os.Link(filepath.Join(dir, "a/plain"), filepath.Join(dir, "a/b/hard")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "a/link")))
	must(t, os.Link(filepath.Join(dir, "a/link"), filepath.Join(dir, "a/hardlink-to-link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o640))
	if err := unix.Mknod(filepath.Join(dir, "whiteout"), unix.S_IFCHR, 0); err != nil {
		t.Fatalf("whiteout: %v", err)
	}
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), 5<<20)
	must(t, err)
	must(t, f.Truncate(1<<40))
	must(t, f.Close())
	setuid := filepath.Join(dir, "a/setuid")
	mustWrite(t, setuid, "s")
	must(t, os.Chmod(setuid, 0o755|os.ModeSetuid))
	must(t, unix.Setxattr(filepath.Join(dir, "a/plain"), "user.empty", nil, 0))
	must(t, unix.Setxattr(filepath.Join(dir, "a/plain"), "user.odd=\x01", []byte("\x00=\n"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "a/b"), "user.overlay.opaque", []byte("y"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "a/b"), "user.overlay.origin", []byte("gone"), 0))
	if os.Geteuid() == 0 {
		must(t, os.Chown(filepath.Join(dir, "a/plain"), 1000, 1001))
		must(t, os.Lchown(filepath.Join(dir, "a/link"), 5, 6))
		must(t, unix.Setxattr(filepath.Join(dir, "a"), "trusted.overlay.redirect", []byte("/x"), 0))
	}
	must(t, os.Chmod(filepath.Join(dir, "a/empty"), 0))
	must(t, os.Mkdir(filepath.Join(dir, "closed"), 0o755))
	mustWrite(t, filepath.Join(dir, "closed/in"), "in")
	must(t, os.Chmod(filepath.Join(dir, "closed"), 0))
	when := time.Unix(1_000_000_000, 123456789)
	must(t, os.Chtimes(filepath.Join(dir, "a/plain"), when, when))
	must(t, os.Chtimes(filepath.Join(dir, "a"), when, when))
}

func TestPackUnpack(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	must(t, os.Mkdir(src, 0o755))
	must(t, os.Mkdir(dst, 0o700))
	hostileTree(t, src)
	shift := tree.IDShift{Single: os.Geteuid() != 0}
	before := describe(t, src)
	var buf bytes.Buffer
	packed, err := tree.Pack(&buf, src, shift)
	must(t, err)
	if diff := cmp.Diff(before, describe(t, src)); diff != "" {
		t.Errorf("Pack changed its source (-before +after):\n%s", diff)
	}
	if buf.Len() > 1<<20 {
		t.Errorf("Pack wrote %d bytes, holes and all", buf.Len())
	}
	unpacked, err := tree.Unpack(&buf, dst, shift)
	must(t, err)
	if unpacked != packed {
		t.Errorf("Unpack = %+v, Pack = %+v", unpacked, packed)
	}
	for k, v := range before {
		before[k] = strings.Replace(v, " user.overlay.origin=676f6e65", "", 1)
	}
	if diff := cmp.Diff(before, describe(t, dst)); diff != "" {
		t.Errorf("unpacked tree differs (-want +got):\n%s", diff)
	}
	must(t, tree.Remove(src))
	must(t, tree.Remove(dst))
}

func TestPackRefusesWhatCannotBeUnpacked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep")
	must(t, os.Mkdir(dir, 0o755))
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 30 {
		name := strings.Repeat("d", 250)
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	if _, err := tree.Pack(io.Discard, dir, tree.IDShift{}); !errors.Is(err, tree.ErrTooDeep) {
		t.Errorf("Pack of a path of 7,500 bytes = %v, want ErrTooDeep", err)
	}
	must(t, tree.Remove(dir))
}

func TestUnpackRefusesEscapes(t *testing.T) {
	// Made by hand: Pack cannot write such names.
	for _, name := range []string{"../x", "a/../../x", "/etc/x", "..", "link/x"} {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			dir := t.TempDir()
			outside := t.TempDir()
			must(t, os.Symlink(outside, filepath.Join(dir, "link")))
			var buf bytes.Buffer
			tarOne(t, &buf, name)
			if _, err := tree.Unpack(&buf, dir, tree.IDShift{Single: true}); err == nil {
				t.Errorf("Unpack(%q) succeeded", name)
			}
			left, err := os.ReadDir(outside)
			must(t, err)
			if len(left) != 0 {
				t.Errorf("Unpack(%q) wrote outside: %v", name, left)
			}
		})
	}
}

func TestAsStopsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, filepath.Join(dir, "f"), strings.Repeat("x", 1<<20))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (tree.As{}).Pack(ctx, io.Discard, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("Pack with an ended context = %v, want context.Canceled", err)
	}
}

// describe lists a tree: path to all that Pack must keep.
func describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	closed := filepath.Join(dir, "closed")
	var st unix.Stat_t
	must(t, unix.Lstat(closed, &st))
	must(t, os.Chmod(closed, 0o700))
	defer func() { must(t, os.Chmod(closed, os.FileMode(st.Mode&0o777))) }()
	inodes := map[uint64]string{}
	must(t, filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		must(t, err)
		s := fi.Sys().(*syscall.Stat_t)
		rel, _ := filepath.Rel(dir, p)
		mode := s.Mode
		if p == closed {
			mode = st.Mode
		}
		d := fmt.Sprintf("%o %d:%d", mode, s.Uid, s.Gid)
		if !fi.IsDir() {
			d += fmt.Sprintf(" nlink %d rdev %d", s.Nlink, s.Rdev)
			if first, ok := inodes[s.Ino]; ok {
				d += " =" + first
			}
			inodes[s.Ino] = rel
		}
		if p != closed {
			d += fmt.Sprintf(" %d.%d", s.Mtim.Sec, s.Mtim.Nsec)
		}
		if fi.Mode()&os.ModeSymlink != 0 {
			to, err := os.Readlink(p)
			must(t, err)
			d += " -> " + to
		}
		if fi.Mode().IsRegular() {
			d += fmt.Sprintf(" size %d", s.Size)
			if fi.Size() < 1<<20 && s.Mode&0o400 != 0 {
				b, err := os.ReadFile(p)
				must(t, err)
				d += fmt.Sprintf(" %q", b)
			} else if fi.Size() > 1<<20 {
				b := make([]byte, 6)
				f, err := os.Open(p)
				must(t, err)
				_, err = f.ReadAt(b, 5<<20)
				must(t, err)
				must(t, f.Close())
				d += fmt.Sprintf(" %q blocks %d", b, s.Blocks)
			}
		}
		buf := make([]byte, 4096)
		if n, err := unix.Llistxattr(p, buf); err == nil {
			names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
			sort.Strings(names)
			for _, n := range names {
				if n == "" {
					continue
				}
				v := make([]byte, 4096)
				m, err := unix.Lgetxattr(p, n, v)
				must(t, err)
				d += fmt.Sprintf(" %s=%x", n, v[:m])
			}
		}
		out[rel] = d
		return nil
	}))
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func tarOne(t *testing.T, w io.Writer, name string) {
	t.Helper()
	tw := tar.NewWriter(w)
	must(t, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: 1}))
	_, err := tw.Write([]byte("x"))
	must(t, err)
	must(t, tw.Close())
}

// A process that still has the directory open makes a file in it meanwhile.
func TestRemoveWhileAFileIsMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	for i := range 500 {
		must(t, os.Mkdir(dir, 0o700))
		for n := range 20 {
			mustWrite(t, filepath.Join(dir, fmt.Sprint(n)), "x")
		}
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		made := make(chan struct{})
		go func() {
			defer close(made)
			for range i {
				if f, err := unix.Openat(fd, "synced", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600); err == nil {
					_ = unix.Close(f)
				}
			}
		}()
		err = tree.Remove(dir)
		<-made
		must(t, unix.Close(fd))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("after Remove: %v", err)
		}
	}
}
