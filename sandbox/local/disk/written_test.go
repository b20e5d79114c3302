//go:build linux

package disk_test

import (
	"os"
	"path/filepath"
	"testing"

	"berth/sandbox/local/disk"
)

// Hard links count once, holes not at all, and links lead nowhere.
func TestWritten(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := disk.Written(int(f.Fd()))
	file := filepath.Join(dir, "a", "b", "file")
	for _, err := range []error{os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, make([]byte, 1<<20), 0o600),
		os.Link(file, filepath.Join(dir, "link")), os.Symlink("/usr", filepath.Join(dir, "usr")), os.WriteFile(filepath.Join(dir, "hole"), nil, 0o600),
		os.Truncate(filepath.Join(dir, "hole"), 1<<30)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := disk.Written(int(f.Fd())) - before; n < 1<<20 || n > 3<<19 {
		t.Errorf("%d bytes, want 1 MiB or little more", n)
	}
}
