//go:build linux

package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// freshStore is a provider on a state directory of its own.
func freshStore(t *testing.T) (*Provider, *store) {
	t.Helper()
	p, err := New(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	s, err := p.store()
	if err != nil {
		t.Fatal(err)
	}
	return p, s
}

// TestVolumesAreTheirOwners: one name of two owners are two volumes, a volume
// in use is kept, sweeps leave volumes alone, and other id maps are refused.
func TestVolumesAreTheirOwners(t *testing.T) {
	p, s := freshStore(t)
	var err error
	ctx := context.Background()
	ids := wire.IDs{Mode: wire.IDsSingle}
	dirs := map[sandbox.Owner]string{}
	for _, owner := range []sandbox.Owner{"alice", "bob"} {
		if dirs[owner], err = s.makeVolume(ctx, owner, "data", ids); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dirs[owner], "f"), []byte(owner), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if dirs["alice"] == dirs["bob"] {
		t.Fatal("two owners have one volume")
	}
	if again, err := s.makeVolume(ctx, "alice", "data", ids); err != nil || again != dirs["alice"] {
		t.Errorf("again: %s, %v", again, err)
	}
	if _, err := s.makeVolume(ctx, "alice", "data", wire.IDs{Mode: wire.IDsSub, SubUID: 100000, SubGID: 100000, Count: 65536}); err == nil || !strings.Contains(err.Error(), "user ids") {
		t.Errorf("other ids: %v", err)
	}
	key := sandbox.Key{Owner: "alice", Session: "s"}
	id := sandboxID(key)
	if err := os.MkdirAll(filepath.Join(s.sandboxDir(id), layersDir), 0o700); err != nil {
		t.Fatal(err)
	}
	r := &record{Version: recordVersion, Owner: "alice", Session: "s", Spec: specRecord{Volumes: []volumeRecord{{Volume: "data", Path: "/data"}}}}
	if err := s.writeRecord(id, r); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteVolume(ctx, "alice", "data"); !errors.Is(err, sandbox.ErrLimit) || !strings.Contains(err.Error(), "attached to s;") {
		t.Errorf("in use: %v", err)
	}
	if list, err := p.Volumes(ctx, "alice"); err != nil || len(list) != 1 || len(list[0].UsedBy) != 1 {
		t.Errorf("alice's: %v, %v", list, err)
	}
	if list, err := p.Volumes(ctx, "bob"); err != nil || len(list) != 1 || len(list[0].UsedBy) != 0 {
		t.Errorf("bob's: %v, %v", list, err)
	}
	if list, err := p.Volumes(ctx, ""); err != nil || len(list) != 2 || list[0].Owner == list[1].Owner || len(list[0].UsedBy)+len(list[1].UsedBy) != 1 {
		t.Errorf("everybody's: %v, %v", list, err)
	}
	if err := os.RemoveAll(s.sandboxDir(id)); err != nil {
		t.Fatal(err)
	}
	if err := p.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	for owner, dir := range dirs {
		if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != string(owner) {
			t.Errorf("%s's after a sweep: %q, %v", owner, b, err)
		}
	}
	if err := p.DeleteVolume(ctx, "alice", "data"); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteVolume(ctx, "alice", "data"); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dirs["bob"], "f")); err != nil {
		t.Errorf("bob's went with alice's: %v", err)
	}
}
