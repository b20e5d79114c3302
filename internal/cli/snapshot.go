package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"berth/sandbox"
)

type snapshotCommand struct {
	Create snapshotCreateCommand `cmd:"" help:"Keep the files of a sandbox under a name, or build a snapshot."`
	List   snapshotListCommand   `cmd:"" name:"ls" default:"1" help:"List snapshots."`
	Remove snapshotRemoveCommand `cmd:"" name:"rm" help:"Delete snapshots that no sandbox stands on."`
	Log    snapshotLogCommand    `cmd:"" help:"Show the log of a snapshot's build."`
	Export snapshotExportCommand `cmd:"" help:"Write a snapshot as an image, for docker load and others."`
	Import snapshotImportCommand `cmd:"" help:"Make a snapshot of an image in a file or directory."`
}

type snapshotListCommand struct {
	JSON bool `help:"One JSON object a line."`
}

type snapshotRow struct {
	Name    string   `json:"name"`
	Owner   string   `json:"owner"`
	Digest  string   `json:"digest"`
	Bytes   int64    `json:"bytes"`
	From    string   `json:"from"`
	Image   string   `json:"image,omitempty"`
	Built   bool     `json:"built,omitempty"`
	Created string   `json:"created"`
	UsedBy  []string `json:"used_by"`
}

func (c *snapshotListCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	list, err := b.snapshots(a)
	if err != nil {
		return err
	}
	if len(list) == 0 && !c.JSON {
		fmt.Fprintln(a.Stderr, "No snapshots. berth snapshot create ID NAME keeps a sandbox's files, berth snapshot create NAME -f Dockerfile builds one.")
		return nil
	}
	t := newTable("SNAPSHOT", "DIGEST", "SIZE", "FROM", "CREATED", "USED BY")
	for _, s := range list {
		used := []string{}
		for _, u := range s.UsedBy {
			used = append(used, string(u))
		}
		if c.JSON {
			row := snapshotRow{Name: s.Name, Owner: string(s.Owner), Digest: s.Digest, Bytes: s.Size, From: string(s.From), Image: s.Image, Built: s.Built, Created: s.Created.UTC().Format(time.RFC3339), UsedBy: used}
			if err := plainJSON(a.Stdout, row); err != nil {
				return err
			}
			continue
		}
		from := string(s.From)
		switch {
		case s.Built:
			from = "a build"
		case from == "":
			from = "an import"
		}
		t.row(s.Name, shortDigest(s.Digest), size(s.Size), from, ago(s.Created), strings.Join(used, " "))
	}
	if c.JSON {
		return nil
	}
	return t.write(a.Stdout)
}

// snapshots are all of them, of every owner.
func (b *bench) snapshots(a *App) ([]sandbox.SnapshotInfo, error) {
	k, ok := b.provider.(sandbox.SnapshotKeeper)
	if !ok {
		return nil, errors.New("this provider has no snapshots")
	}
	return k.Snapshots(a.ctx, "")
}

type snapshotRemoveCommand struct {
	Name  []string `arg:"" help:"The snapshots."`
	Owner string   `help:"Whose; local when not told." default:"local" placeholder:"NAME"`
}

func (c *snapshotRemoveCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	failed := false
	for _, name := range c.Name {
		if err := b.DeleteSnapshot(a.ctx, sandbox.Owner(c.Owner), name); err != nil {
			failed = true
			fmt.Fprintf(a.Stderr, "berth: %s\n", printable(forPeople(withoutField(err))))
			continue
		}
		fmt.Fprintf(a.Stdout, "%s deleted\n", name)
	}
	if failed {
		return exit(exitFailed)
	}
	return nil
}
