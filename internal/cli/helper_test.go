//go:build unix

package cli_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/mounts/bucketbin"
	"berth/sandbox/local/boxbin"
)

func TestHelper(t *testing.T) {
	dir := t.TempDir()
	m := newMachine(t)
	a := m.do("", "helper", "arm64", "--to", dir)
	box := boxbin.Open("arm64")
	if box == nil || !bucketbin.Has("arm64") {
		if a.code != 1 || !strings.Contains(a.stderr, "built without") || a.stdout != "" {
			t.Errorf("without a helper: got %+v", a)
		}
	} else {
		want, werr := io.ReadAll(box)
		got, err := os.ReadFile(filepath.Join(dir, "box"))
		if err != nil || werr != nil || a.code != 0 || !bytes.Equal(got, want) || !strings.Contains(a.stderr, "COPY --chmod=755 box bucketd /usr/local/lib/berth/") {
			t.Errorf("got %d bytes, %v, %+v", len(got), err, a)
		}
		if st, err := os.Stat(filepath.Join(dir, "box")); err != nil || st.Mode().Perm()&0o100 == 0 {
			t.Errorf("got %v, %v", st, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "bucketd")); (err == nil) != bucketbin.Has("arm64") {
		t.Errorf("bucketd: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if a := m.do("", "helper", "sparc"); a.code != 2 || !strings.Contains(a.stderr, "amd64") {
		t.Errorf("another architecture: got %+v", a)
	}
	if box == nil || !bucketbin.Has("arm64") {
		return
	}
	if a := m.do("", "helper", "arm64", "--to", filepath.Join(dir, "missing", "two")); a.code != 0 || !strings.Contains(a.stdout, filepath.Join("missing", "two", "bucketd")) {
		t.Errorf("a missing directory: got %+v", a)
	}
	if a := m.do("", "helper", "arm64", "--to", filepath.Join(dir, "box")); a.code != 1 || !strings.Contains(a.stderr, "helper: --to: ") || !strings.Contains(a.stderr, "not a directory") {
		t.Errorf("a file in the place of the directory: got %+v", a)
	}
}
