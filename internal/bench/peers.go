package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
)

// oneShots are programs of this machine that make a sandbox, run true in it,
// and take it down again. Those that are absent or refuse are named.
func oneShots(ctx context.Context, dir string) (cs []contender, absent []string) {
	add := func(name string, argv func(i int) []string) {
		run := func(i int) error {
			a := argv(i)
			out, err := exec.CommandContext(ctx, a[0], a[1:]...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %.200s", err, out)
			}
			return nil
		}
		if _, err := exec.LookPath(strings.Fields(name)[0]); err != nil {
			absent = append(absent, name+" (not installed)")
			return
		}
		if err := run(-1); err != nil {
			absent = append(absent, fmt.Sprintf("%s (%.120s)", name, strings.ReplaceAll(err.Error(), "\n", " ")))
			return
		}
		cs = append(cs, contender{name, run})
	}
	add("bwrap", func(int) []string {
		return []string{"bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin",
			"--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "/usr/bin/true"}
	})
	bundle, err := ociBundle(dir)
	if err != nil {
		return cs, append(absent, "runc, crun ("+err.Error()+")")
	}
	for _, runtime := range []string{"runc", "crun"} {
		add(runtime, func(i int) []string {
			return []string{runtime, "--root", filepath.Join(dir, runtime), "run", "--bundle", bundle, fmt.Sprintf("bench-%d", i+1)}
		})
	}
	if exec.CommandContext(ctx, "docker", "info").Run() == nil {
		add("docker run", func(int) []string { return []string{"docker", "run", "--rm", "--network", "none", "debian", "true"} })
	} else {
		absent = append(absent, "docker (no daemon runs)")
	}
	return cs, absent
}

// ociBundle writes a bundle whose root shows the host's /usr, read-only.
func ociBundle(dir string) (string, error) {
	bundle := filepath.Join(dir, "bundle")
	root := filepath.Join(bundle, "rootfs")
	for _, d := range []string{"usr", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	for link, to := range map[string]string{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil && !os.IsExist(err) {
			return "", err
		}
	}
	type m = map[string]any
	var namespaces []m
	for _, n := range []string{"pid", "network", "ipc", "uts", "mount"} {
		namespaces = append(namespaces, m{"type": n})
	}
	config := m{
		"ociVersion": "1.0.2",
		"process": m{"terminal": false, "user": m{"uid": 0, "gid": 0}, "args": []string{"/usr/bin/true"}, "cwd": "/",
			"env": []string{"PATH=/usr/bin"}, "noNewPrivileges": true},
		"root": m{"path": "rootfs", "readonly": true},
		"mounts": []m{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/usr", "type": "bind", "source": "/usr", "options": []string{"bind", "ro"}},
		},
		"linux": m{"namespaces": namespaces},
	}
	b, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	return bundle, os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600)
}

// desktopCommander connects to the peer of that name, when its program is
// given by DESKTOP_COMMANDER (the path of its index.js).
func desktopCommander(ctx context.Context) (*contender, string) {
	script := os.Getenv("DESKTOP_COMMANDER")
	if script == "" {
		return nil, "Desktop Commander (set DESKTOP_COMMANDER to its dist/index.js)"
	}
	c := client.NewClient(transport.NewStdioWithOptions("node", nil, []string{script}))
	if err := c.Start(ctx); err != nil {
		return nil, "Desktop Commander (" + err.Error() + ")"
	}
	if _, err := c.Initialize(ctx, mcp.InitializeRequest{Params: mcp.InitializeParams{
		ProtocolVersion: "2025-06-18", ClientInfo: mcp.Implementation{Name: "bench", Version: "1"}}}); err != nil {
		return nil, "Desktop Commander (" + err.Error() + ")"
	}
	return &contender{"Desktop Commander (no sandbox)", func(int) error {
		req := mcp.CallToolRequest{}
		req.Params.Name = "start_process"
		req.Params.Arguments = map[string]any{"command": "true", "timeout_ms": 5000}
		res, err := c.CallTool(ctx, req)
		if err == nil && res.IsError {
			err = fmt.Errorf("%v", res.Content)
		}
		return err
	}}, ""
}
