//go:build linux

package escape_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
	"berth/sandbox"
	"berth/sandbox/local"
)

// TestForkBomb lets processes multiply in one sandbox. Another one works on, and
// so does the first once the bomb is killed through berth.
func TestForkBomb(t *testing.T) {
	m := newManager(t, local.Options{Dir: filepath.Join(shared.dir, "bomb"), Limits: local.Limits{PIDs: 300}})
	bombed, other := newBox(t, m), newBox(t, m)
	id, _ := bombed.spawn(t, "agent", "go", "sh", "-c", "echo go; exec "+attackerPath+" tool forkbomb")
	time.Sleep(2 * time.Second) // it needs time to fill up
	for range 5 {
		other.alive(t)
	}
	if n := descendants(t); n > 1000 {
		t.Errorf("%d processes of this machine are the bomb's", n)
	}
	r, err := m.KillProcess(t.Context(), bombed.key, sandbox.KillRequest{Process: id})
	must(t, err)
	if r.Process.State != sandbox.ProcessExited {
		t.Errorf("after kill: %+v", r.Process)
	}
	// All of it: the tree leaves its process group and session.
	left := "nothing was seen of it"
	for end := time.Now().Add(90 * time.Second); left != "" && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		r, err := m.ExecuteCommand(t.Context(), bombed.key, sandbox.RunRequest{Command: "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q '[f]orkbomb' || exit 7", User: "root"})
		switch {
		case err != nil: // there may be no room for it yet
			left = err.Error()
		case r.Process.ExitCode != nil && *r.Process.ExitCode == 7:
			left = ""
		default:
			left = "they run"
		}
	}
	if left != "" {
		t.Errorf("parts of the bomb outlive its kill: %s", left)
	}
	bombed.alive(t)
}

// descendants counts processes with "forkbomb" in their command line.
func descendants(t *testing.T) (n int) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("forkbomb")) && bytes.Contains(b, []byte(attackerPath)) {
			n++
		}
	}
	return n
}

// TestStopper has the agent stop its own commands before their programs begin.
// They are answered all the same, whatever the answer; root's are not held up.
func TestStopper(t *testing.T) {
	m := newManager(t, local.Options{Dir: filepath.Join(shared.dir, "stopper")})
	b := newBox(t, m)
	b.spawn(t, "agent", "go", attackerPath, "tool", "stopper")
	span := 3 * time.Second
	for range 2 {
		began := time.Now()
		r, err := m.ExecuteCommand(t.Context(), b.key, sandbox.RunRequest{Command: "echo hi", User: "agent", Timeout: &span, Wait: &span})
		switch {
		case time.Since(began) > 45*time.Second:
			t.Errorf("no answer for %v", time.Since(began))
		case err != nil:
			t.Logf("refused after %v: %v", time.Since(began), err)
		default:
			t.Logf("after %v: %s", time.Since(began), r.Process.State)
		}
	}
	if b.ids == "single" {
		return // agent and root are one there
	}
	if out, _ := b.run(t, "root", "echo", "hi"); strings.TrimSpace(out) != "hi" {
		t.Errorf("root's command printed %q", out)
	}
}

// TestMemoryHog fills memory up to the limit.
func TestMemoryHog(t *testing.T) {
	m := newManager(t, local.Options{Dir: filepath.Join(shared.dir, "hog"), Limits: local.Limits{Memory: 256 << 20}, BestEffort: os.Geteuid() != 0})
	b := newBox(t, m)
	info, err := m.GetSandbox(t.Context(), b.key)
	must(t, err)
	var held sandbox.Guarantee
	for _, g := range info.Guarantees {
		if g.Name == "memory_limit" {
			held = g
		}
	}
	out, r := b.run(t, "agent", attackerPath, "tool", "memory")
	t.Logf("limit %s (%s): %+v %.100s", held.State, held.Detail, r.Process, out)
	switch p := r.Process; held.State {
	case sandbox.Enforced:
		if p.ExitCode == nil || *p.ExitCode != 137 || p.Signal != "SIGKILL" || !strings.Contains(p.Reason, "memory limit 256 MiB") {
			t.Errorf("the hog ended with %+v, want SIGKILL, 137, and the limit named", p)
		}
	default:
		// Each process is bounded: it is refused memory, or killed.
		if p.ExitCode == nil || *p.ExitCode == 0 {
			t.Errorf("the hog ended with %+v", p)
		}
	}
	b.alive(t)
}

