//go:build linux

// Package localtest is for tests over the local provider: a program that can
// stand in for box, and what is left of its sandboxes.
package localtest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/box/entry"
)

// Run is what a TestMain exits with whose tests share a provider: the layers of
// the default root take a second to build. begin is told of the provider and of
// its state directory.
func Run(m *testing.M, begin func(p *local.Provider, dir string)) int {
	entry.Main(os.Args)
	// Not t.TempDir: its long names would not leave room for socket paths.
	dir, err := os.MkdirTemp("", "berth")
	var p *local.Provider
	if err == nil {
		p, err = local.New(local.Options{Dir: dir})
	}
	if err != nil {
		panic(err)
	}
	begin(p, dir)
	code := m.Run()
	_ = p.Close()
	_ = RemoveState(context.Background(), dir)
	return code
}

// RemoveState removes a state directory. An ordinary user's has files of other
// ids of his.
func RemoveState(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if err != nil {
		err = exec.CommandContext(ctx, "unshare", "--user", "--map-auto", "--map-root-user", "rm", "-rf", dir).Run()
	}
	return err
}

// DestroyAll destroys the sandboxes of owner, of all owners when that is empty,
// and what it cannot is an error of t. It may be called when t has ended.
func DestroyAll(t testing.TB, p sandbox.Provider, owner sandbox.Owner) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	list, err := p.List(ctx, owner)
	for _, i := range list {
		in, lerr := p.Lookup(ctx, i.Key)
		if lerr == nil {
			lerr = in.Destroy(ctx)
		}
		err = errors.Join(err, lerr)
	}
	if err != nil {
		t.Errorf("destroy what is left: %v", err)
	}
}
