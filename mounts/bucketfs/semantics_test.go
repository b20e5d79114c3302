//go:build linux

package bucketfs_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/buckettest"
	"berth/mounts"
	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

// everywhere runs a test over a bucket in memory and over each real service.
func everywhere(t *testing.T, test func(t *testing.T, b objects.Bucket)) {
	t.Run("memory", func(t *testing.T) { test(t, &objects.Memory{Part: 64 << 10}) })
	t.Run("s3", func(t *testing.T) { test(t, buckettest.S3(t).Bucket(t)) })
	t.Run("gcs", func(t *testing.T) { test(t, buckettest.GCS(t).Bucket(t)) })
	t.Run("azure", func(t *testing.T) { test(t, buckettest.Azure(t).Bucket(t)) })
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b) // it never fails
	return b
}

// want compares what the bucket holds with what was acknowledged.
func want(t *testing.T, b objects.Bucket, key string, content []byte) {
	t.Helper()
	if got := object(t, b, key); got != string(content) {
		t.Fatalf("%s in the bucket: %s", key, firstDifference([]byte(got), content))
	}
}

func is(t *testing.T, what string, got error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

func TestNames(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		put(t, b, "implicit/deep/file", "1")
		m := mount(t, b, bucketfs.Options{})
		if got := m.names("implicit"); got != "deep/" {
			t.Errorf("names of a directory without an object = %q", got)
		}
		if err := os.MkdirAll(m.path("a/b"), 0o755); err != nil {
			t.Fatal(err)
		}
		m.write("a/b/one", "one")
		m.write("a/two", "two")
		is(t, "rmdir of one with files", syscall.Rmdir(m.path("a")), syscall.ENOTEMPTY)
		if err := os.Rename(m.path("a"), m.path("c")); err != nil {
			t.Fatal(err)
		}
		want(t, b, "c/b/one", []byte("one"))
		want(t, b, "c/two", []byte("two"))
		gone(t, b, "a/b/one")
		gone(t, b, "a/two")
		if err := os.Rename(m.path("c/two"), m.path("implicit/deep/file")); err != nil {
			t.Fatal(err)
		}
		want(t, b, "implicit/deep/file", []byte("two"))
		gone(t, b, "c/two")
		if got := m.names("."); got != "c/ implicit/" {
			t.Errorf("names at the top = %q", got)
		}
		if err := os.RemoveAll(m.path("c")); err != nil {
			t.Fatal(err)
		}
		// An empty directory outlives the mount.
		if err := os.Mkdir(m.path("empty"), 0o755); err != nil {
			t.Fatal(err)
		}
		m.unmount()
		m = mount(t, b, bucketfs.Options{})
		if got := m.names("."); got != "empty/ implicit/" {
			t.Errorf("names at the top, mounted anew = %q", got)
		}
	})
}

// Modes, times and links live in metadata, and come back with the next mount.
func TestMetadata(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		m := mount(t, b, bucketfs.Options{})
		m.write("run.txt", "#!/bin/sh\n")
		when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
		for what, err := range map[string]error{
			"chmod":   os.Chmod(m.path("run.txt"), 0o750),
			"chtimes": os.Chtimes(m.path("run.txt"), when, when),
			"symlink": os.Symlink("run.txt", m.path("link")),
		} {
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		m.unmount()
		m = mount(t, b, bucketfs.Options{})
		st, err := os.Stat(m.path("link"))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != 0o750 || !st.ModTime().Equal(when) || st.Size() != 10 {
			t.Errorf("stat = %v, %v, %d bytes", st.Mode(), st.ModTime(), st.Size())
		}
		value := make([]byte, 200)
		n, err := unix.Getxattr(m.path("run.txt"), "user.bucket.content_type", value)
		if err != nil || string(value[:n]) != "text/plain; charset=utf-8" {
			t.Errorf("content type = %q, %v", value[:max(n, 0)], err)
		}
		o, err := b.Head(t.Context(), "run.txt")
		if err != nil {
			t.Fatal(err)
		}
		n, err = unix.Getxattr(m.path("run.txt"), "user.bucket.etag", value)
		if err != nil || string(value[:n]) != o.ETag {
			t.Errorf("etag = %q, %v, want %q", value[:max(n, 0)], err, o.ETag)
		}
	})
}

