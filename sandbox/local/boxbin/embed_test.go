package boxbin_test

import (
	"debug/elf"
	"io"
	"os"
	"testing"

	"berth/sandbox/local/boxbin"
)

func TestOpenUnknownArchitecture(t *testing.T) {
	for _, arch := range []string{"", "s390x", "../boxes", "amd64/x"} {
		if r := boxbin.Open(arch); r != nil {
			t.Errorf("Open(%q) finds %d bytes", arch, r.Size())
		}
	}
}

// What was generated must be a static program of its architecture; what was
// not generated must be nil, not the placeholder.
func TestOpenIsStaticELF(t *testing.T) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for arch, machine := range machines {
		r := boxbin.Open(arch)
		if _, err := os.Stat("box-linux-" + arch); err != nil {
			if !os.IsNotExist(err) || r != nil {
				t.Errorf("Open(%q) finds something without a file (%v)", arch, err)
			}
			continue
		}
		if r == nil {
			t.Errorf("Open(%q) finds nothing", arch)
			continue
		}
		if b, err := io.ReadAll(r); err != nil || int64(len(b)) != r.Size() {
			t.Errorf("Open(%q) reads %d bytes of %d (%v)", arch, len(b), r.Size(), err)
		}
		f, err := elf.NewFile(r)
		if err != nil {
			t.Errorf("Open(%q): %v", arch, err)
			continue
		}
		if f.Machine != machine {
			t.Errorf("Open(%q) is for %v, want %v", arch, f.Machine, machine)
		}
		if s := f.Section(".interp"); s != nil {
			t.Errorf("Open(%q) needs a dynamic loader", arch)
		}
		if r.Size() > 5<<20 {
			t.Errorf("Open(%q) has %d bytes, want at most 5 MiB", arch, r.Size())
		}
	}
}
