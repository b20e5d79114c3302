//go:build linux

package local_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/sandbox"
	"berth/sandbox/local"
)

// Diagnose makes a real sandbox, and leaves nothing of it.
func TestDiagnose(t *testing.T) {
	dir := stateDir(t)
	checks := local.Diagnose(t.Context(), local.Options{Dir: dir})
	seen := map[string]bool{}
	for _, c := range checks {
		t.Logf("%-20s %-9s %s | %s", c.Name, c.State, c.Detail, c.Remedy)
		if seen[c.Name] {
			t.Errorf("two checks of the name %s", c.Name)
		}
		seen[c.Name] = true
		if c.Required && c.State == local.Missing {
			t.Errorf("%s is missing: %s", c.Name, c.Detail)
		}
		if c.Detail == "" || (c.State == local.OK) != (c.Remedy == "") {
			t.Errorf("check %+v: a detail always, a remedy when not ok", c)
		}
	}
	for _, name := range []string{"kernel", "user_namespaces", "user_ids", "state_directory", "disk_space", "cgroups", "disk_limits", "helper_program", "program_python3", "sandbox", "holds_seccomp"} {
		if !seen[name] {
			t.Errorf("no check %s in %v", name, seen)
		}
	}
	nothingLeft(t, dir)
	left, err := os.ReadDir(filepath.Join(dir, "tombstones"))
	must(t, err)
	if len(left) != 0 {
		t.Errorf("tombstones left: %v", left)
	}
}

func TestRefusalsNameTheRemedy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	p, err := local.New(local.Options{Dir: filepath.Join(file, "state")})
	must(t, err)
	if _, err = p.Create(t.Context(), testKey, sandbox.Spec{}); err == nil || !strings.Contains(err.Error(), "BERTH_STATE") {
		t.Errorf("Create below a file = %v, want a refusal that names BERTH_STATE", err)
	}
	_, err = local.New(local.Options{Dir: "relative", ExtraPaths: []string{"/", "/proc/1"}, HostDirs: []sandbox.HostDir{{Host: "/not-there", Path: "/x"}, {Host: t.TempDir(), Path: "/usr"}}})
	for _, want := range []string{"state:", "local.extra_paths[0]", "local.extra_paths[1]", "limits.host_dirs[0]", "limits.host_dirs[1]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New with faulty options = %v, want %s named", err, want)
		}
	}
}

func TestDefaultDir(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		uid  int
		want string
	}{
		{"named", map[string]string{"BERTH_STATE": "/a/../b", "HOME": "/h"}, 0, "/b"},
		{"root", map[string]string{"HOME": "/root", "XDG_STATE_HOME": "/x"}, 0, "/var/lib/berth"},
		{"xdg", map[string]string{"HOME": "/h", "XDG_STATE_HOME": "/x"}, 1, "/x/berth"},
		{"relative_xdg", map[string]string{"HOME": "/h", "XDG_STATE_HOME": "x"}, 1, "/h/.local/state/berth"},
		{"home", map[string]string{"HOME": "/h"}, 1, "/h/.local/state/berth"},
		{"nothing", nil, 1, ""},
		{"relative", map[string]string{"BERTH_STATE": "x"}, 1, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := local.DefaultDir(func(k string) string { return tt.env[k] }, tt.uid)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("DefaultDir(%v, %d) = %q, %v, want %q", tt.env, tt.uid, got, err, tt.want)
			}
		})
	}
}
