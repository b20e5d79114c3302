//go:build linux

package monitor

import (
	"os"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate"
	"berth/sandbox/local/wire"
)

// Main is `box monitor`. It does not return.
func Main() {
	os.Exit(Run(func(l *wire.Launch) (Sandbox, error) {
		s, err := isolate.Start(l)
		if err != nil {
			return nil, err
		}
		return isolated{s}, nil
	}))
}

type isolated struct{ *isolate.Sandbox }

func (s isolated) Conn() *wire.Conn  { return s.Sandbox.Conn }
func (s isolated) Gate() []*os.File  { return s.Sandbox.Gate }
func (s isolated) Ready() wire.Ready { return s.Sandbox.Ready }

// Kill is called before Wait has returned, so that the pid is still init's.
func (s isolated) Kill() { _ = unix.Kill(s.PID, unix.SIGKILL) }
