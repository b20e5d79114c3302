//go:build linux

package promises_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"berth/internal/driver"
)

// TestPromise03Resources asks for processors, memory and disk: they are told
// back, hold inside, and the one that strikes is named. Where they cannot be held
// the sandbox is refused with the fields' names.
func TestPromise03Resources(t *testing.T) {
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	asked := args{"resources": args{"cpu": 0.5, "memory_gib": 0.25, "disk_gib": 0.125}}
	if os.Geteuid() != 0 {
		// An ordinary user has them all in a cgroup of its own only, and disk in memory.
		if r, err := b.Call(t.Context(), "start_sandbox", b.with(asked)); err != nil || r.IsError {
			must(t, err)
			contains(t, r.Text, "resources.", "cannot be held", "best_effort")
			return
		}
	} else {
		b.start(asked, "created")
	}
	box := b.sandbox()
	if got := fmt.Sprint(box["spec"].(args)["resources"]); got != fmt.Sprint(args{"cpu": 0.5, "memory_gib": 0.25, "disk_gib": 0.125}) {
		t.Errorf("resources in force: %s", got)
	}
	contains(t, fmt.Sprint(box["enforced"]), "cpu_limit: 0.5 cores", "memory_limit: 256 MiB", "disk_limit: 128 MiB")
	hog := b.call("execute_command", args{"command": "exec tail -n 1 /dev/zero"})
	contains(t, hog.Text, "killed by SIGKILL: memory limit 256 MiB, exit 137")
	fill := b.call("execute_command", args{"command": "head -c 1G /dev/zero > full"})
	if code := exit(fill); code == 0 || !strings.Contains(fill.Text, "disk limit 128 MiB reached") {
		t.Errorf("filling the disk: exit %d, %s", code, fill.Text)
	}
	b.want("rm full; echo room again > f; cat f", "room again")
	use := b.sandbox()["usage"].(args)
	for _, key := range []string{"cpu_seconds", "memory_bytes", "processes", "disk_bytes"} {
		if use[key] == nil {
			t.Errorf("usage does not tell %s: %v", key, use)
		}
	}
}
