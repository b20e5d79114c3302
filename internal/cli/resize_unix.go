//go:build unix

package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"berth/sandbox"
)

// lateSize is how long after its signal a size is looked at again: of a pseudo
// terminal the kernel sends the signal first and then notes the size (pty_resize
// in drivers/tty/pty.c), which who is quick has not seen.
const lateSize = 100 * time.Millisecond

// followSize gives the process our terminal's size whenever it changes.
func (a *App) followSize(ctx context.Context, p sandbox.Process) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	done := make(chan struct{})
	told := a.windowSize()
	_ = p.Resize(ctx, told) // it may have changed since the start
	go func() {
		var late <-chan time.Time
		for {
			select {
			case <-done:
				return
			case <-changes:
				late = time.After(lateSize)
			case <-late:
				late = nil
			}
			if size := a.windowSize(); size != told {
				told = size
				_ = p.Resize(ctx, size) // the process may have ended
			}
		}
	}()
	return func() { signal.Stop(changes); close(done) }
}
