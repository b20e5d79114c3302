package buckettest

import (
	"os"
	"os/exec"
	"testing"
)

// NeedFUSE skips a test where nothing can be mounted: without /dev/fuse, or as
// an ordinary user without fusermount3.
func NeedFUSE(t testing.TB) {
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
