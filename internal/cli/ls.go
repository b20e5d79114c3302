package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"berth/internal/config"
	"berth/sandbox"
)

type listCommand struct {
	Owner  string `help:"Whose: an owner's name, or all. Root sees all unless told." placeholder:"NAME"`
	Status string `help:"Only those of this status." placeholder:"STATUS"`
	Quiet  bool   `short:"q" help:"Only the ids."`
	JSON   bool   `help:"One JSON object a line."`
}

func (c *listCommand) Run(a *App) error {
	if c.Status != "" && !slices.Contains(statuses, sandbox.Status(c.Status)) {
		hint := ""
		if near := config.Nearest(c.Status, words(statuses)); near != "" {
			hint = "; did you mean " + near + "?"
		}
		return usagef("ls: --status: %q is no status; allowed: %s%s", c.Status, strings.Join(words(statuses), ", "), hint)
	}
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	if name, why := a.chosen(b.config); name != "local" && b.config.Provider == "auto" && !c.JSON && !c.Quiet {
		fmt.Fprintf(a.Stderr, "berth: these are the sandboxes at Daytona, not those of this machine: %s\n", why)
	}
	owner := visibleOwner(c.Owner)
	list, err := b.list(a.ctx, owner)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(i sandbox.Info) bool { return c.Status != "" && string(i.Status) != c.Status })
	switch {
	case c.JSON:
		for _, i := range list {
			if err := plainJSON(a.Stdout, listRow(i)); err != nil {
				return err
			}
		}
		return nil
	case len(list) == 0 && !c.Quiet && (c.Owner != "" || c.Status != ""):
		fmt.Fprintln(a.Stderr, "No sandbox matches.")
		return nil
	case c.Quiet:
		for _, i := range list {
			fmt.Fprintln(a.Stdout, i.Key.Session)
		}
		return nil
	case len(list) == 0:
		fmt.Fprintln(a.Stderr, "No sandboxes. berth run -- CMD makes one for a command; an agent's first command makes one for its session.")
		return nil
	}
	head := []string{"SESSION", "STATUS", "CREATED", "MEMORY", "PROCESSES", "REMARK"}
	named := func(i sandbox.Info) bool { return i.Name != string(i.Key.Session) }
	names := slices.ContainsFunc(list, named) // most have none but their id
	if names {
		head = slices.Insert(head, 1, "NAME")
	}
	if owner == "" {
		head = slices.Insert(head, 1, "OWNER")
	}
	t := newTable(head...)
	for _, i := range list {
		row := []string{string(i.Key.Session), a.paint(a.Stdout, statusStyle[i.Status], string(i.Status)), ago(i.Created)}
		if i.Usage != nil {
			row = append(row, bytesOrNone(i.Usage.Memory), countOrNone(i.Usage.Processes))
		} else {
			row = append(row, "", "")
		}
		row = append(row, remarkOf(i))
		if names {
			name := ""
			if named(i) {
				name = i.Name
			}
			row = slices.Insert(row, 1, name)
		}
		if owner == "" {
			row = slices.Insert(row, 1, string(i.Key.Owner))
		}
		t.row(row...)
	}
	return t.write(a.Stdout)
}

// statuses are what ls --status takes, in the order of a life.
var statuses = []sandbox.Status{sandbox.StatusPending, sandbox.StatusStarting, sandbox.StatusRunning, sandbox.StatusStopping, sandbox.StatusStopped,
	sandbox.StatusArchiving, sandbox.StatusArchived, sandbox.StatusDestroying, sandbox.StatusDestroyed, sandbox.StatusError}

func words[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}

var statusStyle = map[sandbox.Status]string{
	sandbox.StatusRunning: "32", sandbox.StatusError: "31", sandbox.StatusStopped: "33", sandbox.StatusArchived: "2",
}

func remarkOf(i sandbox.Info) string {
	switch {
	case i.Reason != "":
		return i.Reason
	case !i.Expires.IsZero():
		if i.StopReason != "" {
			return i.StopReason + "; deleted " + ahead(i.Expires)
		}
		return "deleted " + ahead(i.Expires)
	case i.StopReason != "":
		return i.StopReason
	case !i.IdleDeadline.IsZero():
		return "stops " + ahead(i.IdleDeadline) + " unless used"
	}
	return ""
}

