//go:build linux

package bucketfs_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/internal/buckettest"
	"berth/mounts"
	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

var (
	sequences        = flag.Int("sequences", 24, "how many sequences of operations the exerciser runs on a bucket in memory")
	serviceSequences = flag.Int("service-sequences", 24, "and how many on each real service")
	firstSeed        = flag.Uint64("seed", 1, "the exerciser's first seed")
)

// A run is so many sequences at once, each of so many operations in a directory
// of its own.
const (
	exerciseThreads = 12
	exerciseOps     = 60
)

// found are the seeds of runs that once found a fault.
var found = map[string]uint64{
	"a symbolic link was listed as a file":                            9,
	"closing a file that was replaced took away what had replaced it": 2,
}

// The exerciser does the same to a mount and to a plain directory, at random, by
// several threads, and compares answers and content; then it mounts the bucket
// anew and compares again.
func TestExerciser(t *testing.T) {
	for name, seed := range found {
		t.Run(name, func(t *testing.T) { exercise(t, &objects.Memory{Part: 64 << 10}, seed) })
	}
	n := *sequences
	if testing.Short() {
		n = min(n, exerciseThreads)
	}
	runs(t, n, func(*testing.T, string) objects.Bucket { return &objects.Memory{Part: 64 << 10} })
}

// The same on what people use.
func TestExerciserOnServices(t *testing.T) {
	t.Run("s3", func(t *testing.T) {
		s := buckettest.S3(t)
		runs(t, *serviceSequences, func(t *testing.T, name string) objects.Bucket { return s.Another(t, name).Bucket(t) })
	})
	t.Run("gcs", func(t *testing.T) {
		runs(t, *serviceSequences, func(t *testing.T, _ string) objects.Bucket { return buckettest.GCS(t).Bucket(t) })
	})
	t.Run("azure", func(t *testing.T) {
		runs(t, min(*serviceSequences, exerciseThreads), func(t *testing.T, _ string) objects.Bucket { return buckettest.Azure(t).Bucket(t) })
	})
}

// runs does n sequences, each run in a bucket of its own.
func runs(t *testing.T, n int, bucket func(t *testing.T, name string) objects.Bucket) {
	for i := range (n + exerciseThreads - 1) / exerciseThreads {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprintf("seed%d", seed), func(t *testing.T) { exercise(t, bucket(t, fmt.Sprintf("seed%d", seed)), seed) })
	}
}

