//go:build linux

package promises_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/driver"
)

// configured is a site of its own whose servers read this configuration.
func configured(t testing.TB, text string) *site {
	t.Helper()
	s := ownSite(t)
	s.Args = append(s.Args, "--toolsets", "all")
	return s.configured(text)
}

// TestOperatorLimits sets every ceiling in the configuration and asks for more, by
// every tool that can: each refusal names the argument, what is allowed and what to
// do next, and makes nothing.
func TestOperatorLimits(t *testing.T) {
	notAtDaytona(t, "folders of the host, and sizes without an image, are of this machine")
	t.Parallel()
	shown := t.TempDir()
	s := configured(t, fmt.Sprintf(`
best_effort: %t
defaults: {timeout_seconds: 86400, image: ""}
limits:
  max_sandboxes: 2
  max_processes: 2
  max_cpu: 0.5
  max_memory_gib: 0.5
  max_disk_gib: 0.25
  max_pids: 100
  allowed_images: [docker.io/library/debian, registry.example.com:5000/team/*]
  network_block_all: true
  network_allow_list: [203.0.113.0/24]
  network_allow_domains: ["*.example.com"]
  host_dirs: [{host: %s, path: /shown, read_only: true}]
`, os.Geteuid() != 0, shown))
	b := s.dial(t, driver.Stdio)
	const images = "docker.io/library/debian, registry.example.com:5000/team/*"
	type row struct {
		name, tool string
		args       args
		want       []string // field, what is allowed, the next step
	}
	check := func(rows []row) {
		for _, r := range rows {
			t.Run(r.name, func(t *testing.T) {
				c := &box{Session: b.Session, t: t, id: b.id}
				contains(t, c.refused(r.tool, r.args), r.want...)
			})
		}
	}
	check([]row{
		{"image", "start_sandbox", args{"image": "ubuntu:24.04"}, []string{"image: docker.io/library/ubuntu:24.04 is not among", images, "limits.allowed_images"}},
		{"image_that_looks_alike", "start_sandbox", args{"image": "docker.io/library/debianx"}, []string{"image", images, "limits.allowed_images"}},
		{"image_of_another_registry", "start_sandbox", args{"image": "evil.example.com/docker.io/library/debian"}, []string{"image", images, "limits.allowed_images"}},
		{"image_file", "start_sandbox", args{"image": "oci:/etc"}, []string{"image", "operator's alone", "limits.allowed_images"}},
		{"image_archive", "start_sandbox", args{"image": "docker-archive:" + shown}, []string{"image", "operator's alone", "limits.allowed_images"}},
		{"cpu", "start_sandbox", args{"resources": args{"cpu": 0.75}}, []string{"resources.cpu: 0.75 cores", "at most 0.5 cores", "operator"}},
		{"memory", "start_sandbox", args{"resources": args{"memory_gib": 1}}, []string{"resources.memory_gib: 1 GiB", "at most 512 MiB", "operator"}},
		{"disk", "start_sandbox", args{"resources": args{"disk_gib": 1}}, []string{"resources.disk_gib: 1 GiB", "at most 256 MiB", "operator"}},
		{"all_at_once", "start_sandbox", args{"image": "ubuntu", "resources": args{"cpu": 4, "disk_gib": 4}, "network_allow_list": "198.51.100.0/24"}, []string{"image", "resources.cpu", "resources.disk_gib", "network_allow_list"}},
		{"network_range", "start_sandbox", args{"network_allow_list": "198.51.100.0/24"}, []string{"network_allow_list", "203.0.113.0/24", "operator"}},
		{"network_wider_range", "start_sandbox", args{"network_allow_list": "203.0.112.0/22"}, []string{"network_allow_list", "203.0.113.0/24", "operator"}},
		{"network_loopback", "start_sandbox", args{"network_allow_list": "127.0.0.1"}, []string{"network_allow_list", "203.0.113.0/24", "operator"}},
		{"network_name", "start_sandbox", args{"network_allow_domains": []any{"example.org"}}, []string{"network_allow_domains", "*.example.com", "operator"}},
		{"network_wider_name", "start_sandbox", args{"network_allow_domains": []any{"*.com"}}, []string{"network_allow_domains", "*.example.com", "operator"}},
		{"volume_over_a_host_folder", "start_sandbox", args{"volumes": []any{volume("data", "/shown", nil)}}, []string{"volumes[0].path", "/shown"}},
		{"volume_in_a_host_folder", "start_sandbox", args{"volumes": []any{volume("data", "/shown/in", nil)}}, []string{"volumes[0].path", "/shown"}},
		{"time", "start_sandbox", args{"timeout_seconds": 86401}, []string{"timeout_seconds", "86400"}},
		{"time_of_a_command", "execute_command", args{"command": "true", "timeout_seconds": 604800}, []string{"timeout_seconds", "86400"}},
		{"time_of_a_process", "spawn_process", args{"command": "true", "timeout_seconds": 1e9}, []string{"timeout_seconds", "86400"}},
	})
	if b.listed() {
		t.Fatal("a refusal made a sandbox")
	}
	if list := b.call("list_volumes", nil); !strings.Contains(list.Text, `"volumes":[]`) {
		t.Errorf("a refusal made a volume: %s", list.Text)
	}

	// What is allowed works, and what is not asked for has the ceiling.
	b.start(args{"resources": args{"cpu": 0.25}}, "created")
	if got := fmt.Sprint(b.sandbox()["spec"].(args)["resources"]); got != fmt.Sprint(args{"cpu": 0.25, "memory_gib": 0.5, "disk_gib": 0.25}) {
		t.Errorf("resources in force: %s", got)
	}
	b.call("create_snapshot", args{"name": "kept-" + b.id})
	for range 2 {
		b.call("spawn_process", args{"command": "exec sleep 600"})
	}
	other := b.other()
	other.start(args{"snapshot": "kept-" + b.id}, "created") // of what is there: no image is named
	third := b.other()
	const full = "there are 2 sandboxes, the operator's limit is 2; destroy_sandbox one that list_sandboxes shows"
	const busy = "2 processes run in the sandbox, the operator's limit is 2; kill_process one that list_processes shows"
	check([]row{
		{"processes_executed", "execute_command", args{"command": "true"}, []string{busy}},
		{"processes_spawned", "spawn_process", args{"command": "true"}, []string{busy}},
		{"processes_of_code", "run_code", args{"language": "bash", "code": "true"}, []string{busy}},
		{"sandboxes_started", "start_sandbox", args{"session_id": third.id}, []string{full}},
		{"sandboxes_by_a_command", "execute_command", args{"session_id": third.id, "command": "true"}, []string{full}},
		{"sandboxes_of_a_snapshot", "start_sandbox", args{"session_id": third.id, "snapshot": "kept-" + b.id}, []string{full}},
		{"sandboxes_forked", "fork_sandbox", args{"new_session_id": third.id}, []string{full}},
		{"network_set_live", "set_network", args{"network_allow_list": "198.51.100.0/24"}, []string{"network_allow_list", "203.0.113.0/24", "operator"}},
		{"network_opened_live", "set_network", args{"network_block_all": false, "network_allow_domains": []any{"example.org"}}, []string{"network_allow_domains", "*.example.com", "operator"}},
		{"port_zero", "expose_port", args{"port": 0}, []string{"port", "65535"}},
		{"port_beyond", "expose_port", args{"port": 65536}, []string{"port", "65535"}},
	})
	for port := 1; port <= 64; port++ {
		b.call("expose_port", args{"port": port})
	}
	contains(t, b.refused("expose_port", args{"port": 65}), "64 ports of this sandbox are exposed", "serve several things behind one")

	// More than the ceiling is no default either.
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	must(t, os.WriteFile(bad, []byte("defaults: {timeout_seconds: 86401, resources: {cpu: 2}}\nlimits: {max_cpu: 1, max_sandboxes: -1, network_allow_list: [nonsense]}\n"), 0o600))
	_, err := cli(s.State, "serve", "--config", bad)
	if err == nil {
		t.Fatal("serve with a bad configuration works")
	}
	contains(t, err.Error(), "defaults.timeout_seconds", "86400", "defaults.resources.cpu", "limits.max_cpu", "limits.max_sandboxes", "limits.network_allow_list")
}
