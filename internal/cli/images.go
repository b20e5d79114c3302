package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"berth/sandbox"
)

type imagesCommand struct {
	List  imagesListCommand  `cmd:"" name:"ls" default:"1" help:"List the images that are here."`
	Pull  imagesPullCommand  `cmd:"" help:"Fetch an image, or what its name leads to now."`
	Prune imagesPruneCommand `cmd:"" help:"Remove images that no sandbox or snapshot uses."`
}

type imagesListCommand struct {
	JSON bool `help:"One JSON object a line."`
}

type imageRow struct {
	Names     []string `json:"names"`
	Digest    string   `json:"digest"`
	Platform  string   `json:"platform"`
	Layers    int      `json:"layers"`
	Bytes     int64    `json:"bytes"`
	Sandboxes int      `json:"sandboxes"`
	Pulled    string   `json:"pulled,omitempty"`
	Used      string   `json:"used,omitempty"`
	Remarks   []string `json:"remarks,omitempty"`
}

var errNoImages = errors.New("this provider keeps no images")

func (c *imagesListCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	lister, ok := b.provider.(sandbox.ImageLister)
	if !ok {
		return errNoImages
	}
	list, err := lister.Images(a.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		for _, i := range list {
			row := imageRow{Names: i.Names, Digest: i.Digest, Platform: i.Platform, Layers: i.Layers, Bytes: i.Disk, Sandboxes: i.Sandboxes, Remarks: i.Remarks}
			for _, t := range []struct {
				to *string
				at time.Time
			}{{&row.Pulled, i.Pulled}, {&row.Used, i.Used}} {
				if !t.at.IsZero() {
					*t.to = t.at.UTC().Format(time.RFC3339)
				}
			}
			if err := plainJSON(a.Stdout, row); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) == 0 {
		fmt.Fprintln(a.Stderr, "No images. berth images pull NAME fetches one, and so does berth run --image NAME -- CMD.")
		return nil
	}
	t := imageTable()
	for _, i := range list {
		addImage(t, i)
	}
	if err := t.write(a.Stdout); err != nil {
		return err
	}
	for _, i := range list {
		a.remarkOn(i)
	}
	return nil
}

// remarkOn tells people what of an image is not as it is.
func (a *App) remarkOn(i sandbox.ImageInfo) {
	name := shortDigest(i.Digest)
	if len(i.Names) > 0 {
		name = i.Names[0]
	}
	for _, r := range i.Remarks {
		fmt.Fprintf(a.Stderr, "%s: %s.\n", name, r)
	}
}

func imageTable() *table {
	return newTable("IMAGE", "DIGEST", "PLATFORM", "SIZE", "IN USE BY", "LAST USED")
}

func addImage(t *table, i sandbox.ImageInfo) {
	name := "-"
	if len(i.Names) > 0 {
		name = strings.Join(i.Names, " ")
	}
	t.row(name, shortDigest(i.Digest), i.Platform, size(i.Disk), countOf(i.Sandboxes), ago(i.Used))
}

// countOf is how many sandboxes and snapshots stand on an image.
func countOf(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func shortDigest(d string) string { return d[:min(len(d), len("sha256:")+12)] }

type imagesPullCommand struct {
	Image string `arg:"" help:"A name as for docker pull, oci:PATH[:TAG] or docker-archive:PATH."`
	Quiet bool   `short:"q" help:"No progress."`
}

func (c *imagesPullCommand) Run(a *App) error {
	if err := imagePath("images pull", c.Image); err != nil {
		return err
	}
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	puller, ok := b.provider.(sandbox.ImagePuller)
	if !ok {
		return errNoImages
	}
	bar := newProgress(a, c.Quiet)
	i, err := puller.PullImage(sandbox.WithProgress(a.ctx, bar.report), a.absoluteImage(c.Image))
	bar.end(false)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "%s %s\n", strings.Join(i.Names, " "), i.Digest)
	a.remarkOn(i)
	return nil
}

type imagesPruneCommand struct {
	OlderThan time.Duration `help:"Only those that no sandbox was made of for so long, such as 24h." placeholder:"DURATION"`
	Yes       bool          `short:"y" help:"Do not ask."`
	Image     []string      `arg:"" optional:"" help:"Only these: names or digests."`
}

// Help is shown by --help.
func (*imagesPruneCommand) Help() string {
	return "Images that a sandbox stands on, running, stopped or archived, or a snapshot, are never removed."
}

func (c *imagesPruneCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	pruner, ok := b.provider.(sandbox.ImagePruner)
	if !ok {
		return errNoImages
	}
	only := make([]string, len(c.Image))
	for i, n := range c.Image {
		only[i] = a.absoluteImage(n)
	}
	doomed, err := pruner.PruneImages(a.ctx, c.OlderThan, only, true)
	if err != nil {
		return err
	}
	if len(doomed.Images) > 0 {
		t := imageTable()
		for _, i := range doomed.Images {
			addImage(t, i)
		}
		if err := t.write(a.Stderr); err != nil {
			return err
		}
		if !c.Yes {
			if !a.terminal(a.Stdin) {
				return errors.New("nothing was removed; pass --yes to remove these without being asked")
			}
			fmt.Fprintf(a.Stderr, "Remove %s? [y/N] ", count(len(doomed.Images), "image"))
			answer, _ := bufio.NewReader(a.Stdin).ReadString('\n')
			if s := strings.ToLower(strings.TrimSpace(answer)); s != "y" && s != "yes" {
				return errors.New("nothing was removed")
			}
		}
	} else if len(only) > 0 {
		return errors.New("none of these is here and unused; berth images lists what there is, and how many sandboxes use it")
	}
	// Also without images: what pulls have left goes, too.
	got, err := pruner.PruneImages(a.ctx, c.OlderThan, only, false)
	if err != nil {
		return err
	}
	if len(got.Images) == 0 && got.Bytes == 0 {
		fmt.Fprintln(a.Stderr, "Nothing to remove.")
		return nil
	}
	fmt.Fprintf(a.Stdout, "%s removed, %s freed\n", count(len(got.Images), "image"), size(got.Bytes))
	return nil
}

// absoluteImage makes the path of an image that is a file absolute: it counts
// from the working directory.
func (a *App) absoluteImage(name string) string {
	for _, prefix := range []string{"oci:", "docker-archive:"} {
		if p, ok := strings.CutPrefix(name, prefix); ok && p != "" {
			return prefix + a.absolute(p)
		}
	}
	return name
}

// imagePath refuses the path of an image where a name is meant, which would be
// taken for one of a registry.
func imagePath(flag, name string) error {
	for _, prefix := range []string{"oci:", "docker-archive:"} {
		if name == prefix {
			return usagef("%s: no path after %s; allowed: oci:PATH[:TAG] for a directory, docker-archive:FILE for a docker save file", flag, prefix)
		}
	}
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "~") {
		return usagef("%s: %q is a path; write oci:%s for an OCI layout, docker-archive:%s for a docker save file", flag, name, name, name)
	}
	return nil
}

// start starts a sandbox and waits however long that takes, with a bar.
func (a *App) start(b *bench, key sandbox.Key, spec sandbox.Spec) (*sandbox.StartResult, error) {
	bar := newProgress(a, false)
	defer bar.end(false)
	for {
		res, err := b.StartSandbox(sandbox.WithProgress(a.ctx, bar.report), key, spec)
		if !errors.Is(err, sandbox.ErrStarting) || context.Cause(a.ctx) != nil {
			return res, err
		}
	}
}
