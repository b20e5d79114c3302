package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"berth/internal/config"
	"berth/mounts"
	"berth/sandbox/daytona"
)

// checkState is how a check came out.
type checkState string

const (
	ok       checkState = "ok"
	degraded checkState = "degraded"
	missing  checkState = "missing"
)

// check is one line of what doctor found.
type check struct {
	Name, Detail, Remedy string
	State                checkState
	Required             bool
	Fix                  func() (changed string, err error)
}

type doctorCommand struct {
	Fix      bool   `help:"Do what root can do about what is missing."`
	JSON     bool   `help:"One JSON object."`
	Provider string `help:"Whose needs to look at: auto, local or daytona." placeholder:"NAME" key:"provider"`
}

// Help is shown by --help.
func (*doctorCommand) Help() string {
	return "Tries what sandboxes need, the last check by making one, and exits with 1 when none can be made here."
}

func (d *doctorCommand) Run(a *App) error {
	c, err := a.settings()
	if err != nil {
		return err
	}
	name, _ := a.chosen(c)
	diagnose := a.diagnoseLocal
	if name == daytona.Name {
		diagnose = a.diagnoseDaytona
	}
	checks, err := diagnose(c)
	if err != nil {
		return err
	}
	connections := connectionChecks(c)
	if d.Fix {
		fixed, err := a.fix(checks)
		if err != nil {
			return err
		}
		if fixed {
			if checks, err = diagnose(c); err != nil {
				return err
			}
		}
	}
	checks = append(checks, connections...)
	usable := true
	for _, check := range checks {
		if check.Required && check.State == missing {
			usable = false
		}
	}
	if d.JSON {
		err = a.diagnosisJSON(name, checks, usable)
	} else {
		err = a.diagnosis(checks, usable)
	}
	if err == nil && !usable {
		return exit(exitFailed)
	}
	return err
}

// connectionChecks tells which connections for buckets there are. It asks no
// service: mount_bucket does, and says what is wrong.
func connectionChecks(c *config.Config) []check {
	offers := map[string]mounts.Offer{}
	for _, o := range c.Buckets.Offers() {
		offers[o.Name] = o
	}
	var checks []check
	for _, name := range c.Buckets.Names() {
		k := check{Name: "connection " + name, State: ok}
		switch o, offered := offers[name]; {
		case !offered:
			k.State, k.Detail = degraded, "sessions may mount nothing of it: limits.buckets"
		case o.Broken != "":
			k.State, k.Detail, k.Remedy = degraded, "cannot be used: "+o.Broken, "set it right in the settings, or in the variables; docs/buckets.md has an example of each kind"
		case o.Bucket == "":
			k.Detail = string(o.Kind) + ", without a bucket of its own; its keys were not tried, mount_bucket does that"
		default:
			k.Detail = string(o.Kind) + ", bucket " + o.Bucket + "; its keys were not tried, mount_bucket does that"
		}
		checks = append(checks, k)
	}
	return checks
}

// fix does what can be done, and tells about each.
func (a *App) fix(checks []check) (fixed bool, err error) {
	if os.Geteuid() != 0 {
		return false, errors.New("doctor --fix changes the machine and must run as root; berth doctor alone says what to do")
	}
	for _, c := range checks {
		if c.State == ok || c.Fix == nil {
			continue
		}
		changed, err := c.Fix()
		if changed != "" {
			fixed = true
			fmt.Fprintf(a.Stderr, "berth: fixed %s: %s\n", c.Name, changed)
		}
		if err != nil {
			fmt.Fprintf(a.Stderr, "berth: fix %s: %v\n", c.Name, err)
		}
	}
	if !fixed {
		fmt.Fprintln(a.Stderr, "berth: nothing was changed")
	}
	return fixed, nil
}

// diagnoseDaytona asks Daytona.
func (a *App) diagnoseDaytona(c *config.Config) ([]check, error) {
	p, err := a.daytona(c, a.logger(c, true))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	var checks []check
	for _, found := range p.Diagnose(a.ctx) {
		k := check{Name: found.Name, Detail: found.Detail, Remedy: found.Remedy, State: ok, Required: true}
		if !found.OK {
			k.State = missing
		}
		checks = append(checks, k)
	}
	return checks, nil
}

var checkStyle = map[checkState]struct{ mark, style string }{
	ok: {"✓", "32"}, degraded: {"!", "33"}, missing: {"✗", "31"},
}

// stateWord is a check's state for people: what is as it should be on this
// machine, and yet no wall, is not called ok.
func stateWord(c check) string {
	switch {
	case c.State != ok:
	case strings.HasPrefix(c.Detail, "not enforced"):
		return "-"
	case strings.HasPrefix(c.Detail, "soft"):
		return "soft"
	}
	return string(c.State)
}

func (a *App) diagnosis(checks []check, usable bool) error {
	t := newTable("", "CHECK", "STATE", "FOUND")
	t.wrap = a.width(a.Stdout)
	for _, c := range checks {
		s, state := checkStyle[c.State], stateWord(c)
		if c.State == ok && state != string(ok) {
			s.mark, s.style = "-", ""
		}
		t.row(a.paint(a.Stdout, s.style, s.mark), c.Name, a.paint(a.Stdout, s.style, state), flat(c.Detail))
	}
	if err := t.write(a.Stdout); err != nil {
		return err
	}
	var b strings.Builder
	for _, c := range checks {
		if c.State == ok || c.Remedy == "" {
			continue
		}
		fmt.Fprintf(&b, "\n%s: %s\n", a.paint(a.Stdout, "1", c.Name), c.Remedy)
		if c.Fix != nil {
			b.WriteString("  berth doctor --fix, as root, does this.\n")
		}
	}
	verdict := a.paint(a.Stdout, "1;32", "Sandboxes can be made here.")
	if !usable {
		verdict = a.paint(a.Stdout, "1;31", "No sandbox can be made here yet.")
	}
	_, err := fmt.Fprintf(a.Stdout, "%s\n%s\n", b.String(), verdict)
	return err
}

func (a *App) diagnosisJSON(provider string, checks []check, usable bool) error {
	type line struct {
		Name     string `json:"name"`
		State    string `json:"state"`
		Detail   string `json:"detail"`
		Remedy   string `json:"remedy,omitempty"`
		Required bool   `json:"required"`
		Fixable  bool   `json:"fixable"`
	}
	out := struct {
		Provider string `json:"provider"`
		Usable   bool   `json:"usable"`
		Checks   []line `json:"checks"`
	}{provider, usable, []line{}}
	for _, c := range checks {
		out.Checks = append(out.Checks, line{c.Name, string(c.State), c.Detail, c.Remedy, c.Required, c.State != ok && c.Fix != nil})
	}
	return plainJSON(a.Stdout, out)
}
