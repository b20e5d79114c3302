package cli

import (
	"encoding/json"
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

// A server that was killed leaves its record behind, and no ill health.
func TestDeadServersAreForgotten(t *testing.T) {
	state := t.TempDir()
	forget, err := announce(state, "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	list := announced(state)
	if len(list) != 1 || list[0].elsewhere() {
		t.Fatalf("announced: %+v; want this process", list)
	}
	if birthOf(os.Getpid()) == (birth{}) {
		t.Skip("births are not known on this system")
	}
	for name, change := range map[string]func(*announcement){
		"another start": func(n *announcement) { n.Birth.Start += "1" },
		"another boot":  func(n *announcement) { n.Birth.Boot = "a-former-one" },
		"no process":    func(n *announcement) { n.PID = 1 << 30 },
	} {
		n := list[0]
		change(&n)
		b, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(state, "servers", "77.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := announced(state); len(got) != 1 || got[0].PID != os.Getpid() {
			t.Errorf("%s: announced %+v; want this process alone", name, got)
		}
		if _, err := os.Stat(file); !os.IsNotExist(err) {
			t.Errorf("%s: the record is there still (%v)", name, err)
		}
	}
	n := list[0]
	n.Birth.Namespace, n.Birth.Start = "pid:[1]", "5" // another container's
	if n.dead() || !n.elsewhere() {
		t.Errorf("a server of another namespace: dead %v, elsewhere %v", n.dead(), n.elsewhere())
	}
	forget()
	if got := announced(state); len(got) != 0 {
		t.Errorf("after forget: %+v", got)
	}
}
