//go:build linux

package isolate

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/guest"
	"berth/sandbox/local/wire"
)

// Where nobody can be born in a cgroup, commands get the file to join it by,
// and nothing of the attempt stays open.
func TestUnborn(t *testing.T) {
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	b, _ := os.ReadFile(root + "/cgroup.controllers")
	controllers := strings.Fields(string(b))
	if os.Geteuid() != 0 || len(controllers) == 0 {
		t.Skip("no controller of cgroup v2 can be enabled here; run as root where one is free")
	}
	before, _ := os.ReadFile(root + "/cgroup.subtree_control")
	name := "unborn-" + strconv.Itoa(os.Getpid())
	setup := &guest.Setup{}
	c := newCgroups(name, -1, wire.Limits{PIDs: 10}, setup)
	c.each([]hierarchy{{root: root, own: root, v2: true, controllers: controllers[:1]}}, true)
	if c.born < 0 || len(c.dirs) != 3 {
		t.Fatalf("born %d, %v; %s", c.born, c.dirs, c.reason)
	}
	born := c.born
	c.unborn()
	files := c.hand()
	var kinds []string
	for _, f := range files {
		kinds = append(kinds, f.kind)
		if f.kind == guest.FileMember {
			if link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(f.fd)); link != filepath.Join(c.run, "cgroup.procs") {
				t.Errorf("commands join by %s", link)
			}
		}
		_ = unix.Close(f.fd)
	}
	if kinds[0] != guest.FileMember || c.born != -1 {
		t.Errorf("handed over: %v, born %d", kinds, c.born)
	}
	if err := unix.Close(born); err == nil {
		t.Error("init's cgroup is still open")
	}
	if err := c.remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, parentName, name)); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	for _, on := range controllers[:1] {
		if !strings.Contains(string(before), on) {
			_ = os.WriteFile(root+"/cgroup.subtree_control", []byte("-"+on), 0)
		}
	}
}

// What must hold and does not is refused by its name, all at once.
func TestRefuse(t *testing.T) {
	setup := &guest.Setup{CPU: wire.Held{State: soft, Detail: "why"}, Memory: wire.Held{State: notEnforced}, PIDs: wire.Held{State: enforced}, Disk: wire.Held{State: enforced}}
	if err := refuse([]string{wire.LimitPIDs, wire.LimitDisk}, setup); err != nil {
		t.Errorf("refused what holds: %v", err)
	}
	err := refuse([]string{wire.LimitPIDs, wire.LimitCPU, wire.LimitMemory}, setup)
	for _, want := range []string{"resources.cpu: ", "soft (why)", "resources.memory_gib: ", "best_effort"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal does not say %q: %v", want, err)
		}
	}
}

// A limit on processors chooses as many as there are above it, and none twice.
func TestSomeCPUs(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for milli := int64(100); milli <= int64(all.Count())*1000+500; milli += 400 {
		want := int((milli + 999) / 1000)
		got := someCPUs("name-"+strconv.FormatInt(milli, 10), milli)
		switch {
		case want >= all.Count() && got != nil, want < all.Count() && (got == nil || got.Count() != want):
			t.Errorf("%d thousandths of %d processors: %v", milli, all.Count(), got)
		}
	}
}
