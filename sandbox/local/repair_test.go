//go:build linux

package local

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeMachine is a machine below a temporary directory, and what it was told to run.
type fakeMachine struct {
	machine
	t    *testing.T
	ran  []string
	fail error
}

func newFakeMachine(t *testing.T, files map[string]string) *fakeMachine {
	t.Helper()
	f := &fakeMachine{t: t}
	f.machine = machine{root: t.TempDir(), run: func(name string, args ...string) error {
		f.ran = append(f.ran, strings.ReplaceAll(strings.Join(append([]string{name}, args...), " "), f.root, ""))
		return f.fail
	}}
	for name, text := range files {
		path := f.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// want compares a file's text; empty: there is none.
func (f *fakeMachine) want(name, text string) {
	f.t.Helper()
	b, err := os.ReadFile(f.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.t.Fatal(err)
	}
	if string(b) != text {
		f.t.Errorf("%s = %q, want %q", name, b, text)
	}
}

// did checks a fix's answer.
func (f *fakeMachine) did(changed string, err error) func(words string) {
	return func(words string) {
		f.t.Helper()
		if err != nil || !strings.Contains(changed, words) || words == "" && changed != "" {
			f.t.Errorf("the fix says %q, %v; want %q", changed, err, words)
		}
	}
}

// files lists the machine with all contents.
func (f *fakeMachine) files() string {
	var all strings.Builder
	_ = filepath.WalkDir(f.root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			b, _ := os.ReadFile(p)
			fi, _ := d.Info()
			all.WriteString(p + " " + fi.Mode().String() + " " + string(b) + "\n")
		}
		return err
	})
	return all.String()
}

func TestFixSysctl(t *testing.T) {
	const file = "/etc/sysctl.d/60-berth.conf"
	f := newFakeMachine(t, map[string]string{"/proc/sys/user/max_user_namespaces": "0\n", "/proc/sys/kernel/x": "0"})
	f.did(f.setSysctl("user.max_user_namespaces", "15000"))("user.max_user_namespaces = 15000, also at every boot")
	f.want("/proc/sys/user/max_user_namespaces", "15000\n")
	f.did(f.setSysctl("kernel.x", "1"))("kernel.x = 1")
	f.did(f.setSysctl("user.max_user_namespaces", "20000"))("20000")
	f.want(file, "kernel.x = 1\nuser.max_user_namespaces = 20000\n")
	if fi, err := os.Stat(f.path(file)); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("%s: %v, %v", file, fi.Mode(), err)
	}
	before := f.files()
	if changed, err := f.setSysctl("kernel.unknown", "1"); err == nil || changed != "" {
		t.Errorf("a setting that this kernel does not have: %q, %v", changed, err)
	}
	if f.files() != before {
		t.Error("a failed fix left something")
	}
}

func TestFixAppArmor(t *testing.T) {
	f := newFakeMachine(t, nil)
	f.did(f.installProfile("/usr/bin/a berth"))("/usr/bin/a berth")
	b, err := os.ReadFile(f.path("/etc/apparmor.d/berth"))
	if err != nil || !strings.Contains(string(b), `"/usr/bin/a berth"`) || !strings.Contains(string(b), "userns,") {
		t.Errorf("profile = %q, %v", b, err)
	}
	if len(f.ran) != 1 || f.ran[0] != "apparmor_parser -r /etc/apparmor.d/berth" {
		t.Errorf("ran %q", f.ran)
	}
	// One that cannot be loaded does not stay.
	f.fail = errors.New("no")
	before := f.files()
	if _, err := f.installProfile("/other"); err == nil {
		t.Error("no error, though the profile was not loaded")
	}
	if f.files() != before {
		t.Error("a profile that cannot be loaded took the place of one that could")
	}
	f = newFakeMachine(t, nil)
	f.fail = errors.New("no")
	if _, err := f.installProfile("/other"); err == nil || f.files() != "" {
		t.Errorf("a profile that cannot be loaded stays: %v, %s", err, f.files())
	}
}

