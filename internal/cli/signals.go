package cli

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"berth/sandbox"
)

// passed are the signals to us that are a command's: from Ctrl-C, from whoever
// ends us in order, and from a terminal that is closed.
var passed = map[os.Signal]struct{ name, reason string }{
	os.Interrupt:    {"INT", interrupted},
	syscall.SIGTERM: {"TERM", toldToEnd},
	syscall.SIGHUP:  {"HUP", toldToEnd},
}

// signals catches what would end us.
type signals struct {
	caught chan os.Signal
	done   chan struct{}
	stop   func()
}

// catch begins to catch signals, until stop is called.
func catch() *signals {
	s := &signals{caught: make(chan os.Signal, 4), done: make(chan struct{})}
	list := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		list = append(list, syscall.SIGHUP)
	}
	signal.Notify(s.caught, list...)
	s.stop = sync.OnceFunc(func() { signal.Stop(s.caught); close(s.done) })
	return s
}

// pass hands the signals on to p, those caught already first; the second of a
// kind kills it.
func (s *signals) pass(ctx context.Context, p sandbox.Process) {
	go func() {
		seen := map[os.Signal]bool{}
		for {
			select {
			case <-s.done:
				return
			case sig := <-s.caught:
				how := passed[sig]
				if seen[sig] {
					how.name = "KILL"
				}
				seen[sig] = true
				_ = p.Kill(ctx, how.name, 0, how.reason) // it may have ended
			}
		}
	}()
}

// fromUs tells the code of a command that ended by a signal which we passed on.
// The sandbox's record has the code 137 for all that berth kills.
func fromUs(info sandbox.ProcessInfo) (code int, yes bool) {
	if !info.Killed || !slices.Contains([]string{interrupted, toldToEnd}, info.Reason) {
		return 0, false
	}
	for sig, how := range passed {
		if info.Signal == "SIG"+how.name {
			return codeOf(sig), true
		}
	}
	return 0, false
}
