package cli

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestKeepRaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "signing.key")
	const n = 32
	texts, made := make([]string, n), make([]bool, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var err error
			if texts[i], made[i], err = keep(file); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	fresh := 0
	for i := range n {
		if texts[i] != texts[0] || len(texts[i]) != 64 {
			t.Errorf("call %d returns %q, call 0 %q", i, texts[i], texts[0])
		}
		if made[i] {
			fresh++
		}
	}
	if fresh != 1 {
		t.Errorf("%d of %d calls made the secret, want 1", fresh, n)
	}
	list, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(list) != 1 {
		t.Errorf("beside the secret lie %v, %v", list, err)
	}
}

func TestKeepRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	for name, text := range map[string]string{"empty": "", "short": "abcd\n", "no_hex": "zz"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := keep(file); err == nil {
			t.Errorf("%s: keep returns %q of a damaged file", name, got)
		}
	}
}

func TestDetachKey(t *testing.T) {
	for s, want := range map[string]byte{"ctrl-]": 0x1d, "Ctrl-A": 1, "none": 0, `ctrl-\`: 0x1c} {
		if got, err := detachKey(s); err != nil || got != want {
			t.Errorf("detachKey(%q) = %#x, %v; want %#x", s, got, err, want)
		}
	}
	for _, s := range []string{"", "]", "ctrl-", "ctrl-11", "ctrl-1", "alt-x"} {
		if got, err := detachKey(s); err == nil {
			t.Errorf("detachKey(%q) = %#x, want an error", s, got)
		}
	}
}
