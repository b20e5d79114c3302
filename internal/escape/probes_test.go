//go:build linux

package escape_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/escape"
	"berth/sandbox"
	"berth/sandbox/local"
)

// judge checks that each probe answered and none got through. possible is what
// cannot be tried here.
func judge(t *testing.T, want []string, output string, impossible map[string]bool) {
	t.Helper()
	got := map[string]escape.Finding{}
	for _, f := range escape.Parse(output) {
		got[f.Probe] = f
	}
	for _, name := range want {
		f, ok := got[name]
		switch {
		case !ok:
			t.Errorf("%s: no answer", name)
		case f.State == escape.Held:
			t.Logf("%s: %s", name, f.Detail)
		case f.State == escape.Impossible && impossible[name]:
			t.Logf("%s cannot be tried: %s", name, f.Detail)
		default:
			t.Errorf("%s", f)
		}
	}
	if t.Failed() && len(got) == 0 {
		t.Logf("%s", output)
	}
}

// folder makes a host folder to be shown read-only.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777))
	for _, name := range []string{"marker", "victim"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o666))
		must(t, os.Chmod(filepath.Join(dir, name), 0o666))
	}
	return dir
}

// TestProbes runs every probe inside, as the user, as root, and as root through
// sudo; once in a plain sandbox, once in one that is shown a host folder, which
// for an ordinary user means a single user id.
func TestProbes(t *testing.T) {
	for _, variant := range []string{"plain", "folder"} {
		t.Run(variant, func(t *testing.T) {
			w := newWorld(t)
			o := local.Options{}
			impossible := map[string]bool{"planted_programs": true, "moved_part": true}
			if variant == "folder" {
				dir := folder(t)
				for _, f := range []string{"marker", "victim"} {
					w.before[filepath.Join(dir, f)] = fingerprint(filepath.Join(dir, f))
				}
				w.before[dir] = fingerprint(dir)
				o.Dir = filepath.Join(shared.dir, "folders")
				o.HostDirs = []sandbox.HostDir{{Host: dir, Path: "/shown", ReadOnly: true}}
				w.ReadOnly = []string{"/shown"}
			} else {
				impossible["read_only_folder"] = true
			}
			b := newBox(t, newManager(t, o))
			t.Logf("user ids are mapped as %s", b.ids)
			impossible["own_setuid_file"] = b.ids == "single"
			// The sockets and directories of this very sandbox.
			w.Sockets = append(w.Sockets, stateSockets(t)...)
			b.attack(t, w, impossible)
		})
	}
}

// stateSockets lists the unix sockets below the state directories.
func stateSockets(t *testing.T) []string {
	t.Helper()
	var all []string
	_ = filepath.WalkDir(shared.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 {
			all = append(all, path)
		}
		return nil
	})
	if len(all) == 0 {
		t.Error("no monitor listens below the state directory")
	}
	return all
}

// TestProbesCanFail runs harmless probes without a sandbox: they must report
// that they got through, or they would prove nothing inside.
func TestProbesCanFail(t *testing.T) {
	w := newWorld(t)
	data, err := json.Marshal(w.Outside)
	must(t, err)
	file := filepath.Join(t.TempDir(), "outside.json")
	must(t, os.WriteFile(file, data, 0o600))
	probes := []string{"environment", "no_new_privileges", "host_files", "host_secrets", "abstract_sockets", "unix_sockets", "tcp", "udp",
		"namespaces", "shared_memory", "host_processes", "clone3", "keyrings", "io_uring", "perf", "bpf", "host_name", "interfaces", "mount_table", "core_dumps"}
	cmd := exec.Command(build(t, attackerPackage), append([]string{"run", "agent", file}, probes...)...)
	out, err := cmd.Output()
	must(t, err)
	got := map[string]escape.Finding{}
	for _, f := range escape.Parse(string(out)) {
		got[f.Probe] = f
	}
	for _, name := range probes {
		if name == "core_dumps" && strings.HasPrefix(got[name].Detail, "hard limit 0") {
			continue // where this test runs there are none
		}
		if got[name].State != escape.Escaped {
			t.Errorf("outside of a sandbox, %s reports %s", name, got[name])
		}
	}
}
