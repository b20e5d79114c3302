package cli

import (
	"os"
	"strconv"

	"berth/internal/config"
	"berth/sandbox/local"
)

// diagnoseLocal looks at this machine. Root that somebody became by sudo asks for
// that user, too.
func (a *App) diagnoseLocal(c *config.Config) ([]check, error) {
	o, err := localOptions(a, c, a.logger(c, true))
	if err != nil {
		return nil, err
	}
	found := local.Diagnose(a.ctx, o)
	uid, err := strconv.Atoi(a.getenv("SUDO_UID"))
	if name := a.getenv("SUDO_USER"); err == nil && uid > 0 && name != "" && os.Geteuid() == 0 {
		found = append(found, local.DiagnoseUser(name, uid)...)
	}
	checks := make([]check, len(found))
	for i, f := range found {
		checks[i] = check{Name: f.Name, Detail: f.Detail, Remedy: f.Remedy, State: checkState(f.State), Required: f.Required, Fix: f.Fix}
	}
	return checks, nil
}
