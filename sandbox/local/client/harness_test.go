//go:build linux

package client_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/client"
	"berth/sandbox/local/monitor"
	"berth/sandbox/local/monitor/monitortest"
	"berth/sandbox/local/wire"
)

// The test program is its own box: started as a monitor, it watches over a
// stand-in for a sandbox. Its environment is empty then, so that the session
// tells what else it should do.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "monitor" {
		os.Exit(monitor.Run(func(l *wire.Launch) (monitor.Sandbox, error) {
			switch os.Args[2] {
			case "s-refused":
				return nil, &wire.Error{Code: wire.CodeUnsupported, Text: "user namespaces are refused here"}
			case "s-dies":
				_, _ = os.Stderr.WriteString("out of luck\n")
				os.Exit(3)
			}
			return monitortest.Start(l)
		}))
	}
	if len(os.Args) > 1 && os.Args[1] == "reader" {
		reader(os.Args[2], os.Args[3])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "hello" {
		hello(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

func self(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func launchIn(t testing.TB, dir string, change func(*wire.Launch)) *client.Conn {
	t.Helper()
	l := &wire.Launch{Version: wire.Version, Dir: dir, User: "agent"}
	if change != nil {
		change(l)
	}
	c, r, err := client.Launch(t.Context(), self(t), l, "s-test")
	if err != nil {
		t.Fatal(err)
	}
	if r.InitPID == 0 {
		t.Fatalf("Ready = %+v", r)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := c.Stop(ctx, "the test is over"); err != nil && !errors.Is(err, client.ErrGone) && !errors.Is(err, sandbox.ErrClosed) {
			t.Errorf("Stop: %v", err)
		}
		c.Close()
	})
	return c
}

func launch(t testing.TB, change func(*wire.Launch)) (*client.Conn, string) {
	t.Helper()
	dir := t.TempDir()
	return launchIn(t, dir, change), dir
}

func shell(text string) sandbox.Command {
	return sandbox.Command{ID: sandbox.NewProcessID(), Shell: text, Display: text, Cwd: "/", Busy: true}
}

func spawn(t testing.TB, c *client.Conn, cmd sandbox.Command) sandbox.Process {
	t.Helper()
	p, err := c.Spawn(t.Context(), cmd)
	if err != nil {
		t.Fatalf("Spawn(%.80q): %v", cmd.Shell, err)
	}
	return p
}

// finish waits for the exit.
func finish(t testing.TB, p sandbox.Process) sandbox.ProcessInfo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Wait(ctx, sandbox.Cursor{}, true); err != nil {
		t.Fatalf("Wait: %v", err)
	}
	i, err := p.Info(ctx)
	if err != nil {
		t.Fatalf("Info: %v", err)
	}
	return i
}

func output(t testing.TB, p sandbox.Process) (string, string) {
	t.Helper()
	o, err := p.Read(t.Context(), sandbox.Cursor{}, 1<<20)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return string(o.Stdout), string(o.Stderr)
}

// await waits until stdout holds text.
func await(t testing.TB, p sandbox.Process, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var at sandbox.Cursor
	var all []byte
	for !bytes.Contains(all, []byte(text)) {
		if err := p.Wait(ctx, at, false); err != nil {
			t.Fatalf("waiting for %q: %v; got %q", text, err, all)
		}
		o, err := p.Read(ctx, at, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(o.Stdout)+len(o.Stderr) == 0 && o.Next == at {
			t.Fatalf("ended without %q; got %q", text, all)
		}
		all, at = append(all, o.Stdout...), o.Next
	}
}

func code(i sandbox.ProcessInfo) int {
	if i.ExitCode == nil {
		return -1
	}
	return *i.ExitCode
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
