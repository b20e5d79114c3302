package cli

import (
	"fmt"
	"strings"
	"time"

	"berth/sandbox"
)

type volumesCommand struct {
	List   volumesListCommand   `cmd:"" name:"ls" default:"1" help:"List volumes."`
	Remove volumesRemoveCommand `cmd:"" name:"rm" help:"Delete volumes that no sandbox has attached, with all files in them."`
}

type volumesListCommand struct {
	JSON bool `help:"One JSON object a line."`
}

type volumeRow struct {
	Name    string   `json:"name"`
	Owner   string   `json:"owner"`
	Bytes   *int64   `json:"bytes,omitempty"`
	Created string   `json:"created"`
	UsedBy  []string `json:"used_by"`
}

func (c *volumesListCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	list, err := b.ListVolumes(a.ctx, "")
	if err != nil {
		return err
	}
	if len(list) == 0 && !c.JSON {
		fmt.Fprintln(a.Stderr, "No volumes. berth run --volume NAME:PATH -- CMD makes one, and so does volumes of start_sandbox.")
		return nil
	}
	t := newTable("VOLUME", "OWNER", "SIZE", "CREATED", "USED BY")
	for _, v := range list {
		if !c.JSON {
			t.row(v.Name, string(v.Owner), bytesOrNone(v.Size), ago(v.Created), strings.Join(words(v.UsedBy), " "))
			continue
		}
		row := volumeRow{Name: v.Name, Owner: string(v.Owner), Created: v.Created.UTC().Format(time.RFC3339), UsedBy: words(v.UsedBy)}
		if v.Size >= 0 {
			row.Bytes = &v.Size
		}
		if err := plainJSON(a.Stdout, row); err != nil {
			return err
		}
	}
	if c.JSON {
		return nil
	}
	return t.write(a.Stdout)
}

type volumesRemoveCommand struct {
	nameOwner
	Name []string `arg:"" help:"The volumes."`
}

func (c *volumesRemoveCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	list, err := b.ListVolumes(a.ctx, "")
	if err != nil {
		return err
	}
	return a.deleteEach(c.Name, func(name string) error {
		owner, err := theOwner("volume", name, c.Owner, volumeOwners(list, name))
		if err != nil {
			return err
		}
		return b.DeleteVolume(a.ctx, owner, name)
	})
}

// volumeOwners are those that have a volume of this name.
func volumeOwners(list []sandbox.Volume, name string) []string {
	var owners []string
	for _, v := range list {
		if v.Name == name {
			owners = append(owners, string(v.Owner))
		}
	}
	return owners
}
