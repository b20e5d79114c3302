//go:build linux

package escape_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/escape"
	"berth/sandbox"
	"berth/sandbox/local"
)

// TestFileRaces uses the file tools on names that change their nature all the
// time: file, link, FIFO, directory. Whatever they answer, they answer soon,
// and touch nothing of the host.
func TestFileRaces(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		rounds := 600
		if testing.Short() {
			rounds = 60
		}
		w := newWorld(t)
		m := newManager(t, o)
		b := newBox(t, m)
		others := append([]string{"/proc/1/environ", "/proc/1/root/etc/passwd", "/dev/zero", "/dev/full", "/proc/kmsg", "/proc/self/environ", "/proc/1/fd/3",
			"/etc/passwd", "/proc/self/mem", "/proc/1/cwd/etc/passwd", "/dev/pts/ptmx", "/dev/tty"}, w.Files...)
		for _, user := range []string{"agent", "root"} {
			// Two at once, so that the steps of one fall between those of the other.
			for range 2 {
				b.spawn(t, user, "ready", append([]string{attackerPath, "tool", "swap", "/home/agent/race"}, others...)...)
			}
		}
		outcomes := map[string]int{}
		slowest := time.Duration(0)
		note := func(what string, begin time.Time, data []byte, err error) {
			if d := time.Since(begin); d > slowest {
				slowest = d
				if d > 10*time.Second {
					t.Errorf("%s took %v: %v", what, d, err)
				}
			}
			if strings.Contains(string(data), escape.Canary) {
				t.Errorf("%s read a file of the host", what)
			}
			switch {
			case err == nil:
				outcomes[what+": done"]++
			case errors.Is(err, sandbox.ErrNotRunning), errors.Is(err, context.DeadlineExceeded), errors.Is(err, sandbox.ErrUnavailable):
				t.Errorf("%s: %v", what, err)
			default:
				outcomes[what+": refused"]++
			}
		}
		ctx := t.Context()
		for i := range rounds {
			path := "/home/agent/race/file"
			if i%2 == 1 {
				path = "/home/agent/race/sub/file"
			}
			begin := time.Now()
			f, err := m.ReadFile(ctx, b.key, sandbox.ReadFileRequest{Path: path, Raw: i%3 == 0})
			var data []byte
			if err == nil {
				data = f.Data
			}
			note("read_file", begin, data, err)

			begin = time.Now()
			_, err = m.WriteFile(ctx, b.key, sandbox.WriteFileRequest{Path: path, Data: []byte("written\n"), Append: i%4 == 0})
			note("write_file", begin, nil, err)

			begin = time.Now()
			e, err := m.EditFile(ctx, b.key, sandbox.EditFileRequest{Path: path, Edits: []sandbox.Edit{{OldText: "harmless", NewText: "edited", ReplaceAll: true}}})
			data = nil
			if err == nil {
				data = []byte(e.Diff)
			}
			note("edit_file", begin, data, err)
		}
		t.Logf("%v, slowest %v", outcomes, slowest)
		if outcomes["read_file: done"] == 0 || outcomes["read_file: refused"] == 0 || outcomes["write_file: done"] == 0 {
			t.Error("the race was not met: everything or nothing was refused")
		}
		w.check(t)
		b.alive(t)
		if b.ids == "single" {
			return // there the user and root are one, to the file system
		}
		// Nothing was written through a link to where the sandbox's user may not write.
		if out, _ := b.run(t, "root", "cat", "/etc/passwd"); strings.Contains(out, "written") || strings.Contains(out, "edited") {
			t.Errorf("/etc/passwd inside was written with rights the user has not: %s", out)
		}
	})
}

// TestFileTools reads and writes through links and odd files that stand still.
func TestFileTools(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		w := newWorld(t)
		m := newManager(t, o)
		b := newBox(t, m)
		ctx := t.Context()
		script := "mkdir -p /tmp/odd && cd /tmp/odd && mkfifo fifo && ln -s /dev/zero zero && ln -s loop loop && ln -s . dot && ln -s /proc/self/mem mem && mkdir dir && " +
			"ln -s /proc/1/root/etc/passwd one && ln -s /proc/self/root/../../../../../.. up && ln -s /dev/stdin stdin && python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\""
		if out, r := b.run(t, "agent", "sh", "-c", script); *r.Process.ExitCode != 0 {
			t.Fatal(out)
		}
		paths := []string{"/tmp/odd/fifo", "/tmp/odd/zero", "/tmp/odd/loop", "/tmp/odd/mem", "/tmp/odd/dir", "/tmp/odd/one", "/tmp/odd/stdin", "/tmp/odd/sock",
			"/dev/zero", "/dev/tty", "/dev/pts/ptmx", "/dev/fuse", "/proc/kmsg", "/proc/1/environ", "/proc/1/mem", "/proc/1/fd/3", "/proc/1/exe", "/proc/sysrq-trigger",
			"/proc/self/fd/3", "/proc/self/exe/..", "/run/berth/sudo.sock", "/proc/1/root/" + strings.TrimPrefix(w.Files[0], "/")}
		for _, f := range w.Files {
			paths = append(paths, f, "/tmp/odd/up"+f, "/tmp/odd/dot/../../.."+f, "/../../.."+f)
		}
		for _, p := range paths {
			begin := time.Now()
			f, err := m.ReadFile(ctx, b.key, sandbox.ReadFileRequest{Path: p, Raw: true})
			if err == nil {
				t.Errorf("read_file %s: %d bytes", p, len(f.Data))
			}
			if _, err := m.EditFile(ctx, b.key, sandbox.EditFileRequest{Path: p, Edits: []sandbox.Edit{{OldText: "a", NewText: "b"}}}); err == nil {
				t.Errorf("edit_file %s succeeded", p)
			}
			// Where nothing is, a new file inside would be right.
			if !errors.Is(err, fs.ErrNotExist) {
				if _, err := m.WriteFile(ctx, b.key, sandbox.WriteFileRequest{Path: p, Data: []byte("x"), Append: true}); err == nil {
					t.Errorf("write_file %s succeeded", p)
				}
			}
			if d := time.Since(begin); d > 10*time.Second {
				t.Errorf("%s: took %v", p, d)
			}
		}
		w.check(t)
		b.alive(t)
	})
}

// TestSelfFiles reads what the file tools' own process shows of itself.
func TestSelfFiles(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		m := newManager(t, o)
		b := newBox(t, m)
		for _, p := range []string{"/proc/self/environ", "/proc/thread-self/environ", "/proc/self/cmdline", "/proc/self/maps", "/proc/self/fd/0", "/proc/self/cwd/etc/shadow", "/proc/self/root/etc/shadow"} {
			f, err := m.ReadFile(t.Context(), b.key, sandbox.ReadFileRequest{Path: p, Raw: true})
			if err != nil {
				continue
			}
			if strings.Contains(string(f.Data), escape.Canary) || strings.Contains(string(f.Data), shared.dir) {
				t.Errorf("%s shows %q", p, f.Data)
			}
			if filepath.Base(p) == "maps" {
				t.Errorf("%s shows the memory of who reads it", p)
			}
		}
		if _, err := os.Stat(shared.dir); err != nil {
			t.Fatal(err)
		}
	})
}
