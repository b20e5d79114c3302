//go:build linux

package resident_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/resident"
)

// patience bounds what ends by itself.
const patience = 2 * time.Minute

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newBox(s *shell, id string) *resident.Box {
	return resident.New(s, resident.Options{ID: id, Program: program})
}

func (s *shell) text(shell string) sandbox.Command {
	return sandbox.Command{ID: sandbox.NewProcessID(), Shell: shell, Display: shell, Cwd: s.home, Busy: true}
}

func spawn(t *testing.T, b *resident.Box, c sandbox.Command) sandbox.Process {
	t.Helper()
	p, err := b.Spawn(limited(t), c)
	if err != nil {
		t.Fatalf("Spawn(%s): %v", c.Display, err)
	}
	return p
}

// end waits for the exit and returns all that was printed.
func end(t *testing.T, p sandbox.Process) (sandbox.ProcessInfo, string) {
	t.Helper()
	ctx := limited(t)
	if err := p.Wait(ctx, sandbox.Cursor{}, true); err != nil {
		t.Fatalf("Wait: %v", err)
	}
	i, err := p.Info(ctx)
	if err != nil {
		t.Fatalf("Info: %v", err)
	}
	var out strings.Builder
	for at := i.Kept; ; {
		o, err := p.Read(ctx, at, 1<<20)
		if err != nil {
			t.Fatalf("Read: %v", err)
		}
		if len(o.Stdout)+len(o.Stderr) == 0 {
			return i, out.String()
		}
		if o.Dropped != 0 {
			t.Errorf("%d bytes are gone", o.Dropped)
		}
		out.Write(o.Stdout)
		out.Write(o.Stderr)
		at = o.Next
	}
}

func code(i sandbox.ProcessInfo) int {
	if i.ExitCode == nil {
		return -1
	}
	return *i.ExitCode
}

func run(t *testing.T, b *resident.Box, c sandbox.Command) string {
	t.Helper()
	i, out := end(t, spawn(t, b, c))
	if code(i) != 0 {
		t.Errorf("%s: got exit %d (%s), %q", c.Display, code(i), i.Reason, out)
	}
	return out
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("never: " + what)
		}
	}
}
