package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// berth is this program, run with a state directory of its own.
type berth struct {
	t   *testing.T
	env []string
	dir string
}

// shared is the directory of all tests: the first sandbox in a state directory
// takes long. An ordinary user cannot remove all of it: what is root's inside
// is nobody's outside.
var shared = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-")
	if err == nil {
		atEnd = append(atEnd, func() { _ = os.RemoveAll(dir) })
	}
	return dir, err
})

func newBerth(t *testing.T) *berth {
	t.Helper()
	dir, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	b := &berth{t: t, dir: dir, env: append(os.Environ(), "BERTH_STATE="+filepath.Join(dir, "state"), "HOME="+dir, "XDG_CONFIG_HOME=", "NO_COLOR=1", "TERM=xterm")}
	t.Cleanup(func() {
		if ids := strings.Fields(b.output("ls", "-q")); len(ids) > 0 {
			b.output(append([]string{"rm"}, ids...)...)
		}
	})
	return b
}

func (b *berth) command(args ...string) *exec.Cmd {
	b.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	return &exec.Cmd{Path: exe, Args: append([]string{"berth"}, args...), Env: b.env, Dir: b.dir}
}

// output runs berth, which must succeed.
func (b *berth) output(args ...string) string {
	b.t.Helper()
	c := b.command(args...)
	var errs strings.Builder
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		b.t.Errorf("berth %s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}

// ended waits for c, and returns its exit code; -1 when a signal ended it.
func (b *berth) ended(c *exec.Cmd) int {
	b.t.Helper()
	done := make(chan struct{})
	go func() { _ = c.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		_ = c.Process.Kill()
		<-done
		b.t.Fatalf("%s did not end", strings.Join(c.Args, " "))
	}
	return c.ProcessState.ExitCode()
}

// A signal to berth run reaches the command, decides the exit code, and leaves
// no sandbox behind.
func TestRunUnderSignals(t *testing.T) {
	b := newBerth(t)
	// What these tests' own starter ignores (nohup does), programs would too.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(caught) })
	for _, c := range []struct {
		name    string
		signal  syscall.Signal
		script  string
		signals int
		code    int
	}{
		{"int", syscall.SIGINT, "echo ready; exec sleep 60", 1, 130},
		{"term", syscall.SIGTERM, "echo ready; exec sleep 60", 1, 143},
		{"hangup", syscall.SIGHUP, "echo ready; exec sleep 60", 1, 129},
		{"int_to_a_shell_with_a_child", syscall.SIGINT, "echo ready; sleep 60; echo never", 1, 130},
		{"handled", syscall.SIGINT, "trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done", 1, 7},
		{"ignored_then_again", syscall.SIGINT, "trap '' INT; echo ready; sleep 60; sleep 60", 2, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := *b
			b.t = t
			run := b.command("run", "--", "sh", "-c", c.script)
			var errs strings.Builder
			run.Stderr = &errs
			out, err := run.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			if line, err := lines.ReadString('\n'); line != "ready\n" {
				t.Fatalf("got %q, %v, stderr %q", line, err, errs.String())
			}
			for range c.signals {
				if err := run.Process.Signal(c.signal); err != nil {
					t.Fatal(err)
				}
				// Two of a kind that are not yet taken are one.
				time.Sleep(100 * time.Millisecond)
			}
			rest, err := io.ReadAll(lines)
			if code := b.ended(run); code != c.code || len(rest) > 0 || err != nil || errs.String() != "" {
				t.Errorf("exit %d, then %q, %v, stderr %q; want exit %d and no more", code, rest, err, errs.String(), c.code)
			}
			if left := b.output("ls", "-q"); left != "" {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}
