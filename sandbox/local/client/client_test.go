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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/client"
	"berth/sandbox/local/journal"
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

func TestStopKeepsHistory(t *testing.T) {
	c, dir := launch(t, nil)
	ctx := t.Context()
	done := spawn(t, c, shell("echo done; exit 7"))
	finish(t, done)
	running := spawn(t, c, shell("echo hello; sleep 100"))
	await(t, running, "hello")
	waited := make(chan error, 1)
	go func() { waited <- running.Wait(ctx, sandbox.Cursor{}, true) }()
	if err := c.Stop(ctx, "asked to"); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("Wait over the stop = %v", err)
	}
	if _, err := c.Spawn(ctx, shell("true")); !errors.Is(err, client.ErrGone) || !errors.Is(err, sandbox.ErrNotRunning) {
		t.Errorf("Spawn after the stop = %v", err)
	}
	if _, err := client.Dial(ctx, dir); !errors.Is(err, client.ErrGone) {
		t.Errorf("Dial after the stop = %v", err)
	}
	r, alive, err := client.Alive(dir)
	if err != nil || alive || r.Stopped == 0 || r.Reason != "asked to" {
		t.Errorf("Alive = %+v, %v, %v", r, alive, err)
	}
	check := func(t *testing.T, list []sandbox.ProcessInfo, err error) {
		t.Helper()
		if err != nil || len(list) != 2 {
			t.Fatalf("processes = %+v, %v", list, err)
		}
		if i := list[0]; code(i) != 7 || i.Produced.Stdout != 5 {
			t.Errorf("done = %+v", i)
		}
		if i := list[1]; code(i) != 137 || !i.Killed || i.Reason != "the sandbox was stopped: asked to" {
			t.Errorf("running = %+v, exit %d", i, code(i))
		}
	}
	list, err := client.History(dir)
	check(t, list, err)
	// Handles of before, and of after.
	for _, p := range []sandbox.Process{running, must(client.HistoryProcess(dir, running.ID()))} {
		if i := finish(t, p); code(i) != 137 {
			t.Errorf("Info = %+v", i)
		}
		if out, _ := output(t, p); out != "hello\n" {
			t.Errorf("stdout = %q", out)
		}
		if err := p.Write(ctx, []byte("x"), false); !errors.Is(err, sandbox.ErrExited) {
			t.Errorf("Write = %v", err)
		}
		if err := p.Kill(ctx, "TERM", 0, ""); err != nil {
			t.Errorf("Kill = %v", err)
		}
	}
	if _, err := client.HistoryProcess(dir, "p-none"); !errors.Is(err, sandbox.ErrNoProcess) {
		t.Errorf("HistoryProcess = %v", err)
	}
	// The next monitor knows them too.
	c2 := launchIn(t, dir, nil)
	list, err = c2.Processes(ctx)
	check(t, list, err)
	finish(t, c2.Handle(running.ID()))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMonitorKilled(t *testing.T) {
	c, dir := launch(t, nil)
	ctx := t.Context()
	p := spawn(t, c, shell("echo before; sleep 100"))
	await(t, p, "before")
	waited := make(chan error, 1)
	go func() { waited <- p.Wait(ctx, sandbox.Cursor{}, true) }()
	if err := unix.Kill(c.Hello().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("Wait = %v", err)
	}
	if i := finish(t, p); i.State != sandbox.ProcessLost || i.ExitCode != nil || i.Reason == "" || i.Produced.Stdout != 7 {
		t.Errorf("Info = %+v", i)
	}
	if _, err := c.Spawn(ctx, shell("true")); !errors.Is(err, sandbox.ErrNotRunning) {
		t.Errorf("Spawn = %v", err)
	}
	if _, err := c.Files().Stat(ctx, "/"); !errors.Is(err, sandbox.ErrNotRunning) {
		t.Errorf("Stat = %v", err)
	}
	c2 := launchIn(t, dir, nil)
	list, err := c2.Processes(ctx)
	if err != nil || len(list) != 1 || list[0].State != sandbox.ProcessLost {
		t.Errorf("Processes of the next = %+v, %v", list, err)
	}
	if out, _ := output(t, c2.Handle(p.ID())); out != "before\n" {
		t.Errorf("stdout = %q", out)
	}
}

