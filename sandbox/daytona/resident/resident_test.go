//go:build linux

package resident_test

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/daytona/resident"
)

// A quick command costs one run of the helper, and nothing is said of it twice.
func TestQuickCommandIsOneCall(t *testing.T) {
	for _, name := range []string{"bash", "sh"} {
		t.Run(name, func(t *testing.T) {
			s := newShell(t, nil)
			s.shell = name
			b := newBox(s, "one")
			ctx := limited(t)
			if err := b.Ensure(ctx); err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			before := s.n
			s.mu.Unlock()
			c := s.text("printf 'out\\000\\377'; echo err >&2; exit 3")
			c.Await = patience
			p := spawn(t, b, c)
			if err := p.Wait(ctx, sandbox.Cursor{}, true); err != nil {
				t.Fatal(err)
			}
			i, err := p.Info(ctx)
			if err != nil || code(i) != 3 || i.Produced != (sandbox.Cursor{Stdout: 5, Stderr: 4}) {
				t.Errorf("got %+v, %v", i, err)
			}
			o, err := p.Read(ctx, sandbox.Cursor{}, 1000)
			if err != nil || string(o.Stdout) != "out\x00\xff" || string(o.Stderr) != "err\n" {
				t.Errorf("got %+v, %v", o, err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if n := s.n - before; n != 1 {
				t.Errorf("it took %d calls, want 1:\n%s", n, strings.Join(s.execs[before:], "\n"))
			}
		})
	}
}

// What a command is given is in nobody's arguments.
func TestCallsTellNobody(t *testing.T) {
	s := newShell(t, nil)
	b := newBox(s, "quiet")
	// Nobody else's, for the machine runs more than this test; as it is, and as it
	// is at each place of an encoded text. The patterns do not match themselves.
	secret := rand.Text()
	search := "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c -e '[" + secret[:1] + "]" + secret[1:] + "'"
	for before := range 3 {
		text := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("-", before) + secret))
		search += " -e '[" + text[4:5] + "]" + text[5:len(text)-4] + "'"
	}
	c := s.text(search + "; env | grep -c BERTH")
	c.Env = map[string]string{"KEY": secret}
	if _, out := end(t, spawn(t, b, c)); out != "0\n0\n" {
		t.Errorf("got %q", out)
	}
	if out := run(t, b, s.text("echo $PLATFORM")); out != "yes\n" {
		t.Errorf("the platform's own environment: got %q", out)
	}
}

// Any number of servers find the one helper, and a copy of a sandbox finds none of
// the processes of the other.
func TestServersShareAHelper(t *testing.T) {
	s := newShell(t, nil)
	boxes := make([]*resident.Box, 4)
	var wg sync.WaitGroup
	for i := range boxes {
		boxes[i] = newBox(s, "shared")
		wg.Go(func() {
			if err := boxes[i].Ensure(limited(t)); err != nil {
				t.Errorf("Ensure: %v", err)
			}
		})
	}
	wg.Wait()
	ids := map[sandbox.ProcessID]bool{}
	for _, b := range boxes {
		p := spawn(t, b, s.text("exec sleep 600"))
		ids[p.ID()] = true
	}
	for _, b := range append(boxes, newBox(s, "shared")) {
		l, err := b.Processes(limited(t))
		if err != nil || len(l) != len(boxes) {
			t.Fatalf("Processes: got %d, %v; want %d", len(l), err, len(boxes))
		}
		for _, i := range l {
			if !ids[i.ID] || i.State != sandbox.ProcessRunning {
				t.Errorf("got %+v", i)
			}
		}
	}
	if busy, err := boxes[0].Busy(limited(t)); err != nil || !busy {
		t.Errorf("Busy: got %v, %v", busy, err)
	}
	if l, err := newBox(s, "copied").Processes(limited(t)); err != nil || len(l) != 0 {
		t.Errorf("Processes of another sandbox: got %v, %v", l, err)
	}
	if err := boxes[0].Stop(limited(t), "the test stops it"); err != nil {
		t.Fatal(err)
	}
	for id := range ids {
		p, err := boxes[1].Process(limited(t), id)
		if err != nil {
			t.Fatalf("after a stop: %v", err)
		}
		if i, err := p.Info(limited(t)); err != nil || code(i) != 137 || !strings.Contains(i.Reason, "the test stops it") {
			t.Errorf("after a stop: got %+v, %v", i, err)
		}
	}
}

