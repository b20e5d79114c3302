//go:build unix

package cli_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/cli"
	"berth/internal/config"
	"berth/sandbox"
	"berth/sandbox/providertest"
)

// machine is a berth over a provider of host processes.
type machine struct {
	t    *testing.T
	fake *providertest.Fake
	dir  string
	// environ is added to the environment.
	environ []string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	f := providertest.NewFake(t.TempDir(), providertest.FakeOptions{})
	t.Cleanup(f.Shutdown)
	return &machine{t: t, fake: f, dir: t.TempDir()}
}

// answer is what a command left behind.
type answer struct {
	code           int
	stdout, stderr string
}

// do runs berth with stdin holding input.
func (m *machine) do(input string, args ...string) answer {
	m.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	go func() { _, _ = w.WriteString(input); w.Close() }()
	defer r.Close()
	var out, errs bytes.Buffer
	code := cli.Run(m.t.Context(), cli.App{
		Stdin: r, Stdout: &out, Stderr: &errs, Dir: m.dir, Executable: "/usr/bin/berth", Version: "test",
		Environ: append([]string{"BERTH_STATE=" + filepath.Join(m.dir, "state"), "HOME=" + m.dir, "MINE=from here"}, m.environ...),
		Provider: func(*config.Config, *slog.Logger) (sandbox.Provider, string, error) {
			return m.fake.Reopen(), "test", nil
		},
	}, args)
	return answer{code, out.String(), errs.String()}
}

// want checks an answer; texts are compared whole, "*" fits all.
func (m *machine) want(a answer, code int, stdout, stderr string, args ...string) {
	m.t.Helper()
	if a.code != code || stdout != "*" && a.stdout != stdout || stderr != "*" && a.stderr != stderr {
		m.t.Errorf("berth %s: exit %d, stdout %q, stderr %q; want exit %d, %q, %q", strings.Join(args, " "), a.code, a.stdout, a.stderr, code, stdout, stderr)
	}
}

func (m *machine) run(code int, stdout, stderr string, args ...string) answer {
	m.t.Helper()
	a := m.do("", args...)
	m.want(a, code, stdout, stderr, args...)
	return a
}

// keep makes a sandbox that stays.
func (m *machine) keep(id string) {
	m.t.Helper()
	m.run(0, "", "*", "run", "--keep", "--session", id, "--", "true")
}

func TestRun(t *testing.T) {
	m := newMachine(t)
	m.run(0, "hello\n", "", "run", "--", "echo", "hello")
	m.run(3, "", "oops\n", "run", "--", "sh", "-c", "echo oops >&2; exit 3")
	m.run(0, "a b|$HOME\n", "", "run", "--", "echo", "a b|$HOME")
	m.run(0, "set\nfrom here\n", "", "run", "-e", "A=set", "--env", "MINE", "--", "sh", "-c", "echo $A; echo $MINE")
	if a := m.do("over there\n", "run", "--", "cat"); a.code != 0 || a.stdout != "over there\n" {
		t.Errorf("run -- cat: %+v", a)
	}
	m.run(125, "", "*", "run", "--cwd", "/no/such/place", "--", "true")
	if list, err := m.fake.List(t.Context(), ""); err != nil || len(list) != 0 {
		t.Errorf("sandboxes left behind: %v, %v", list, err)
	}
}

func TestRunFlags(t *testing.T) {
	m := newMachine(t)
	m.run(0, "--bogus\n", "", "run", "echo", "--bogus") // the program's
	m.run(0, "-e\n", "", "run", "--", "printf", "%s\\n", "-e")
	m.run(0, "-- x\n", "", "run", "echo", "--", "x")
	m.run(0, "\n", "", "run", "-e", "EMPTY=", "--", "sh", "-c", "echo $EMPTY")
	m.run(0, "from here\n", "", "run", "-e", "MINE", "sh", "-c", "echo $MINE")
	m.run(2, "", "*", "run", "-q", "--", "true")
	m.run(2, "", "berth: --env: NOT_SET is not set here; write NOT_SET=VALUE, or leave it out\n", "run", "-e", "NOT_SET", "--", "true")
	m.keep("s")
	m.run(2, "", "*", "exec", "s", "--bogus", "--", "true")
	m.run(2, "", "*", "exec", "--bogus", "s", "--", "true")
	m.run(0, "--bogus\n", "", "exec", "s", "echo", "--bogus")
}

