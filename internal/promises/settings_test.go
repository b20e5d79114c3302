//go:build linux

package promises_test

import (
	"strings"
	"testing"

	"berth/internal/driver"
)

func TestPromise42ID(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(t, driver.Stdio)
	r, err := c.Must(t.Context(), "start_sandbox", args{})
	must(t, err)
	made, _ := record(t, r)["session_id"].(string)
	if made == "" {
		t.Fatalf("no id in %s", r.Text)
	}
	b := &box{Session: c.Session, t: t, id: made}
	b.sh("echo x > ~/f")
	b.start(nil, "connected")
	b.want("cat ~/f", "x")
	b.other().run(args{"command": "cat ~/f"}, 1)
}

func TestPromise45Env(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.start(args{"env": args{"A": "one", "B": "two words"}}, "created")
	b.want(`echo "$A|$B"`, "one|two words")
	if got := b.run(args{"command": `echo "$A|$B|${C-unset}"`, "env": args{"A": "other", "B": nil, "C": "c"}}, 0); got != "other||c" {
		t.Errorf("for one call: %q", got)
	}
	b.want(`echo "$A|$B|${C-unset}"`, "one|two words|unset")
	r := b.call("spawn_process", args{"command": `echo "$A|$C"`, "env": args{"C": "c"}, "wait_for": "exit", "wait_seconds": 10})
	if r.Output() != "one|c\n" {
		t.Errorf("a process: %s", r.Text)
	}
	bad := b.other()
	contains(t, bad.refused("start_sandbox", args{"env": args{"1=bad": "x"}}), "env", "1=bad")
	contains(t, b.refused("execute_command", args{"command": "true", "env": args{"a b": "x"}}), "env", "a b")
	if bad.status() != "pending" {
		t.Error("a refused start made a sandbox")
	}
}

func TestPromise46Labels(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(t, driver.Stdio)
	a, b := c.other(), c.other()
	team := "of-" + a.id // other tests list theirs here too
	a.start(args{"labels": args{"team": team, "kind": "one"}}, "created")
	b.start(args{"labels": args{"team": team, "kind": "two"}}, "created")
	list := func(labels args) string {
		t.Helper()
		r, err := c.Must(t.Context(), "list_sandboxes", args{"labels": labels})
		must(t, err)
		var ids []string
		for _, row := range r.Structured["sandboxes"].([]any) {
			ids = append(ids, row.(args)["session_id"].(string))
		}
		return strings.Join(ids, " ")
	}
	for _, w := range []struct {
		labels args
		want   string
	}{{args{"team": team}, a.id + " " + b.id}, {args{"team": team, "kind": "two"}, b.id}, {args{"team": "not-" + team}, ""}} {
		if got := list(w.labels); got != w.want {
			t.Errorf("%v: %q, want %q", w.labels, got, w.want)
		}
	}
}

func TestPromise47Name(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(t, driver.Stdio)
	a, b := c.other(), c.other()
	a.start(args{"name": "A name"}, "created")
	b.start(nil, "created")
	if n := a.sandbox()["name"]; n != "A name" {
		t.Errorf("name %v", n)
	}
	if n := b.sandbox()["name"]; n != b.id {
		t.Errorf("the default name is %v, want %s", n, b.id)
	}
	a.sh("echo x > ~/f")
	a.start(args{"name": "Another"}, "connected")
	a.want("cat ~/f", "x")
}

func TestPromise48User(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.want("id -un", user)
	if got := b.run(args{"command": "id -un; id -u; echo $HOME", "user": "root"}, 0); got != "root\n0\n/root" {
		t.Errorf("as root: %q", got)
	}
	r := b.other()
	r.start(args{"user": "root"}, "created")
	r.want("id -un", "root")
	contains(t, r.other().refused("start_sandbox", args{"user": "nobody"}), "user", user, "root")
}

// The shortest interval there is, a minute, in real time: an idle sandbox
// stops, one that runs a process and one set to 0 do not.
