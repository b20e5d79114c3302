//go:build linux

package bucketfs_test

import (
	"context"
	"errors"
	"io"
	"net/http"
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

// longFile is sent in three parts of 16 MiB or less, twoParts in two.
const (
	longFile = 40 << 20
	twoParts = 17 << 20
)

// proxied mounts a bucket of S3 through a proxy; the bucket that is returned is
// reached without it.
func proxied(t *testing.T, s *buckettest.Server) (*buckettest.Proxy, *mounted, objects.Bucket) {
	t.Helper()
	p := s.Proxied(t)
	return p, mount(t, p.Bucket(t), bucketfs.Options{}), s.Bucket(t)
}

// sideBySide runs parts of a test at once, each with a bucket of its own. Their
// server is started before: a child that this process forks has its open files
// until it runs its program, and closes them then, for which it waits for the
// mounts that this process serves.
func sideBySide(t *testing.T, s *buckettest.Server, name string, part func(t *testing.T, s *buckettest.Server)) {
	t.Run(name, func(t *testing.T) {
		own := s.Another(t, strings.ReplaceAll(name, "_", "-"))
		if os.Geteuid() == 0 { // others mount by a program
			t.Parallel()
		}
		part(t, own)
	})
}

// only lets a fault happen to requests of one phase.
func only(phase string, f buckettest.Fault) func(*http.Request) buckettest.Fault {
	return func(r *http.Request) buckettest.Fault {
		if buckettest.Phase(r) == phase {
			return f
		}
		return buckettest.Fault{}
	}
}

// from lets it happen to all requests from the first of a phase on.
func from(phase string, f buckettest.Fault) func(*http.Request) buckettest.Fault {
	var begun atomic.Bool
	return func(r *http.Request) buckettest.Fault {
		if buckettest.Phase(r) == phase {
			begun.Store(true)
		}
		if begun.Load() {
			return f
		}
		return buckettest.Fault{}
	}
}

// once lets it happen to the first of them.
func once(phase string, f buckettest.Fault) func(*http.Request) buckettest.Fault {
	var done atomic.Bool
	return func(r *http.Request) buckettest.Fault {
		if buckettest.Phase(r) == phase && done.CompareAndSwap(false, true) {
			return f
		}
		return buckettest.Fault{}
	}
}

// within fails when what took longer than a caller is promised to wait, with
// room for a busy machine.
func within(t *testing.T, what string, begun time.Time) {
	t.Helper()
	took := time.Since(begun)
	t.Logf("%s after %v", what, took)
	if took > 20*time.Second {
		t.Errorf("%s took %v, want 10 s", what, took)
	}
}

// intact fails unless the object is whole, either the old one or the new.
func intact(t *testing.T, b objects.Bucket, key string, contents ...[]byte) {
	t.Helper()
	got := object(t, b, key)
	for _, c := range contents {
		if got == string(c) {
			return
		}
	}
	t.Fatalf("%s in the bucket is none of the states it was saved in: %d bytes", key, len(got))
}

// A slow service is none that is dead.
func TestSlowService(t *testing.T) {
	s := buckettest.S3(t)
	for _, delay := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond} {
		sideBySide(t, s, delay.String(), func(t *testing.T, s *buckettest.Server) {
			p, m, b := proxied(t, s)
			p.Break(buckettest.Always(buckettest.Fault{Delay: delay}))
			long := noise(longFile)
			m.write("long", string(long))
			want(t, b, "long", long)
			if err := os.Mkdir(m.path("d"), 0o755); err != nil {
				t.Fatal(err)
			}
			m.write("d/file", "text")
			if err := os.Rename(m.path("d"), m.path("e")); err != nil {
				t.Fatal(err)
			}
			want(t, b, "e/file", []byte("text"))
			m.unmount()
			m = mount(t, p.Bucket(t), bucketfs.Options{})
			if got := m.read("long"); got != string(long) {
				t.Errorf("read: %s", firstDifference([]byte(got), long))
			}
			if got := m.names("."); got != "e/ long" {
				t.Errorf("names = %q", got)
			}
		})
	}
}

// uploads are the requests by which each service takes a file, and how long one is
// that needs them.
var uploads = map[string][]struct {
	name, phase string
	size        int
}{
	"s3":    {{"put", "put", 100_000}, {"create", "create", longFile}, {"part", "part", longFile}, {"complete", "complete", longFile}},
	"gcs":   {{"put", "put", 100_000}, {"long", "put", longFile}},
	"azure": {{"put", "put", 100_000}, {"part", "part", twoParts}, {"complete", "complete", twoParts}},
}