// What others do is seen when the attribute time-out is over.
func TestOthersChanges(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		put(t, b, "file", "old")
		put(t, b, "gone", "old")
		m := mount(t, b, bucketfs.Options{View: mounts.View{AttrTimeout: 50 * time.Millisecond}})
		if got := m.read("file") + m.read("gone"); got != "oldold" {
			t.Fatalf("read = %q", got)
		}
		put(t, b, "file", "newer")
		if err := b.Delete(t.Context(), "gone", ""); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(30 * time.Second)
		for {
			text, err := os.ReadFile(m.path("file"))
			_, statErr := os.Stat(m.path("gone"))
			if err == nil && string(text) == "newer" && errors.Is(statErr, os.ErrNotExist) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("after 30 s: read = %q, %v; stat of what is gone = %v", text, err, statErr)
			}
			time.Sleep(10 * time.Millisecond) // waits for the kernel's own clock
		}
	})
}

func TestPrefixConfines(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		put(t, b, "in/side", "1")
		put(t, b, "inside", "2")
		put(t, b, "out", "3")
		m := mount(t, b, bucketfs.Options{Prefix: "in/"})
		if got := m.names("."); got != "side" {
			t.Errorf("names = %q, want side alone", got)
		}
		m.write("new", "4")
		want(t, b, "in/new", []byte("4"))
		gone(t, b, "new")
	})
}

func TestReadOnly(t *testing.T) {
	b := &objects.Memory{}
	put(t, b, "file", "1")
	put(t, b, "dir/file", "1")
	m := mount(t, b, bucketfs.Options{ReadOnly: true})
	if got := m.read("file"); got != "1" {
		t.Errorf("read = %q", got)
	}
	is(t, "write", os.WriteFile(m.path("file"), nil, 0o644), syscall.EROFS)
	is(t, "create", os.WriteFile(m.path("new"), nil, 0o644), syscall.EROFS)
	is(t, "mkdir", os.Mkdir(m.path("new"), 0o755), syscall.EROFS)
	is(t, "remove", syscall.Unlink(m.path("file")), syscall.EROFS)
	is(t, "rename", os.Rename(m.path("file"), m.path("dir/x")), syscall.EROFS)
	is(t, "truncate", os.Truncate(m.path("file"), 0), syscall.EROFS)
	is(t, "chmod", os.Chmod(m.path("file"), 0o600), syscall.EROFS)
	is(t, "symlink", os.Symlink("a", m.path("b")), syscall.EROFS)
	want(t, b, "file", []byte("1"))
}

// Keys that no file can be named after stay in the bucket, unseen and unharmed.
func TestOddKeys(t *testing.T) {
	b := &objects.Memory{}
	odd := []string{"a//b", "./x", "../y", "d/../z", "/top", "d/" + strings.Repeat("n", 256)}
	for _, key := range odd {
		put(t, b, key, "odd")
	}
	put(t, b, "d/fine", "1")
	m := mount(t, b, bucketfs.Options{})
	if got := m.names("d"); got != "fine" {
		t.Errorf("names = %q, want fine alone", got)
	}
	_, err := os.Stat(m.path(strings.Repeat("n", 256)))
	is(t, "stat of a long name", err, syscall.ENAMETOOLONG)
	long := strings.Repeat(strings.Repeat("d", 200)+"/", 5)
	err = os.MkdirAll(m.path(long+strings.Repeat("d", 200)), 0o755)
	is(t, "mkdir of a long key", err, syscall.ENAMETOOLONG)
	for _, key := range odd {
		want(t, b, key, []byte("odd"))
	}
}

func TestManyNames(t *testing.T) {
	b := &objects.Memory{}
	const n = 2500
	for i := range n {
		put(t, b, fmt.Sprintf("dir/f%05d", i), "x")
	}
	m := mount(t, b, bucketfs.Options{})
	list, err := os.ReadDir(m.path("dir"))
	if err != nil || len(list) != n {
		t.Fatalf("%d names, %v, want %d", len(list), err, n)
	}
	for i, e := range list {
		if want := fmt.Sprintf("f%05d", i); e.Name() != want {
			t.Fatalf("name %d is %q, want %q", i, e.Name(), want)
		}
	}
}

