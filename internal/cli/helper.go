package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"berth/sandbox/local/boxbin"
	"berth/sandbox/local/wire"
)

type helperCommand struct {
	Arch string `arg:"" enum:"amd64,arm64" help:"The architecture of the image: amd64 or arm64."`
	To   string `help:"The directory that they are written to; it is made when it is missing." placeholder:"DIR" default:"."`
}

// Help is shown by --help.
func (*helperCommand) Help() string {
	return "In a Daytona sandbox berth needs a small helper program, box, which it brings itself at the first start, and for buckets bucketd. An image that " +
		"has them in " + path.Dir(wire.PrebakedName) + " saves that: berth helper amd64, and in the Dockerfile COPY --chmod=755 box bucketd " + path.Dir(wire.PrebakedName) + "/"
}

func (c *helperCommand) Run(a *App) error {
	box := boxbin.Open(c.Arch)
	if box == nil {
		return fmt.Errorf("this berth was built without its helper for linux/%s; build it by make, which makes the helper first", c.Arch)
	}
	bucketd, err := bucketdFor(c.Arch)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.To, 0o755); err != nil {
		return fmt.Errorf("helper: --to: %w", err)
	}
	var names []string
	for _, p := range []struct {
		name string
		text io.Reader
	}{{path.Base(wire.PrebakedName), box}, {"bucketd", bytes.NewReader(bucketd)}} {
		name := filepath.Join(c.To, p.name)
		if err := writeProgram(name, p.text); err != nil {
			return fmt.Errorf("write the helper: %w", err)
		}
		names = append(names, name)
	}
	fmt.Fprintf(a.Stderr, "in a Dockerfile: COPY --chmod=755 box bucketd %s/\n", path.Dir(wire.PrebakedName))
	_, err = fmt.Fprintln(a.Stdout, strings.Join(names, "\n"))
	return err
}

// writeProgram makes the executable file name, whole or not at all.
func writeProgram(name string, text io.Reader) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".box-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o755)
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	return err
}
