//go:build linux

package image_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth/sandbox/local/image"
)

// Several pulls at once, by several stores as of several processes, fetch each
// layer once.
func TestRacingPulls(t *testing.T) {
	r := newReg(t)
	var layers []v1.Layer
	for i := range 4 {
		b := make([]byte, 1<<20)
		_, _ = rand.Read(b)
		layers = append(layers, gz(t, tarOf(t, fmt.Sprintf("f%d", i), string(b))))
	}
	ref := r.push(t, "a", build(t, layers...))
	dir := filepath.Join(t.TempDir(), "s")
	// The configuration is read by each, before anything is locked.
	var once sync.Map
	var twice atomic.Int64
	r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		for _, l := range layers {
			if d, _ := l.Digest(); strings.HasSuffix(req.URL.Path, d.String()) {
				if _, had := once.LoadOrStore(req.URL.Path, true); had {
					twice.Add(1)
				}
			}
		}
		h.ServeHTTP(w, req)
	})
	var wg sync.WaitGroup
	for range 8 {
		s := store(t, image.Options{Dir: dir})
		wg.Go(func() {
			if _, err := pull(t, s, ref); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := twice.Load(); n > 0 {
		t.Errorf("%d layers were fetched again", n)
	}
}

// A broken connection is taken up where it broke.
func TestDownloadGoesOn(t *testing.T) {
	b := make([]byte, 4<<20)
	_, _ = rand.Read(b)
	layer := gz(t, tarOf(t, "a", string(b)))
	digest, err := layer.Digest()
	must(t, err)
	r := newReg(t)
	ref := r.push(t, "a", build(t, layer))
	var ranges []string
	r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		if strings.HasSuffix(req.URL.Path, digest.String()) {
			ranges = append(ranges, req.Header.Get("Range"))
			if len(ranges) == 1 {
				h.ServeHTTP(&cut{ResponseWriter: w, left: 1 << 20}, req)
				panic(http.ErrAbortHandler)
			}
		}
		h.ServeHTTP(w, req)
	})
	s := store(t, image.Options{})
	got, err := pull(t, s, ref)
	must(t, err)
	if shown(t, s, got, "a") != string(b) {
		t.Error("another content")
	}
	if len(ranges) != 2 || ranges[0] != "" || !strings.HasPrefix(ranges[1], "bytes=") {
		t.Errorf("ranges = %q, want the second from the middle", ranges)
	}
}

// cut ends an answer early.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.left = 0
		return 0, io.ErrShortWrite
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// A process that is killed at any step leaves nothing that the next pull does
// not repair, and what it had fetched is not fetched again.
func TestKilledInTheMiddle(t *testing.T) {
	b := make([]byte, 6<<20)
	_, _ = rand.Read(b)
	r := newReg(t)
	ref := r.push(t, "a", build(t, gz(t, tarOf(t, "a", string(b))), gz(t, tarOf(t, "b", "2"))))
	for _, step := range []string{"pull:bytes", "pull:downloaded", "pull:unpacked"} {
		t.Run(strings.TrimPrefix(step, "pull:"), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "s")
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledHelper$")
			cmd.Env = append(os.Environ(), "BERTH_TEST_PULL="+dir+"\n"+ref+"\n"+step)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
				t.Fatalf("helper = %v: %s", err, out)
			}
			s := store(t, image.Options{Dir: dir})
			if step == "pull:bytes" {
				parts, err := filepath.Glob(filepath.Join(dir, "blobs", "*.part"))
				must(t, err)
				if len(parts) == 0 {
					t.Error("no part of a download was kept")
				}
			}
			got, err := pull(t, s, ref)
			must(t, err)
			if shown(t, s, got, "a") != string(b) || shown(t, s, got, "b") != "2" {
				t.Error("another content")
			}
			must(t, s.Close())
			_, err = s.Prune(t.Context(), image.PruneOptions{Unused: time.Hour, Used: func() (image.Used, error) { return image.Used{}, nil }})
			must(t, err)
			for _, d := range []string{"tmp", "pins", "blobs", "trash"} {
				if left, _ := os.ReadDir(filepath.Join(dir, d)); len(left) != 0 {
					t.Errorf("%s holds %v", d, left)
				}
			}
		})
	}
}

// TestKilledHelper is the process that dies.
func TestKilledHelper(t *testing.T) {
	args := strings.Split(os.Getenv("BERTH_TEST_PULL"), "\n")
	if len(args) != 3 {
		return // only for TestKilledInTheMiddle
	}
	n := 0
	s, err := image.New(image.Options{Dir: args[0], Private: anywhere}.Step(func(step string) error {
		if step == args[2] {
			if n++; n > 8 || step != "pull:bytes" {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		return nil
	}))
	must(t, err)
	_, err = pull(t, s, args[1])
	t.Fatalf("not killed: %v", err)
}

// After the machine was restarted, what may not have reached the disk is laid
// down again.
func TestAnotherBoot(t *testing.T) {
	layer := gz(t, tarOf(t, "a", "1"))
	r := newReg(t)
	ref := r.push(t, "a", build(t, layer))
	s := store(t, image.Options{})
	im, err := pull(t, s, ref)
	must(t, err)
	must(t, s.Close())
	dirs, err := s.Lower(im, form())
	must(t, err)
	must(t, s.Unsettle(form(), im.Layers[0].Diff))
	must(t, os.WriteFile(filepath.Join(dirs[0], "a"), nil, 0o644)) // as a lost power leaves it
	if s.Ready(im, form()) {
		t.Error("the layer counts as whole")
	}
	s2 := store(t, image.Options{Dir: strings.TrimSuffix(dirs[0], "/layers/"+form().Name+"/"+filepath.Base(filepath.Dir(dirs[0]))+"/fs")})
	pin, err := s2.Again(t.Context(), im, form(), nil)
	must(t, err)
	pin.Release()
	if got := shown(t, s2, im, "a"); got != "1" {
		t.Errorf("a = %q, want 1", got)
	}
}

// A pull that its caller leaves goes no further, and says so.
func TestCancelledPull(t *testing.T) {
	r := newReg(t)
	ref := r.push(t, "a", build(t, gz(t, tarOf(t, "a", "1"))))
	ctx, cancel := context.WithCancel(t.Context())
	r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		if strings.Contains(req.URL.Path, "/blobs/") {
			cancel()
			<-req.Context().Done()
			return
		}
		h.ServeHTTP(w, req)
	})
	s := store(t, image.Options{})
	n, err := s.Parse(ref)
	must(t, err)
	if _, _, err := s.Pull(ctx, n, form(), false, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("pull = %v, want cancelled", err)
	}
}
