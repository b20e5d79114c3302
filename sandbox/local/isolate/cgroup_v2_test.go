//go:build linux

package isolate_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate"
	"berth/sandbox/local/wire"
)

// onlyV2 lets sandboxes find nothing but the hierarchy of version 2, and tells
// where that is. Its controllers may all be version 1's here: one that limits
// nothing is enough for where processes are.
func onlyV2(t *testing.T) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		b, _ := os.ReadFile(root + "/cgroup.controllers")
		all := strings.Fields(string(b))
		if os.Geteuid() != 0 || len(all) == 0 {
			t.Skip("no controller of cgroup v2 can be enabled here; run as root where one is free")
		}
		before := lines(t, root+"/cgroup.subtree_control")
		restore := isolate.UseV2(root, all...)
		t.Cleanup(func() {
			restore()
			for _, c := range lines(t, root+"/cgroup.subtree_control") {
				if !slices.Contains(before, c) {
					_ = os.WriteFile(root+"/cgroup.subtree_control", []byte("-"+c), 0)
				}
			}
		})
		return root
	}
	t.Skip("no cgroup (v2) hierarchy is mounted")
	return ""
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// Commands, what they start, and sudo's are born in the limited cgroup; init
// and the watchers of commands are in another. Inside, nothing shows of where that is.
func TestBornInCgroups(t *testing.T) {
	root := onlyV2(t)
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			l := launch(t, mode)
			b := start(t, l)
			dir := filepath.Join(root, "berth", isolate.CgroupName(l.Dir))
			for _, user := range []string{"agent", "root"} {
				if out, _ := b.sh(user, "grep ^0:: /proc/self/cgroup; sh -c 'grep ^0:: /proc/self/cgroup'; sudo grep ^0:: /proc/self/cgroup"); out != "0::/\n0::/\n0::/\n" {
					t.Errorf("%s sees itself in %q, want three times 0::/", user, out)
				}
			}
			if out, _ := b.sh("agent", "cat /proc/*/cgroup"); strings.Contains(out, isolate.CgroupName(l.Dir)) {
				t.Errorf("the sandbox's cgroup shows inside: %q", out)
			}
			p, err := b.spawn(wire.StartProcess{Shell: "sleep 1020 & sleep 1021"})
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); len(lines(t, dir+"/run/cgroup.procs")) != 3; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("in run: %v, want a shell and two sleeps", lines(t, dir+"/run/cgroup.procs"))
				}
			}
			if in := lines(t, dir+"/init/cgroup.procs"); len(in) != 2 {
				t.Errorf("in init: %v, want init and a watcher", in)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			p.stdin.Close()
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", dir, err)
			}
		})
	}
}

// What a killed monitor left of version 2 can be removed by name, too.
func TestRemoveStaleV2(t *testing.T) {
	root := onlyV2(t)
	l := launch(t, modes(t)[0])
	b := start(t, l)
	if _, err := b.spawn(wire.StartProcess{Shell: "sleep 1022"}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "berth", isolate.CgroupName(l.Dir))
	if _, err := os.Stat(dir + "/run"); err != nil {
		t.Fatal(err)
	}
	if err := isolate.RemoveStale([]string{isolate.CgroupName(l.Dir)}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
}
