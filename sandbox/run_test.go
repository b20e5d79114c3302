//go:build unix

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
)

func TestExecuteCommand(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{Defaults: sandbox.Spec{Env: map[string]string{"A": "spec", "B": "spec"}}})
	sh(t, m, "mkdir -p sub")
	for _, c := range []struct {
		name      string
		r         sandbox.RunRequest
		exit      int
		out, errs string
		cwd       string // its end
		home      bool
	}{
		{name: "streams", r: sandbox.RunRequest{Command: "echo a; echo b >&2; exit 3"}, exit: 3, out: "a\n", errs: "b\n", home: true},
		{name: "argv", r: sandbox.RunRequest{Argv: []string{"printf", "%s|", "a b", ""}}, out: "a b||", home: true},
		{name: "env", r: sandbox.RunRequest{Command: "echo $A ${B-none} $C", Env: map[string]*string{"A": ptr("call"), "B": nil, "C": ptr("c")}}, out: "call none c\n", home: true},
		{name: "stdin", r: sandbox.RunRequest{Command: "cat", Stdin: ptr("x")}, out: "x", home: true},
		{name: "no stdin", r: sandbox.RunRequest{Command: "cat"}, home: true},
		{name: "relative cwd", r: sandbox.RunRequest{Command: "basename $PWD", Cwd: "sub"}, out: "sub\n", cwd: "/sub"},
		{name: "home cwd", r: sandbox.RunRequest{Command: "basename $PWD", Cwd: "~/sub/.."}, out: "agent\n", cwd: "/agent", home: true},
		{name: "timeout", r: sandbox.RunRequest{Command: "echo a; sleep 60", Timeout: ptr(200 * time.Millisecond)}, exit: 124, out: "a\n", home: true},
		{name: "progress and colours", r: sandbox.RunRequest{Command: `printf '1%%\r50%%\r100%%\n\033[31mred\033[0m\n\377\n'`}, out: "100%\nred\n\uFFFD\n", home: true},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			res, err := m.ExecuteCommand(ctxOf(t), key, c.r)
			if err != nil {
				t.Fatal(err)
			}
			if exit(res) != c.exit || res.Stdout.Head != c.out || res.Stderr.Head != c.errs || res.Stdout.Cut != 0 || res.HomeCwd != c.home || !strings.HasSuffix(res.Cwd, c.cwd) {
				t.Errorf("got exit %d, %q, %q, cwd %s (%v)", exit(res), res.Stdout.Head, res.Stderr.Head, res.Cwd, res.HomeCwd)
			}
			if res.Process.TimedOut != (c.exit == 124) || res.HandedOver || res.Cursor == "" {
				t.Errorf("got %+v", res)
			}
		})
	}
}

