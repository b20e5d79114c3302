//go:build unix

package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"berth/sandbox"
)

// followSize gives the process our terminal's size whenever it changes.
func (a *App) followSize(ctx context.Context, p sandbox.Process) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	done := make(chan struct{})
	_ = p.Resize(ctx, a.windowSize()) // it may have changed since the start
	go func() {
		for {
			select {
			case <-done:
				return
			case <-changes:
				_ = p.Resize(ctx, a.windowSize()) // the process may have ended
			}
		}
	}()
	return func() { signal.Stop(changes); close(done) }
}
