package boxbin_test

import (
	"bytes"
	"debug/elf"
	"io"
	"os"
	"testing"

	"berth/sandbox/local/boxbin"
)

func TestBytesUnknownArchitecture(t *testing.T) {
	for _, arch := range []string{"", "s390x", "../boxes", "amd64/x"} {
		if r, _ := boxbin.Open(arch); r != nil {
			t.Errorf("Open(%q) finds something", arch)
		}
		if got := boxbin.Bytes(arch); got != nil {
			t.Errorf("Bytes(%q) = %d bytes, want nil", arch, len(got))
		}
	}
}

// What was generated must be a static program of its architecture; what was
// not generated must be nil, not the placeholder.
func TestBytesIsStaticELF(t *testing.T) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for arch, machine := range machines {
		b := boxbin.Bytes(arch)
		if _, err := os.Stat("box-linux-" + arch); err != nil {
			if !os.IsNotExist(err) || b != nil {
				t.Errorf("Bytes(%q) = %d bytes without a file (%v)", arch, len(b), err)
			}
			continue
		}
		r, size := boxbin.Open(arch)
		if r == nil {
			t.Errorf("Open(%q) finds nothing", arch)
			continue
		}
		if whole, err := io.ReadAll(io.NewSectionReader(r, 0, size)); err != nil || !bytes.Equal(whole, b) {
			t.Errorf("Open(%q) reads %d bytes that differ from Bytes (%v)", arch, len(whole), err)
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
		if len(b) > 5<<20 {
			t.Errorf("Bytes(%q) = %d bytes, want at most 5 MiB", arch, len(b))
		}
	}
}