// What a variable of ours is not known for is said by every command, and stops none.
func TestUnknownVariables(t *testing.T) {
	m := newMachine(t)
	m.environ = []string{"BERTH_LIMITS_MAX_SANDBOXS=3"}
	const said = "berth: environment variable BERTH_LIMITS_MAX_SANDBOXS is not known and has no effect; did you mean BERTH_LIMITS_MAX_SANDBOXES?\n"
	m.run(0, "", said, "ls", "-q")
	m.run(0, "hello\n", said, "run", "--", "echo", "hello")
}

func TestRunBringsEveryByte(t *testing.T) {
	m := newMachine(t)
	big := strings.Repeat("0123456789abcdef\x00\xff\n", 100_000)
	if a := m.do(big, "run", "--", "cat"); a.code != 0 || a.stdout != big {
		t.Errorf("cat of %d bytes: exit %d, %d bytes, stderr %q", len(big), a.code, len(a.stdout), a.stderr)
	}
}

func TestRunKeeps(t *testing.T) {
	m := newMachine(t)
	a := m.run(0, "", "*", "run", "--keep", "--session", "mine", "--", "sh", "-c", "echo kept >file")
	if !strings.Contains(a.stderr, "berth enter mine") {
		t.Errorf("stderr %q does not say how to go back", a.stderr)
	}
	m.run(0, "kept\n", "", "exec", "mine", "--", "cat", "file")
	a = m.run(125, "", "*", "run", "--session", "mine", "--", "true")
	if !strings.Contains(a.stderr, "exists already") {
		t.Errorf("run in a sandbox that exists: %q", a.stderr)
	}
	m.run(0, "kept\n", "", "exec", "mi", "--", "cat", "file") // a prefix is enough
}

func TestExecErrors(t *testing.T) {
	m := newMachine(t)
	a := m.run(125, "", "*", "exec", "absent", "--", "true")
	if !strings.Contains(a.stderr, `no sandbox "absent"`) {
		t.Errorf("stderr %q", a.stderr)
	}
	m.keep("one-a")
	m.keep("one-b")
	a = m.run(125, "", "*", "exec", "one", "--", "true")
	if !strings.Contains(a.stderr, "could be any of") {
		t.Errorf("stderr %q", a.stderr)
	}
	m.run(125, "", "*", "exec", "one-a", "--", "no-such-program")
	m.run(2, "", "*", "exec", "one-a", "--")
}

func TestLogs(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	m.run(0, "*", "*", "exec", "s", "--", "echo", "first")
	m.run(4, "*", "*", "exec", "s", "--", "sh", "-c", "echo second; echo bad >&2; exit 4")
	a := m.run(0, "first\nsecond\n", "*", "logs", "s")
	if !strings.Contains(a.stderr, "(exit 4)") || !strings.Contains(a.stderr, "bad\n") {
		t.Errorf("logs: stderr %q", a.stderr)
	}
	a = m.run(0, "*", "", "logs", "-l", "s")
	if strings.Count(a.stdout, "\n") != 4 {
		t.Errorf("logs -l: %q, want a heading and three processes", a.stdout)
	}
	id := strings.Fields(strings.Split(a.stdout, "\n")[2])[0]
	m.run(0, "first\n", "", "logs", "s", id)
	m.run(0, "first\n", "", "logs", "-f", "s", id)
	m.run(1, "", "*", "logs", "s", "p-absent")
}

func TestLogsFollow(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	done := make(chan answer)
	go func() {
		done <- m.do("go\nend\n", "exec", "s", "--", "sh", "-c", "read a; echo $a; sleep 0.2; read a; echo $a")
	}()
	var a answer
	for range 100 {
		if a = m.do("", "logs", "-f", "s"); strings.Contains(a.stdout, "end") {
			break
		}
		time.Sleep(10 * time.Millisecond) // the process has not started yet
	}
	if a.stdout != "go\nend\n" {
		t.Errorf("logs -f: %+v", a)
	}
	m.want(<-done, 0, "go\nend\n", "")
}