func TestBadRequestsNameEveryFault(t *testing.T) {
	s := newScript("")
	m := managerOf(t, s, sandbox.Options{})
	long := strings.Repeat("x", 9<<20)
	for _, c := range []struct {
		name   string
		call   func() error
		fields []string
	}{
		{"execute", func() error {
			_, err := m.ExecuteCommand(t.Context(), key, sandbox.RunRequest{Command: long, Argv: []string{"a\x00"}, Cwd: "a\x00b", User: "bob",
				Env: map[string]*string{"1A": ptr("x"), "OK": ptr("a\x00")}, Stdin: &long, Timeout: ptr(-time.Second), Wait: ptr(-time.Second)})
			return err
		}, []string{"argv", "argv.0", "cwd", "user", "env", "env.OK", "stdin", "timeout_seconds", "wait_seconds"}},
		{"nothing", func() error {
			_, err := m.ExecuteCommand(t.Context(), key, sandbox.RunRequest{})
			return err
		}, []string{"command"}},
		{"spawn", func() error {
			_, err := m.SpawnProcess(t.Context(), key, sandbox.SpawnRequest{RunRequest: trueCommand, TTY: &sandbox.WindowSize{}, WaitFor: "x"})
			return err
		}, []string{"cols", "rows", "wait_for"}},
		{"pattern", func() error {
			_, err := m.SpawnProcess(t.Context(), key, sandbox.SpawnRequest{RunRequest: trueCommand, Pattern: "("})
			return err
		}, []string{"pattern"}},
		{"code", func() error {
			_, err := m.RunCode(t.Context(), key, sandbox.RunCodeRequest{Language: "cobol"})
			return err
		}, []string{"language", "code"}},
		{"start", func() error {
			_, err := m.StartSandbox(t.Context(), key, sandbox.Spec{Name: "a\nb", Labels: map[string]string{"-": "x"}, Language: "c", User: "x",
				Env: map[string]string{"": "x"}, AutoStop: ptr(-time.Second), AutoArchive: ptr(time.Hour * 1e4), Timeout: ptr(time.Duration(-2)), WorkingDirectory: "rel"})
			return err
		}, []string{"name", "labels", "language", "user", "env", "auto_stop_minutes", "auto_archive_minutes", "timeout_seconds", "working_directory"}},
		{"read", func() error {
			_, err := m.ReadOutput(t.Context(), key, sandbox.ReadRequest{Cursor: "c1", TailLines: -1, MaxBytes: 1 << 30})
			return err
		}, []string{"process_id", "cursor", "tail_lines", "max_bytes"}},
		{"kill", func() error {
			_, err := m.KillProcess(t.Context(), key, sandbox.KillRequest{Process: "p", Signal: "SIGFOO"})
			return err
		}, []string{"signal"}},
		{"edit", func() error {
			_, err := m.EditFile(t.Context(), key, sandbox.EditFileRequest{Path: "f", Edits: []sandbox.Edit{{}, {OldText: "a", NewText: "a"}}})
			return err
		}, []string{"edits.0.old_text", "edits.1.new_text"}},
		{"list", func() error {
			_, err := m.ListSandboxes(t.Context(), "o", sandbox.ListRequest{Status: "x", Limit: 1000, Cursor: "???"})
			return err
		}, []string{"status", "limit", "cursor"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.call()
			var fields []string
			var walk func(error)
			walk = func(err error) {
				switch e := err.(type) {
				case interface{ Unwrap() []error }:
					for _, x := range e.Unwrap() {
						walk(x)
					}
				case *sandbox.FieldError:
					fields = append(fields, e.Field)
				}
			}
			walk(err)
			for _, f := range c.fields {
				if !strings.Contains(" "+strings.Join(fields, " ")+" ", " "+f+" ") {
					t.Errorf("%s is not named in %q", f, fields)
				}
			}
		})
	}
	if creates, starts, spawns := s.counts(); creates+starts+spawns > 0 {
		t.Errorf("%d created, %d started, %d spawned by bad requests", creates, starts, spawns)
	}
}

func TestMissingCwdAndInterpreter(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	_, err := m.ExecuteCommand(ctxOf(t), key, sandbox.RunRequest{Command: "true", Cwd: "nowhere"})
	var field *sandbox.FieldError
	if !errors.As(err, &field) || field.Field != "cwd" {
		t.Errorf("got %v", err)
	}
	s := newScript(sandbox.StatusRunning)
	_, err = managerOf(t, s, sandbox.Options{}).RunCode(t.Context(), key, sandbox.RunCodeRequest{Code: "1", Language: sandbox.Python})
	if !errors.Is(err, sandbox.ErrUnsupported) || !strings.Contains(err.Error(), "python3") {
		t.Errorf("got %v", err)
	}
}

