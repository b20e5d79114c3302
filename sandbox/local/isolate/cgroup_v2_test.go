//go:build linux

package isolate_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
func onlyV2(t *testing.T, within string) (root string, controllers []string) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		b, _ := os.ReadFile(root + "/cgroup.controllers")
		all := strings.Fields(string(b))
		var own string
		b, _ = os.ReadFile("/proc/self/cgroup")
		if _, rest, ok := strings.Cut("\n"+string(b), "\n0::"); ok {
			own, _, _ = strings.Cut(rest, "\n")
		}
		above := filepath.Join(root, filepath.Dir(own))
		if os.Geteuid() != 0 && unix.Access(filepath.Join(above, "cgroup.subtree_control"), unix.W_OK) != nil || len(all) == 0 {
			t.Skip("no controller of cgroup v2 can be enabled here; run as root where one is free, or in a delegated cgroup")
		}
		before := lines(t, root+"/cgroup.subtree_control")
		restore := isolate.UseV2(root, within, all...)
		t.Cleanup(func() {
			restore()
			for _, c := range lines(t, root+"/cgroup.subtree_control") {
				if !slices.Contains(before, c) {
					_ = os.WriteFile(root+"/cgroup.subtree_control", []byte("-"+c), 0)
				}
			}
		})
		return root, all
	}
	t.Skip("no cgroup (v2) hierarchy is mounted")
	return "", nil
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// cgroupOf finds the cgroup of the sandbox with state directory dir.
func cgroupOf(t *testing.T, root, dir string) (place string) {
	t.Helper()
	_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == isolate.CgroupName(dir) {
			place = p
			return filepath.SkipAll
		}
		return nil
	})
	if place == "" {
		t.Fatal("no cgroup was made")
	}
	return place
}

// Commands, what they start, and sudo's are born in the limited cgroup; init
// and the watchers of commands are in another. Inside, nothing shows of where that is.
func TestBornInCgroups(t *testing.T) {
	root, _ := onlyV2(t, "")
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			l := launch(t, mode)
			b := start(t, l)
			dir := cgroupOf(t, root, l.Dir)
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
	root, _ := onlyV2(t, "")
	l := launch(t, modes(t)[0])
	b := start(t, l)
	if _, err := b.spawn(wire.StartProcess{Shell: "sleep 1022"}); err != nil {
		t.Fatal(err)
	}
	dir := cgroupOf(t, root, l.Dir)
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

// An ordinary user's monitor asks systemd for a scope, moves aside in it, and
// makes its cgroups there. The bus here does what systemd does.
func TestScope(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("plays systemd: run as root")
	}
	const within = ".scope"
	root, all := onlyV2(t, within)
	home := filepath.Join(root, "berth-test-"+strconv.Itoa(os.Getpid()))
	if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+"+all[0]), 0); err != nil {
		t.Fatal(err)
	}
	var scope string
	t.Cleanup(isolate.UseBus(scopetest(t, func(unit string, pid int) {
		scope = filepath.Join(home, unit)
		for _, err := range []error{os.MkdirAll(scope, 0o755), os.WriteFile(home+"/cgroup.subtree_control", []byte("+"+all[0]), 0),
			os.WriteFile(scope+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0)} {
			if err != nil {
				t.Error(err)
			}
		}
	})))
	t.Cleanup(func() {
		_ = os.WriteFile(root+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0)
		for _, dir := range []string{scope + "/monitor", scope, home} {
			if err := unix.Rmdir(dir); err != nil {
				t.Errorf("%s: %v", dir, err)
			}
		}
	})
	l := launch(t, modes(t)[0])
	l.Limits.Must = []string{"something"} // that no hierarchy lacks
	b := start(t, l)
	dir := filepath.Join(scope, "berth", isolate.CgroupName(l.Dir))
	if in := lines(t, dir+"/init/cgroup.procs"); len(in) != 1 {
		t.Errorf("in init: %v, want init", in)
	}
	if out, _ := b.sh("agent", "grep ^0:: /proc/self/cgroup"); out != "0::/\n" {
		t.Errorf("inside: %q, want 0::/", out)
	}
	if in := lines(t, scope+"/monitor/cgroup.procs"); !slices.Contains(in, strconv.Itoa(os.Getpid())) {
		t.Errorf("in monitor: %v, want %d", in, os.Getpid())
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// scopetest is a message bus whose systemd calls start for the unit and process
// that it is asked for.
func scopetest(t *testing.T, start func(unit string, pid int)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ok := func(serial byte) []byte { // an empty answer to call number serial
		return []byte{'l', 2, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 5, 1, 'u', 0, serial, 0, 0, 0}
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4096)
		for _, answer := range [][]byte{[]byte("OK 1\r\n"), ok(1), ok(2)} {
			for said := ""; ; {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				said += string(buf[:n])
				if answer[0] == 'O' || answer[20] == 1 && strings.Contains(said, "Hello") {
					break
				}
				if i := strings.Index(said, "PIDs\x00\x02au\x00"); i >= 0 && len(said) > i+64 {
					unit := said[strings.Index(said, "berth-"):]
					unit, _, _ = strings.Cut(unit, "\x00")
					start(unit, os.Getpid()) // package scope tests that it is asked for
					break
				}
			}
			_, _ = c.Write(answer)
		}
	}()
	return path
}
