package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"berth/internal/dockerfile"
	"berth/sandbox"
)

type snapshotCreateCommand struct {
	Owner   string   `help:"Whose: an owner's name." placeholder:"NAME"`
	File    string   `short:"f" help:"Build it from this Dockerfile; - is stdin." placeholder:"FILE"`
	Context string   `help:"Where COPY finds files; the Dockerfile's directory when not told." placeholder:"DIR"`
	Image   string   `help:"Build it on this image, or on snapshot:NAME; without, --run begins with this machine's own system." placeholder:"IMAGE"`
	RunStep []string `name:"run" help:"Run this shell text; repeat it for more steps." placeholder:"COMMAND" sep:"none"`
	NoCache bool     `help:"Do every step, also what earlier builds have done."`
	Quiet   bool     `short:"q" help:"No log unless it fails."`
	Names   []string `arg:"" name:"name" help:"The snapshot's name; before it the sandbox, when nothing is built."`
}

// Help is shown by --help.
func (*snapshotCreateCommand) Help() string {
	return "berth snapshot create ID NAME keeps the files of a sandbox.\n\n" +
		"berth snapshot create NAME -f Dockerfile builds one, as docker build would: FROM (an image, or snapshot:NAME), RUN, COPY, ADD, ENV, ARG, WORKDIR, USER, SHELL, LABEL.\n\n" +
		"berth snapshot create NAME --image debian:12 --run \"apt-get update\" does it without a Dockerfile."
}

func (c *snapshotCreateCommand) Run(a *App) error {
	builds := c.File != "" || c.Image != "" || len(c.RunStep) > 0
	switch {
	case c.File != "" && (c.Image != "" || len(c.RunStep) > 0):
		return &usageError{"-f and --image or --run are given; one of them"}
	case c.Context != "" && c.File == "":
		return &usageError{"--context belongs to -f"}
	case builds && len(c.Names) != 1:
		return &usageError{fmt.Sprintf("%s are given; a build has one, the snapshot's", count(len(c.Names), "name"))}
	case !builds && len(c.Names) == 1:
		return &usageError{"name the sandbox and then the snapshot, or say what to build with -f, --image or --run"}
	case !builds && len(c.Names) != 2:
		return &usageError{fmt.Sprintf("%s are given; two are needed, the sandbox's and the snapshot's", count(len(c.Names), "name"))}
	case builds:
		if err := imagePath("snapshot create: --image", c.Image); err != nil {
			return err
		}
		return c.build(a)
	}
	return a.each(c.Names[:1], c.Owner, func(b *bench, key sandbox.Key) error {
		s, err := b.CreateSnapshot(a.ctx, key, sandbox.SnapshotRequest{Name: c.Names[1]})
		if err == nil {
			fmt.Fprintf(a.Stdout, "%s %s %s\n", s.Name, s.Digest, size(s.Size))
		}
		return err
	})
}

func (c *snapshotCreateCommand) build(a *App) error {
	build, err := c.read(a)
	if err != nil {
		return err
	}
	build.Fresh = c.NoCache
	owner := sandbox.Owner(c.Owner)
	if owner == "" {
		owner = sandbox.LocalOwner
	}
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	log := &buildLog{app: a, bar: newProgress(a, c.Quiet), quiet: c.Quiet}
	ctx := sandbox.WithProgress(a.ctx, log.report)
	for {
		s, err := b.CreateSnapshot(ctx, sandbox.Key{Owner: owner}, sandbox.SnapshotRequest{Name: c.Names[0], Build: &build})
		if errors.Is(err, sandbox.ErrStarting) && context.Cause(a.ctx) == nil {
			continue
		}
		log.bar.end(false)
		var failed *sandbox.BuildError
		if errors.As(err, &failed) && c.Quiet {
			fmt.Fprint(a.Stderr, failed.Log)
			return exit(exitFailed)
		}
		if errors.As(err, &failed) {
			return exit(exitFailed) // its log says it
		}
		if err == nil {
			fmt.Fprintf(a.Stdout, "%s %s %s\n", s.Name, s.Digest, size(s.Size))
		}
		return err
	}
}

// read makes a build of what the command line says.
func (c *snapshotCreateCommand) read(a *App) (sandbox.Build, error) {
	if c.File == "" {
		var steps []dockerfile.Step
		for _, r := range c.RunStep {
			steps = append(steps, dockerfile.Step{Run: r})
		}
		return dockerfile.Steps(a.absoluteImage(c.Image), steps, nil)
	}
	var text []byte
	var err error
	file := c.File
	if file == "-" {
		text, err = io.ReadAll(io.LimitReader(a.Stdin, dockerfile.MaxText+1))
	} else {
		if !filepath.IsAbs(file) {
			file = filepath.Join(a.Dir, file)
		}
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return sandbox.Build{}, fmt.Errorf("-f: %s cannot be read: %s; name a Dockerfile, or - for stdin", file, because(err))
	}
	b, err := dockerfile.Parse(string(text), nil)
	if err != nil {
		return b, err
	}
	b.Image = a.absoluteImage(b.Image)
	dir, ignore := c.Context, ""
	switch {
	case dir == "" && file == "-":
		return b, nil
	case dir == "":
		dir = filepath.Dir(file)
	case !filepath.IsAbs(dir):
		dir = filepath.Join(a.Dir, dir)
	}
	if c.Context != "" {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return b, fmt.Errorf("--context: %s cannot be read: %s; name a directory", dir, because(err))
		}
		_ = root.Close()
	}
	if file != "-" {
		ignore = file + ".dockerignore"
	}
	b.Files, err = dockerfile.Context(b, dir, ignore)
	return b, err
}

// buildLog shows a build's log, and on a terminal how far it is below.
type buildLog struct {
	app         *App
	bar         *progress
	quiet       bool
	done, total int64
}

func (l *buildLog) report(p sandbox.Progress) {
	if !p.Log {
		l.bar.report(p)
		return
	}
	if l.quiet {
		return
	}
	line, style := printable(p.Text), ""
	var at, of int64
	switch {
	case strings.HasPrefix(line, "build_failed: "):
		style = "1;31"
	case line == "[cached]":
		style = "2"
	case strings.HasPrefix(line, "["):
		style = "1;36"
		if n, _ := fmt.Sscanf(line, "[%d/%d]", &at, &of); n == 2 {
			l.done, l.total = at-1, of
		}
	}
	l.bar.say("%s\n", l.app.paint(l.app.Stderr, style, line))
	if l.total > 0 {
		l.bar.report(sandbox.Progress{Text: fmt.Sprintf("step %d of %d", l.done+1, l.total), Done: l.done, Total: l.total})
	}
}

type snapshotLogCommand struct {
	nameOwner
	Name string `arg:"" help:"The snapshot."`
}

func (c *snapshotLogCommand) Run(a *App) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	keeper, ok := b.provider.(sandbox.BuildLogKeeper)
	if !ok {
		return errors.New("this provider builds no snapshots")
	}
	owner := sandbox.Owner(c.Owner)
	if c.Owner == "" || c.Owner == "all" { // else also of a build that failed, and left no snapshot
		if owner, err = b.snapshotOwner(a, c.Name, c.Owner); err != nil {
			return err
		}
	}
	text, err := keeper.BuildLog(a.ctx, owner, c.Name, 16<<20)
	if errors.Is(err, sandbox.ErrNotFound) {
		return fmt.Errorf("no log of a build of %q is kept; those of builds that failed are kept for a week", c.Name)
	}
	if err != nil {
		return err
	}
	fmt.Fprint(a.Stdout, text)
	return nil
}
