package cli

import (
	"bufio"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
)

type stopCommand struct {
	ownerFlag
	Archive bool     `help:"Also archive it: compress its files."`
	ID      []string `arg:"" help:"The sandboxes."`
}

func (c *stopCommand) Run(a *App) error {
	return a.each(c.ID, c.Owner, func(b *bench, key sandbox.Key) error {
		info, err := b.StopSandbox(a.ctx, key, c.Archive)
		if err == nil {
			fmt.Fprintf(a.Stdout, "%s %s\n", key.Session, info.Status)
		}
		return err
	})
}

type removeCommand struct {
	ownerFlag
	ID []string `arg:"" help:"The sandboxes."`
}

func (c *removeCommand) Run(a *App) error {
	return a.each(c.ID, c.Owner, func(b *bench, key sandbox.Key) error { return a.remove(b, key) })
}

func (a *App) remove(b *bench, key sandbox.Key) error {
	r, err := b.DestroySandbox(a.ctx, key)
	if err != nil {
		return err
	}
	if r.Freed > 0 {
		fmt.Fprintf(a.Stdout, "%s deleted, %s freed\n", key.Session, size(r.Freed))
	} else {
		fmt.Fprintf(a.Stdout, "%s deleted\n", key.Session)
	}
	return nil
}

// each does f for every sandbox named, also when one fails.
func (a *App) each(ids []string, owner string, f func(*bench, sandbox.Key) error) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	return a.eachName(ids, about, func(id string) error {
		key, err := b.find(a.ctx, id, owner)
		if err != nil {
			return err
		}
		return f(b, key)
	})
}

// eachName does f for every name, also when one fails, of which say makes what
// is told.
func (a *App) eachName(names []string, say func(name string, err error) string, f func(name string) error) error {
	failed := false
	for _, name := range names {
		if err := f(name); err != nil {
			failed = true
			fmt.Fprintln(a.Stderr, "berth: "+say(name, err))
		}
	}
	if failed {
		return exit(exitFailed)
	}
	return nil
}

// about says which sandbox an error is of, unless it says so itself.
func about(id string, err error) string {
	text := printable(err.Error())
	if strings.Contains(text, strconv.Quote(id)) || strings.HasPrefix(text, id+" ") {
		return text
	}
	return id + ": " + text
}

type pruneCommand struct {
	OlderThan time.Duration `help:"Only those stopped for so long, such as 24h." placeholder:"DURATION"`
	Owner     string        `help:"Whose: an owner's name, or all. Root's reach all unless told." placeholder:"NAME"`
	Yes       bool          `short:"y" help:"Do not ask."`
}

func (c *pruneCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.Sweep(a.ctx); err != nil {
		fmt.Fprintf(a.Stderr, "berth: sweep: %v\n", err)
	}
	all, err := b.list(a.ctx, visibleOwner(c.Owner))
	if err != nil {
		return err
	}
	var doomed []sandbox.Info
	t := newTable("SESSION", "OWNER", "STATUS", "STOPPED")
	for _, i := range all {
		switch i.Status {
		case sandbox.StatusStopped, sandbox.StatusArchived, sandbox.StatusError:
		default:
			continue
		}
		since := i.Stopped
		if since.IsZero() {
			since = i.Created
		}
		if time.Since(since) < c.OlderThan {
			continue
		}
		doomed = append(doomed, i)
		t.row(string(i.Key.Session), string(i.Key.Owner), string(i.Status), ago(since))
	}
	kept, err := c.builds(a, b, true)
	if err != nil {
		return err
	}
	if len(doomed) == 0 && kept.Steps == 0 {
		fmt.Fprintln(a.Stderr, "Nothing to delete.")
		return nil
	}
	if len(doomed) == 0 {
		_, err := c.builds(a, b, false)
		return err
	}
	if err := t.write(a.Stderr); err != nil {
		return err
	}
	if !c.Yes {
		if !a.terminal(a.Stdin) {
			return errors.New("nothing was deleted; pass --yes to delete these without being asked")
		}
		question := "Delete this sandbox and its files? [y/N] "
		if len(doomed) > 1 {
			question = fmt.Sprintf("Delete these %d sandboxes and their files? [y/N] ", len(doomed))
		}
		fmt.Fprint(a.Stderr, question)
		answer, _ := bufio.NewReader(a.Stdin).ReadString('\n')
		if s := strings.ToLower(strings.TrimSpace(answer)); s != "y" && s != "yes" {
			return errors.New("nothing was deleted")
		}
	}
	failed := false
	for _, i := range doomed {
		if err := a.remove(b, i.Key); err != nil {
			failed = true
			fmt.Fprintf(a.Stderr, "berth: %s: %v\n", i.Key.Session, err)
		}
	}
	if _, err := c.builds(a, b, false); err != nil {
		return err
	}
	if failed {
		return exit(exitFailed)
	}
	return nil
}

// builds forgets finished steps of builds, which are only there to be fast;
// what a snapshot stands on stays.
func (c *pruneCommand) builds(a *App, b *bench, dry bool) (sandbox.PrunedBuilds, error) {
	p, ok := b.provider.(sandbox.BuildPruner)
	if !ok {
		return sandbox.PrunedBuilds{}, nil
	}
	got, err := p.PruneBuilds(a.ctx, c.OlderThan, dry)
	if err == nil && !dry && got.Steps > 0 {
		fmt.Fprintf(a.Stdout, "%s of builds forgotten, %s to be freed\n", count(got.Steps, "step"), size(got.Bytes))
	}
	return got, err
}
