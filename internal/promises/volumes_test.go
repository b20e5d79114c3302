//go:build linux

package promises_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"berth/internal/driver"
)

func volume(name, path string, more args) args {
	v := args{"volume": name, "path": path}
	for k, x := range more {
		v[k] = x
	}
	return v
}

func TestPromise04Volumes(t *testing.T) {
	t.Parallel()
	s := ownSite(t)
	s.Env = append(s.Env, "BERTH_TOOLSETS=all")
	b := s.dial(t, driver.Stdio)
	other, ro, sub := b.other(), b.other(), b.other()

	b.start(args{"volumes": []any{volume("shared", "/data", nil), volume("second", home+"/more", nil)}}, "created")
	b.want("id -un; echo by agent > /data/a && mkdir /data/d && cat /data/a", user+"\nby agent")
	b.want("sudo sh -c 'echo by root > /data/r && chmod 600 /data/r && cat /data/r'", "by root")
	b.sh("echo more > ~/more/m")
	// Shared by sandboxes that run at once.
	other.start(args{"volumes": []any{volume("shared", "/elsewhere", nil)}}, "created")
	other.want("cat /elsewhere/a; echo by other >> /elsewhere/a", "by agent")
	b.want("cat /data/a", "by agent\nby other")
	readOnly := args{"read_only": true}
	if atDaytona {
		contains(t, ro.refused("start_sandbox", args{"volumes": []any{volume("shared", "/ro", readOnly)}}), "volumes[0].read_only")
		readOnly = nil
	}
	// Read-only holds, for root inside too.
	ro.start(args{"volumes": []any{volume("shared", "/ro", readOnly)}}, "created")
	if !atDaytona {
		ro.want(`cat /ro/d/../a | head -1
		echo x 2>/dev/null >/ro/a || echo refused
		sudo sh -c 'echo x >/ro/a' 2>/dev/null || echo refused
		sudo sh -c 'mount -o remount,rw /ro || mount -o remount,bind,rw /ro' 2>/dev/null || echo refused
		sudo sh -c 'echo x >/ro/a' 2>/dev/null || echo refused`, "by agent\nrefused\nrefused\nrefused\nrefused")
	}
	// A part of it; also one that is not there yet.
	b.sh("echo deep > /data/d/f; ln -s d /data/inside; ln -s / /data/out; ln -s ../../../.. /data/up; ln -s /etc /data/d/etc")
	sub.start(args{"volumes": []any{volume("shared", "/sub", args{"subpath": "inside"}), volume("shared", "/new", args{"subpath": "x/y"}), volume("second", "/third", readOnly)}}, "created")
	sub.want("cat /sub/f; echo new > /new/n; cat /third/m", "deep\nmore")
	b.want("cat /data/x/y/n", "new")
	for _, bad := range []string{"out", "up", "d/etc", "out/etc", "a", "out/made"} {
		x := b.other()
		if text := x.refused("start_sandbox", args{"volumes": []any{volume("shared", "/sub", args{"subpath": bad})}}); !strings.Contains(text, "subpath") {
			t.Errorf("subpath %s: %s", bad, text)
		}
	}
	for _, bad := range []string{"../x", "/etc", "a/../../x", "."} {
		contains(t, b.other().refused("start_sandbox", args{"volumes": []any{volume("shared", "/sub", args{"subpath": bad})}}), "volumes[0].subpath")
	}
	for _, bad := range []string{"/", "/etc", "/usr", "/proc/x", "/dev/shm", "/sys", "relative", "/run/berth/x", "/tmp/../etc"} {
		contains(t, b.other().refused("start_sandbox", args{"volumes": []any{volume("shared", bad, nil)}}), "volumes[0].path")
	}
	for _, bad := range []string{"", "Upper", "a/b", "..", "-x", strings.Repeat("a", 64)} {
		contains(t, b.other().refused("start_sandbox", args{"volumes": []any{volume(bad, "/data", nil)}}), "volume")
	}
	contains(t, b.other().refused("start_sandbox", args{"volumes": []any{volume("shared", "/data", nil), volume("second", "/data/x", nil)}}), "lie in each other")

	// Listed, with who uses them; not deleted while one does, also a stopped one.
	b.call("stop_sandbox", args{"archive": true})
	list := fmt.Sprint(b.call("list_volumes", nil).Structured["volumes"])
	contains(t, list, "shared")
	contains(t, list, b.id)
	text := b.refused("delete_volume", args{"volume": "shared"})
	for _, x := range []*box{b, other, ro, sub} {
		contains(t, text, x.id)
	}
	// The attachment outlives stop and archive, the volume its sandboxes.
	b.want("cat /data/a", "by agent\nby other")
	for _, x := range []*box{b, other, ro, sub} {
		x.call("destroy_sandbox", nil)
	}
	again := b.other()
	again.start(args{"volumes": []any{volume("shared", "/data", nil)}}, "created")
	again.want("cat /data/a /data/x/y/n", "by agent\nby other\nnew")
	again.call("destroy_sandbox", nil)
	b.call("delete_volume", args{"volume": "shared"})
	b.call("delete_volume", args{"volume": "second"})
	if got, _ := json.Marshal(b.call("list_volumes", nil).Structured["volumes"]); string(got) != "[]" {
		t.Errorf("left: %s", got)
	}
	contains(t, b.refused("delete_volume", args{"volume": "shared"}), "no volume")
}
