//go:build linux

package local_test

import (
	"os"
	"path/filepath"
	"testing"

	"berth/sandbox"
	"berth/sandbox/local"
	"golang.org/x/sys/unix"
)

// Root inside sees of the host's directories what everyone on the host may
// read, though it may be the owner of the rest; and what it makes in a place
// that is hidden is its own.
func TestOnlyWhatEveryoneMayReadIsShown(t *testing.T) {
	host := t.TempDir()
	for p := host; p != "/" && p != "/tmp"; p = filepath.Dir(p) {
		_ = os.Chmod(p, 0o755) // as far as they are the test's
	}
	at := func(name string) string { return filepath.Join(host, name) }
	for name, mode := range map[string]os.FileMode{"open": 0o755, "open/deep": 0o755, "closed": 0o700, "half": 0o711, "group": 0o750, "locked": 0o744} {
		must(t, os.MkdirAll(at(name), 0o755))
		defer os.Chmod(at(name), 0o755)
		must(t, os.WriteFile(at(name+"/shown"), []byte("shown"), 0o644))
		must(t, os.WriteFile(at(name+"/secret"), []byte("secret"), 0o600))
		must(t, os.WriteFile(at(name+"/grouped"), []byte("secret"), 0o640))
		must(t, os.WriteFile(at(name+"/program"), []byte("#!/bin/sh\necho ran\n"), 0o755))
		must(t, os.Symlink("secret", at(name+"/link")))
		must(t, unix.Mkfifo(at(name+"/fifo"), 0o666))
		must(t, os.Chmod(at(name), mode))
	}
	must(t, os.Chmod(at("open/deep/program"), 0o711)) // cannot be read, either
	hide := local.ShowDir(host)
	defer hide()
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "root", "cd "+host+`; grep -rs secret .; cat */secret */grouped */link */*/secret 2>/dev/null; for d in open open/deep half; do cat $d/shown; echo; done; ls -A closed group locked`,
		"shown\nshown\nshown\nclosed:\n\ngroup:\n\nlocked:")
	wantRun(t, in, "root", "cd "+host+"; open/program; ls -A open open/deep", "ran\nopen:\ndeep\nlink\nprogram\nshown\n\nopen/deep:\nlink\nshown")
	wantRun(t, in, "root", "cd "+host+`; stat -c %a open closed half group locked | sort | tr '\n' ' '; for d in open open/deep closed half group locked; do echo mine >$d/secret && mkdir $d/fifo && cat $d/secret; done; rm open/shown && ! test -e open/shown`,
		"700 711 744 750 755 mine\nmine\nmine\nmine\nmine\nmine")
	for _, name := range []string{"open/secret", "open/deep/secret", "closed/secret"} {
		if b, err := os.ReadFile(at(name)); err != nil || string(b) != "secret" {
			t.Errorf("the host's %s = %q, %v", name, b, err)
		}
	}
}

// What an operator shows beside is not root's inside, either.
func TestExtraPathsAreNobodys(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user shows what is that user's own")
	}
	extra := t.TempDir()
	for p := extra; p != "/" && p != "/tmp"; p = filepath.Dir(p) {
		_ = os.Chmod(p, 0o755)
	}
	must(t, os.WriteFile(filepath.Join(extra, "shown"), []byte("shown"), 0o644))
	must(t, os.WriteFile(filepath.Join(extra, "secret"), []byte("secret"), 0o600))
	p := provider(t, local.Options{Dir: stateDir(t), ExtraPaths: []string{extra}})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "root", "cd "+extra+"; cat shown; ! cat secret 2>/dev/null && ! touch new 2>/dev/null", "shown")
}
