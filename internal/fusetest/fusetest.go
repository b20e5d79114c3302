//go:build linux

// Package fusetest skips tests that mount where nothing can be mounted.
package fusetest

import (
	"os"
	"os/exec"
	"testing"
)

// RequireVariable turns the skips into failures.
const RequireVariable = "BERTH_REQUIRE_BUCKETS"

// Need skips a test where nothing can be mounted: without /dev/fuse, or as
// an ordinary user without fusermount3.
func Need(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		unavailable(t, "mounting needs /dev/fuse: %v", err)
	}
	f.Close()
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			unavailable(t, "mounting as an ordinary user needs fusermount3: %v", err)
		}
	}
}

func unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(RequireVariable) != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
