//go:build !linux

package cli

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"berth/internal/config"
	"berth/sandbox"
)

// remedies is what a call is told where no sandbox can be made.
const remedies = "berth makes sandboxes of its own on Linux only, and this machine runs " + runtime.GOOS + ". Either set DAYTONA_API_KEY to have them made at Daytona, " +
	"or run berth in a Linux container and reach it through docker (berth client-config NAME --container CONTAINER prints how), or, on Windows, in WSL (berth client-config NAME --wsl)"

func (a *App) local(*config.Config, *slog.Logger, string) (sandbox.Provider, string, error) {
	return nowhere{errors.New(remedies)}, remedies, nil
}

func stateDir(a *App, c *config.Config) (string, error) {
	if c.State != "" {
		return c.State, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", errors.New("no place for berth's state; set BERTH_STATE to a directory of your own")
	}
	return filepath.Join(dir, "berth", "state"), nil
}

func (a *App) diagnoseLocal(*config.Config) ([]check, error) { return nil, errors.New(remedies) }