func TestListStopRemove(t *testing.T) {
	m := newMachine(t)
	a := m.run(0, "", "*", "ls")
	if !strings.Contains(a.stderr, "No sandboxes") {
		t.Errorf("ls of nothing: %q", a.stderr)
	}
	m.keep("one")
	m.keep("two")
	m.run(0, "one\ntwo\n", "", "ls", "-q")
	m.run(0, "two stopped\n", "", "stop", "two")
	if a := m.run(0, "*", "", "ls"); !strings.Contains(a.stdout, "SESSION") || !strings.Contains(a.stdout, "stopped") {
		t.Errorf("ls: %q", a.stdout)
	}
	if a := m.run(0, "*", "", "ls", "--json", "--status", "stopped"); !strings.HasPrefix(a.stdout, `{"session_id":"two","owner":"local",`) || strings.Count(a.stdout, "\n") != 1 {
		t.Errorf("ls --json: %q", a.stdout)
	}
	a = m.run(1, "*", "*", "rm", "absent", "one")
	if !strings.Contains(a.stdout, "one deleted") || !strings.Contains(a.stderr, "absent") {
		t.Errorf("rm of one that is not there and one that is: %+v", a)
	}
	a = m.run(1, "", "*", "prune")
	if !strings.Contains(a.stderr, "pass --yes") || !strings.Contains(a.stderr, "two") {
		t.Errorf("prune: %q", a.stderr)
	}
	m.run(0, "", "*", "prune", "--yes", "--older-than", "1h")
	a = m.run(0, "", "*", "ls", "--owner", "nobody")
	if a.stderr != "No sandbox matches.\n" {
		t.Errorf("ls of an owner without any: %q", a.stderr)
	}
	m.run(0, "", "No sandbox matches.\n", "ls", "--status", "archived")
	m.run(0, "", "", "ls", "--status", "archived", "-q")
	if a := m.run(0, "*", "*", "prune", "--yes"); !strings.Contains(a.stdout, "two deleted") {
		t.Errorf("prune --yes: %+v", a)
	}
	m.run(0, "", "*", "ls", "-q")
}

