package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// row is one line of the report.
type row struct {
	what, goal, got, peers string
	met                    verdict
}

type verdict string

const (
	met    verdict = "yes"
	missed verdict = "no"
	open   verdict = "—" // nothing to compare with
)

func judge(ok bool) verdict {
	if ok {
		return met
	}
	return missed
}

// report is what was measured: lines of a table and remarks, each of the group
// that -only names.
type report struct {
	order   []string // of groups
	rows    map[string][]string
	remarks map[string][]string
	// machine is said of all groups, or, after a run of some, of each of these.
	machine string
	own     map[string]string
}

func newReport(order []string) *report {
	return &report{order: order, rows: map[string][]string{}, remarks: map[string][]string{}, own: map[string]string{}}
}

func (r *report) add(group string, rows []row, absent []string) {
	for _, x := range rows {
		r.rows[group] = append(r.rows[group], fmt.Sprintf("| %s | %s | %s | %s | %s | %s |", group, x.what, x.goal, x.got, x.met, x.peers))
	}
	for _, a := range absent {
		r.remarks[group] = append(r.remarks[group], fmt.Sprintf("%s%s): %s.", remarkMark, group, a))
	}
}

const (
	tableHead  = "| row | what | goal | berth | met | peers, same run |\n|---|---|---|---|---|---|\n"
	remarkMark = "- Not measured ("
	ownMark    = "- Measured apart ("
)

func (r *report) String() string {
	var b strings.Builder
	b.WriteString(tableHead)
	for _, g := range r.order {
		for _, line := range r.rows[g] {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("\n" + r.machine + "\n")
	sep := "\n"
	for _, lines := range []func(g string) []string{
		func(g string) []string {
			if r.own[g] == "" {
				return nil
			}
			return []string{r.own[g]}
		},
		func(g string) []string { return r.remarks[g] },
	} {
		for _, g := range r.order {
			for _, line := range lines(g) {
				b.WriteString(sep + line + "\n")
				sep = ""
			}
		}
	}
	return b.String()
}

// parseReport reads what String wrote. Groups that are not in order follow it.
func parseReport(text string, order []string) *report {
	r := newReport(slices.Clone(order))
	group := func(g string) string {
		if !slices.Contains(r.order, g) {
			r.order = append(r.order, g)
		}
		return g
	}
	for line := range strings.Lines(strings.TrimPrefix(strings.TrimSpace(text)+"\n", tableHead)) {
		line = strings.TrimSuffix(line, "\n")
		in := func(mark string) (string, bool) {
			rest, ok := strings.CutPrefix(line, mark)
			g, _, _ := strings.Cut(rest, ")")
			return g, ok
		}
		if rest, ok := strings.CutPrefix(line, "| "); ok {
			g, _, _ := strings.Cut(rest, " |")
			r.rows[group(g)] = append(r.rows[g], line)
		} else if g, ok := in(remarkMark); ok {
			r.remarks[group(g)] = append(r.remarks[g], line)
		} else if g, ok := in(ownMark); ok {
			r.own[group(g)] = line
		} else {
			r.machine = cmp.Or(r.machine, line)
		}
	}
	return r
}

// over puts the groups that were measured, on a machine, into an older report in
// the place of what that says of them.
func (r *report) over(old *report, measured []string, machine string) *report {
	for _, g := range measured {
		old.rows[g], old.remarks[g] = r.rows[g], r.remarks[g]
		old.own[g] = fmt.Sprintf("%s%s): %s", ownMark, g, machine)
	}
	return old
}

const (
	beginMark = "<!-- bench:begin -->\n"
	endMark   = "<!-- bench:end -->"
)

// replaceBetween puts what renew makes of the text between the file's marks in its
// place. A file that is not there is made.
func replaceBetween(file string, renew func(old string) string) error {
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = []byte(beginMark+endMark+"\n"), nil
	}
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), beginMark)
	between, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no bench markers", file)
	}
	return os.WriteFile(file, []byte(before+beginMark+"\n"+renew(between)+"\n"+endMark+after), 0o644)
}
