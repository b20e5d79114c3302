package tools_test

import (
	"os"
	"testing"

	"berth/sandbox/local/box/entry"
)

// TestMain lets the test program stand in for box where that is not built in.
func TestMain(m *testing.M) {
	entry.Main(os.Args)
	os.Exit(m.Run())
}
