package cli

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/config"
	"berth/mounts/bucketbin"
	"berth/sandbox"
	"berth/sandbox/local"
)

// local opens the machine's own provider. It touches nothing yet.
func (a *App) local(c *config.Config, log *slog.Logger, reason string) (sandbox.Provider, string, error) {
	o, err := localOptions(a, c, log)
	if err != nil {
		return nil, "", err
	}
	p, err := local.New(o)
	return p, reason, err
}

func localOptions(a *App, c *config.Config, log *slog.Logger) (local.Options, error) {
	dir, err := stateDir(a, c)
	if err != nil {
		return local.Options{}, err
	}
	o := local.Options{
		Dir:           dir,
		Logger:        log,
		ExtraPaths:    c.Local.ExtraPaths,
		LogBytes:      int64(c.Local.LogMiB) << 20,
		KeepProcesses: c.Local.KeepProcesses,
		KeepLogBytes:  int64(c.Local.KeepLogMiB) << 20,
		Limits:        local.Limits{PIDs: int64(c.Limits.MaxPIDs)},
		BestEffort:    c.BestEffort,
		Bucketd:       bucketd,
		NoFUSE:        !c.Local.FUSE,
		Proxy:         c.Local.UpstreamProxy,
		NoProxy:       c.Local.NoProxy,
		HostAddresses: c.Limits.Network().AllowCIDRs,
	}
	o.Images = local.ImageOptions{
		Aliases: c.Local.Images.Aliases, Mirrors: c.Local.Images.Mirrors, Platform: c.Local.Images.Platform, AuthFiles: a.authFiles(),
		MaxBytes: int64(c.Local.Images.MaxGiB) << 30, KeepUnused: time.Duration(c.Local.Images.KeepDays) * 24 * time.Hour,
		Private: []string{"*"}, // of the commands for people
	}
	if a.serving {
		o.Images.Private = slices.DeleteFunc(slices.Clone(c.Limits.AllowedImages), func(p string) bool { return strings.HasPrefix(p, "*") })
		if d := c.Defaults.Image; d != "" {
			o.Images.Private = append(o.Images.Private, d)
		}
	}
	for _, d := range c.Limits.HostDirs {
		o.HostDirs = append(o.HostDirs, sandbox.HostDir{Host: d.Host, Path: d.Path, ReadOnly: d.ReadOnly})
	}
	return o, nil
}

// bucketd finds the program that serves buckets. Unpacking it costs time and
// memory, so it is looked for once.
var bucketd = func() func(string) (string, error) {
	var mu sync.Mutex
	found := map[string]string{}
	return func(dir string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if path := found[dir]; path != "" {
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
		}
		path, err := bucketbin.Find(dir, runtime.GOARCH)
		if err == nil {
			found[dir] = path
		}
		return path, err
	}
}()

// authFiles are where Docker and Podman keep credentials, Docker's first.
func (a *App) authFiles() []string {
	var list []string
	add := func(dir string, parts ...string) {
		if filepath.IsAbs(dir) {
			list = append(list, filepath.Join(append([]string{dir}, parts...)...))
		}
	}
	home := a.getenv("HOME")
	if dir := a.getenv("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(home, ".docker", "config.json")
	}
	add(a.getenv("REGISTRY_AUTH_FILE"))
	add(a.getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if dir := a.getenv("XDG_CONFIG_HOME"); dir != "" {
		add(dir, "containers", "auth.json")
	} else {
		add(home, ".config", "containers", "auth.json")
	}
	return list
}

func stateDir(a *App, c *config.Config) (string, error) {
	if c.State != "" {
		return c.State, nil
	}
	return local.DefaultDir(a.getenv, os.Getuid())
}
