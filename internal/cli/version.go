package cli

import (
	"fmt"
	"runtime"
)

type versionCommand struct{}

func (versionCommand) Run(a *App) error {
	_, err := fmt.Fprintf(a.Stdout, "berth %s (%s, %s/%s)\n", a.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