// Whatever breaks while a file is saved, in whichever phase, the caller gets an
// error within ten seconds, the name has what it had or all that is new, and the
// same open file is saved when the service is well again.
func TestFaultsInEachPhase(t *testing.T) {
	faults := []struct {
		name  string
		fault buckettest.Fault
	}{
		{"storm", buckettest.Fault{Status: http.StatusServiceUnavailable, Body: "<Error><Code>SlowDown</Code></Error>"}},
		{"cut", buckettest.Fault{Cut: true, CutAfter: 1000}},
		{"deaf", buckettest.Fault{Deaf: true}},
		{"paused", buckettest.Fault{Hold: true}},
		{"refused", buckettest.Fault{Status: http.StatusForbidden, Body: "<Error><Code>ExpiredToken</Code></Error>"}},
	}
	for service, start := range buckettest.Services {
		t.Run(service, func(t *testing.T) {
			s := start(t)
			for _, u := range uploads[service] {
				for _, f := range faults {
					if u.phase == "create" || u.phase == "complete" {
						f.fault.CutAfter = 0 // they are short
					}
					sideBySide(t, s, u.name+"_"+f.name, func(t *testing.T, s *buckettest.Server) {
						faultInPhase(t, s, u.phase, u.size, f.name, f.fault)
					})
				}
			}
		})
	}
}

