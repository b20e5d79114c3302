package bucketbin_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/mounts/bucketbin"
)

func TestBytesUnknownArchitecture(t *testing.T) {
	for _, arch := range []string{"", "s390x", "../bucketds", "amd64/x"} {
		if got, err := bucketbin.Bytes(arch); got != nil || err != nil || bucketbin.Has(arch) {
			t.Errorf("Bytes(%q) = %d bytes, %v, want nil, nil", arch, len(got), err)
		}
	}
}

// What was generated must be a static program of its architecture; what was
// not generated must be nil, not the placeholder.
func TestBytesIsStaticELF(t *testing.T) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for arch, machine := range machines {
		b, err := bucketbin.Bytes(arch)
		if err != nil {
			t.Errorf("Bytes(%q): %v", arch, err)
			continue
		}
		if _, err := os.Stat("bucketd-linux-" + arch + ".zst"); err != nil {
			if !os.IsNotExist(err) || b != nil {
				t.Errorf("Bytes(%q) = %d bytes without a file (%v)", arch, len(b), err)
			}
			continue
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Errorf("Bytes(%q): %v", arch, err)
			continue
		}
		if f.Machine != machine {
			t.Errorf("Bytes(%q) is for %v, want %v", arch, f.Machine, machine)
		}
		if s := f.Section(".interp"); s != nil {
			t.Errorf("Bytes(%q) needs a dynamic loader", arch)
		}
	}
}

func TestFindWritesWhatIsEmbedded(t *testing.T) {
	b, err := bucketbin.Bytes("amd64")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "programs")
	t.Setenv("PATH", t.TempDir())
	if b == nil {
		if path, err := bucketbin.Find(dir, "amd64"); !errors.Is(err, bucketbin.ErrNone) {
			t.Fatalf("Find without any bucketd = %q, %v, want ErrNone", path, err)
		}
		return
	}
	path, err := bucketbin.Find(dir, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("Find wrote %d bytes, %v, want %d", len(got), err, len(b))
	}
	// One that was cut short is not used.
	if err := os.WriteFile(path, b[:100], 0o755); err != nil {
		t.Fatal(err)
	}
	again, err := bucketbin.Find(dir, "amd64")
	if err != nil || again != path {
		t.Fatalf("Find again = %q, %v, want %q", again, err, path)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("Find left %d bytes, %v, want %d", len(got), err, len(b))
	}
}

// Without an embedded one, the one in PATH is found.
func TestFindInPath(t *testing.T) {
	dir := t.TempDir()
	want := filepath.Join(dir, "bucketd")
	if err := os.WriteFile(want, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if got, err := bucketbin.Find(t.TempDir(), "s390x"); err != nil || got != want {
		t.Fatalf("Find = %q, %v, want %q", got, err, want)
	}
}
