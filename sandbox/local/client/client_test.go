//go:build linux

package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/client"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

func TestExits(t *testing.T) {
	c, _ := launch(t, nil)
	for _, tt := range []struct {
		name, shell    string
		code           int
		signal         string
		stdout, stderr string
	}{
		{"ok", "echo out; echo err >&2", 0, "", "out\n", "err\n"},
		{"code", "exit 42", 42, "", "", ""},
		{"signal", "kill -SEGV $$", 139, "SIGSEGV", "", ""},
		{"interrupt", "kill -INT $$; sleep 1", 130, "SIGINT", "", ""},
		{"hangup", "kill -HUP $$; sleep 1", 129, "SIGHUP", "", ""},
		{"pipe", "kill -PIPE $$; sleep 1", 141, "SIGPIPE", "", ""},
		{"null", "cat; readlink /proc/self/fd/0", 0, "", "/dev/null\n", ""},
		{"blocking", "python3 -c 'import os; print(os.get_blocking(1), os.get_blocking(2))'", 0, "", "True True\n", ""},
		{"large", "head -c 500000 /dev/zero | tr '\\0' x; echo end >&2", 0, "", strings.Repeat("x", 500000), "end\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := spawn(t, c, shell(tt.shell))
			i := finish(t, p)
			out, errs := output(t, p)
			if code(i) != tt.code || i.Signal != tt.signal || i.Killed || out != tt.stdout || errs != tt.stderr {
				t.Errorf("exit %d, signal %q, killed %v, stdout %.50q, stderr %q", code(i), i.Signal, i.Killed, out, errs)
			}
			if i.State != sandbox.ProcessExited || i.Ended.Before(i.Started) || i.Produced.Stdout != int64(len(tt.stdout)) || i.CPU < 0 {
				t.Errorf("Info = %+v", i)
			}
		})
	}
}

func TestSpawnErrors(t *testing.T) {
	c, dir := launch(t, nil)
	bad := shell("true")
	bad.Cwd = "/no/such/place"
	if _, err := c.Spawn(t.Context(), bad); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing cwd: %v", err)
	}
	none := sandbox.Command{ID: sandbox.NewProcessID(), Argv: []string{"no-such-program"}, Cwd: "/"}
	var user *sandbox.UserError
	if _, err := c.Spawn(t.Context(), none); !errors.As(err, &user) {
		t.Errorf("missing program: %v", err)
	}
	for _, id := range []sandbox.ProcessID{"", "../x", "a/b", ".."} {
		cmd := shell("true")
		cmd.ID = id
		if _, err := c.Spawn(t.Context(), cmd); err == nil {
			t.Errorf("Spawn with id %q was accepted", id)
		}
	}
	ps, err := c.Processes(t.Context())
	if err != nil || len(ps) != 0 {
		t.Errorf("Processes after failed starts = %v, %v", ps, err)
	}
	if old, err := journal.Load(dir); err != nil || len(old) != 0 {
		t.Errorf("journal after failed starts = %v, %v", old, err)
	}
	if _, err := c.Process(t.Context(), bad.ID); !errors.Is(err, sandbox.ErrNoProcess) {
		t.Errorf("Process = %v", err)
	}
}

// The same id runs once, however often and concurrently it is sent.
func TestSpawnTwiceRunsOnce(t *testing.T) {
	c, dir := launch(t, nil)
	mark := filepath.Join(t.TempDir(), "ran")
	cmd := shell("echo x >>" + mark + "; sleep 0.1")
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			other, err := client.Dial(t.Context(), dir)
			if err != nil {
				t.Error(err)
				return
			}
			defer other.Close()
			if _, err := other.Spawn(t.Context(), cmd); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	finish(t, c.Handle(cmd.ID))
	if _, err := c.Spawn(t.Context(), cmd); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(mark); string(b) != "x\n" {
		t.Fatalf("it ran %d times", len(b)/2)
	}
}

