package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"berth/sandbox/local"
)

type doctorCommand struct {
	Fix  bool `help:"Do what root can do about what is missing."`
	JSON bool `help:"One JSON object."`
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
	o, err := localOptions(a, c, a.logger(c, true))
	if err != nil {
		return err
	}
	checks := a.diagnose(o)
	if d.Fix {
		fixed, err := a.fix(checks)
		if err != nil {
			return err
		}
		if fixed {
			checks = a.diagnose(o)
		}
	}
	usable := true
	for _, check := range checks {
		if check.Required && check.State == local.Missing {
			usable = false
		}
	}
	if d.JSON {
		err = a.diagnosisJSON(checks, usable)
	} else {
		err = a.diagnosis(checks, usable)
	}
	if err == nil && !usable {
		return exit(exitFailed)
	}
	return err
}

// fix does what can be done, and tells about each.
func (a *App) fix(checks []local.Check) (fixed bool, err error) {
	if os.Geteuid() != 0 {
		return false, errors.New("doctor --fix changes the machine and must run as root; berth doctor alone says what to do")
	}
	for _, c := range checks {
		if c.State == local.OK || c.Fix == nil {
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

// diagnose looks at this machine. Root that somebody became by sudo asks for
// that user, too.
func (a *App) diagnose(o local.Options) []local.Check {
	checks := local.Diagnose(a.ctx, o)
	uid, err := strconv.Atoi(a.getenv("SUDO_UID"))
	if name := a.getenv("SUDO_USER"); err == nil && uid > 0 && name != "" && os.Geteuid() == 0 {
		checks = append(checks, local.DiagnoseUser(name, uid)...)
	}
	return checks
}

var checkStyle = map[local.CheckState]struct{ mark, style string }{
	local.OK: {"✓", "32"}, local.Degraded: {"!", "33"}, local.Missing: {"✗", "31"},
}

// stateWord is a check's state for people: what is as it should be on this
// machine, and yet no wall, is not called ok.
func stateWord(c local.Check) string {
	switch {
	case c.State != local.OK:
	case strings.HasPrefix(c.Detail, "not enforced"):
		return "-"
	case strings.HasPrefix(c.Detail, "soft"):
		return "soft"
	}
	return string(c.State)
}

func (a *App) diagnosis(checks []local.Check, usable bool) error {
	t := newTable("", "CHECK", "STATE", "FOUND")
	t.wrap = a.width(a.Stdout)
	for _, c := range checks {
		s, state := checkStyle[c.State], stateWord(c)
		if c.State == local.OK && state != string(local.OK) {
			s.mark, s.style = "-", ""
		}
		t.row(a.paint(a.Stdout, s.style, s.mark), c.Name, a.paint(a.Stdout, s.style, state), flat(c.Detail))
	}
	if err := t.write(a.Stdout); err != nil {
		return err
	}
	var b strings.Builder
	for _, c := range checks {
		if c.State == local.OK || c.Remedy == "" {
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

func (a *App) diagnosisJSON(checks []local.Check, usable bool) error {
	type check struct {
		Name     string `json:"name"`
		State    string `json:"state"`
		Detail   string `json:"detail"`
		Remedy   string `json:"remedy,omitempty"`
		Required bool   `json:"required"`
		Fixable  bool   `json:"fixable"`
	}
	out := struct {
		Provider string  `json:"provider"`
		Usable   bool    `json:"usable"`
		Checks   []check `json:"checks"`
	}{"local", usable, []check{}}
	for _, c := range checks {
		out.Checks = append(out.Checks, check{c.Name, string(c.State), c.Detail, c.Remedy, c.Required, c.State != local.OK && c.Fix != nil})
	}
	return plainJSON(a.Stdout, out)
}
