//go:build linux

package bucketfs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"berth/internal/fusetest"
	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

// mounted is a bucket mounted in this process.
type mounted struct {
	t      testing.TB
	dir    string
	fs     *bucketfs.FS
	server *fuse.Server
	minor  uint32
}

// mount mounts a bucket until the test ends.
func mount(t testing.TB, b objects.Bucket, o bucketfs.Options) *mounted {
	t.Helper()
	fusetest.Need(t)
	o.View.UID, o.View.GID = uint32(os.Getuid()), uint32(os.Getgid())
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(testLog{t}, nil))
	}
	f := bucketfs.New(b, o)
	dir := t.TempDir()
	opts := f.MountOptions()
	opts.DirectMountStrict = os.Geteuid() == 0
	server, err := fuse.NewServer(f, dir, opts)
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	go server.Serve()
	// It also keeps this process's own poller from waiting for the mount.
	if err := server.WaitMount(); err != nil {
		t.Fatalf("mount: %v", err)
	}
	m := &mounted{t: t, dir: dir, fs: f, server: server}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	m.minor = unix.Minor(st.Dev)
	t.Cleanup(func() { m.unmount() })
	// A process that ends while it waits for a mount of its own never ends.
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if at, ok := d.Deadline(); ok {
			timer := time.AfterFunc(time.Until(at)-5*time.Second, m.abort)
			t.Cleanup(func() { timer.Stop() })
		}
	}
	return m
}

// abort lets all calls that wait for the mount fail.
func (m *mounted) abort() {
	if unix.Unmount(m.dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW) == nil {
		return
	}
	name := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", m.minor)
	if err := os.WriteFile(name, []byte("1"), 0); err != nil {
		fmt.Fprintf(os.Stderr, "abort the mount %s: %v\n", m.dir, err)
	}
}

// testLog keeps logs with the test.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// unmount ends the mount, and returns what was lost.
func (m *mounted) unmount() []string {
	if m.server == nil {
		return nil
	}
	s := m.server
	m.server = nil
	if err := s.Unmount(); err != nil {
		m.t.Errorf("unmount: %v", err)
		m.abort()
		if err := s.Unmount(); err != nil {
			_ = unix.Unmount(m.dir, unix.MNT_DETACH) // as root; what is open keeps it
		}
		return nil
	}
	s.Wait()
	return m.fs.Close()
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mounted) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mounted) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

func (m *mounted) names(dir string) string {
	m.t.Helper()
	list, err := os.ReadDir(m.path(dir))
	if err != nil {
		m.t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		name := e.Name()
		if e.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// object returns what the bucket holds under a key.
func object(t testing.TB, b objects.Bucket, key string) string {
	t.Helper()
	o, err := b.Head(context.Background(), key)
	if err != nil {
		t.Fatalf("head %s: %v", key, err)
	}
	if o.Size == 0 {
		return ""
	}
	r, err := b.Read(context.Background(), key, o.Version, 0, o.Size)
	if err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read %s: %v", key, err)
	}
	return string(text)
}

func put(t testing.TB, b objects.Bucket, key, text string) {
	t.Helper()
	if _, err := b.Put(context.Background(), key, strings.NewReader(text), int64(len(text)), objects.Options{}); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func gone(t testing.TB, b objects.Bucket, key string) {
	t.Helper()
	if _, err := b.Head(context.Background(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("head %s: %v, want that it does not exist", key, err)
	}
}
