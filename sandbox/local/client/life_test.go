//go:build linux

package client_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/client"
	"berth/sandbox/local/wire"
)

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

func TestIdleStopAndDelete(t *testing.T) {
	dir := t.TempDir()
	upper := dir + "/upper"
	if err := os.MkdirAll(upper+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	c := launchIn(t, dir, func(l *wire.Launch) {
		l.Mounts = []wire.Mount{{Target: "/", Type: "overlay", Upper: upper, Work: "/etc/../" + dir + "/work"}}
	})
	began := time.Now() // before: the command's time begins with its start
	p := spawn(t, c, shell("sleep 0.4"))
	if err := c.Configure(t.Context(), wire.Intervals{AutoStopMS: 100, DeleteOnStop: true}); err != nil {
		t.Fatal(err)
	}
	if u, err := c.Usage(t.Context()); err != nil || u.IdleSince != 0 {
		t.Errorf("Usage = %+v, %v", u, err)
	}
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
