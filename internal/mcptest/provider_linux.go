package mcptest

import (
	"context"
	"os"
	"testing"

	"berth/internal/localtest"
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
		localtest.DestroyAll(t, p, "")
		if err := p.Close(); err != nil {
			t.Errorf("close the provider: %v", err)
		}
		// The test's own context has ended by now.
		if err := localtest.RemoveState(context.WithoutCancel(t.Context()), dir); err != nil {
			t.Errorf("remove the state: %v", err)
		}
	})
	return p
}