func TestOutputIsBounded(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	res := sh(t, m, "seq 1 100000; echo err >&2")
	total := int64(len("1\n")*9 + len("10\n")*90 + len("100\n")*900 + len("1000\n")*9000 + len("10000\n")*90000 + len("100000\n"))
	if n := len(res.Stdout.Head) + len(res.Stdout.Tail); n > sandbox.MaxOutput || n < sandbox.MaxOutput*9/10 || res.Stderr.Head != "err\n" {
		t.Errorf("%d bytes are shown, stderr %q", n, res.Stderr.Head)
	}
	if got := int64(len(res.Stdout.Head)+len(res.Stdout.Tail)) + res.Stdout.Cut; got != total || res.Process.Produced.Stdout != total {
		t.Errorf("shown and cut are %d, want %d", got, total)
	}
	if !strings.HasPrefix(res.Stdout.Head, "1\n2\n") || !strings.HasSuffix(res.Stdout.Head, "\n") || !strings.HasSuffix(res.Stdout.Tail, "\n99999\n100000\n") {
		t.Errorf("the ends are %.20q and %q", res.Stdout.Head, res.Stdout.Tail[len(res.Stdout.Tail)-20:])
	}
	// The cut is read page by page, and joins exactly.
	cursor, all := res.CutCursor, res.Stdout.Head
	for range 100 {
		r, err := m.ReadOutput(ctxOf(t), key, sandbox.ReadRequest{Process: res.Process.ID, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		if r.Stdout.Head == "" {
			break
		}
		all, cursor = all+r.Stdout.Head, r.Cursor
	}
	if want := seq(100000); all != want {
		t.Errorf("the pages join to %d bytes, want %d", len(all), len(want))
	}
	// Beyond what is kept.
	res = sh(t, m, "yes 0123456789 | head -c 9000000")
	if res.Dropped != 9000000-(4<<20) || res.Process.Kept.Stdout != res.Dropped {
		t.Errorf("dropped %d, kept from %d", res.Dropped, res.Process.Kept.Stdout)
	}
}

func seq(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

func TestHandOverCancelAndLeaving(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	res, err := m.ExecuteCommand(ctxOf(t), key, sandbox.RunRequest{Command: "echo a; sleep 0.4; echo b", Wait: ptr(150 * time.Millisecond)})
	if err != nil || !res.HandedOver || res.Process.ExitCode != nil || res.Stdout.Head != "a\n" {
		t.Fatalf("got %+v, %v", res, err)
	}
	r, err := m.ReadOutput(ctxOf(t), key, sandbox.ReadRequest{Process: res.Process.ID, Cursor: res.Cursor, WaitFor: sandbox.WaitExit})
	if err != nil || r.Stdout.Head != "b\n" || exit(r) != 0 {
		t.Errorf("the rest: got %+v, %v", r, err)
	}
	for _, c := range []struct {
		cause  error
		killed bool
	}{{sandbox.ErrCancelled, true}, {errors.New("connection lost"), false}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(200*time.Millisecond, func() { cancel(c.cause) })
		res, err := m.ExecuteCommand(ctx, key, sandbox.RunRequest{Command: "echo a; sleep 61 & sleep 60"})
		if err != nil || res.Process.Killed != c.killed || res.HandedOver == c.killed || res.Stdout.Head != "a\n" || c.killed && exit(res) != 137 {
			t.Errorf("%v: got %+v, %v", c.cause, res, err)
		}
	}
}

func TestStreaming(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	var mu sync.Mutex
	var got strings.Builder
	pieces := 0
	res, err := m.ExecuteCommand(ctxOf(t), key, sandbox.RunRequest{Command: "echo 1; sleep 0.2; echo 2 >&2; sleep 0.2; echo 3",
		OnOutput: func(o sandbox.Output) {
			mu.Lock()
			defer mu.Unlock()
			pieces++
			got.Write(o.Stdout)
			got.Write(o.Stderr)
		}})
	if err != nil || exit(res) != 0 {
		t.Fatal(res, err)
	}
	if got.String() != "1\n2\n3\n" || pieces < 3 {
		t.Errorf("got %q in %d pieces", got.String(), pieces)
	}
}

func TestBackgroundProcess(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	spawn := sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Command: `echo ready; while read l; do echo "got $l"; done; echo bye; exit 4`}, OpenStdin: true, Pattern: "^ready$"}
	res, err := m.SpawnProcess(ctxOf(t), key, spawn)
	if err != nil || !res.Matched || res.Stdout.Head != "ready\n" || res.HandedOver {
		t.Fatalf("got %+v, %v", res, err)
	}
	id := res.Process.ID
	res, err = m.SendStdin(ctxOf(t), key, sandbox.StdinRequest{Process: id, Data: []byte("one\n")})
	if err != nil || res.Stdout.Head != "got one\n" || len(res.Remarks) != 0 {
		t.Fatalf("got %+v, %v", res, err)
	}
	res, err = m.SendStdin(ctxOf(t), key, sandbox.StdinRequest{Process: id, Data: []byte("two"), Wait: ptr(50 * time.Millisecond)})
	if err != nil || res.Stdout.Head != "" || len(res.Remarks) != 1 {
		t.Errorf("without a newline: got %+v, %v", res, err)
	}
	cursor := res.Cursor
	res, err = m.SendStdin(ctxOf(t), key, sandbox.StdinRequest{Process: id, End: true, WaitFor: sandbox.WaitExit})
	if err != nil || exit(res) != 4 {
		t.Errorf("at the end: got %+v, %v", res, err)
	}
	res, err = m.ReadOutput(ctxOf(t), key, sandbox.ReadRequest{Process: id, Cursor: cursor})
	if err != nil || !strings.HasSuffix(res.Stdout.Head, "bye\n") {
		t.Errorf("got %+v, %v", res, err)
	}
	_, err = m.SendStdin(ctxOf(t), key, sandbox.StdinRequest{Process: id, Data: []byte("x")})
	if !errors.Is(err, sandbox.ErrExited) || !strings.Contains(err.Error(), "exit 4") {
		t.Errorf("after the exit: got %v", err)
	}
	res, err = m.KillProcess(ctxOf(t), key, sandbox.KillRequest{Process: id})
	if err != nil || !res.AlreadyEnded || exit(res) != 4 {
		t.Errorf("kill of an ended one: got %+v, %v", res, err)
	}
	if _, err := m.ReadOutput(ctxOf(t), key, sandbox.ReadRequest{Process: id, Cursor: "c999.0"}); err == nil {
		t.Error("a cursor beyond the end is taken")
	}
	if _, err := m.ReadOutput(ctxOf(t), key, sandbox.ReadRequest{Process: "p-none"}); !errors.Is(err, sandbox.ErrNoProcess) {
		t.Errorf("got %v", err)
	}
	if _, err := m.StopSandbox(ctxOf(t), key, false); err != nil {
		t.Fatal(err)
	}
	if res, err = m.ReadOutput(ctxOf(t), key, sandbox.ReadRequest{Process: id, TailLines: 1}); err != nil || res.Stdout.Head != "bye\n" || res.Oldest == "" {
		t.Errorf("of a stopped sandbox: got %+v, %v", res, err)
	}
	if l, err := m.ListProcesses(ctxOf(t), key); err != nil || len(l) != 1 {
		t.Errorf("of a stopped sandbox: got %v, %v", l, err)
	}
	if info, err := m.GetSandbox(ctxOf(t), key); err != nil || info.Status != sandbox.StatusStopped {
		t.Errorf("reading started it: %+v, %v", info, err)
	}
	if res := sh(t, m, "true"); !res.Notice.Started {
		t.Errorf("got %+v", res.Notice)
	}
}

func TestKillProcess(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	// A shell that is about to exec forgets a signal that it caught: it is the
	// program that says "ready".
	const waits = "echo ready >said; exec tail -f said"
	for _, c := range []struct{ command, signal, want string }{
		{waits, "", "SIGTERM"}, {"trap '' TERM; echo ready; sleep 60; sleep 60", "", "SIGKILL"},
		{waits, "int", "SIGINT"}, {waits, "9", "SIGKILL"},
	} {
		res, err := m.SpawnProcess(ctxOf(t), key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Command: c.command}, Pattern: "ready"})
		if err != nil {
			t.Fatal(err)
		}
		res, err = m.KillProcess(ctxOf(t), key, sandbox.KillRequest{Process: res.Process.ID, Signal: c.signal})
		if err != nil || exit(res) != 137 || !res.Process.Killed || res.Process.Signal != c.want || res.AlreadyEnded || res.Stdout.Head != "ready\n" {
			t.Errorf("%s, %q: got %+v, %v", c.command, c.signal, res, err)
		}
	}
}

