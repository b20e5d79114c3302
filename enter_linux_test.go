package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// terminal is a terminal with a program on it, seen from the side of the person.
type terminal struct {
	t      *testing.T
	master *os.File
	mu     sync.Mutex
	screen bytes.Buffer
	more   chan struct{}
	gone   chan struct{} // closed when nothing more comes
}

// onTerminal starts c on a new terminal of its own, as its session's leader.
func onTerminal(t *testing.T, c *exec.Cmd, cols, rows int) *terminal {
	t.Helper()
	// With the runtime's poller, so that a read ends when the master is closed.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := &terminal{t: t, master: os.NewFile(uintptr(fd), "ptmx"), more: make(chan struct{}, 1), gone: make(chan struct{})}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	m.resize(cols, rows)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	go func() {
		defer close(m.gone)
		buf := make([]byte, 4096)
		for {
			n, err := m.master.Read(buf)
			m.mu.Lock()
			m.screen.Write(buf[:n])
			m.mu.Unlock()
			select {
			case m.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { m.master.Close() })
	return m
}

func (m *terminal) fd(do func(fd int) error) {
	m.t.Helper()
	raw, err := m.master.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil || err != nil {
		m.t.Fatal(cerr, err)
	}
}

func (m *terminal) resize(cols, rows int) {
	m.t.Helper()
	m.fd(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(cols), Row: uint16(rows)})
	})
}

// modes are the terminal's settings, as a person's shell would find them.
func (m *terminal) modes() (t unix.Termios) {
	m.t.Helper()
	m.fd(func(fd int) error {
		p, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			t = *p
		}
		return err
	})
	return t
}

func (m *terminal) keys(s string) {
	m.t.Helper()
	if _, err := m.master.WriteString(s); err != nil {
		m.t.Fatal(err)
	}
}

// until waits for text on the screen, and takes everything up to its end away.
func (m *terminal) until(text string) {
	m.t.Helper()
	late := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		i := bytes.Index(m.screen.Bytes(), []byte(text))
		if i >= 0 {
			m.screen.Next(i + len(text))
		}
		got := m.screen.String()
		m.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-m.more:
		case <-late:
			m.t.Fatalf("the screen does not show %q: %q", text, got)
		}
	}
}

// rest waits until nobody has the terminal open, and returns what is on the screen.
func (m *terminal) rest() string {
	m.t.Helper()
	select {
	case <-m.gone:
	case <-time.After(30 * time.Second):
		m.t.Fatal("the program does not end")
	}
	return m.screen.String()
}

// A whole visit: sizes, keys that are signals elsewhere, the exit code, and the
// terminal given back as it was.
func TestEnter(t *testing.T) {
	b := newBerth(t)
	b.output("run", "--keep", "--session", "s", "--", "true")
	enter := b.command("enter", "s")
	m := onTerminal(t, enter, 101, 31)
	before := m.modes()
	m.keys("stty size; echo at-$((40+2))\r")
	m.until("31 101")
	m.until("at-42")
	if now := m.modes(); now.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("our terminal is not raw: %+v", now)
	}
	m.resize(120, 40)
	// The size arrives by way of a signal and two processes.
	m.keys("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.05; done; echo resized-$((1+1))\r")
	m.until("resized-2")
	// Ctrl-C ends what is in the foreground there, and neither berth nor the shell.
	m.keys("sh -c 'echo sleeping-$((1+1)); exec sleep 60'\r")
	m.until("sleeping-2")
	m.keys("\x03")
	m.keys("echo interrupted-$?\r")
	m.until("interrupted-130")
	// So does Ctrl-Z.
	m.keys("sh -c 'echo again-$((1+1)); exec sleep 60'\r")
	m.until("again-2")
	m.keys("\x1a")
	// A shell with stopped jobs does not leave at once.
	m.keys("jobs %1; kill -9 %1; while [ -n \"$(jobs -s)\" ]; do sleep 0.05; done; echo job-$((1+1))\r")
	m.until("Stopped")
	m.until("job-2")
	m.keys("exit 7\r")
	if code := b.ended(enter); code != 7 {
		t.Errorf("after exit 7: exit %d", code)
	}
	if after := m.modes(); after != before {
		t.Errorf("the terminal was %+v, and is %+v", before, after)
	}
}

// Ctrl-] leaves the shell running, and enter returns to it.
func TestEnterLeaveAndReturn(t *testing.T) {
	b := newBerth(t)
	b.output("run", "--keep", "--session", "s", "--", "true")
	enter := b.command("enter", "s")
	m := onTerminal(t, enter, 80, 24)
	before := m.modes()
	m.keys("here=still-$((1+1)); echo ready-$((1+1))\r")
	m.until("ready-2")
	m.keys("\x1d")
	m.until("berth enter s p-")
	if code := b.ended(enter); code != 0 {
		t.Errorf("after the detach key: exit %d", code)
	}
	if after := m.modes(); after != before {
		t.Errorf("the terminal was %+v, and is %+v", before, after)
	}
	id := b.shell("running")
	enter = b.command("enter", "s", id)
	m = onTerminal(t, enter, 80, 24)
	m.keys("echo $here; exit 3\r")
	m.until("still-2")
	if code := b.ended(enter); code != 3 {
		t.Errorf("back in the shell, after exit 3: exit %d", code)
	}
}