// A helper that is killed takes all that it ran with it, and says so ever after.
func TestKilledHelper(t *testing.T) {
	s := newShell(t, nil)
	b := newBox(s, "killed")
	done := spawn(t, b, s.text("echo kept; exit 5"))
	end(t, done)
	c := s.text("echo begun; (setsid sleep 7654321 &); exec sleep 7654321")
	p := spawn(t, b, c)
	ctx := limited(t)
	if err := p.Wait(ctx, sandbox.Cursor{}, false); err != nil {
		t.Fatal(err)
	}
	pids := s.pids()
	if len(pids) < 2 {
		t.Fatalf("the helper and its shim are %v", pids)
	}
	f, err := b.Facts(ctx)
	if err != nil || !f.OwnHelper || f.Helper == "" || f.Home != s.home {
		t.Fatalf("Facts: got %+v, %v", f, err)
	}
	killResident(t, s)
	again, err := b.Spawn(ctx, c)
	if err != nil {
		t.Fatalf("Spawn of what was started before: %v", err)
	}
	i, out := end(t, again)
	if i.State != sandbox.ProcessLost || i.ExitCode != nil || i.Reason == "" || out != "begun\n" {
		t.Errorf("got %+v, %q", i, out)
	}
	until(t, "what the killed helper had left is gone", func() bool {
		b, _ := os.ReadDir("/proc")
		for _, e := range b {
			if l, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline"); string(l) == "sleep\x007654321\x00" {
				return false
			}
		}
		return true
	})
	if i, out := end(t, done); code(i) != 5 || out != "kept\n" {
		t.Errorf("what had ended before: got %+v, %q", i, out)
	}
	if err := p.Write(ctx, []byte("x"), false); !errors.Is(err, sandbox.ErrExited) {
		t.Errorf("Write to what is lost: %v", err)
	}
	run(t, b, s.text("true"))
}