func TestKillAndTimeout(t *testing.T) {
	c, _ := launch(t, nil)
	ctx := t.Context()

	p := spawn(t, c, shell("echo ready; sleep 100"))
	await(t, p, "ready")
	if err := p.Kill(ctx, "TERM", time.Second, "asked"); err != nil {
		t.Fatal(err)
	}
	if i := finish(t, p); code(i) != 137 || !i.Killed || i.Signal != "SIGTERM" || i.Reason != "asked" || i.TimedOut {
		t.Errorf("after TERM: exit %d, %+v", code(i), i)
	}
	if err := p.Kill(ctx, "KILL", 0, "again"); err != nil {
		t.Errorf("Kill after the exit: %v", err)
	}

	p = spawn(t, c, shell("trap '' TERM; echo ready; while :; do sleep 0.05; done"))
	await(t, p, "ready")
	if err := p.Kill(ctx, "TERM", 100*time.Millisecond, ""); err != nil {
		t.Fatal(err)
	}
	if i := finish(t, p); code(i) != 137 || i.Signal != "SIGKILL" || !i.Killed {
		t.Errorf("after TERM and KILL: exit %d, %+v", code(i), i)
	}

	p = spawn(t, c, shell("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"))
	await(t, p, "ready")
	if err := p.Kill(ctx, "TERM", 0, ""); err != nil {
		t.Fatal(err)
	}
	if i := finish(t, p); code(i) != 5 || i.Killed {
		t.Errorf("caught TERM: exit %d, %+v", code(i), i)
	}
	if err := p.Kill(ctx, "NOTHING", 0, ""); err == nil {
		t.Error("signal NOTHING was accepted")
	}

	cmd := shell("sleep 100")
	cmd.Timeout = 50 * time.Millisecond
	p = spawn(t, c, cmd)
	if i := finish(t, p); code(i) != 124 || !i.Killed || !i.TimedOut || i.Signal != "SIGKILL" || i.Reason != "timed out after 50ms" {
		t.Errorf("timed out: exit %d, %+v", code(i), i)
	}
	if err := c.Handle("p-none").Kill(ctx, "TERM", 0, ""); !errors.Is(err, sandbox.ErrNoProcess) {
		t.Errorf("Kill of nothing = %v", err)
	}
}

