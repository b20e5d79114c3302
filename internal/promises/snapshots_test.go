//go:build linux

package promises_test

import (
	"fmt"
	"testing"

	"berth/internal/driver"
)

// withSnapshots is a site whose servers offer the tools of snapshots.
func withSnapshots(t testing.TB) *site {
	s := newSite(t)
	s.Args = append(s.Args, "--toolsets", "all")
	return s
}

// 5 and 70: a sandbox starts from a snapshot with what was made there, and a
// snapshot beats an image.
func TestPromise05Snapshots(t *testing.T) {
	t.Parallel()
	s := withSnapshots(t)
	b := s.dial(t, driver.Stdio)
	b.start(nil, "created")
	b.sh(`mkdir -p ~/.local/bin && printf '#!/bin/sh\necho baked\n' > ~/.local/bin/tool && chmod +x ~/.local/bin/tool`)
	name := "snap-" + b.id
	b.call("create_snapshot", args{"name": name})
	b.want("tool", "baked")
	b.call("destroy_sandbox", nil)
	b.Kill()

	b = s.dial(t, driver.HTTP)
	b.start(args{"snapshot": name, "image": "registry.invalid/none"}, "created")
	b.want("tool", "baked")
	spec := b.sandbox()["spec"].(map[string]any)
	if spec["snapshot"] != name || spec["image"] != nil {
		t.Errorf("spec of a sandbox of a snapshot and an image = %v", spec)
	}
	contains(t, b.refused("delete_snapshot", args{"name": name}), "sandboxes of", b.id)
	b.call("destroy_sandbox", nil)
	b.call("delete_snapshot", args{"name": name})
	contains(t, b.refused("start_sandbox", args{"snapshot": name}), "there is no snapshot")
}

// A fork has the files, at one moment, of a sandbox that goes on.
func TestFork(t *testing.T) {
	t.Parallel()
	s := withSnapshots(t)
	for _, how := range transports {
		b := s.dial(t, how)
		b.start(args{"env": args{"A": "1"}}, "created")
		b.sh("echo kept > ~/f; sudo touch /usr/bin/new")
		for _, running := range []bool{false, true} {
			if running {
				b.call("spawn_process", args{"command": "while :; do echo $((n += 1)) > ~/n; cp ~/n ~/m; done"})
			}
			to := b.other()
			made := b.call("fork_sandbox", args{"new_session_id": to.id}).Structured
			if fmt.Sprint(made["session_id"]) != to.id || fmt.Sprint(made["forked_from"]) != b.id {
				t.Errorf("fork_sandbox answered %v", made)
			}
			to.want("cat ~/f; echo $A; test -e /usr/bin/new && echo new; echo fork > ~/f", "kept\n1\nnew")
			b.want("cat ~/f", "kept")
		}
		b.want("a=$(cat ~/n); while test \"$(cat ~/n)\" = \"$a\"; do sleep 0.01; done; echo goes on", "goes on")
	}
}
