//go:build linux

package isolate_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/sandbox/local/box/entry"
	"berth/sandbox/local/isolate"
	"berth/sandbox/local/wire"
)

// This program stands in for box: it is init inside, and sudo, too.
func TestMain(m *testing.M) {
	entry.Main(os.Args)
	os.Exit(m.Run())
}

// modes are the id modes that the caller can have here.
func modes(t testing.TB) []string {
	t.Helper()
	if os.Geteuid() == 0 {
		return []string{wire.IDsRange, wire.IDsSingle}
	}
	out := []string{wire.IDsSingle}
	if _, err := exec.LookPath("newuidmap"); err == nil && subID("/etc/subuid") != 0 && subID("/etc/subgid") != 0 {
		out = append(out, wire.IDsSub)
	}
	return out
}

func subID(file string) uint32 {
	u, err := user.Current()
	if err != nil {
		return 0
	}
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 && (f[0] == u.Username || f[0] == u.Uid) {
			v, _ := strconv.ParseUint(f[1], 10, 32)
			return uint32(v)
		}
	}
	return 0
}

// launch describes a sandbox over the host's /usr.
func launch(t testing.TB, mode string) *wire.Launch {
	t.Helper()
	dir := t.TempDir()
	// Upper layers hold directories without any permission.
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(p, 0o700)
			}
			return nil
		})
	})
	for p := dir; p != "/" && p != "/tmp"; p = filepath.Dir(p) {
		_ = os.Chmod(p, 0o755)
	}
	base := filepath.Join(dir, "base")
	for _, d := range []string{"etc", "home/agent", "root", "proc", "sys", "dev", "tmp", "run", "var/lib", "usr/bin", "workspace"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		if err := os.Symlink(to, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1000::/home/agent:/bin/bash\nother:x:1001:1001::/:/bin/sh\n",
		"etc/group":  "root:x:0:\nagent:x:1000:\ntty:x:5:\nextra:x:2000:other\n",
	} {
		if err := os.WriteFile(filepath.Join(base, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(base, "tmp"), 0o1777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && mode == wire.IDsRange {
		if err := os.Chown(filepath.Join(base, "home/agent"), 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	l := &wire.Launch{
		Version: wire.Version, Dir: dir, Hostname: "berth",
		IDs: wire.IDs{Mode: mode},
		Mounts: []wire.Mount{
			{Target: "/", Type: "overlay", Lower: []string{base}, Upper: filepath.Join(dir, "up"), Work: filepath.Join(dir, "work")},
			{Target: "/usr", Type: "overlay", Lower: []string{"/usr"}, Upper: filepath.Join(dir, "usr-up"), Work: filepath.Join(dir, "usr-work")},
		},
		Env: map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
		Users: []wire.User{
			{Name: "root", Home: "/root", Shell: "/bin/bash"},
			{Name: "agent", UID: 1000, GID: 1000, Home: "/home/agent", Shell: "/bin/bash"},
		},
		User: "agent",
	}
	switch mode {
	case wire.IDsRange:
		l.IDs.Base, l.IDs.Count, l.IDs.IDMapped = 100000, 65536, true
	case wire.IDsSub:
		l.IDs.SubUID, l.IDs.SubGID, l.IDs.Count = subID("/etc/subuid"), subID("/etc/subgid"), 65536
	}
	return l
}

// box is a running sandbox, and what a monitor does with it.
type box struct {
	*isolate.Sandbox
	t       testing.TB
	mu      sync.Mutex
	id      uint64
	pending map[uint64]chan *wire.Frame
	exited  map[string]chan wire.Exited
	gone    map[string]chan struct{}
}

func start(t testing.TB, l *wire.Launch) *box {
	t.Helper()
	s, err := isolate.Start(l)
	if err != nil {
		t.Fatalf("Start in mode %s: %v", l.IDs.Mode, err)
	}
	b := &box{Sandbox: s, t: t, pending: map[uint64]chan *wire.Frame{}, exited: map[string]chan wire.Exited{}, gone: map[string]chan struct{}{}}
	go b.receive()
	t.Cleanup(func() {
		if l.IDs.Mode == wire.IDsSub {
			// Only inside can files of other ids be removed.
			if p, err := b.spawn(wire.StartProcess{Shell: "rm -rf /workspace/* /tmp/* /home/agent/*", User: "root"}); err == nil {
				p.wait()
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

func (b *box) receive() {
	for {
		f, err := b.Conn.Recv()
		b.mu.Lock()
		if err != nil {
			for _, c := range b.pending {
				close(c)
			}
			b.pending = nil
			b.mu.Unlock()
			return
		}
		switch {
		case f.ID != 0:
			if c := b.pending[f.ID]; c != nil {
				delete(b.pending, f.ID)
				c <- f
			}
		case f.Op == wire.OpExited:
			var e wire.Exited
			_ = json.Unmarshal(f.Body, &e)
			if c := b.exited[e.ID]; c != nil {
				c <- e
			}
			if c := b.gone[e.ID]; c != nil && len(e.Leftovers) == 0 {
				close(c)
				delete(b.gone, e.ID)
			}
		case f.Op == wire.OpGone:
			var r wire.ProcessRef
			_ = json.Unmarshal(f.Body, &r)
			if c := b.gone[r.ID]; c != nil {
				close(c)
				delete(b.gone, r.ID)
			}
		}
		b.mu.Unlock()
	}
}

func (b *box) call(op string, body, answer any, files ...*os.File) ([]*os.File, error) {
	b.t.Helper()
	c := make(chan *wire.Frame, 1)
	b.mu.Lock()
	if b.pending == nil {
		b.mu.Unlock()
		return nil, errors.New("init is gone")
	}
	b.id++
	id := b.id
	b.pending[id] = c
	b.mu.Unlock()
	if err := b.Conn.Send(wire.Header{ID: id, Op: op}, body, nil, files...); err != nil {
		return nil, err
	}
	select {
	case f, ok := <-c:
		if !ok {
			return nil, errors.New("init is gone")
		}
		if f.Error != nil {
			return nil, f.Error
		}
		if answer != nil {
			if err := json.Unmarshal(f.Body, answer); err != nil {
				return nil, err
			}
		}
		return f.Files, nil
	case <-time.After(20 * time.Second):
		b.t.Fatalf("%s: no answer within 20 s", op)
		return nil, nil
	}
}

// process is one that was started.
type process struct {
	b      *box
	id     string
	pid    int
	out    chan string
	stdin  *os.File
	master *os.File
	exited chan wire.Exited
	gone   chan struct{}
}

func (b *box) spawn(r wire.StartProcess) (*process, error) {
	b.t.Helper()
	b.mu.Lock()
	b.id++
	r.ID = "p" + strconv.FormatUint(b.id, 10)
	p := &process{b: b, id: r.ID, out: make(chan string, 1), exited: make(chan wire.Exited, 1), gone: make(chan struct{})}
	b.exited[r.ID], b.gone[r.ID] = p.exited, p.gone
	b.mu.Unlock()
	if r.Cwd == "" {
		r.Cwd = "/"
	}
	var started wire.Started
	if r.Cols > 0 {
		files, err := b.call(wire.OpStart, r, &started)
		if err != nil {
			return nil, err
		}
		p.master, p.pid = files[0], started.PID
		return p, nil
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	_, err = b.call(wire.OpStart, r, &started, inR, outW, outW)
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return nil, err
	}
	p.stdin, p.pid = inW, started.PID
	go func() {
		text, _ := io.ReadAll(outR)
		outR.Close()
		p.out <- string(text)
	}()
	return p, nil
}

func (p *process) wait() wire.Exited {
	p.b.t.Helper()
	select {
	case e := <-p.exited:
		return e
	case <-time.After(30 * time.Second):
		p.b.t.Fatalf("process %s has not ended within 30 s", p.id)
		return wire.Exited{}
	}
}

func (p *process) waitGone() {
	p.b.t.Helper()
	select {
	case <-p.gone:
	case <-time.After(30 * time.Second):
		p.b.t.Fatalf("the tree of process %s is not gone within 30 s", p.id)
	}
}

// sh runs shell text to its end, and that of all it left.
func (b *box) sh(user, text string) (string, wire.Exited) {
	b.t.Helper()
	p, err := b.spawn(wire.StartProcess{Shell: text, User: user, Cwd: "/"})
	if err != nil {
		b.t.Fatalf("start of %q as %s: %v", text, user, err)
	}
	p.stdin.Close()
	e := p.wait()
	return <-p.out, e
}

// A sandbox starts, runs commands as both users, and says what holds.
func TestStart(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			for user, want := range map[string]string{"agent": "1000 1000\n", "root": "0 0\n"} {
				out, e := b.sh(user, "echo $(id -u) $(id -g)")
				if out != want || e.Code != 0 {
					t.Errorf("id as %s: %q, exit %d, want %q", user, out, e.Code, want)
				}
			}
			if b.Ready.Seccomp.State != "enforced" || b.Ready.InitPID != b.PID || b.Ready.InitStart == 0 {
				t.Errorf("ready: %+v", b.Ready)
			}
		})
	}
}
