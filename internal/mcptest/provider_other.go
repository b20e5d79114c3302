//go:build unix && !linux

package mcptest

import (
	"testing"

	"berth/sandbox"
)

func localProvider(t testing.TB) sandbox.Provider {
	t.Helper()
	t.Fatal("the local provider needs Linux; leave BERTH_TEST_PROVIDER unset")
	return nil
}