func TestPatternAcrossPieces(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	res, err := m.SpawnProcess(ctxOf(t), key, sandbox.SpawnRequest{
		RunRequest: sandbox.RunRequest{Command: `yes filler | head -c 300000; printf 'list'; sleep 0.1; printf '\033[1mening'; sleep 0.1; printf '\033[0m on 80'; sleep 0.1; printf '80\n'; exec sleep 60`},
		Pattern:    `listening on \d{4}$`})
	if err != nil || !res.Matched || !strings.HasSuffix(res.Stdout.Tail, "listening on 8080\n") {
		t.Errorf("got matched %v, %q, %v", res.Matched, res.Stdout.Tail, err)
	}
}

func TestSplitRunesAreHeldBack(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	res, err := m.SpawnProcess(ctxOf(t), key, sandbox.SpawnRequest{
		RunRequest: sandbox.RunRequest{Command: `printf 'a\342'; read x; printf '\202\254\033[3'; read x; printf '1mred\342'`}, OpenStdin: true, WaitFor: sandbox.WaitOutput})
	if err != nil || res.Stdout.Head != "a" || res.Cursor != "c1.0" {
		t.Fatalf("got %+v, %v", res, err)
	}
	for _, want := range []string{"€", "red\uFFFD"} {
		if _, err := m.SendStdin(ctxOf(t), key, sandbox.StdinRequest{Process: res.Process.ID, Data: []byte("\n"), WaitFor: sandbox.WaitOutput}); err != nil {
			t.Fatal(err)
		}
		next, err := m.ReadOutput(ctxOf(t), key, sandbox.ReadRequest{Process: res.Process.ID, Cursor: res.Cursor})
		if err != nil || next.Stdout.Head != want {
			t.Fatalf("got %+v, %v, want %q", next, err, want)
		}
		res = next
	}
}