func TestCopy(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	src := filepath.Join(m.dir, "src")
	for name, text := range map[string]string{"a.txt": "a", "deep/er/b.bin": "\x00\xff", "x y'$(z)": "odd"} {
		file := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{os.Mkdir(filepath.Join(src, "empty"), 0o755), os.Symlink("a.txt", filepath.Join(src, "link")),
		os.Symlink("/etc", filepath.Join(src, "deep", "dir")), os.Chmod(filepath.Join(src, "a.txt"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m.run(0, "", "", "cp", src, "s:") // as home/src
	m.run(0, "empty\nlink -> a.txt\n", "", "exec", "s", "--", "sh", "-c", "cd src; ls -d empty; echo link '->' $(readlink link); test -x a.txt")
	m.run(0, "", "", "cp", src, "s:renamed")
	m.run(0, "a", "", "exec", "s", "--", "cat", "renamed/a.txt")
	m.run(0, "", "", "cp", filepath.Join(src, "a.txt"), "s:new/dir/c.txt")
	m.run(0, "a", "", "exec", "s", "--", "cat", "new/dir/c.txt")
	m.run(0, "", "", "cp", filepath.Join(src, "a.txt"), "s:renamed/")

	// A link to a directory is not followed on the way out; one to a file is a file.
	out := filepath.Join(m.dir, "out")
	a := m.run(1, "", "*", "cp", "s:src", out)
	if !strings.Contains(a.stderr, "deep/dir") || !strings.Contains(a.stderr, "1 left out") {
		t.Errorf("cp out: %q", a.stderr)
	}
	for name, want := range map[string]string{"a.txt": "a", "deep/er/b.bin": "\x00\xff", "x y'$(z)": "odd", "link": "a"} {
		if b, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(b) != want {
			t.Errorf("out/%s = %q, %v; want %q", name, b, err, want)
		}
	}
	if i, err := os.Lstat(filepath.Join(out, "link")); err != nil || !i.Mode().IsRegular() {
		t.Errorf("out/link: %v, %v; want a file", i, err)
	}
	if i, err := os.Stat(filepath.Join(out, "empty")); err != nil || !i.IsDir() {
		t.Errorf("out/empty: %v, %v", i, err)
	}
	if i, err := os.Stat(filepath.Join(out, "a.txt")); err != nil || i.Mode().Perm()&0o100 == 0 {
		t.Errorf("out/a.txt lost its execute bit: %v, %v", i, err)
	}
	// Into a directory, over a file, and to nowhere.
	m.run(0, "", "", "cp", "s:src/a.txt", out)
	m.run(0, "", "", "cp", "s:src/a.txt", filepath.Join(out, "new.txt"))
	m.run(1, "", "*", "cp", "s:src/a.txt", filepath.Join(out, "no", "such"))
	m.run(1, "", "*", "cp", "s:absent", out)
	m.run(1, "", "*", "cp", filepath.Join(m.dir, "absent"), "s:")
	// A link here that the sandbox's names would lead through is not followed.
	trap := filepath.Join(m.dir, "trap")
	victim := filepath.Join(m.dir, "victim")
	for _, err := range []error{os.Mkdir(trap, 0o755), os.Mkdir(victim, 0o755), os.Symlink(victim, filepath.Join(trap, "src"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m.run(0, "", "", "exec", "s", "--", "sh", "-c", "mkdir -p t/src; echo bad >t/src/evil")
	m.run(1, "", "*", "cp", "s:t/.", trap+"/")
	if list, _ := os.ReadDir(victim); len(list) != 0 {
		t.Errorf("copied through a link: %v", list)
	}
}

func TestCancelledRunCleansUp(t *testing.T) {
	m := newMachine(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	code := cli.Run(ctx, cli.App{Stdout: &out, Stderr: &errs, Dir: m.dir, Environ: []string{"HOME=" + m.dir},
		Provider: func(*config.Config, *slog.Logger) (sandbox.Provider, string, error) {
			return m.fake.Reopen(), "test", nil
		},
	}, []string{"run", "--", "true"})
	if code == 0 {
		t.Errorf("a run that was cancelled before it began: exit 0")
	}
	if list, err := m.fake.List(t.Context(), ""); err != nil || len(list) != 0 {
		t.Errorf("sandboxes left behind: %v, %v", list, err)
	}
}

func TestEvents(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	m.run(0, "", "No tool has been called on this sandbox.\n", "events", "s")
	m.run(1, "", "*", "events", "absent")
	manager, err := sandbox.NewManager(m.fake.Reopen(), sandbox.Options{EventDir: filepath.Join(m.dir, "state", "events")})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	key := sandbox.Key{Owner: sandbox.LocalOwner, Session: "s"}
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	manager.Record(key, sandbox.Event{Time: at, Tool: "execute_command", Outcome: "exit 0", Duration: 1500 * time.Millisecond, Bytes: 3,
		Args: map[string]any{"command": "a <b> && c\x1b[2J", "argv": []string{"x"}}})
	manager.Record(key, sandbox.Event{Time: at, Tool: "read_file", Outcome: "error", Error: "no <such>\x1b file", Duration: time.Millisecond})
	local := at.Local().Format("2006-01-02 15:04:05.000")
	m.run(0, local+`  execute_command  exit 0  argv=["x"] command="a <b> && c\u001b[2J"  (1.5s)`+"\n"+
		local+"  read_file        error    no <such>  file  (1ms)\n", "", "events", "s")
	m.run(0, `{"args":{"argv":["x"],"command":"a <b> && c\u001b[2J"},"bytes":3,"duration_ms":1500,"error":"","outcome":"exit 0","session_id":"s","time":"2026-05-04T03:02:01Z","tool":"execute_command"}`+"\n"+
		`{"args":null,"bytes":0,"duration_ms":1,"error":"no <such>\u001b file","outcome":"error","session_id":"s","time":"2026-05-04T03:02:01Z","tool":"read_file"}`+"\n", "", "events", "--json", "s")
}
