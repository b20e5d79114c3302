//go:build linux

package toolbox_test

import (
	"strings"
	"testing"
	"time"
)

func TestExecute(t *testing.T) {
	w := newWorld(t)
	long := "echo '" + strings.Repeat("x", 200<<10) + "' | wc -c"
	for _, c := range []struct {
		name string
		body m
		code int
		out  string
	}{
		{"plain", m{"command": "echo hi"}, 0, "hi\n"},
		{"merged in order", m{"command": "echo a; echo b >&2; echo c; exit 3"}, 3, "a\nb\nc\n"},
		{"cwd", m{"command": "pwd", "cwd": "/usr"}, 0, "/usr\n"},
		{"relative cwd", m{"command": "mkdir -p sub && cd sub && pwd"}, 0, "/home/agent/sub\n"},
		{"envs", m{"command": "echo $A-$B", "envs": m{"A": "1 2", "B": "'"}}, 0, "1 2-'\n"},
		{"stdin at its end", m{"command": "cat; echo end"}, 0, "end\n"},
		{"no state is kept", m{"command": "echo ${A-none}; pwd"}, 0, "none\n/home/agent\n"},
		{"killed by a signal", m{"command": "kill -9 $$"}, 137, ""},
		{"text that is none", m{"command": `printf '\377"\\\t\001'`}, 0, "\ufffd\"\\\t\x01"},
		{"left running", m{"command": "sleep 1000 & echo on"}, 0, "on\n"},
		{"long", m{"command": long}, 0, "204801\n"},
		{"timeout not met", m{"command": "echo in time", "timeout": 60}, 0, "in time\n"},
	} {
		var r execResult
		w.do("POST", "/process/execute", c.body, 200, &r)
		if r.ExitCode == nil || *r.ExitCode != c.code || r.Result != c.out {
			t.Errorf("%s: %v %q, want %d %q", c.name, r.ExitCode, r.Result, c.code, c.out)
		}
	}
	var r execResult
	w.do("POST", "/process/execute", m{"command": "pwd", "cwd": "/nowhere"}, 200, &r)
	if *r.ExitCode != -1 || !strings.Contains(r.Result, "/nowhere") {
		t.Errorf("a directory that is not there: %d %q", *r.ExitCode, r.Result)
	}
	began := time.Now()
	a := w.do("POST", "/process/execute", m{"command": "echo out; sleep 1000; echo never", "timeout": 1}, 408, nil)
	w.problem(a, 408, "PROCESS_EXECUTION_TIMEOUT", "1s")
	if took := time.Since(began); took < time.Second {
		t.Errorf("timed out after %v", took)
	}
	for _, c := range []struct {
		body any
		code string
		text string
	}{
		{m{"command": " \n"}, "BAD_REQUEST", "command"},
		{m{}, "BAD_REQUEST", "command"},
		{m{"command": "true", "timeout": -1}, "BAD_REQUEST", "timeout"},
		{m{"command": "true", "timeout": "x"}, "INVALID_REQUEST_BODY", "timeout"},
		{m{"command": "true", "envs": m{"1A": ""}}, "BAD_REQUEST", "envs"},
		{m{"command": "true", "envs": m{"A": "\x00"}}, "BAD_REQUEST", "envs.A"},
		{m{"command": 7}, "INVALID_REQUEST_BODY", "command"},
		{[]int{}, "INVALID_REQUEST_BODY", "JSON"},
	} {
		w.problem(w.do("POST", "/process/execute", c.body, 400, nil), 400, c.code, c.text)
	}
	w.problem(w.request("POST", "/process/execute", "application/json", strings.NewReader("")), 400, "INVALID_REQUEST_BODY", "empty")
	w.problem(w.request("POST", "/process/execute", "application/json", strings.NewReader(`{"command":"true"} x`)), 400, "INVALID_REQUEST_BODY", "follows")
}

func TestExecuteLargeOutput(t *testing.T) {
	w := newWorld(t)
	code, out := w.exec("head -c 20000000 /dev/zero | tr '\\0' a")
	if code != 0 || out != strings.Repeat("a", 20000000) {
		t.Errorf("20 MB: exit %d, %d bytes", code, len(out))
	}
}

func TestNotRunningIsNotStarted(t *testing.T) {
	w := newWorld(t)
	_, err := w.manager.StopSandbox(t.Context(), w.key, false)
	must(t, err)
	for _, path := range []string{"/process/execute", "/process/session"} {
		w.problem(w.do("POST", path, m{"command": "true", "sessionId": "a"}, 400, nil), 400, "BAD_REQUEST", "not running")
	}
	w.problem(w.do("GET", "/files?path=/", nil, 400, nil), 400, "BAD_REQUEST", "not running")
	info, err := w.manager.GetSandbox(t.Context(), w.key)
	must(t, err)
	if info.Status != "stopped" {
		t.Errorf("the sandbox is %s", info.Status)
	}
}

func TestUnknownPaths(t *testing.T) {
	w := newWorld(t)
	w.problem(w.do("GET", "/nothing", nil, 404, nil), 404, "NOT_FOUND", "/nothing")
}

// A request that says so is no use of the sandbox: it stops when it would have.
func TestAsideIsNoUse(t *testing.T) {
	w := newWorld(t)
	deadline := func() time.Time {
		t.Helper()
		info, err := w.manager.GetSandbox(t.Context(), w.key)
		must(t, err)
		if info.IdleDeadline.IsZero() {
			t.Fatal("it is not told when the idle sandbox stops")
		}
		return info.IdleDeadline
	}
	ask := func(method, path, body string, headers ...string) {
		t.Helper()
		if a := w.request(method, path, "application/json", strings.NewReader(body), headers...); a.status != 200 {
			t.Fatalf("%s %s = %d %s", method, path, a.status, a.body)
		}
	}
	before := deadline()
	ask("POST", "/process/execute", `{"command": "sleep 0.05"}`, "X-Daytona-Skip-Last-Activity-Update", "true")
	ask("GET", "/files?path=/", "", "X-Daytona-Skip-Last-Activity-Update", "true")
	if got := deadline(); !got.Equal(before) {
		t.Errorf("it stops %v later after requests beside its use", got.Sub(before))
	}
	ask("POST", "/process/execute", `{"command": "sleep 0.05"}`)
	if got := deadline(); !got.After(before) {
		t.Errorf("it stops at %v, and at %v after a command", before, got)
	}
}