// TestLogFlood writes more than is kept.
func TestLogFlood(t *testing.T) {
	const kept, written = 8 << 20, 64 << 20
	dir := filepath.Join(shared.dir, "flood")
	m := newManager(t, local.Options{Dir: dir, LogBytes: kept})
	b := newBox(t, m)
	_, r := b.run(t, "agent", attackerPath, "tool", "flood", strconv.Itoa(written))
	if r.Process.Produced.Stdout != written {
		t.Errorf("produced %d, want %d", r.Process.Produced.Stdout, written)
	}
	if have := r.Process.Produced.Stdout - r.Process.Kept.Stdout; have > 2*kept || have < kept/2 {
		t.Errorf("%d bytes are kept, want about %d", have, kept)
	}
	var used int64
	_ = filepath.WalkDir(filepath.Join(dir, "sandboxes"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(path, "log") {
			var st unix.Stat_t
			if unix.Lstat(path, &st) == nil {
				used += st.Blocks * 512
			}
		}
		return nil
	})
	if used > 3*kept {
		t.Errorf("logs take %d bytes on the disk", used)
	}
	b.alive(t)
}

// TestKillEverything sends SIGKILL to all processes there are, as root and as
// the user.
func TestKillEverything(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		w := newWorld(t)
		b := newBox(t, newManager(t, o))
		for _, user := range []string{"agent", "root"} {
			_, r := b.run(t, user, attackerPath, "tool", "killall")
			t.Logf("%s: %+v", user, r.Process)
			w.check(t)
			b.alive(t)
		}
	})
}

// TestSignalsToInit sends every signal to PID 1 and its threads.
func TestSignalsToInit(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		b := newBox(t, newManager(t, o))
		for _, user := range []string{"agent", "root"} {
			if out, _ := b.run(t, user, attackerPath, "tool", "signals"); !strings.Contains(out, "sent") {
				t.Errorf("%s: %s", user, out)
			}
			b.alive(t)
			if out, _ := b.run(t, "agent", "sudo", "id", "-u"); out != "0\n" {
				t.Errorf("sudo after the signals: %q", out)
			}
		}
	})
}

// TestSockets torments every unix socket inside: nonsense, frames of all sizes,
// descriptors, idle connections.
func TestSockets(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		b := newBox(t, newManager(t, o))
		for _, user := range []string{"agent", "root"} {
			out, _ := b.run(t, user, attackerPath, "tool", "socket", "/run/berth")
			t.Logf("%s: %s", user, out)
			if !strings.Contains(out, "done") {
				t.Errorf("%s: the attack did not come to its end", user)
			}
			if strings.HasPrefix(out, "0 sockets") {
				t.Errorf("no socket was found in /run/berth")
			}
			b.alive(t)
			var got string
			for range 40 { // sudo bounds its callers; idle ones are dropped after a while
				if got, _ = b.run(t, "agent", "sudo", "id", "-u"); got == "0\n" {
					break
				}
				time.Sleep(500 * time.Millisecond)
			}
			if got != "0\n" {
				t.Errorf("sudo after the attack: %q", got)
			}
		}
	})
}

