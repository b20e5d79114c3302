//go:build unix

package cli_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"berth/sandbox"
)

// An id that several owners have is never taken for one of them unasked.
func TestOwners(t *testing.T) {
	m := newMachine(t)
	m.keep("newb")
	make1 := func(owner sandbox.Owner, id sandbox.SessionID) {
		t.Helper()
		if _, err := m.fake.Create(t.Context(), sandbox.Key{Owner: owner, Session: id}, sandbox.Spec{}); err != nil {
			t.Fatal(err)
		}
	}
	make1("default", "newb")
	make1("default", "theirs")
	file := filepath.Join(m.dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	const said = "berth: newb is ambiguous: it exists for default and local; give --owner\n"
	for _, c := range []struct {
		code int
		args []string
	}{
		{125, []string{"exec", "newb", "--", "true"}},
		{1, []string{"logs", "newb"}}, {1, []string{"events", "newb"}}, {1, []string{"cp", file, "newb:file"}},
		{1, []string{"stop", "newb"}}, {1, []string{"rm", "newb"}}, {1, []string{"rm", "--owner", "all", "newb"}},
	} {
		m.run(c.code, "", said, c.args...)
	}
	m.run(0, "", "", "cp", "--owner", "default", file, "newb:file")
	m.run(0, "x", "", "exec", "--owner", "default", "newb", "--", "cat", "file")
	m.run(1, "", "*", "exec", "--owner", "local", "newb", "--", "cat", "file")
	m.run(1, "", "berth: carol has no sandbox \"newb\"; it exists for default and local; give --owner\n", "rm", "--owner", "carol", "newb")
	m.run(0, "newb deleted\n", "", "rm", "--owner", "default", "newb")
	m.run(0, "", "", "exec", "newb", "--", "true") // one is left
	if os.Geteuid() == 0 {
		m.run(0, "theirs stopped\n", "", "stop", "theirs")
	} else {
		m.run(1, "", "berth: local has no sandbox \"theirs\"; it exists for default; give --owner\n", "stop", "theirs")
	}
	if _, err := m.fake.Create(t.Context(), sandbox.Key{Owner: sandbox.LocalOwner, Session: "id-1"}, sandbox.Spec{Name: "mybox"}); err != nil {
		t.Fatal(err)
	}
	m.run(1, "", "berth: \"mybox\" is the name of a sandbox, not its id; give the id, as berth ls shows it under SESSION: id-1\n", "rm", "mybox")
	if a := m.run(1, "", "*", "rm", "nope"); strings.Count(a.stderr, "nope") != 1 {
		t.Errorf("rm of what is not there: %q", a.stderr)
	}
}

// A snapshot is found by its name, whoever has it, and never taken for another
// owner's of the same name.
func TestSnapshotOwners(t *testing.T) {
	m := newMachine(t)
	snap := func(owner sandbox.Owner, id sandbox.SessionID, names ...string) {
		t.Helper()
		inst, err := m.fake.Create(t.Context(), sandbox.Key{Owner: owner, Session: id}, sandbox.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if _, err := inst.(sandbox.Snapshotter).Snapshot(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
	}
	snap(sandbox.LocalOwner, "mine", "both", "ours")
	snap("default", "theirs", "both", "sn9")
	a := m.run(0, "*", "", "snapshot", "ls")
	for _, want := range []string{`^SNAPSHOT +OWNER +DIGEST`, `sn9 +default +`, `ours +local +`} {
		if !regexp.MustCompile(want).MatchString(a.stdout) {
			t.Errorf("snapshot ls: %q does not match %q", a.stdout, want)
		}
	}
	m.run(125, "", "berth: run: --snapshot: local has no snapshot \"sn9\"; it exists for default; give --owner default, whose the sandbox then is\n", "run", "--snapshot", "sn9", "--", "true")
	m.run(0, "hello\n", "", "run", "--owner", "default", "--snapshot", "sn9", "--", "echo", "hello")
	m.run(2, "", "*", "run", "--owner", "all", "--", "true")
	m.run(2, "", "*", "run", "--owner", "../x", "--", "true")
	m.run(125, "", "berth: snapshot: there is no snapshot none; berth snapshot ls shows those there are, berth snapshot create makes one\n", "run", "--snapshot", "none", "--", "true")
	const said = "berth: both is ambiguous: it exists for default and local; give --owner\n"
	m.run(1, "", said, "snapshot", "rm", "both")
	m.run(1, "", said, "snapshot", "export", "both", "x.tar")
	m.run(1, "", said, "snapshot", "rm", "--owner", "all", "both")
	m.run(1, "", "berth: carol has no snapshot \"sn9\"; it exists for default; give --owner\n", "snapshot", "rm", "--owner", "carol", "sn9")
	m.run(1, "", "berth: there is no snapshot none; berth snapshot ls shows those there are\n", "snapshot", "rm", "none")
	m.run(0, "both deleted\n", "", "snapshot", "rm", "--owner", "default", "both")
	m.run(0, "both deleted\n", "", "snapshot", "rm", "both")
	if os.Geteuid() == 0 {
		m.run(0, "sn9 deleted\n", "", "snapshot", "rm", "sn9")
	} else {
		m.run(1, "", "berth: local has no snapshot \"sn9\"; it exists for default; give --owner\n", "snapshot", "rm", "sn9")
	}
}

// Volumes of every owner are listed, and deleted when no sandbox has them.
func TestVolumes(t *testing.T) {
	m := newMachine(t)
	m.run(0, "", "No volumes. berth run --volume NAME:PATH -- CMD makes one, and so does volumes of start_sandbox.\n", "volumes")
	with := func(owner sandbox.Owner, id sandbox.SessionID, names ...string) {
		t.Helper()
		var s sandbox.Spec
		for _, n := range names {
			s.Volumes = append(s.Volumes, sandbox.VolumeMount{Volume: n, Path: "/" + n})
		}
		if _, err := m.fake.Create(t.Context(), sandbox.Key{Owner: owner, Session: id}, s); err != nil {
			t.Fatal(err)
		}
	}
	with(sandbox.LocalOwner, "mine", "both")
	with("default", "theirs", "both", "data")
	a := m.run(0, "*", "", "volumes")
	for _, want := range []string{`^VOLUME +OWNER +SIZE +CREATED +USED BY`, `(?m)^both +local .* mine$`, `(?m)^both +default .* theirs$`, `(?m)^data +default `} {
		if !regexp.MustCompile(want).MatchString(a.stdout) {
			t.Errorf("volumes ls: %q does not match %q", a.stdout, want)
		}
	}
	if a := m.run(0, "*", "", "volumes", "ls", "--json"); !strings.Contains(a.stdout, `"name":"data","owner":"default"`) || !strings.Contains(a.stdout, `"used_by":["theirs"]`) {
		t.Errorf("volumes ls --json: %q", a.stdout)
	}
	m.run(1, "", "berth: both is ambiguous: it exists for default and local; give --owner\n", "volumes", "rm", "both")
	if a := m.run(1, "", "*", "volumes", "rm", "--owner", "default", "both"); !strings.Contains(a.stderr, "attached to") {
		t.Errorf("volumes rm of one in use: %q", a.stderr)
	}
	m.run(1, "", "berth: there is no volume none; berth volumes ls shows those there are\n", "volumes", "rm", "none")
	m.run(0, "theirs deleted\n", "", "rm", "--owner", "default", "theirs")
	m.run(0, "data deleted\n", "", "volumes", "rm", "--owner", "default", "data")
	m.run(0, "both deleted\n", "", "volumes", "rm", "--owner", "default", "both")
	if a := m.run(0, "*", "", "volumes"); strings.Contains(a.stdout, "default") || !strings.Contains(a.stdout, "both") {
		t.Errorf("volumes ls at the end: %q", a.stdout)
	}
}

// A key in the directory chooses another place than this machine: ls says so.
func TestListSaysWhere(t *testing.T) {
	m := newMachine(t)
	m.keep("one")
	m.run(0, "one\n", "", "ls", "-q")
	if err := os.WriteFile(filepath.Join(m.dir, ".env"), []byte("DAYTONA_API_KEY=dtn_k3y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a := m.run(0, "*", "*", "ls"); !strings.Contains(a.stderr, "not those of this machine") || !strings.Contains(a.stderr, ".env") || strings.Contains(a.stderr, "k3y") {
		t.Errorf("ls says %q", a.stderr)
	}
	m.run(0, "one\n", "", "ls", "-q")
	m.environ = append(m.environ, "BERTH_PROVIDER=daytona")
	if a := m.run(0, "*", "*", "ls"); strings.Contains(a.stderr, "this machine") {
		t.Errorf("ls says %q of what was chosen", a.stderr)
	}
}