// killResident kills the helper alone, as an outsider would.
func killResident(t *testing.T, s *shell) {
	t.Helper()
	for _, pid := range s.pids() {
		// Shims are its children, and of the same name; they have one thread.
		tasks, _ := os.ReadDir("/proc/" + itoa(pid) + "/task")
		if len(tasks) > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// Where the helper cannot be, the error tells why.
func TestHelperRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		o    resident.Options
		want string
	}{
		{"not_built", resident.Options{ID: "x", Program: func(string) []byte { return nil }}, "built without its helper"},
		{"no_program", resident.Options{ID: "x", Program: func(string) []byte { return []byte("\x7fELF no program") }}, "architecture"},
		{"no_place", resident.Options{ID: "x", Program: program, Base: "/proc/nowhere"}, "no directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShell(t, nil)
			if c.o.Base == "" {
				c.o.Base = s.home + "/base"
			}
			err := resident.New(s, c.o).Ensure(limited(t))
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, sandbox.ErrUnsupported) {
				t.Errorf("got %v, want one with %q", err, c.want)
			}
		})
	}
	t.Run("noexec", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root: it mounts a file system")
		}
		s := newShell(t, nil)
		dir := s.home + "/noexec"
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC, "size=64m"); err != nil {
			t.Skipf("needs the right to mount: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		err := resident.New(s, resident.Options{ID: "x", Program: program, Base: dir + "/base"}).Ensure(limited(t))
		if err == nil || !strings.Contains(err.Error(), "noexec") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("closed_home", func(t *testing.T) {
		s := newShell(t, nil)
		if os.Geteuid() == 0 {
			s = newShell(t, credential(t, "nobody"))
		}
		if err := os.Chmod(s.home, 0o555); err != nil {
			t.Fatal(err)
		}
		b := newBox(s, "closed-"+itoa(os.Getpid()))
		f, err := b.Facts(limited(t))
		if err != nil || strings.HasPrefix(f.Helper, s.home) {
			t.Fatalf("got %+v, %v; want a helper elsewhere", f, err)
		}
		t.Cleanup(func() {
			if err := b.Stop(limited(t), "end"); err != nil {
				t.Error(err)
			}
			if err := os.RemoveAll(filepath.Dir(f.Helper)); err != nil {
				t.Error(err)
			}
		})
		run(t, b, s.text("true"))
	})
}

func TestReaches(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	b := newBox(newShell(t, nil), "reach")
	if ok, err := b.Reaches(limited(t), at, 5*time.Second); err != nil || !ok {
		t.Errorf("a port that is listened on: got %v, %v", ok, err)
	}
	l.Close()
	if ok, err := b.Reaches(limited(t), netip.AddrPortFrom(at.Addr(), at.Port()), 5*time.Second); err != nil || ok {
		t.Errorf("a port that is not: got %v, %v", ok, err)
	}
}

// What is done to files is done once.
func TestChangesOfFiles(t *testing.T) {
	s := newShell(t, nil)
	b := newBox(s, "changes")
	ctx := limited(t)
	f := b.Files().(interface {
		sandbox.FileRemover
		sandbox.FileRenamer
		sandbox.FilePermitter
	})
	if err := b.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/a", "/b"} {
		if err := os.WriteFile(s.home+name, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The first answer of each is lost.
	s.mu.Lock()
	seen := map[string]bool{}
	s.fault = func(_ int, text string) fault {
		f := fault{lost: !seen[text[:len(text)/2]]}
		seen[text[:len(text)/2]] = true
		return f
	}
	s.mu.Unlock()
	mode := fs.FileMode(0o640)
	if err := f.Permit(ctx, s.home+"/a", sandbox.Permissions{Mode: &mode}); err != nil {
		t.Errorf("Permit: %v", err)
	}
	if err := f.Rename(ctx, s.home+"/a", s.home+"/c"); err != nil {
		t.Errorf("Rename: %v", err)
	}
	if err := f.Remove(ctx, s.home+"/b", false); err != nil {
		t.Errorf("Remove: %v", err)
	}
	s.healed()
	if st, err := os.Stat(s.home + "/c"); err != nil || st.Mode() != mode {
		t.Errorf("got %v, %v", st, err)
	}
	if err := f.Rename(ctx, s.home+"/a", s.home+"/d"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Rename of what is not there: %v", err)
	}
	if err := f.Remove(ctx, s.home+"/b", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove of what is not there: %v", err)
	}
	p := spawn(t, b, s.text("echo x"))
	end(t, p)
	if err := b.ForgetProcess(ctx, p.ID()); err != nil {
		t.Errorf("ForgetProcess: %v", err)
	}
	if _, err := b.Process(ctx, p.ID()); !errors.Is(err, sandbox.ErrNoProcess) {
		t.Errorf("a process that is forgotten: %v", err)
	}
}

// A file is read as it was when it was opened.
func TestOpenKeepsTheFile(t *testing.T) {
	s := newShell(t, nil)
	b := newBox(s, "files")
	f := b.Files()
	old := strings.Repeat("old line\n", 100_000)
	if _, err := f.Write(limited(t), s.home+"/file", strings.NewReader(old), sandbox.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	r, i, err := f.Open(limited(t), s.home+"/file")
	if err != nil || i.Size != int64(len(old)) {
		t.Fatalf("got %+v, %v", i, err)
	}
	if _, err := f.Write(limited(t), s.home+"/file", strings.NewReader("new"), sandbox.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != old {
		t.Errorf("got %d bytes, %v; want the old %d", len(got), err, len(old))
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if left, err := fs.Glob(os.DirFS(s.home), ".berth/*/tmp/*"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// However many sandboxes there are, the helper is in memory as often as the program
// has it: megabytes for each would be all memory soon.
func TestHelperIsNotCopied(t *testing.T) {
	const boxes = 50
	if resident.New(nil, resident.Options{ID: "x"}).Build("amd64") == "" {
		t.Skip("the helper was not generated: go generate ./sandbox/local/boxbin")
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range boxes {
		resident.New(nil, resident.Options{ID: "x"}).Build("amd64")
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / boxes; got > 64<<10 {
		t.Errorf("each box takes %d bytes for the helper", got)
	}
}
