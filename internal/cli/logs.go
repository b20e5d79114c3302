package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/sandbox"
)

type logsCommand struct {
	ownerFlag
	Follow  bool   `short:"f" help:"Go on until the process ends; without PROCESS, the newest one."`
	List    bool   `short:"l" help:"List the processes instead."`
	Raw     bool   `help:"Write every byte to a terminal, too."`
	ID      string `arg:"" help:"The sandbox."`
	Process string `arg:"" optional:"" help:"The process; all that are kept when absent."`
}

// Help is shown by --help.
func (*logsCommand) Help() string {
	return "Standard output and standard error go where they went. Without PROCESS all that is kept of all processes is shown, oldest first; " +
		"with -f the newest of them is then followed until it ends, and no process that starts later. " +
		"On a terminal escape sequences are left out, but for colours, since they could change what the terminal shows or does; --raw and pipes have all of them."
}

func (c *logsCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	key, err := b.find(a.ctx, c.ID, c.Owner)
	if err != nil {
		return err
	}
	list, err := b.ListProcesses(a.ctx, key)
	if err != nil {
		return err
	}
	if c.List {
		return a.listProcesses(list)
	}
	if c.Process != "" {
		id, err := b.process(a.ctx, key, c.Process)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(p sandbox.ProcessInfo) bool { return p.ID != id })
	}
	if len(list) == 0 {
		fmt.Fprintln(a.Stderr, "No process has run in this sandbox, or none is kept.")
		return nil
	}
	stdout, stderr := a.Stdout, a.Stderr
	for _, w := range []*io.Writer{&stdout, &stderr} {
		if a.terminal(*w) && !c.Raw {
			f := &filter{w: *w}
			defer f.close()
			*w = f
		}
	}
	for n, info := range list {
		if c.Process == "" {
			// On stderr, so that stdout is the output alone.
			fmt.Fprintln(a.Stderr, a.paint(a.Stderr, "1", fmt.Sprintf("==> %s: %s (%s)", info.ID, printable(info.Command), stateOf(info))))
		}
		p, err := b.Process(a.ctx, key, info.ID)
		if err != nil {
			return err
		}
		if c.Follow && n == len(list)-1 {
			_, err = follow(a.ctx, p, info.Kept, stdout, stderr)
		} else {
			err = a.dump(p, info.Kept, stdout, stderr)
		}
		if errors.Is(err, errOutput) || errors.Is(err, context.Canceled) {
			return nil // as after "| head", and Ctrl-C
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dump writes what is kept of a process now.
func (a *App) dump(p sandbox.Process, c sandbox.Cursor, stdout, stderr io.Writer) error {
	for {
		out, err := p.Read(a.ctx, c, chunk)
		if err != nil {
			return err
		}
		if len(out.Stdout)+len(out.Stderr) == 0 {
			return nil
		}
		c = out.Next
		if _, err := stdout.Write(out.Stdout); err != nil {
			return errOutput
		}
		if _, err := stderr.Write(out.Stderr); err != nil {
			return errOutput
		}
	}
}

func (a *App) listProcesses(list []sandbox.ProcessInfo) error {
	t := newTable("PROCESS", "STATE", "STARTED", "CPU", "MEMORY", "OUTPUT", "COMMAND")
	for _, p := range list {
		cpu := ""
		if p.CPU >= 0 {
			cpu = p.CPU.Round(time.Millisecond).String()
		}
		t.row(string(p.ID), stateOf(p), ago(p.Started), cpu, bytesOrNone(p.Memory), size(p.Produced.Stdout+p.Produced.Stderr), oneLine(p.Command))
	}
	return t.write(a.Stdout)
}

// stateOf says how a process is doing, in a word or three.
func stateOf(p sandbox.ProcessInfo) string {
	switch {
	case p.State == sandbox.ProcessRunning:
		return "running"
	case p.ExitCode == nil:
		return "lost"
	case p.Signal != "":
		return fmt.Sprintf("exit %d, %s", *p.ExitCode, p.Signal)
	}
	return fmt.Sprintf("exit %d", *p.ExitCode)
}

// flat puts text on one line: what comes from a sandbox must not move the cursor.
func flat(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// oneLine makes text fit for a table.
func oneLine(s string) string {
	s = flat(s)
	if r := []rune(s); len(r) > 100 {
		s = string(r[:99]) + "…"
	}
	return s
}

// process finds the process that a person means: a whole id, or the only one
// that begins so.
func (b *bench) process(ctx context.Context, key sandbox.Key, typed string) (sandbox.ProcessID, error) {
	list, err := b.ListProcesses(ctx, key)
	if err != nil {
		return "", err
	}
	var found []sandbox.ProcessID
	for _, p := range list {
		if string(p.ID) == typed {
			return p.ID, nil
		}
		if strings.HasPrefix(string(p.ID), typed) || strings.HasPrefix(string(p.ID), "p-"+typed) {
			found = append(found, p.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("there is no process %q in %s; berth logs -l %s lists them", typed, key.Session, key.Session)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%q could be any of %d processes; berth logs -l %s lists them", typed, len(found), key.Session)
}

type eventsCommand struct {
	ownerFlag
	JSON bool   `help:"One JSON object a line."`
	ID   string `arg:"" help:"The sandbox."`
}

func (c *eventsCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	key, err := b.find(a.ctx, c.ID, c.Owner)
	if err != nil {
		return err
	}
	events, err := b.Events(a.ctx, key)
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := a.event(e, c.JSON); err != nil {
			return nil // our reader is gone, as after "| head"
		}
	}
	if len(events) == 0 {
		fmt.Fprintln(a.Stderr, "No tool has been called on this sandbox.")
	}
	return nil
}

func (a *App) event(e sandbox.Event, asJSON bool) error {
	if asJSON {
		return plainJSON(a.Stdout, map[string]any{
			"time": e.Time, "session_id": e.Session, "tool": e.Tool, "args": e.Args, "outcome": e.Outcome,
			"error": e.Error, "duration_ms": e.Duration.Milliseconds(), "bytes": e.Bytes,
		})
	}
	var args []string
	for _, k := range slices.Sorted(maps.Keys(e.Args)) {
		var v strings.Builder
		if err := plainJSON(&v, e.Args[k]); err != nil {
			v.WriteString("?")
		}
		args = append(args, k+"="+strings.TrimSpace(v.String()))
	}
	style := "32"
	if e.Error != "" {
		style = "31"
	}
	line := fmt.Sprintf("%s  %-16s %s  %s", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Tool,
		a.paint(a.Stdout, style, e.Outcome), oneLine(strings.Join(args, " ")))
	if e.Error != "" {
		line += "  " + oneLine(e.Error)
	}
	_, err := fmt.Fprintf(a.Stdout, "%s  (%s)\n", line, e.Duration.Round(time.Millisecond/10))
	return err
}

// plainJSON writes v on one line, with <, > and & as they are: nothing of ours
// is put into a web page.
func plainJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
