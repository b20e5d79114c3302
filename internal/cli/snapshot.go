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
	t := newTable("SNAPSHOT", "OWNER", "DIGEST", "SIZE", "FROM", "CREATED", "USED BY")
	for _, s := range list {
		used := words(s.UsedBy)
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
		t.row(s.Name, string(s.Owner), shortDigest(s.Digest), size(s.Size), from, ago(s.Created), strings.Join(used, " "))
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
	list, err := k.Snapshots(a.ctx, "")
	for i := range list {
		if list[i].Owner == "" { // of the account at Daytona, which is local's
			list[i].Owner = sandbox.LocalOwner
		}
	}
	return list, err
}

// nameOwner is whose snapshot or volume a command means.
type nameOwner struct {
	Owner string `help:"Whose; needed when several owners have one of this name: local, default (BERTH_TOKEN), or a token's name." placeholder:"NAME"`
}

// snapshotOwners are those that have a snapshot of this name.
func (b *bench) snapshotOwners(a *App, name string) ([]string, error) {
	list, err := b.snapshots(a)
	var owners []string
	for _, s := range list {
		if s.Name == name {
			owners = append(owners, string(s.Owner))
		}
	}
	return owners, err
}

// snapshotOwner is whose snapshot a person means by a name.
func (b *bench) snapshotOwner(a *App, name, asked string) (sandbox.Owner, error) {
	owners, err := b.snapshotOwners(a, name)
	if err != nil {
		return "", err
	}
	return theOwner("snapshot", name, asked, owners)
}

type snapshotRemoveCommand struct {
	nameOwner
	Name []string `arg:"" help:"The snapshots."`
}

func (c *snapshotRemoveCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	return a.deleteEach(c.Name, func(name string) error {
		owner, err := b.snapshotOwner(a, name, c.Owner)
		if err != nil {
			return err
		}
		return b.DeleteSnapshot(a.ctx, owner, name)
	})
}

// deleteEach deletes what has a name, a snapshot or a volume.
func (a *App) deleteEach(names []string, remove func(name string) error) error {
	say := func(_ string, err error) string { return printable(forPeople(withoutField(err))) }
	return a.eachName(names, say, func(name string) error {
		if err := remove(name); err != nil {
			return err
		}
		fmt.Fprintf(a.Stdout, "%s deleted\n", name)
		return nil
	})
}
