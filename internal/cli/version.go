package cli

import (
	"errors"
	"fmt"
	"runtime"
)

type versionCommand struct{}

func (versionCommand) Run(a *App) error {
	_, err := fmt.Fprintln(a.Stdout, a.version())
	return err
}

func (a *App) version() string {
	return fmt.Sprintf("berth %s (%s, %s/%s)", a.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// helpCommand is only listed: Run makes --help of it, which alone can show
// another command's.
type helpCommand struct {
	Command string `arg:"" optional:"" help:"The command."`
}

func (helpCommand) Run() error { return errors.New("help comes first: berth help COMMAND") }