func TestLaunchFailures(t *testing.T) {
	for _, tt := range []struct{ session, want string }{
		{"s-refused", "user namespaces are refused here"},
		{"s-dies", "out of luck"},
	} {
		dir := t.TempDir()
		_, _, err := client.Launch(t.Context(), self(t), &wire.Launch{Version: wire.Version, Dir: dir}, tt.session)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Launch(%s) = %v, want %q in it", tt.session, err, tt.want)
		}
		if _, alive, _ := client.Alive(dir); alive {
			t.Errorf("%s: its monitor lives", tt.session)
		}
		if _, err := os.Stat(dir + "/monitor.sock"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the socket is left: %v", tt.session, err)
		}
	}
	c, dir := launch(t, nil)
	_ = c
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := client.Launch(ctx, self(t), &wire.Launch{Version: wire.Version, Dir: dir}, "s-test"); err == nil {
		t.Error("a second monitor was launched")
	}
}

func TestLongSocketPath(t *testing.T) {
	dir := t.TempDir()
	for len(dir) < 200 {
		dir += "/" + strings.Repeat("d", 40)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c := launchIn(t, dir, nil)
	finish(t, spawn(t, c, shell("true")))
	st, err := os.Stat(dir + "/monitor.sock")
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
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

func TestIdleStopAndDelete(t *testing.T) {
	dir := t.TempDir()
	upper := dir + "/upper"
	if err := os.MkdirAll(upper+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	c := launchIn(t, dir, func(l *wire.Launch) {
		l.Mounts = []wire.Mount{{Target: "/", Type: "overlay", Upper: upper, Work: "/etc/../" + dir + "/work"}}
	})
	p := spawn(t, c, shell("sleep 0.4"))
	if err := c.Configure(t.Context(), wire.Intervals{AutoStopMS: 100, DeleteOnStop: true}); err != nil {
		t.Fatal(err)
	}
	if u, err := c.Usage(t.Context()); err != nil || u.IdleSince != 0 {
		t.Errorf("Usage = %+v, %v", u, err)
	}
	began := time.Now()
	i := finish(t, p)
	if code(i) != 0 {
		t.Errorf("a busy process was ended: %+v", i)
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it never stopped")
	}
	if d := time.Since(began); d < 400*time.Millisecond {
		t.Errorf("stopped after %v", d)
	}
	if err := c.Stop(t.Context(), "late"); err != nil {
		t.Errorf("Stop after the idle stop = %v", err)
	}
	r, _, _ := client.Alive(dir)
	if r == nil || r.Reason != "idle for 100 milliseconds" {
		t.Errorf("record = %+v", r)
	}
	left, _ := os.ReadDir(dir)
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if want := []string{"delete", "monitor.json", "monitor.log"}; !slices.Equal(names, want) {
		t.Errorf("left: %v, want %v", names, want)
	}
}

func TestKeepsBounds(t *testing.T) {
	c, dir := launch(t, func(l *wire.Launch) { l.KeepProcesses, l.KeepLogBytes, l.LogBytes = 5, 1<<20, 4<<20 })
	var last sandbox.Process
	for range 12 {
		last = spawn(t, c, shell("echo x"))
		finish(t, last)
	}
	ps, err := c.Processes(t.Context())
	if err != nil || len(ps) != 5 || ps[4].ID != last.ID() {
		t.Errorf("Processes = %+v, %v", ps, err)
	}
	// One that prints more than all may hold pushes the others out, then
	// loses its own oldest bytes.
	p := spawn(t, c, shell("head -c 3000000 /dev/zero; sleep 100"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Wait(ctx, sandbox.Cursor{Stdout: 2999999}, false); err != nil {
		t.Fatal(err)
	}
	var kept sandbox.ProcessInfo
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if kept, err = p.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
		if size := kept.Produced.Stdout - kept.Kept.Stdout; size <= 1<<20 && size > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("kept %+v", kept)
		}
	}
	if ps, err = c.Processes(t.Context()); err != nil || len(ps) != 1 {
		t.Errorf("%d processes are kept, %v", len(ps), err)
	}
	e, _ := os.ReadDir(dir + "/logs")
	if len(e) != 1 {
		t.Errorf("logs: %v", e)
	}
}
