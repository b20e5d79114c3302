package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"berth/sandbox"
)

type snapshotExportCommand struct {
	nameOwner
	Name  string `arg:"" help:"The snapshot."`
	File  string `arg:"" help:"The file, or with --dir the directory, to write. Only you may read it."`
	Dir   bool   `help:"Write a directory. A name that ends with / is one, too."`
	Force bool   `help:"Replace a file that is there."`
	Quiet bool   `short:"q" help:"No progress."`
}

// Help is shown by --help.
func (*snapshotExportCommand) Help() string {
	return `The file is an OCI layout and a docker save file at once: docker load, podman load and skopeo take it. It appears whole or not at all.

A snapshot over this machine's own system directories cannot be exported: they are no part of it. One of a sandbox of an image can.`
}

func (c *snapshotExportCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	owner, err := b.snapshotOwner(a, c.Name, c.Owner)
	if err != nil {
		return err
	}
	o := sandbox.ExportOptions{To: a.absolute(c.File), Dir: c.Dir || strings.HasSuffix(c.File, "/"), Replace: c.Force}
	bar := newProgress(a, c.Quiet)
	out, err := b.ExportSnapshot(sandbox.WithProgress(a.ctx, bar.report), owner, c.Name, o)
	bar.end(false)
	if err != nil {
		return withoutField(err)
	}
	for _, r := range out.Remarks {
		fmt.Fprintf(a.Stderr, "berth: %s\n", r)
	}
	fmt.Fprintf(a.Stdout, "%s %s %s\n", out.Image, out.Digest, size(out.Size))
	if !o.Dir {
		fmt.Fprintf(a.Stderr, "docker load -i %s loads it.\n", c.File)
	}
	return nil
}

type snapshotImportCommand struct {
	File  string `arg:"" help:"A docker save file, an OCI layout, or a tar file of one. FILE:TAG chooses one of several images of a layout."`
	Name  string `arg:"" optional:"" help:"The snapshot's name; made of the file's when not told."`
	Owner string `help:"Whose; local when not told." default:"local" placeholder:"NAME"`
	Quiet bool   `short:"q" help:"No progress."`
}

func (c *snapshotImportCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	bar := newProgress(a, c.Quiet)
	s, err := b.ImportSnapshot(sandbox.WithProgress(a.ctx, bar.report), sandbox.Owner(c.Owner), c.Name, a.absolute(c.File))
	bar.end(false)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "%s %s %s\n", s.Name, s.Digest, size(s.Size))
	return nil
}

// absolute makes a path absolute: it counts from the working directory.
func (a *App) absolute(path string) string {
	if home, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(a.getenv("HOME"), home)
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(a.Dir, path)
}