// TestSystemDirectories ruins the system as root inside. The host's stays.
func TestSystemDirectories(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		w := newWorld(t)
		b := newBox(t, newManager(t, o))
		paths := []string{"/usr/bin/env", "/etc/passwd", "/etc/group", "/etc/os-release", "/usr/bin/dpkg", "/dev/null", "/dev/zero", "/usr/bin/sudo"}
		for _, p := range paths {
			if _, ok := w.before[p]; !ok && p != "/usr/bin/sudo" {
				w.before[p] = fingerprint(p)
			}
		}
		program := fingerprint("/proc/self/exe") // berth's helper, here
		out, _ := b.run(t, "root", append([]string{attackerPath, "tool", "ruin"}, paths...)...)
		t.Logf("%s", out)
		if !strings.Contains(out, "replace") {
			t.Error("nothing was ruined, so nothing is shown")
		}
		for line := range strings.Lines(out) {
			path, could, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if strings.HasPrefix(path, "/dev/") {
				// Writing and truncating are what these devices are for.
				for _, what := range strings.Fields(could) {
					if what == "chmod" || what == "times" || what == "xattr" || what == "rename" || what == "remove" || what == "chown" && b.ids != "single" {
						t.Errorf("%s, a node of the host: %s", path, what)
					}
				}
			}
		}
		_, _ = b.run(t, "root", "sh", "-c", "mv /usr/src /usr/src2; rm -rf /usr/local/lib /usr/games /etc; mkdir -p /usr/share; echo x > /usr/share/x")
		w.check(t)
		if after := fingerprint("/proc/self/exe"); after != program {
			t.Errorf("the helper program changed:\nbefore %s\nafter  %s", program, after)
		}
		if _, err := os.Stat("/usr/share/x"); err == nil {
			t.Error("/usr/share of the host has a new file")
		}
		// A fresh sandbox sees nothing of all that.
		fresh := newBox(t, newManager(t, o))
		if out, _ := fresh.run(t, "agent", "env", "echo", "whole"); out != "whole\n" {
			t.Errorf("a fresh sandbox's env: %q", out)
		}
	})
}

// TestHelperProgram makes berth's helper run itself as the interpreter of a
// script, and tries to write to it once it has ended.
func TestHelperProgram(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		program := fingerprint("/proc/self/exe")
		b := newBox(t, newManager(t, o))
		for _, user := range []string{"agent", "root"} {
			id, _ := b.spawn(t, user, "watching", attackerPath, "tool", "watchexe")
			b.write(t, "/home/agent/evil", []byte("#!/proc/self/exe\n"), 0o755)
			b.write(t, "/home/agent/evil2", []byte("#!/proc/1/exe\n"), 0o755)
			for range 6 {
				for _, argv := range [][]string{{"/home/agent/evil"}, {"/home/agent/evil", "init"}, {"/home/agent/evil", "monitor"}, {"/home/agent/evil2"}, {"sudo", "true"}, {"sudo", "/home/agent/evil"}} {
					_, _ = b.m.ExecuteCommand(t.Context(), b.key, sandbox.RunRequest{Argv: argv, User: user, Cwd: "/"})
				}
			}
			p, err := b.m.Process(t.Context(), b.key, id)
			must(t, err)
			must(t, p.Wait(t.Context(), sandbox.Cursor{}, true))
			out, err := p.Read(t.Context(), sandbox.Cursor{}, 1<<20)
			must(t, err)
			t.Logf("%s: %s", user, out.Stdout)
			if strings.Contains(string(out.Stdout), "ESCAPED") {
				t.Errorf("%s: %s", user, out.Stdout)
			}
			b.alive(t)
		}
		if after := fingerprint("/proc/self/exe"); after != program {
			t.Errorf("the helper program changed:\nbefore %s\nafter  %s", program, after)
		}
	})
}

