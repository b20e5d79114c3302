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
	o, err := localOptions(a, c, log)
	if err != nil {
		return nil, "", err
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
	}
	for _, d := range c.Limits.HostDirs {
		o.HostDirs = append(o.HostDirs, sandbox.HostDir{Host: d.Host, Path: d.Path, ReadOnly: d.ReadOnly})
	}
	return o, nil
}

func stateDir(a *App, c *config.Config) (string, error) {
	if c.State != "" {
		return c.State, nil
	}
	return local.DefaultDir(a.getenv, os.Getuid())
}

// usable reports whether the state directory can hold sandboxes; doctor finds
// out the rest, which costs more than a health check may.
func (a *App) usable(c *config.Config) error {
	p, _, err := a.provider(c, a.logger(c, true))
	if err != nil {
		return err
	}
	_, err = p.List(a.ctx, sandbox.LocalOwner)
	return errors.Join(err, p.Close())
}
