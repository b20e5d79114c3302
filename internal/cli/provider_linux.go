package cli

import (
	"errors"
	"log/slog"
	"os"

	"berth/internal/config"
	"berth/sandbox"
	"berth/sandbox/local"
)

// provider opens the machine's own provider. It touches nothing yet.
func (a *App) provider(c *config.Config, log *slog.Logger) (sandbox.Provider, string, error) {
	dir, err := stateDir(a, c)
	if err != nil {
		return nil, "", err
	}
	o := local.Options{
		Dir:           dir,
		Logger:        log,
		ExtraPaths:    c.Local.ExtraPaths,
		LogBytes:      int64(c.Local.LogMiB) << 20,
		KeepProcesses: c.Local.KeepProcesses,
		KeepLogBytes:  int64(c.Local.KeepLogMiB) << 20,
	}
	for _, d := range c.Limits.HostDirs {
		o.HostDirs = append(o.HostDirs, sandbox.HostDir{Host: d.Host, Path: d.Path, ReadOnly: d.ReadOnly})
	}
	p, err := local.New(o)
	if err != nil {
		return nil, "", err
	}
	reason := "provider: auto means local on Linux"
	if c.Provider != "auto" {
		reason = "the settings say provider: " + c.Provider
	}
	return p, reason, nil
}

func stateDir(a *App, c *config.Config) (string, error) {
	if c.State != "" {
		return c.State, nil
	}
	return local.DefaultDir(a.getenv, os.Getuid())
}

// usable reports whether sandboxes can be made here.
func (a *App) usable(*config.Config) error { return nil }

type doctorCommand struct {
	Fix  bool `help:"Do what root can do about what is missing."`
	JSON bool `help:"One JSON object."`
}

func (*doctorCommand) Run(*App) error { return errors.New("the local provider is being built") }
