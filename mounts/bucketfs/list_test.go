//go:build linux

package bucketfs_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/mounts"
	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

// pages is how many pages the directory of many has.
const pages = 3

// many is a bucket with a long directory "d", and counts how often a page of it is
// listed.
func many(t *testing.T) (*objects.Memory, *atomic.Int64) {
	t.Helper()
	var lists atomic.Int64
	b := &objects.Memory{Before: func(call, key string) error {
		if call == "list" && key == "d/" {
			lists.Add(1)
		}
		return nil
	}}
	for i := range pages*1000 - 500 {
		if _, err := b.Put(context.Background(), fmt.Sprintf("d/f%04d", i), strings.NewReader("x"), 1, objects.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return b, &lists
}

// Making files one after the other in a long directory reads its list once.
func TestListWhileFilesAreMade(t *testing.T) {
	b, lists := many(t)
	m := mount(t, b, bucketfs.Options{View: mounts.View{AttrTimeout: time.Hour}})
	for i := range 50 {
		m.write(fmt.Sprintf("d/new%02d", i), "new")
		put := fmt.Sprintf("d/f%04d", 40*i)
		m.write(put, "over")
		if err := os.Remove(m.path(fmt.Sprintf("d/f%04d", 40*i+1))); err != nil {
			t.Fatal(err)
		}
	}
	// One more: whether there is anything below the directory's name.
	if got := lists.Load(); got > pages+1 {
		t.Errorf("the directory has %d pages, and %d were listed", pages, got-1)
	}
	// What is noted of the changes is what there is.
	for i := range 50 {
		for name, want := range map[string]string{fmt.Sprintf("d/new%02d", i): "new", fmt.Sprintf("d/f%04d", 40*i): "over", fmt.Sprintf("d/f%04d", 40*i+2): "x"} {
			if got := m.read(name); got != want {
				t.Errorf("%s reads %q, want %q", name, got, want)
			}
		}
		if _, err := os.Lstat(m.path(fmt.Sprintf("d/f%04d", 40*i+1))); !os.IsNotExist(err) {
			t.Errorf("a removed file: %v, want that it is not there", err)
		}
	}
}

// openMany opens the long directory of a mount, and counts the pages that are listed
// from then on.
func openMany(t *testing.T) (m *mounted, d *os.File, listed func() int64) {
	t.Helper()
	b, lists := many(t)
	m = mount(t, b, bucketfs.Options{View: mounts.View{AttrTimeout: time.Hour}})
	d, err := os.Open(m.path("d"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	opened := lists.Load() // whether there is anything below the directory's name
	return m, d, func() int64 { return lists.Load() - opened }
}

// A directory that is read to its end takes each of its pages once, the next one
// before it is wanted; the first page alone takes no other.
func TestListIsReadAhead(t *testing.T) {
	_, d, listed := openMany(t)
	begin, err := d.Readdirnames(500)
	if err != nil || listed() != 1 {
		t.Fatalf("the first names: %v, %d pages listed, want 1", err, listed())
	}
	rest, err := d.Readdirnames(-1)
	if want := pages*1000 - 500; err != nil || len(begin)+len(rest) != want || listed() != pages {
		t.Errorf("%d names, %v, %d pages listed; want %d, and %d pages", len(begin)+len(rest), err, listed(), want, pages)
	}
}

// What is changed here while the page that tells of it is read ahead is seen.
func TestChangedWhileReadAhead(t *testing.T) {
	m, d, listed := openMany(t)
	names, err := d.Readdirnames(1100)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); listed() < pages && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := listed(); got != pages {
		t.Fatalf("%d pages listed after the second was begun, want %d", got, pages)
	}
	time.Sleep(20 * time.Millisecond) // it is read by now; the test shows less if not
	if err := os.Remove(m.path("d/f2400")); err != nil {
		t.Fatal(err)
	}
	m.write("d/f2400a", "new")
	rest, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	names = append(names, rest...)
	if slices.Contains(names, "f2400") || !slices.Contains(names, "f2400a") || len(names) != pages*1000-500 {
		t.Errorf("of %d names: the removed one %t, the new one %t", len(names), slices.Contains(names, "f2400"), slices.Contains(names, "f2400a"))
	}
}

// Names are looked up, made and removed by many at once while pages are read.
func TestListedByManyAtOnce(t *testing.T) {
	b, _ := many(t)
	m := mount(t, b, bucketfs.Options{View: mounts.View{AttrTimeout: time.Hour}})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 60 {
				old := m.path(fmt.Sprintf("d/f%04d", i*40+w))
				if _, err := os.Lstat(old); err != nil {
					t.Error(err)
				}
				made := m.path(fmt.Sprintf("d/new%d-%02d", w, i))
				if err := os.WriteFile(made, []byte("new"), 0o644); err != nil {
					t.Error(err)
				}
				if err := os.Remove(old); err != nil {
					t.Error(err)
				}
				if _, err := os.Lstat(old); !os.IsNotExist(err) {
					t.Errorf("%s after it was removed: %v", old, err)
				}
				if _, err := os.Lstat(made); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	list, err := os.ReadDir(m.path("d"))
	if want := pages*1000 - 500; err != nil || len(list) != want {
		t.Errorf("%d names, %v; want %d", len(list), err, want)
	}
}