func faultInPhase(t *testing.T, s *buckettest.Server, phase string, size int, name string, fault buckettest.Fault) {
	p, m, b := proxied(t, s)
	old, content := noise(5000), noise(size)
	m.write("file", string(old))
	file, err := os.OpenFile(m.path("file"), os.O_RDWR|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()    // where the test ends early
	if name == "paused" { // one that answers others is at work
		p.Break(from(phase, fault))
	} else {
		p.Break(only(phase, fault))
	}
	if _, err := file.Write(content); err != nil {
		t.Fatalf("write: %v", err)
	}
	for try := 1; ; try++ {
		begun := time.Now()
		err = file.Sync()
		within(t, "fsync", begun)
		if p.Struck() > 0 {
			break
		}
		if err == nil || try == 5 { // a busy machine's service may not come that far
			t.Fatalf("no request was broken, and fsync says %v", err)
		}
	}
	switch {
	case name == "refused":
		is(t, "fsync", err, syscall.EACCES)
	case err == nil && name == "deaf": // the object itself tells that it arrived
		want(t, b, "file", content)
	default:
		is(t, "fsync", err, syscall.EIO)
	}
	if name == "deaf" {
		intact(t, b, "file", old, content)
	} else {
		want(t, b, "file", old)
	}
	p.Heal()
	if err := file.Sync(); err != nil {
		t.Fatalf("fsync, well again: %v", err)
	}
	want(t, b, "file", content)
	if err := file.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if lost := m.unmount(); len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
	want(t, b, "file", content)
}

// One broken request is tried again, and nobody notices.
func TestOneFaultIsHealed(t *testing.T) {
	s := buckettest.S3(t)
	for _, phase := range []string{"put", "create", "part", "complete", "head", "get", "list", "copy", "delete"} {
		for name, f := range map[string]buckettest.Fault{"status": {Status: http.StatusInternalServerError}, "cut": {Cut: true}, "deaf": {Deaf: true}} {
			sideBySide(t, s, phase+"_"+name, func(t *testing.T, s *buckettest.Server) {
				p, m, b := proxied(t, s)
				put(t, b, "there", "text")
				p.Break(once(phase, f))
				content := noise(17 << 20)
				m.write("long", string(content))
				m.write("short", "text")
				if got := m.read("there"); got != "text" {
					t.Errorf("read = %q", got)
				}
				if err := os.Rename(m.path("short"), m.path("other")); err != nil {
					t.Errorf("rename: %v", err)
				}
				if got := m.names("."); got != "long other there" {
					t.Errorf("names = %q", got)
				}
				want(t, b, "long", content)
				want(t, b, "other", []byte("text"))
				gone(t, b, "short")
				if p.Struck() != 1 {
					t.Errorf("%d requests were broken, want 1", p.Struck())
				}
			})
		}
	}
}

// The service is killed in each phase of an upload, and started again.
func TestServiceKilledInEachPhase(t *testing.T) {
	for _, phase := range []string{"create", "part", "complete"} {
		t.Run(phase, func(t *testing.T) {
			s := buckettest.S3(t)
			p, m, b := proxied(t, s)
			old, content := noise(5000), noise(longFile)
			m.write("file", string(old))
			file, err := os.OpenFile(m.path("file"), os.O_RDWR|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			var killed atomic.Bool
			p.Break(func(r *http.Request) buckettest.Fault {
				if buckettest.Phase(r) == phase && killed.CompareAndSwap(false, true) {
					s.Kill()
				}
				return buckettest.Fault{}
			})
			_, err = file.Write(content)
			if err != nil {
				t.Fatalf("write: %v", err)
			}
			begun := time.Now()
			is(t, "fsync", file.Sync(), syscall.EIO)
			within(t, "fsync", begun)
			p.Heal()
			s.Start()
			want(t, b, "file", old)
			if err := file.Sync(); err != nil {
				t.Fatalf("fsync, started again: %v", err)
			}
			want(t, b, "file", content)
			if err := file.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// A disk that is full refuses the write, and what was written before is saved.
func TestStagingDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small disk of its own needs root")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("a small disk of its own cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	b := &objects.Memory{}
	m := mount(t, b, bucketfs.Options{Staging: disk})
	m.write("file", "saved")
	f, err := os.OpenFile(m.path("file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	content := noise(8 << 20)
	n, err := f.Write(content)
	is(t, "write", err, syscall.ENOSPC)
	if err := f.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	want(t, b, "file", content[:n]) // as a disk has it
	m.write("next", "there is room again")
	want(t, b, "next", []byte("there is room again"))
}

// An object that is changed or removed under a reader never becomes a mixture of
// two.
func TestChangedUnderReader(t *testing.T) {
	for _, how := range []string{"changed", "removed"} {
		t.Run(how, func(t *testing.T) {
			everywhere(t, func(t *testing.T, b objects.Bucket) {
				const size = 8 << 20
				before, after := noise(size), noise(size+1)
				put(t, b, "file", string(before))
				m := mount(t, b, bucketfs.Options{View: mounts.View{AttrTimeout: 50 * time.Millisecond, CacheBytes: 2 << 20}})
				f, err := os.Open(m.path("file"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				head := make([]byte, 100_000)
				if _, err := io.ReadFull(f, head); err != nil || string(head) != string(before[:len(head)]) {
					t.Fatalf("read: %v", err)
				}
				if how == "changed" {
					put(t, b, "file", string(after))
				} else if err := b.Delete(context.Background(), "file", ""); err != nil {
					t.Fatal(err)
				}
				rest, err := io.ReadAll(f)
				if err != nil {
					is(t, "read on", err, syscall.ESTALE)
				} else if len(rest) != size-len(head) {
					t.Errorf("read on: %d bytes and no error", len(rest))
				}
				if at := len(head) + len(rest); at > size || string(rest) != string(before[len(head):at]) {
					t.Error("what was read on is not of the object that was opened")
				}
				deadline := time.Now().Add(30 * time.Second)
				for {
					text, err := os.ReadFile(m.path("file"))
					if how == "changed" && err == nil && string(text) == string(after) || how == "removed" && errors.Is(err, os.ErrNotExist) {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("after 30 s a new reader gets %d bytes, %v", len(text), err)
					}
					time.Sleep(10 * time.Millisecond) // waits for the kernel's own clock
				}
			})
		})
	}
}

// Reads end with an error while nobody answers, and go on afterwards, on the same
// open file.
func TestReaderOfADeadService(t *testing.T) {
	p, m, b := proxied(t, buckettest.S3(t))
	content := noise(24 << 20)
	put(t, b, "file", string(content))
	f, err := os.Open(m.path("file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p.Break(only("get", buckettest.Fault{Hold: true}))
	begun := time.Now()
	_, err = f.ReadAt(make([]byte, 10), 20<<20)
	within(t, "read", begun)
	is(t, "read", err, syscall.EIO)
	p.Heal()
	got := make([]byte, len(content))
	_, err = f.ReadAt(got, 0)
	for end := time.Now().Add(30 * time.Second); errors.Is(err, syscall.EIO) && time.Now().Before(end); {
		_, err = f.ReadAt(got, 0)
	}
	if err != nil || string(got) != string(content) {
		t.Errorf("read, well again: %v, %s", err, firstDifference(got, content))
	}
}