func TestFixModule(t *testing.T) {
	f := newFakeMachine(t, nil)
	for range 2 {
		f.did(f.loadModule("fuse"))("also at every boot")
		f.did(f.loadModule("nf_tables"))("nf_tables")
	}
	f.want("/etc/modules-load.d/berth.conf", "fuse\nnf_tables\n")
	if len(f.ran) != 4 || f.ran[0] != "modprobe fuse" {
		t.Errorf("ran %q", f.ran)
	}
	f = newFakeMachine(t, nil)
	f.fail = errors.New("no such module")
	if changed, err := f.loadModule("fuse"); err == nil || changed != "" || f.files() != "" {
		t.Errorf("a module that is not there: %q, %v, %s", changed, err, f.files())
	}
}

func TestFixFUSE(t *testing.T) {
	f := newFakeMachine(t, map[string]string{"/dev/fuse": ""})
	f.did(f.openFUSE())("until the next boot")
	if fi, err := os.Stat(f.path("/dev/fuse")); err != nil || fi.Mode().Perm() != 0o666 {
		t.Errorf("/dev/fuse: %v, %v", fi.Mode(), err)
	}
}

func TestFixUserIDs(t *testing.T) {
	const theirs = "# kept\nother:100000:65536\nlarge:165536:200000" // no line end
	f := newFakeMachine(t, map[string]string{"/etc/subuid": theirs, "/etc/subgid": "last:365536:1\n"})
	f.did(f.giveIDs("me", 1001))("/etc/subuid gives me the ids 365537 to 431072")
	f.want("/etc/subuid", theirs+"\nme:365537:65536\n")
	f.want("/etc/subgid", "last:365536:1\nme:365537:65536\n")
	before := f.files()
	f.did(f.giveIDs("me", 1001))("") // again: nothing
	if f.files() != before {
		t.Error("a second fix changed something")
	}
	// A range by number counts; one file may lack it.
	f = newFakeMachine(t, map[string]string{"/etc/subuid": "1001:100000:65536\n"})
	f.did(f.giveIDs("me", 1001))("/etc/subgid gives me the ids 165536")
	f.want("/etc/subuid", "1001:100000:65536\n")
	for name, uid := range map[string]int{"root": 0, "": 1001, "a:b": 1001, "a\nb": 1001} {
		if _, err := f.giveIDs(name, uid); err == nil {
			t.Errorf("ids for %q, %d", name, uid)
		}
	}
	// While usermod works, nothing is changed.
	f = newFakeMachine(t, map[string]string{"/etc/subuid.lock": "1"})
	before = f.files()
	if _, err := f.giveIDs("me", 1001); err == nil || !strings.Contains(err.Error(), "subuid.lock") {
		t.Errorf("with a lock: %v", err)
	}
	if f.files() != before {
		t.Error("changed in spite of the lock")
	}
	f = newFakeMachine(t, map[string]string{"/etc/subuid": "all:1:4294967294\n"})
	if _, err := f.giveIDs("me", 1001); err == nil {
		t.Error("ids where all are taken")
	}
}

// Looking changes nothing, and every fix that is offered leads to OK.
func TestDiagnoseUserAndFix(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"clone":    {"/proc/sys/kernel/unprivileged_userns_clone": "0\n"},
		"apparmor": {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n", "/etc/subuid": "me:100000:65536\n"},
		"ids":      {"/etc/subuid": "me:100000:10\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeMachine(t, files)
			before := f.files()
			checks := f.diagnoseUser("me", 1001, false)
			bad := 0
			for _, c := range checks {
				if (c.State == OK) != (c.Remedy == "") || (c.State == OK) != (c.Fix == nil) {
					t.Errorf("check %+v: a remedy and a fix when not ok", c)
				}
				if c.State != OK {
					bad++
				}
			}
			if bad == 0 {
				t.Fatal("nothing is found missing")
			}
			if f.files() != before || f.ran != nil {
				t.Errorf("looking changed the machine, or ran %q", f.ran)
			}
			for _, c := range checks {
				if c.Fix != nil {
					if changed, err := c.Fix(); err != nil || changed == "" {
						t.Errorf("fix %s: %q, %v", c.Name, changed, err)
					}
				}
			}
			for _, c := range f.diagnoseUser("me", 1001, false) {
				if c.State != OK {
					t.Errorf("after the fixes: %+v", c)
				}
			}
		})
	}
	// The machine's settings are not a container's to change.
	f := newFakeMachine(t, map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"})
	if c := f.diagnoseUser("me", 1001, true)[0]; c.State == OK || c.Fix != nil {
		t.Errorf("in a container: %+v", c)
	}
}
