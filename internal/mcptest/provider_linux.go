package mcptest

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"berth/sandbox"
	"berth/sandbox/local"
)

// localProvider is the embedded provider over a state directory of its own;
// its sandboxes are destroyed with the test.
func localProvider(t testing.TB) sandbox.Provider {
	t.Helper()
	// Not t.TempDir: its long names would not leave room for socket paths.
	dir, err := os.MkdirTemp("", "berth") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	p, err := local.New(local.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx := context.WithoutCancel(t.Context())
		infos, err := p.List(ctx, "")
		if err != nil {
			t.Errorf("list what is left: %v", err)
		}
		for _, i := range infos {
			inst, err := p.Lookup(ctx, i.Key)
			if err == nil {
				err = inst.Destroy(ctx)
			}
			if err != nil {
				t.Errorf("destroy %s: %v", i.Key.Session, err)
			}
		}
		if err := p.Close(); err != nil {
			t.Errorf("close the provider: %v", err)
		}
		err = os.RemoveAll(dir)
		if err != nil { // an ordinary user's sealed layers have files of other ids of his
			err = exec.CommandContext(ctx, "unshare", "--user", "--map-auto", "--map-root-user", "rm", "-rf", dir).Run()
		}
		if err != nil {
			t.Errorf("remove the state: %v", err)
		}
	})
	return p
}