func exercise(t *testing.T, b objects.Bucket, seed uint64) {
	m := mount(t, b, bucketfs.Options{View: mounts.View{AttrTimeout: time.Duration(1+seed%3) * 500 * time.Millisecond}})
	model := t.TempDir()
	var wg sync.WaitGroup
	var done [exerciseThreads]*exerciser
	for i := range exerciseThreads {
		name := fmt.Sprintf("t%d", i)
		for _, dir := range []string{m.dir, model} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		wg.Go(func() {
			x := &exerciser{rand: rand.New(rand.NewPCG(seed, uint64(i))), mount: filepath.Join(m.dir, name), model: filepath.Join(model, name)}
			done[i] = x
			for range exerciseOps {
				if !x.step() {
					break
				}
			}
			x.closeAll()
			if x.fault != "" {
				t.Errorf("seed %d, thread %d: %s\n%s", seed, i, x.fault, strings.Join(x.log, "\n"))
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	story := func(diff string) string { // of whoever worked where the trees differ
		for i, x := range done {
			if strings.HasPrefix(diff, fmt.Sprintf("t%d/", i)) {
				return diff + "\n" + strings.Join(x.log, "\n")
			}
		}
		return diff
	}
	if diff := compareTrees(model, m.dir); diff != "" {
		t.Fatalf("seed %d: %s", seed, story(diff))
	}
	if lost := m.unmount(); len(lost) > 0 {
		t.Fatalf("seed %d: lost %v", seed, lost)
	}
	m = mount(t, b, bucketfs.Options{})
	if diff := compareTrees(model, m.dir); diff != "" {
		t.Fatalf("seed %d, mounted anew: %s", seed, story(diff))
	}
}

type exerciser struct {
	rand         *rand.Rand
	mount, model string
	open         []pair
	log          []string
	fault        string
}

// pair is one file open in both places.
type pair struct{ mount, model *os.File }

func (x *exerciser) name() string {
	names := []string{"a", "b", "c", "a.txt", "a-b", "d", "d/a", "d/b", "d/e", "d/e/f", "g", "g/a"}
	return names[x.rand.IntN(len(names))]
}

func (x *exerciser) data() []byte {
	n := []int{0, 1, 100, 5000, 70_000, 200_000}[x.rand.IntN(6)]
	if n > 0 {
		n = 1 + x.rand.IntN(n)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(x.rand.Uint32())
	}
	return b
}

// both does something in both places and compares the errors.
func (x *exerciser) both(what string, do func(root string) error) bool {
	want := errnoOf(do(x.model))
	got := errnoOf(do(x.mount))
	x.log = append(x.log, fmt.Sprintf("%s = %v", what, want))
	if got != want {
		x.fault = fmt.Sprintf("%s = %v, want %v", what, got, want)
		return false
	}
	return true
}

func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		// Both are allowed, and file systems differ.
		if errno == syscall.EEXIST {
			return syscall.ENOTEMPTY
		}
		return errno
	}
	return syscall.EPROTO
}

func (x *exerciser) step() bool {
	a, b := x.name(), x.name()
	data := x.data()
	off := int64(x.rand.IntN(150_000))
	switch x.rand.IntN(17) {
	case 0, 1, 2:
		return x.both(fmt.Sprintf("write %s %d", a, len(data)), func(r string) error { return os.WriteFile(filepath.Join(r, a), data, 0o644) })
	case 3:
		return x.both("mkdir "+a, func(r string) error { return os.Mkdir(filepath.Join(r, a), 0o755) })
	case 4:
		return x.both("rmdir "+a, func(r string) error { return syscall.Rmdir(filepath.Join(r, a)) })
	case 5:
		return x.both("unlink "+a, func(r string) error { return syscall.Unlink(filepath.Join(r, a)) })
	case 6, 7:
		return x.both("rename "+a+" "+b, func(r string) error { return syscall.Rename(filepath.Join(r, a), filepath.Join(r, b)) })
	case 8:
		return x.both(fmt.Sprintf("truncate %s %d", a, off), func(r string) error { return os.Truncate(filepath.Join(r, a), off) })
	case 9:
		return x.both(fmt.Sprintf("append %s %d", a, len(data)), func(r string) error {
			f, err := os.OpenFile(filepath.Join(r, a), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.Write(data)
			return errors.Join(err, f.Close())
		})
	case 10:
		return x.both(fmt.Sprintf("pwrite %s %d %d", a, off, len(data)), func(r string) error {
			f, err := os.OpenFile(filepath.Join(r, a), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(data, off)
			return errors.Join(err, f.Close())
		})
	case 11:
		return x.same("read "+a, func(r string) ([]byte, error) { return os.ReadFile(filepath.Join(r, a)) })
	case 12:
		return x.same("list "+a, func(r string) ([]byte, error) { return listing(filepath.Join(r, a)) })
	case 13:
		return x.both("symlink "+a, func(r string) error { return os.Symlink("target/"+b, filepath.Join(r, a)) })
	case 14:
		mode := []fs.FileMode{0o600, 0o644, 0o755, 0o400 | 0o200}[x.rand.IntN(4)]
		// A symlink would be followed to nowhere, in both places.
		return x.both(fmt.Sprintf("chmod %s %o", a, mode), func(r string) error { return os.Chmod(filepath.Join(r, a), mode) })
	case 15:
		return x.openBoth(a)
	default:
		return x.useOpen(data, off)
	}
}

func (x *exerciser) same(what string, do func(root string) ([]byte, error)) bool {
	want, wantErr := do(x.model)
	got, gotErr := do(x.mount)
	x.log = append(x.log, fmt.Sprintf("%s = %d bytes, %v", what, len(want), errnoOf(wantErr)))
	switch {
	case errnoOf(gotErr) != errnoOf(wantErr):
		x.fault = fmt.Sprintf("%s = %v, want %v", what, gotErr, wantErr)
	case !bytes.Equal(got, want):
		x.fault = fmt.Sprintf("%s: %s", what, firstDifference(got, want))
	}
	return x.fault == ""
}

func firstDifference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("differs at byte %d of %d and %d", i, len(got), len(want))
		}
	}
	return fmt.Sprintf("has %d bytes, want %d (%.100q, want %.100q)", len(got), len(want), got, want)
}

func listing(dir string) ([]byte, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, e := range list {
		fmt.Fprintf(&b, "%s %v\n", e.Name(), e.Type())
	}
	return b.Bytes(), nil
}

func (x *exerciser) openBoth(name string) bool {
	if len(x.open) > 3 {
		return true
	}
	flags := os.O_RDWR | []int{0, os.O_CREATE, os.O_CREATE | os.O_TRUNC}[x.rand.IntN(3)]
	var p pair
	ok := x.both(fmt.Sprintf("open %s %#x", name, flags), func(r string) error {
		f, err := os.OpenFile(filepath.Join(r, name), flags, 0o644)
		if r == x.mount {
			p.mount = f
		} else {
			p.model = f
		}
		return err
	})
	if p.mount != nil && p.model != nil {
		x.open = append(x.open, p)
	}
	return ok
}

func (x *exerciser) useOpen(data []byte, off int64) bool {
	if len(x.open) == 0 {
		return true
	}
	i := x.rand.IntN(len(x.open))
	p := x.open[i]
	on := func(do func(f *os.File) error) func(string) error {
		return func(r string) error {
			if r == x.mount {
				return do(p.mount)
			}
			return do(p.model)
		}
	}
	switch x.rand.IntN(5) {
	case 0:
		x.open = append(x.open[:i], x.open[i+1:]...)
		return x.both(fmt.Sprintf("close #%d", i), on(func(f *os.File) error { return f.Close() }))
	case 1:
		return x.both(fmt.Sprintf("fsync #%d", i), on(func(f *os.File) error { return f.Sync() }))
	case 2:
		return x.both(fmt.Sprintf("ftruncate #%d %d", i, off), on(func(f *os.File) error { return f.Truncate(off) }))
	case 3:
		return x.same(fmt.Sprintf("pread #%d %d", i, off), func(r string) ([]byte, error) {
			b := make([]byte, 30_000)
			var n int
			err := on(func(f *os.File) error {
				var err error
				if n, err = f.ReadAt(b, off); n > 0 || err != nil && err.Error() == "EOF" {
					err = nil
				}
				return err
			})(r)
			return b[:n], err
		})
	}
	return x.both(fmt.Sprintf("pwrite #%d %d %d", i, off, len(data)), on(func(f *os.File) error {
		_, err := f.WriteAt(data, off)
		return err
	}))
}

func (x *exerciser) closeAll() {
	for _, p := range x.open {
		if err := p.mount.Close(); err != nil && x.fault == "" {
			x.fault = "close at the end: " + err.Error()
		}
		p.model.Close()
	}
	x.open = nil
}

// compareTrees tells the first difference of names, kinds, modes, targets and
// content.
func compareTrees(model, mount string) string {
	seen := map[string]bool{}
	diff := ""
	note := func(format string, args ...any) {
		if diff == "" {
			diff = fmt.Sprintf(format, args...)
		}
	}
	_ = filepath.WalkDir(model, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(model, path)
		seen[rel] = true
		if err != nil {
			note("model: %v", err)
			return nil
		}
		want, err := os.Lstat(path)
		if err != nil {
			note("model: %v", err)
			return nil
		}
		other := filepath.Join(mount, rel)
		got, err := os.Lstat(other)
		if err != nil {
			note("%s: %v", rel, err)
			return nil
		}
		if rel != "." && got.Mode() != want.Mode() {
			note("%s has mode %v, want %v", rel, got.Mode(), want.Mode())
		}
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			a, _ := os.Readlink(path)
			b, err := os.Readlink(other)
			if err != nil || a != b {
				note("%s points to %q, %v, want %q", rel, b, err, a)
			}
		case e.Type().IsRegular():
			a, _ := os.ReadFile(path)
			b, err := os.ReadFile(other)
			if err != nil || !bytes.Equal(a, b) {
				note("%s: %v %s", rel, err, firstDifference(b, a))
			}
		}
		return nil
	})
	_ = filepath.WalkDir(mount, func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(mount, path)
		if err != nil {
			note("mount: %v", err)
		} else if !seen[rel] {
			note("%s is on the mount only", rel)
		}
		return nil
	})
	return diff
}
