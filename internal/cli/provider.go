package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"berth/internal/config"
	"berth/mounts/bucketbin"
	"berth/sandbox"
	"berth/sandbox/daytona"
)

// chosen tells which provider the settings come to, and why.
func (a *App) chosen(c *config.Config) (name, reason string) {
	d := c.DaytonaAccess()
	switch {
	case c.Provider != "auto":
		return c.Provider, "the settings say provider: " + c.Provider
	case d.Set():
		return daytona.Name, "provider: auto means daytona, since there is a key for it: " + d.From
	}
	return "local", "provider: auto means local where there is no key for Daytona"
}

// provider opens what makes the sandboxes. It touches nothing yet.
func (a *App) provider(c *config.Config, log *slog.Logger) (sandbox.Provider, string, error) {
	name, reason := a.chosen(c)
	var p sandbox.Provider
	var err error
	if name == daytona.Name {
		p, err = a.daytona(c, log)
	} else {
		p, reason, err = a.local(c, log, reason)
	}
	if err != nil {
		return nil, "", c.Placed(err)
	}
	return p, reason, nil
}

// daytona opens the provider of sandboxes at Daytona.
func (a *App) daytona(c *config.Config, log *slog.Logger) (*daytona.Provider, error) {
	if len(c.Limits.HostDirs) > 0 {
		return nil, &sandbox.FieldError{Field: "limits.host_dirs", Problem: "sandboxes at Daytona cannot show folders of this machine", Hint: "leave it out, or set provider: local"}
	}
	d := c.DaytonaAccess()
	probe, err := netip.ParseAddrPort(c.Daytona.Probe)
	if err != nil {
		panic(err) // the config was checked
	}
	adopt := c.Daytona.Adopt == "yes" || c.Daytona.Adopt == "auto" && c.HTTP == ""
	return daytona.New(daytona.Options{URL: d.URL, Key: d.Key, JWT: d.JWT, Organization: d.Organization, KeyFrom: d.From, Target: d.Target,
		Adopt: adopt, Seal: c.Daytona.Seal, BestEffort: c.BestEffort, Probe: probe, Agent: "berth/" + a.Version, Logger: log, Bucketd: bucketdFor})
}

// usable reports whether there is a provider that answers; doctor finds out the
// rest, which costs more than a health check may.
func (a *App) usable(c *config.Config) error {
	p, _, err := a.provider(c, a.logger(c, true))
	if err != nil {
		return err
	}
	_, err = p.List(a.ctx, sandbox.LocalOwner)
	return errors.Join(err, p.Close())
}

// bucketdFor is the program that shows buckets in Linux sandboxes elsewhere.
func bucketdFor(goarch string) ([]byte, error) {
	b, err := bucketbin.Bytes(goarch)
	if err == nil && b == nil {
		err = fmt.Errorf("this berth was built without bucketd for linux/%s; build it by make, which makes it first", goarch)
	}
	return b, err
}