// A file that is removed while it is open can be used until it is closed.
func TestUnlinkedWhileOpen(t *testing.T) {
	b := &objects.Memory{}
	m := mount(t, b, bucketfs.Options{})
	m.write("file", "content")
	f, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.path("file")); err != nil {
		t.Fatal(err)
	}
	gone(t, b, "file")
	if _, err := f.WriteAt([]byte("C"), 0); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 7)
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "Content" {
		t.Errorf("read = %q, %v", text, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	gone(t, b, "file")
}

func TestStagingBound(t *testing.T) {
	b := &objects.Memory{}
	m := mount(t, b, bucketfs.Options{View: mounts.View{StagingBytes: 1 << 20}})
	f, err := os.Create(m.path("file"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(make([]byte, 4<<20))
	err = errors.Join(err, f.Close())
	is(t, "write of 4 MiB with 1 MiB of staging", err, syscall.ENOSPC)
	m.write("small", "fits again")
	want(t, b, "small", []byte("fits again"))
}

// While the service fails, nothing is acknowledged and the object stays as it
// was; when it works again, the same open file can be saved.
func TestFailedSave(t *testing.T) {
	for _, call := range []string{"put", "upload", "part", "complete"} {
		t.Run(call, func(t *testing.T) {
			var failing atomic.Bool
			b := &objects.Memory{Part: 64 << 10, Before: func(c, _ string) error {
				if c == call && failing.Load() {
					return objects.ErrUnavailable
				}
				return nil
			}}
			put(t, b, "file", "old")
			m := mount(t, b, bucketfs.Options{})
			content := noise(300_000)
			if call == "put" {
				content = noise(1000)
			}
			f, err := os.OpenFile(m.path("file"), os.O_RDWR|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			failing.Store(true)
			if _, err := f.Write(content); err != nil {
				t.Fatal(err)
			}
			is(t, "fsync", f.Sync(), syscall.EIO)
			want(t, b, "file", []byte("old"))
			failing.Store(false)
			if err := f.Sync(); err != nil {
				t.Fatalf("fsync, working again: %v", err)
			}
			want(t, b, "file", content)
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			want(t, b, "file", content)
		})
	}
}

// A rename of a directory that is cut off leaves every object under one name at
// least.
func TestCutRename(t *testing.T) {
	for _, call := range []string{"copy", "delete"} {
		t.Run(call, func(t *testing.T) {
			var left atomic.Int64
			left.Store(1 << 30)
			b := &objects.Memory{Before: func(c, _ string) error {
				if c == call && left.Add(-1) < 0 {
					return objects.ErrUnavailable
				}
				return nil
			}}
			const n = 20
			for i := range n {
				put(t, b, fmt.Sprintf("a/f%02d", i), fmt.Sprint(i))
			}
			m := mount(t, b, bucketfs.Options{})
			left.Store(n / 2)
			err := os.Rename(m.path("a"), m.path("b"))
			if call == "copy" {
				is(t, "rename", err, syscall.EIO)
			}
			left.Store(1 << 30)
			for i := range n {
				_, olderr := b.Head(t.Context(), fmt.Sprintf("a/f%02d", i))
				_, newerr := b.Head(t.Context(), fmt.Sprintf("b/f%02d", i))
				if olderr != nil && newerr != nil {
					t.Errorf("f%02d is under neither name: %v, %v", i, olderr, newerr)
				}
			}
		})
	}
}

// A service that is dead for a while gives errors, and works again afterwards
// on the same mount and the same open files.
func TestServiceDies(t *testing.T) {
	for _, how := range []string{"killed", "paused"} {
		t.Run(how, func(t *testing.T) {
			s := buckettest.S3(t)
			b := s.Bucket(t)
			put(t, b, "other", "there")
			m := mount(t, b, bucketfs.Options{})
			m.write("file", "old")
			f, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString("new"); err != nil {
				t.Fatal(err)
			}
			if how == "killed" {
				s.Kill()
			} else {
				s.Pause()
			}
			begun := time.Now()
			is(t, "fsync", f.Sync(), syscall.EIO)
			_, err = os.ReadFile(m.path("other"))
			is(t, "read", err, syscall.EIO)
			t.Logf("both failed after %v", time.Since(begun))
			if how == "killed" {
				s.Start()
			} else {
				s.Resume()
			}
			if err := f.Sync(); err != nil {
				t.Errorf("fsync, alive again: %v", err)
			}
			if err := f.Close(); err != nil {
				t.Errorf("close, alive again: %v", err)
			}
			want(t, b, "file", []byte("new"))
			if got := m.read("other"); got != "there" {
				t.Errorf("read = %q", got)
			}
		})
	}
}