// TestTwoSandboxes plants one of everything in one sandbox, and looks for it
// from another.
func TestTwoSandboxes(t *testing.T) {
	m := newManager(t, local.Options{})
	for _, user := range []string{"agent", "root"} {
		t.Run(user, func(t *testing.T) {
			one, two := newBox(t, m), newBox(t, m)
			name := "planted-" + random()
			_, said := one.spawn(t, user, "planted .*\n", attackerPath, "tool", "plant", name)
			f := strings.Fields(said)
			if len(f) != 4 {
				t.Fatalf("plant said %q", said)
			}
			shm, err := strconv.Atoi(f[3])
			must(t, err)
			w := newWorld(t)
			w.Abstract, w.TCP, w.UDP, w.Shm, w.Argument = []string{name}, []string{f[1]}, []string{f[2]}, shm, name
			w.Files, w.Users = nil, nil
			for _, dir := range []string{"/tmp", "/home/agent", "/dev/shm", "/var/tmp"} {
				w.Dirs = append(w.Dirs, filepath.Join(dir, name))
			}
			for ns := range w.Namespaces {
				out, _ := one.run(t, user, "readlink", "/proc/self/ns/"+ns)
				w.Namespaces[ns] = strings.TrimSpace(out)
			}
			// Each command has a cgroup namespace of its own. Of one that is gone, as
			// readlink's is, the number may come again.
			out, _ := one.run(t, user, "sh", "-c", `for p in /proc/[0-9]*; do tr "\0" " " <$p/cmdline 2>/dev/null | grep -q "plan[t] `+name+`" && readlink $p/ns/cgroup; done | head -n 1`)
			if w.Namespaces["cgroup"] = strings.TrimSpace(out); !strings.HasPrefix(out, "cgroup:") {
				t.Fatalf("the planter's cgroup namespace: %q", out)
			}
			out, _ = one.run(t, user, "hostname")
			t.Logf("both are named %s", out)
			probes := []string{"host_files", "abstract_sockets", "unix_sockets", "tcp", "udp", "shared_memory", "host_processes", "namespaces"}
			out, _ = two.run(t, user, append([]string{attackerPath, "run", user, two.tell(t, w.Outside)}, probes...)...)
			judge(t, probes, out, nil)
			// In the first one, all of it is found: so the names were right.
			out, _ = one.run(t, user, append([]string{attackerPath, "run", user, one.tell(t, w.Outside)}, probes...)...)
			for _, f := range escape.Parse(out) {
				if f.State != escape.Escaped && f.Probe != "unix_sockets" {
					t.Errorf("within the sandbox itself: %s", f)
				}
			}
			one.alive(t)
			two.alive(t)
		})
	}
}

// TestTerminals types into the terminals of other processes.
func TestTerminals(t *testing.T) {
	b := newBox(t, newManager(t, local.Options{}))
	wait := time.Second
	ids := map[string]sandbox.ProcessID{}
	for _, user := range []string{"agent", "root"} {
		r, err := b.m.SpawnProcess(t.Context(), b.key, sandbox.SpawnRequest{
			RunRequest: sandbox.RunRequest{Argv: []string{"cat"}, User: user, Cwd: "/", Wait: &wait}, OpenStdin: true, TTY: &sandbox.WindowSize{Cols: 80, Rows: 24},
		})
		must(t, err)
		ids[user] = r.Process.ID
	}
	file := b.tell(t, escape.Outside{})
	for _, user := range []string{"agent", "root"} {
		out, _ := b.run(t, user, attackerPath, "run", user, file, "terminals")
		judge(t, []string{"terminals"}, out, nil)
		if !strings.Contains(out, "terminals there") || strings.Contains(out, "0 terminals there") {
			t.Errorf("%s: %s", user, out)
		}
	}
	for user, id := range ids {
		p, err := b.m.Process(t.Context(), b.key, id)
		must(t, err)
		out, err := p.Read(t.Context(), sandbox.Cursor{}, 1<<10)
		must(t, err)
		if len(out.Stdout) > 0 {
			t.Errorf("%s's terminal shows %q", user, out.Stdout)
		}
	}
}
