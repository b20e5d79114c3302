//go:build linux

package promises_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"berth/internal/driver"
)

// 70: given both, a sandbox is made from the snapshot, and the image is not even
// asked for.
func TestPromise70SnapshotBeatsImage(t *testing.T) {
	t.Parallel()
	s := withExamples(t)
	b := s.dial(t, driver.Stdio)
	b.start(args{"image": "daytonaio/sandbox"}, "created")
	b.sh("echo baked > ~/baked")
	name := "beats-" + b.id
	b.call("create_snapshot", args{"name": name})
	other := b.other()
	r := other.start(args{"snapshot": name, "image": "daytonaio/sandbox:none"}, "created")
	spec := record(t, r)["spec"].(args)
	if spec["snapshot"] != name || spec["image"] != nil {
		t.Errorf("a sandbox of a snapshot and an image has the spec %v", spec)
	}
	other.want("cat ~/baked; id -un; pwd", "baked\ndaytona\n/home/daytona")
}

// 71: a sandbox is made from an image, with limits or without, and is what the
// image says: its files, user, directory and environment, and none of the host's.
func TestPromise71Image(t *testing.T) {
	t.Parallel()
	s := withExamples(t)
	if os.Geteuid() != 0 {
		s.Env = append(s.Env, "BERTH_BEST_EFFORT=true")
	}
	b := s.dial(t, driver.Stdio)
	contains(t, b.refused("start_sandbox", args{"image": "daytonaio/other"}), "image", "daytonaio/other")
	if b.listed() {
		t.Fatal("a refused image made a sandbox")
	}
	box := record(t, b.start(args{"image": "daytonaio/sandbox"}, "created"))
	if d, _ := box["image_digest"].(string); !strings.HasPrefix(d, "sha256:") && !atDaytona || box["user"] != "daytona" || box["home"] != "/home/daytona" {
		t.Errorf("the sandbox is told as %v", box)
	}
	b.want("id -un; pwd; echo $HOME; ls /usr/bin/curl; ls /usr/bin/env 2>/dev/null || echo none of the host", "daytona\n/home/daytona\n/home/daytona\n/usr/bin/curl\nnone of the host")
	b.want("sudo sh -c 'echo changed > /etc/passwd'; cat /etc/passwd", "changed")

	if atDaytona {
		return // with limits: TestPromise03Resources
	}
	limited := b.other()
	limited.start(args{"image": "daytonaio/sandbox", "ephemeral": true, "resources": args{"cpu": 0.5, "memory_gib": 0.25, "disk_gib": 0.125}}, "created")
	if got := fmt.Sprint(limited.sandbox()["spec"].(args)["resources"]); got != fmt.Sprint(args{"cpu": 0.5, "memory_gib": 0.25, "disk_gib": 0.125}) {
		t.Errorf("resources in force: %s", got)
	}
	limited.want("cat /etc/group; id -un", "root:x:0:\ndaytona:x:1000:\ndaytona") // nothing of the other one's
	contains(t, limited.call("execute_command", args{"command": "echo more than fits > a; while cat a a > b && cat b b > a; do :; done; exit 1"}).Text, "disk limit 128 MiB")
}

// 72: with neither, and no argument at all, a sandbox is made of the default root;
// so does the first command by itself.
func TestPromise72Default(t *testing.T) {
	t.Parallel()
	b := newSite(t).dial(t, driver.Stdio)
	spec := record(t, b.start(nil, "created"))["spec"].(args)
	if spec["image"] != nil || spec["snapshot"] != nil {
		t.Errorf("the spec is %v, want neither image nor snapshot", spec)
	}
	b.want("id -un; pwd; ls /usr/bin/env", user+"\n"+home+"\n/usr/bin/env")
	other := b.other()
	r := other.call("execute_command", args{"command": "pwd"})
	if r.Output() != home+"\n" || !strings.Contains(r.Text, "created") {
		t.Errorf("the first command of a session: %s", r.Text)
	}
}