// row is a sandbox as JSON shows it.
type row struct {
	SessionID string     `json:"session_id"`
	Owner     string     `json:"owner"`
	Name      string     `json:"name"`
	Status    string     `json:"status"`
	Reason    string     `json:"reason,omitempty"`
	Provider  string     `json:"provider"`
	Created   time.Time  `json:"created"`
	Stopped   *time.Time `json:"stopped,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`
	Memory    *int64     `json:"memory_bytes,omitempty"`
	Processes *int       `json:"processes,omitempty"`
}

func listRow(i sandbox.Info) row {
	r := row{SessionID: string(i.Key.Session), Owner: string(i.Key.Owner), Name: i.Name, Status: string(i.Status),
		Reason: i.Reason, Provider: i.Provider, Created: i.Created, Stopped: timeOrNil(i.Stopped), Expires: timeOrNil(i.Expires)}
	if i.Usage != nil && i.Usage.Memory >= 0 {
		r.Memory = &i.Usage.Memory
	}
	if i.Usage != nil && i.Usage.Processes >= 0 {
		r.Processes = &i.Usage.Processes
	}
	return r
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// table lines up columns; colour codes take no room.
type table struct {
	rows [][]string
	// wrap is how wide it may be; the last column, which has no colours, goes on
	// below itself. 0: as wide as it is.
	wrap int
}

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

// fold breaks text into lines of at most width characters, between words where
// it can.
func fold(text string, width int) []string {
	var lines []string
	r := []rune(text)
	for len(r) > width {
		n := width
		for n > 0 && r[n] != ' ' {
			n--
		}
		if n == 0 {
			n = width
		}
		lines = append(lines, strings.TrimRight(string(r[:n]), " "))
		r = []rune(strings.TrimLeft(string(r[n:]), " "))
	}
	return append(lines, string(r))
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) error {
	width := make([]int, len(t.rows[0]))
	for _, r := range t.rows {
		for i, c := range r {
			width[i] = max(width[i], visible(c))
		}
	}
	last, indent := len(width)-1, 0
	for _, n := range width[:last] {
		indent += n + 2
	}
	for _, r := range t.rows {
		var b strings.Builder
		for i, c := range r {
			if room := t.wrap - indent; i == last && t.wrap > 0 && room >= 20 {
				b.WriteString("  " + strings.Join(fold(c, room), "\n"+strings.Repeat(" ", indent)))
				break
			}
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(c + strings.Repeat(" ", width[i]-visible(c)))
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// printable makes text that may come from a sandbox harmless to a terminal,
// which would act upon escape sequences, and even answer some as if typed.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s)
}

// visible counts the characters of s that are not part of a colour code.
func visible(s string) int {
	n := utf8.RuneCountInString(s)
	for {
		i := strings.Index(s, "\x1b[")
		if i < 0 {
			return n
		}
		j := strings.IndexByte(s[i:], 'm')
		if j < 0 {
			return n
		}
		n -= j + 1
		s = s[i+j+1:]
	}
}

func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(time.Since(t)) + " ago"
}

func ahead(t time.Time) string {
	if d := time.Until(t); d > 0 {
		return "in " + span(roundUp(d))
	}
	return "now"
}

// roundUp makes d whole in the unit that span shows it in: what ends in 15
// minutes does so a moment later, too.
func roundUp(d time.Duration) time.Duration {
	unit := time.Second
	switch {
	case d >= 48*time.Hour:
		unit = 24 * time.Hour
	case d >= time.Hour:
		unit = time.Hour
	case d >= time.Minute:
		unit = time.Minute
	}
	return (d + unit - 1).Truncate(unit)
}

// span says how long, in the largest unit that fits.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func bytesOrNone(n int64) string {
	if n < 0 {
		return ""
	}
	return size(n)
}

func countOrNone(n int) string {
	if n < 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// count writes how many things there are.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if strings.HasSuffix(thing, "x") {
		thing += "e"
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// size writes bytes in the largest unit that fits.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
}