func TestDriftIsAppliedOrTold(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	if _, err := m.StartSandbox(ctxOf(t), key, sandbox.Spec{Env: map[string]string{"A": "1"}}); err != nil {
		t.Fatal(err)
	}
	res, err := m.StartSandbox(ctxOf(t), key, sandbox.Spec{Env: map[string]string{"B": "2"}, AutoStop: ptr(time.Hour), Ephemeral: ptr(true)})
	if err != nil || res.Outcome != sandbox.Connected || len(res.Notice.Drift) != 1 || !strings.Contains(res.Notice.Drift[0], "ephemeral") ||
		res.Info.Spec.Env["B"] != "2" || *res.Info.Spec.AutoStop != time.Hour {
		t.Errorf("got %+v, %v", res, err)
	}
	if got := sh(t, m, "echo ${A-none} $B"); got.Stdout.Head != "none 2\n" {
		t.Errorf("got %q", got.Stdout.Head)
	}
}

func TestEventsHoldNoSecrets(t *testing.T) {
	dir := t.TempDir() + "/events"
	m, _ := newFake(t, sandbox.Options{EventDir: dir})
	m2, _ := newFake(t, sandbox.Options{EventDir: dir})
	var wg sync.WaitGroup
	for i := range 50 {
		for _, m := range []*sandbox.Manager{m, m2} {
			wg.Go(func() {
				m.Record(key, sandbox.Event{Tool: "write_file", Outcome: "ok", Duration: time.Second, Args: map[string]any{"path": fmt.Sprint(i),
					"content": "s3cret-c", "env": map[string]any{"TOKEN": "s3cret-e"}, "edits": []any{map[string]any{"old_text": "s3cret-o"}}}})
			})
		}
	}
	wg.Wait()
	events, err := m.Events(t.Context(), key)
	if err != nil || len(events) != 100 || events[0].Tool != "write_file" || events[0].Duration != time.Second {
		t.Errorf("got %d events, %v", len(events), err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(dir + "/" + files[0].Name())
	if err != nil || strings.Contains(string(data), "s3cret") || !strings.Contains(string(data), "TOKEN") {
		t.Errorf("the log holds a secret: %.300s, %v", data, err)
	}
	if st, err := os.Stat(dir + "/" + files[0].Name()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", st.Mode(), err)
	}
	for range 400 {
		m.Record(key, sandbox.Event{Tool: "x", Error: strings.Repeat("e", 5000), Args: map[string]any{"a": strings.Repeat("a", 50_000), "b": make([]any, 10_000)}})
	}
	if events, err = m.Events(t.Context(), key); err != nil || len(events) != 500 {
		t.Errorf("got %d events, %v", len(events), err)
	}
}

// A call that its server did not live to end is told of by its beginning.
func TestEventsOfUnendedCalls(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{EventDir: t.TempDir()})
	key := sandbox.Key{Owner: "o", Session: "s"}
	for _, call := range []string{"a", "b"} {
		m.Record(key, sandbox.Event{Tool: "execute_command", Outcome: sandbox.Begun, Call: call, Args: map[string]any{"command": call}})
	}
	m.Record(key, sandbox.Event{Tool: "execute_command", Outcome: "exit 0", Call: "a"})
	m.Record(key, sandbox.Event{Tool: "reconnect", Outcome: "ok"})
	events, err := m.Events(t.Context(), key)
	if err != nil || len(events) != 3 || events[0].Outcome != sandbox.Begun || events[0].Args["command"] != "b" || events[1].Call != "a" || events[2].Tool != "reconnect" {
		t.Errorf("got %+v, %v; want the beginning of b, the end of a, and the reconnect", events, err)
	}
}
