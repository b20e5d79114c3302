//go:build linux

package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/buckettest"
	"berth/internal/fusetest"
	"berth/mounts"
	"berth/mounts/objects"
)

// programs is the directory of what is built for the tests.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "bucketd-test-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		return m.Run()
	}())
}

// program builds bucketd once.
var program = sync.OnceValues(func() (string, error) {
	name := filepath.Join(programs, "bucketd")
	if out, err := exec.Command("go", "build", "-o", name, "berth/mounts/bucketd").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build bucketd: %w: %s", err, out)
	}
	return name, nil
})

// daemon is a bucketd that serves a mount.
type daemon struct {
	t   testing.TB
	dir string
	cmd *exec.Cmd
	log bytes.Buffer
}

// serve starts bucketd for a job, and returns when its mount answers.
func serve(t testing.TB, j mounts.Job) *daemon {
	t.Helper()
	fusetest.Need(t)
	name, err := program()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: t.TempDir()}
	j.Mountpoint = d.dir
	j.View.UID, j.View.GID = uint32(os.Getuid()), uint32(os.Getgid())
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d.cmd = exec.Command(name, "serve")
	d.cmd.ExtraFiles = []*os.File{theirs}
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(d.kill)
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(append(text, '\n')); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var r mounts.Report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Fault != nil {
			t.Fatalf("no mount: %s", r.Fault.Message)
		}
		if r.Ready {
			return d
		}
	}
	d.kill()
	t.Fatalf("bucketd ended without a report: %s", d.log.Bytes())
	return nil
}

// kill ends bucketd as kill -9 does, and takes its dead mount away.
func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	d.cmd = nil
	if os.Geteuid() == 0 {
		_ = unix.Unmount(d.dir, unix.MNT_DETACH)
	} else if out, err := exec.Command("fusermount3", "-u", "-z", d.dir).CombinedOutput(); err != nil {
		d.t.Errorf("unmount: %v: %s", err, out)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b) // it never fails
	return b
}

// content is what the bucket has under a key. What the dead one asked for may
// arrive while it is read.
func content(t testing.TB, b objects.Bucket, key string) []byte {
	t.Helper()
	for {
		text, err := contentNow(t.Context(), b, key)
		switch {
		case errors.Is(err, objects.ErrChanged):
			continue
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			t.Fatal(err)
		}
		return text
	}
}

func contentNow(ctx context.Context, b objects.Bucket, key string) ([]byte, error) {
	o, err := b.Head(ctx, key)
	if err != nil {
		return nil, err
	}
	r, err := b.Read(ctx, key, o.Version, 0, o.Size)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// bucketd is killed while the service has a request of each phase of an upload
// before it, or has done what the request asked for. The name has what it had, or
// all that is new; what was acknowledged stays; and the next bucketd goes on.
func TestKilledInEachPhase(t *testing.T) {
	type phase struct {
		phase string
		size  int
		done  bool // the service does it before bucketd dies
	}
	const long = 40 << 20
	phases := map[string][]phase{
		"s3": {{"put", 200_000, false}, {"put", 200_000, true}, {"create", long, false}, {"create", long, true}, {"part", long, false}, {"part", long, true},
			{"complete", long, false}, {"complete", long, true}, {"copy", long, false}, {"delete", long, false}},
		"gcs": {{"put", 200_000, false}, {"put", 200_000, true}, {"put", long, false}, {"put", long, true}, {"copy", long, false}, {"delete", long, false}},
		"azure": {{"put", 200_000, false}, {"put", 200_000, true}, {"part", long, false}, {"part", long, true},
			{"complete", long, false}, {"complete", long, true}, {"copy", long, false}, {"delete", long, false}},
	}
	for service, start := range buckettest.Services {
		t.Run(service, func(t *testing.T) {
			server := start(t)
			for _, c := range phases[service] {
				name := c.phase
				if c.size == long && c.phase == "put" {
					name = "long"
				}
				if c.done {
					name += "_done"
				}
				t.Run(name, func(t *testing.T) {
					s := server.Another(t, strings.ReplaceAll("killed_"+name, "_", "-"))
					t.Parallel()
					killedInPhase(t, s, c.phase, c.size, c.done)
				})
			}
		})
	}
}

func killedInPhase(t *testing.T, s *buckettest.Server, phase string, size int, done bool) {
	p, b := s.Proxied(t), s.Bucket(t)
	d := serve(t, p.Job)
	kept, old, fresh := noise(3000), noise(5000), noise(size)
	for file, text := range map[string][]byte{"kept": kept, "file": old} {
		if err := os.WriteFile(filepath.Join(d.dir, file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reached := make(chan struct{})
	var once sync.Once
	p.Break(func(r *http.Request) buckettest.Fault {
		if buckettest.Phase(r) != phase {
			return buckettest.Fault{}
		}
		once.Do(func() { close(reached) })
		return buckettest.Fault{Hold: !done, Deaf: done}
	})
	// Other programs do it: what this one forks has its open files for a
	// moment, and a file that any process closes is saved as it is.
	from := filepath.Join(t.TempDir(), "fresh")
	if err := os.WriteFile(from, fresh, 0o600); err != nil {
		t.Fatal(err)
	}
	do := exec.Command("cp", from, filepath.Join(d.dir, "file"))
	if phase == "copy" || phase == "delete" {
		do = exec.Command("mv", filepath.Join(d.dir, "file"), filepath.Join(d.dir, "moved"))
	}
	ended := make(chan error, 1)
	go func() { ended <- do.Run() }()
	select {
	case <-reached:
	case <-time.After(60 * time.Second):
		t.Fatalf("no %s after a minute", phase)
	}
	if done {
		// The proxy counts it when the service is to have it.
		for end := time.Now().Add(60 * time.Second); p.Struck() == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	d.kill()
	err := <-ended
	p.Heal()
	if got := content(t, b, "kept"); !bytes.Equal(got, kept) {
		t.Errorf("kept has %d bytes, want %d", len(got), len(kept))
	}
	got, moved := content(t, b, "file"), content(t, b, "moved")
	switch {
	case phase == "copy" || phase == "delete":
		if !bytes.Equal(got, old) && !bytes.Equal(moved, old) {
			t.Errorf("the file is under neither name: %d and %d bytes", len(got), len(moved))
		}
	case err == nil && !bytes.Equal(got, fresh):
		t.Errorf("what was acknowledged is lost: %d bytes, want %d", len(got), len(fresh))
	case !bytes.Equal(got, old) && !bytes.Equal(got, fresh):
		t.Errorf("file has %d bytes, which was never saved", len(got))
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Errorf("%s: %v", do, err)
	}
	d = serve(t, s.Job)
	name := filepath.Join(d.dir, "file")
	// The service may be at work on what the dead one asked for, which is
	// another writer.
	err = os.WriteFile(name, fresh, 0o600)
	for end := time.Now().Add(60 * time.Second); errors.Is(err, syscall.ESTALE) && time.Now().Before(end); {
		err = os.WriteFile(name, fresh, 0o600)
	}
	if err != nil {
		t.Fatalf("write after the death: %v", err)
	}
	if got := content(t, b, "file"); !bytes.Equal(got, fresh) {
		t.Errorf("written after the death: %d bytes, want %d", len(got), len(fresh))
	}
}
