//go:build linux

package client_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/client"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// fakeMonitor is this process as a monitor. Each connection's requests go to
// handle, whose false closes the connection.
func fakeMonitor(t *testing.T, handle func(c *wire.Conn, f *wire.Frame) bool) (dir string) {
	t.Helper()
	dir = t.TempDir()
	boot, err := journal.BootID()
	if err != nil {
		t.Fatal(err)
	}
	start, err := journal.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := journal.WriteRecord(dir, &wire.Record{Version: wire.Version, Boot: boot, MonitorPID: os.Getpid(), MonitorStart: start, Started: 1}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/" + journal.SocketName}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			s, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			c, err := wire.Socket(s, 0)
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					f, err := c.Recv()
					if err != nil {
						return
					}
					if f.Op == wire.OpHello {
						err = c.Send(wire.Header{ID: f.ID}, wire.Hello{Version: wire.Version, Boot: boot, PID: os.Getpid(), Started: 1}, nil)
					} else if !handle(c, f) {
						return
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		<-done
		_ = unix.Close(fd)
	})
	return dir
}

// A start whose answer never comes is neither repeated nor forgotten.
func TestSpawnOnABreakingConnection(t *testing.T) {
	var known atomic.Value
	known.Store("nothing")
	var spawns atomic.Int32
	dir := fakeMonitor(t, func(c *wire.Conn, f *wire.Frame) bool {
		switch f.Op {
		case wire.OpSpawn:
			spawns.Add(1)
			return false
		case wire.OpProcess:
			if id := known.Load().(string); strings.Contains(string(f.Body), id) {
				return c.Send(wire.Header{ID: f.ID}, wire.Process{ID: id, State: journal.Running}, nil) == nil
			}
			return c.Send(wire.Header{ID: f.ID, Error: &wire.Error{Code: wire.CodeNoProcess, Text: "there is no such process"}}, nil, nil) == nil
		}
		return false
	})
	dial := func() *client.Conn {
		c, err := client.Dial(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	if _, err := dial().Spawn(t.Context(), shell("true")); !errors.Is(err, sandbox.ErrMaybeStarted) {
		t.Errorf("Spawn that the monitor does not know of = %v, want ErrMaybeStarted", err)
	}
	if n := spawns.Swap(0); n != 1 {
		t.Errorf("the start was sent %d times", n)
	}
	cmd := shell("true")
	known.Store(string(cmd.ID))
	if p, err := dial().Spawn(t.Context(), cmd); err != nil || p.ID() != cmd.ID {
		t.Errorf("Spawn that the monitor knows of = %v", err)
	}
	if n := spawns.Swap(0); n != 1 {
		t.Errorf("the start was sent %d times", n)
	}
}

// strangers lists what monitor pid holds open and should not.
func strangers(t *testing.T, pid int, name string) (found []string) {
	t.Helper()
	links, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, l.Name())); strings.Contains(to, name) {
			found = append(found, l.Name()+" "+to)
		}
	}
	return found
}

// What berth was started with, in whatever number, does not live on in its monitors.
func TestMonitorInheritsNothing(t *testing.T) {
	name := t.TempDir() + "/stray"
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, above := range []int{20, 251, 1000} {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, above) // without close-on-exec
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	c, _ := launch(t, nil)
	if got := strangers(t, c.Hello().PID, name); len(got) > 0 {
		t.Errorf("the monitor holds %q", got)
	}
	if i := finish(t, spawn(t, c, shell("true"))); code(i) != 0 {
		t.Errorf("exit %d", code(i))
	}
}

// A berth with very many open files starts monitors as any other.
func TestLaunchWithManyFiles(t *testing.T) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	n := 10_000
	if lim.Max < uint64(n)+500 {
		t.Skipf("RLIMIT_NOFILE is %d; 10,500 are needed", lim.Max)
	}
	old := lim
	lim.Cur = uint64(n) + 500
	if lim.Cur > old.Cur {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }()
	}
	for range n {
		fd, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	c, _ := launch(t, nil)
	if got := strangers(t, c.Hello().PID, "/dev/zero"); len(got) > 0 {
		t.Errorf("the monitor holds %d of berth's files", len(got))
	}
	if i := finish(t, spawn(t, c, shell("echo x"))); code(i) != 0 || i.Produced.Stdout != 2 {
		t.Errorf("exit %d, %+v", code(i), i)
	}
}

// Another user is turned away, even one that can reach the socket.
func TestOtherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	c, dir := launch(t, nil)
	path := dir + "/" + journal.SocketName
	for at := dir; at != "/" && at != os.TempDir(); at = at[:strings.LastIndexByte(at, '/')] {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		uid  uint32
		want string
	}{{0, "answered"}, {65534, "refused"}} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "hello", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tt.uid, Gid: tt.uid}}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != tt.want {
			t.Errorf("uid %d: %q, %v, want %q", tt.uid, out, err, tt.want)
		}
	}
	if i := finish(t, spawn(t, c, shell("true"))); code(i) != 0 {
		t.Errorf("the owner's command: exit %d", code(i))
	}
}

// hello says hello to a monitor and prints what became of it.
func hello(path string) {
	say := func(s string) { _, _ = os.Stdout.WriteString(s) }
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		say(err.Error())
		return
	}
	c, err := wire.Socket(fd, 0)
	if err != nil {
		say(err.Error())
		return
	}
	_ = c.File().SetDeadline(time.Now().Add(20 * time.Second))
	_ = c.Send(wire.Header{ID: 1, Op: wire.OpHello}, wire.Hello{Version: wire.Version}, nil)
	switch _, err := c.Recv(); {
	case err == nil:
		say("answered")
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		say("refused")
	default:
		say(err.Error())
	}
}
