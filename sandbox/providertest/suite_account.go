package providertest

import (
	"context"
	"path"
	"testing"

	"berth/sandbox"
)

// testAccount: the ordinary user and its home stay what they were made, and are
// those of all that is made of the sandbox.
func testAccount(t *testing.T, s *suite) {
	if !s.can(t, Accounts) {
		return
	}
	const name = "someone"
	with := func(spec *sandbox.Spec) { spec.Account = name; spec.User = "" }
	check := func(t *testing.T, b *box, what string) {
		t.Helper()
		if got := b.must("echo $USER; echo ${HOME##*/}; cat ~/kept; echo again >~/kept"); got != name+"\n"+name+"\nfile\n" && got != name+"\n"+name+"\nagain\n" {
			t.Errorf("%s: got %q", what, got)
		}
		if i := b.status(sandbox.StatusRunning); i.User != name || path.Base(i.Home) != name || i.Spec.Account != name {
			t.Errorf("%s: user %q, home %q, account %q", what, i.User, i.Home, i.Spec.Account)
		}
	}
	b := s.makeWith(t, with)
	do := func(name string, f func(context.Context) error) {
		t.Helper()
		if err := f(s.ctx(t)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	b.must("echo file >~/kept")
	check(t, b, "made")
	do("Stop", b.inst.Stop)
	do("Start", b.inst.Start)
	check(t, b, "started again")
	if a, ok := b.inst.(sandbox.Archiver); ok && s.can(t, Archives) {
		do("Stop", b.inst.Stop)
		do("Archive", a.Archive)
		do("Start", b.inst.Start)
		check(t, b, "started from its archive")
	}
	if s.can(t, Forks) {
		check(t, b.fork(nil), "forked")
	}
	if s.can(t, Snapshots) {
		if _, err := b.inst.(sandbox.Snapshotter).Snapshot(s.ctx(t), "account"); err != nil {
			t.Fatalf("Snapshot: %v", err)
		}
		check(t, s.makeWith(t, func(spec *sandbox.Spec) { spec.Snapshot, spec.Account, spec.User = "account", "", "" }), "of a snapshot")
	}
	// Another sandbox is not concerned.
	if i := s.make(t).info; i.User == name {
		t.Errorf("a sandbox without an account has user %q", i.User)
	}
}
