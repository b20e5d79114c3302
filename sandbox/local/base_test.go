//go:build linux

package local_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"berth/sandbox"
	"berth/sandbox/local"
)

// ownBase is a state directory whose layers are not made yet, over a host that
// has little to look at.
func ownBase(t *testing.T) string {
	t.Helper()
	host := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(host, "bin"), 0o755))
	t.Cleanup(local.ShowOnly(host))
	t.Setenv("BERTH_TEST_HOST", host) // for other processes of the test
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	t.Cleanup(func() { local.RemoveBases(filepath.Join(dir, "base")) })
	return dir
}

// Several servers that start on a new machine build its layers once.
func TestOneBuildsTheLayers(t *testing.T) {
	dir := ownBase(t)
	var built atomic.Int32
	building, wait := make(chan struct{}), make(chan struct{})
	open := func() *local.Provider {
		return provider(t, local.Options{Dir: dir}.WithFakeEngine().WithStep(func(step string) error {
			if step == "base:built" {
				if built.Add(1) == 1 {
					close(building)
				}
				<-wait
			}
			return nil
		}))
	}
	done := make(chan error)
	create := func(ctx context.Context, p *local.Provider, session string) {
		_, err := p.Create(ctx, sandbox.Key{Owner: "o", Session: sandbox.SessionID(session)}, sandbox.Spec{})
		done <- err
	}
	go create(t.Context(), open(), "a")
	<-building
	// One that waits can still be called off.
	ctx, cancel := context.WithCancel(t.Context())
	p := open()
	go create(ctx, p, "b")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Create called off while another builds = %v, want canceled", err)
	}
	for _, s := range []string{"c", "d", "e"} {
		go create(t.Context(), open(), s)
	}
	must(t, p.Sweep(t.Context())) // not what is just being built
	close(wait)
	for range 4 {
		if err := <-done; err != nil {
			t.Errorf("Create: %v", err)
		}
	}
	if n := built.Load(); n != 1 {
		t.Errorf("the layers were built %d times, want once", n)
	}
}

// A server killed while it builds the layers leaves nothing that the next one
// or a sweep does not remove, and nobody waits for it.
func TestKilledWhileBuildingTheLayers(t *testing.T) {
	dir := ownBase(t)
	p := fake(t, dir)
	kill(t, dir, "create", "base:built")
	_, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	destroyAll(t, p)
	nothingLeft(t, dir)

	local.RemoveBases(filepath.Join(dir, "base"))
	must(t, os.Mkdir(filepath.Join(dir, "base"), 0o700))
	kill(t, dir, "create", "base:built")
	must(t, p.Sweep(t.Context()))
	nothingLeft(t, dir)
}

// Under any umask, and below a directory that gives its group to others, the
// layers have the host's modes.
func TestLayersHaveTheHostsModes(t *testing.T) {
	host := t.TempDir()
	modes := map[string]os.FileMode{"a": 0o755, "a/b": os.ModeSticky | 0o777, "a/c": os.ModeSetgid | 0o775, "a/c/d": 0o755, "e": 0o711}
	for _, name := range []string{"a", "a/b", "a/c", "a/c/d", "e"} {
		must(t, os.Mkdir(filepath.Join(host, name), 0o755))
		must(t, os.WriteFile(filepath.Join(host, name, "closed"), nil, 0o600))
	}
	for name, m := range modes {
		must(t, os.Chmod(filepath.Join(host, name), m))
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(filepath.Join(host, "a/c"), 0, 50))
		must(t, os.Chmod(filepath.Join(host, "a/c"), modes["a/c"]))
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, skeleton := range []bool{false, true} {
		layer := filepath.Join(t.TempDir(), "layer")
		must(t, local.BuildOver(t.Context(), layer, host, skeleton))
		for name, m := range modes {
			fi, err := os.Lstat(filepath.Join(layer, name))
			must(t, err)
			if got := fi.Mode() &^ os.ModeDir; got != m {
				t.Errorf("mode of %s in the layer (skeleton %t) = %v, want %v", name, skeleton, got, m)
			}
			want, err := os.Lstat(filepath.Join(host, name))
			must(t, err)
			if got, want := fi.Sys().(*syscall.Stat_t).Gid, want.Sys().(*syscall.Stat_t).Gid; !skeleton && got != want {
				t.Errorf("group of %s in the layer = %d, want %d", name, got, want)
			}
		}
	}
}
