//go:build !unix

package cli

import (
	"context"

	"berth/sandbox"
)

// followSize sets the size once: there is no signal here that tells of changes.
func (a *App) followSize(ctx context.Context, p sandbox.Process) (stop func()) {
	_ = p.Resize(ctx, a.windowSize())
	return func() {}
}