// shell waits until the shell of sandbox s has that state, and returns its id.
func (b *berth) shell(state string) string {
	b.t.Helper()
	var list string
	for range 200 {
		list = b.output("logs", "-l", "s")
		for line := range strings.Lines(list) {
			if f := strings.Fields(line); len(f) > 2 && strings.Contains(line, "bash -l") && f[1] == state {
				return f[0]
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.t.Fatalf("no shell is %s:\n%s", state, list)
	return ""
}

// A terminal that is closed hangs up on the shell, as everywhere; berth ends, and
// the sandbox stays. A berth that is told to end leaves the shell running.
func TestEnterEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(m *terminal, enter *exec.Cmd)
		state string
		code  int
	}{
		{"terminal_closed", func(m *terminal, _ *exec.Cmd) { m.master.Close() }, "exit", 129},
		{"terminated", func(_ *terminal, enter *exec.Cmd) { _ = enter.Process.Signal(syscall.SIGTERM) }, "running", 143},
		{"interrupted_from_elsewhere", func(_ *terminal, enter *exec.Cmd) { _ = enter.Process.Signal(syscall.SIGINT) }, "running", 130},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBerth(t)
			b.output("run", "--keep", "--session", "s", "--", "true")
			enter := b.command("enter", "s")
			m := onTerminal(t, enter, 80, 24)
			before := m.modes()
			m.keys("sleep 300 & echo ready-$((1+1))\r")
			m.until("ready-2")
			c.end(m, enter)
			if code := b.ended(enter); code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			b.shell(c.state)
			if c.state == "running" {
				if after := m.modes(); after != before {
					t.Errorf("the terminal was %+v, and is %+v", before, after)
				}
			}
			if out := b.output("exec", "s", "--", "echo", "well"); out != "well\n" {
				t.Errorf("the sandbox afterwards: %q", out)
			}
		})
	}
}

// What a process wrote reaches a terminal without what a terminal acts upon, and
// a pipe as it is.
func TestLogsOnATerminal(t *testing.T) {
	b := newBerth(t)
	const written = "\x1b[31mred\x1b[0m\x1b[2Jclear\x1b]0;title\x07end"
	b.output("run", "--keep", "--session", "s", "--", "printf", "%s\n", written)
	if out := b.output("logs", "s"); out != written+"\n" {
		t.Errorf("logs into a pipe: %q", out)
	}
	for _, c := range []struct{ flag, want string }{
		{"--follow", "\x1b[31mred\x1b[0mclearend\r\n"}, {"--raw", written + "\r\n"},
	} {
		logs := b.command("logs", c.flag, "s")
		m := onTerminal(t, logs, 80, 24)
		m.until("(exit 0)\r\n")
		m.until(c.want)
		if code := b.ended(logs); code != 0 {
			t.Errorf("logs %s: exit %d", c.flag, code)
		}
	}
}

// Doctor goes on below itself on a terminal, and cuts nothing.
func TestDoctorOnATerminal(t *testing.T) {
	b := newBerth(t)
	doctor := b.command("doctor")
	m := onTerminal(t, doctor, 70, 24)
	cells := 0
	for line := range strings.SplitSeq(m.rest(), "\r\n") {
		if strings.HasPrefix(line, "✓ ") || strings.HasPrefix(line, "   ") {
			cells++
			if n := utf8.RuneCountInString(line); n > 70 || strings.Contains(line, "…") {
				t.Errorf("a line of %d characters: %q", n, line)
			}
		}
	}
	if cells < 10 {
		t.Errorf("%d lines of a table", cells)
	}
	if code := b.ended(doctor); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// Prune asks before it deletes, and takes only a yes for one.
func TestPruneAsks(t *testing.T) {
	b := newBerth(t)
	b.output("run", "--keep", "--session", "s", "--", "true")
	b.output("stop", "s")
	for _, c := range []struct {
		keys, left string
		code       int
	}{{"n\r", "s\n", 1}, {"\r", "s\n", 1}, {"\x04", "s\n", 1}, {"y\r", "", 0}} {
		prune := b.command("prune")
		m := onTerminal(t, prune, 80, 24)
		m.until("Delete this sandbox and its files? [y/N] ")
		m.keys(c.keys)
		if code := b.ended(prune); code != c.code {
			t.Errorf("after %q: exit %d, want %d", c.keys, code, c.code)
		}
		if left := b.output("ls", "-q"); left != c.left {
			t.Errorf("after %q: %q is left, want %q", c.keys, left, c.left)
		}
	}
}