// The exit is told although a leftover holds the pipe, and what the leftover
// prints later is kept.
func TestLeftovers(t *testing.T) {
	c, _ := launch(t, nil)
	gate := t.TempDir() + "/gate" // the fake init runs commands on the host
	p := spawn(t, c, shell("(while [ ! -e "+gate+" ]; do sleep 0.01; done; echo late; sleep 100) & echo main"))
	i := finish(t, p)
	if code(i) != 0 || len(i.Leftovers) == 0 {
		t.Fatalf("exit %d, leftovers %v", code(i), i.Leftovers)
	}
	if out, _ := output(t, p); out != "main\n" {
		t.Errorf("at the exit stdout is %q", out)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if out, _ := output(t, p); out == "main\nlate\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the leftover's output never came")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := p.Kill(t.Context(), "KILL", 0, ""); err != nil {
		t.Fatal(err)
	}
	for {
		i, err := p.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(i.Leftovers) == 0 {
			if code(i) != 0 || i.Killed {
				t.Errorf("the leftover's end changed the exit: %+v", i)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("leftovers live: %v", i.Leftovers)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A leftover that prints without end does not hold the exit back.
func TestFloodingLeftover(t *testing.T) {
	c, _ := launch(t, func(l *wire.Launch) { l.LogBytes = 1 << 20 })
	p := spawn(t, c, shell("yes & sleep 0.1; exit 3"))
	if i := finish(t, p); code(i) != 3 {
		t.Errorf("exit %d", code(i))
	}
	if err := p.Kill(t.Context(), "KILL", 0, ""); err != nil {
		t.Fatal(err)
	}
}

func TestStdin(t *testing.T) {
	c, _ := launch(t, nil)
	ctx := t.Context()
	cmd := shell("cat")
	cmd.Stdin, cmd.OpenStdin = []byte("first\n"), true
	p := spawn(t, c, cmd)
	await(t, p, "first\n")
	if i, _ := p.Info(ctx); !i.StdinOpen {
		t.Error("StdinOpen = false")
	}
	if err := p.Write(ctx, []byte("second\n"), true); err != nil {
		t.Fatal(err)
	}
	finish(t, p)
	if out, _ := output(t, p); out != "first\nsecond\n" {
		t.Errorf("stdout = %q", out)
	}
	if err := p.Write(ctx, []byte("x"), false); !errors.Is(err, sandbox.ErrExited) {
		t.Errorf("Write after the exit = %v", err)
	}

	cmd = shell("wc -c")
	cmd.Stdin = bytes.Repeat([]byte("x"), 3<<20)
	p = spawn(t, c, cmd)
	finish(t, p)
	if out, _ := output(t, p); out != "3145728\n" {
		t.Errorf("wc -c = %q", out)
	}

	p = spawn(t, c, shell("sleep 100"))
	if err := p.Write(ctx, []byte("x"), false); !errors.Is(err, sandbox.ErrStdinClosed) {
		t.Errorf("Write to /dev/null = %v", err)
	}
	_ = p.Kill(ctx, "KILL", 0, "")

	cmd = shell("sleep 100")
	cmd.OpenStdin = true
	p = spawn(t, c, cmd)
	var sent int
	chunk := bytes.Repeat([]byte("x"), 64<<10)
	for {
		err := p.Write(ctx, chunk, false)
		if errors.Is(err, sandbox.ErrLimit) {
			break
		}
		if err != nil || sent > 4<<20 {
			t.Fatalf("after %d bytes: %v", sent, err)
		}
		sent += len(chunk)
	}
	if sent < 1<<20 {
		t.Errorf("only %d bytes could wait", sent)
	}
	if err := p.Write(ctx, chunk, true); !errors.Is(err, sandbox.ErrLimit) {
		t.Errorf("Write and end = %v", err)
	}
	if i, _ := p.Info(ctx); !i.StdinOpen {
		t.Error("a refused write closed stdin")
	}
	_ = p.Kill(ctx, "KILL", 0, "")
}

func TestTerminal(t *testing.T) {
	c, _ := launch(t, nil)
	ctx := t.Context()
	cmd := shell("stty size; read x; stty size; echo got $x; cat; echo end")
	cmd.OpenStdin, cmd.TTY = true, &sandbox.WindowSize{Cols: 90, Rows: 33}
	p := spawn(t, c, cmd)
	await(t, p, "33 90")
	if err := p.Resize(ctx, sandbox.WindowSize{Cols: 100, Rows: 40}); err != nil {
		t.Fatal(err)
	}
	if err := p.Write(ctx, []byte("hi\n"), false); err != nil {
		t.Fatal(err)
	}
	await(t, p, "40 100\r\ngot hi")
	if err := p.Write(ctx, []byte("half"), true); err != nil {
		t.Fatal(err)
	}
	if i := finish(t, p); code(i) != 0 || !i.TTY {
		t.Errorf("exit %d, %+v", code(i), i)
	}
	if out, _ := output(t, p); !strings.HasSuffix(out, "end\r\n") {
		t.Errorf("stdout = %q", out)
	}
	q := spawn(t, c, shell("sleep 100"))
	if err := q.Resize(ctx, sandbox.WindowSize{Cols: 1, Rows: 1}); !errors.Is(err, sandbox.ErrUnsupported) {
		t.Errorf("Resize without a terminal = %v", err)
	}
}

func TestWaitAndCancel(t *testing.T) {
	c, _ := launch(t, nil)
	p := spawn(t, c, shell("sleep 100"))
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 100)
	for range 100 {
		go func() { errs <- p.Wait(ctx, sandbox.Cursor{}, false) }()
	}
	cancel()
	for range 100 {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Fatalf("Wait = %v", err)
		}
	}
	ps, err := c.Processes(t.Context())
	if err != nil || len(ps) != 1 || ps[0].Memory != 4096 || ps[0].State != sandbox.ProcessRunning {
		t.Errorf("Processes = %+v, %v", ps, err)
	}
	if err := c.Handle("p-none").Wait(t.Context(), sandbox.Cursor{}, true); !errors.Is(err, sandbox.ErrNoProcess) {
		t.Errorf("Wait for nothing = %v", err)
	}
}

// The answer to a start is the end of a short command, and does not wait for that
// of a long one.
func TestAwaitedExit(t *testing.T) {
	c, _ := launch(t, nil)
	ended := false
	for range 20 { // one that the machine holds up is answered before
		cmd := shell("exit 3")
		cmd.Await = time.Second
		p := spawn(t, c, cmd)
		ended = ended || client.Knows(p)
		if i := finish(t, p); code(i) != 3 {
			t.Fatalf("%+v; want an exit with 3", i)
		}
	}
	if !ended {
		t.Error("no start was answered with the exit")
	}

	long := shell("sleep 60")
	long.Await = time.Hour
	p := spawn(t, c, long)
	if i, err := p.Info(t.Context()); err != nil || i.State != sandbox.ProcessRunning {
		t.Errorf("%+v, %v; want it running", i, err)
	}

	// Who watches is told of the first output.
	watched := shell("echo first; sleep 60")
	watched.Await, watched.Watched = time.Hour, true
	w := spawn(t, c, watched)
	if i, err := w.Info(t.Context()); err != nil || i.State != sandbox.ProcessRunning || i.Produced.Stdout != 6 {
		t.Errorf("%+v, %v; want it running, and 6 bytes of output", i, err)
	}

	// Who leaves meanwhile has a handle to kill it by.
	long = shell("sleep 60")
	long.Await = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(5*time.Millisecond, cancel)
	left, err := c.Spawn(ctx, long)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []sandbox.Process{p, w, left} {
		if err := p.Kill(t.Context(), "KILL", 0, "enough"); err != nil {
			t.Error(err)
		}
		finish(t, p)
	}
}

func TestFiles(t *testing.T) {
	c, _ := launch(t, nil)
	ctx := t.Context()
	f := c.Files()
	dir := t.TempDir()
	name := dir + "/a"
	r, err := f.Write(ctx, name, strings.NewReader("hello"), sandbox.WriteOptions{})
	if err != nil || !r.Created || r.Bytes != 5 || r.Path != name {
		t.Fatalf("Write = %+v, %v", r, err)
	}
	if _, err := f.Write(ctx, name, strings.NewReader(" you"), sandbox.WriteOptions{Append: true}); err != nil {
		t.Fatal(err)
	}
	rc, i, err := f.Open(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(rc)
	rc.Close()
	if string(b) != "hello you" || i.Size != 9 || !i.Mode.IsRegular() {
		t.Errorf("Open = %q, %+v", b, i)
	}
	broken := io.MultiReader(strings.NewReader("part"), brokenReader{})
	if _, err := f.Write(ctx, name, broken, sandbox.WriteOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Write of a broken source = %v", err)
	}
	// What a connection leaves is dropped with it.
	stay, stop := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	wrote := make(chan error, 1)
	go func() { _, err := f.Write(stay, name, pr, sandbox.WriteOptions{}); wrote <- err }()
	if _, err := pw.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	stop()
	pw.Close()
	<-wrote
	// It is dropped when its turn comes, after the call has returned.
	var list []sandbox.FileInfo
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if list, err = f.ReadDir(ctx, dir); err != nil || len(list) == 1 || time.Now().After(end) {
			break
		}
	}
	if err != nil || len(list) != 1 || list[0].Size != 9 {
		t.Errorf("ReadDir = %+v, %v", list, err)
	}
	if _, err := f.Stat(ctx, dir+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat = %v", err)
	}
	if _, _, err := f.Open(ctx, dir); !errors.Is(err, sandbox.ErrIsDir) {
		t.Errorf("Open of a directory = %v", err)
	}
	if _, _, err := f.Open(ctx, "/dev/null"); !errors.Is(err, sandbox.ErrNotRegular) {
		t.Errorf("Open of a device = %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
