//go:build linux

package toolbox_test

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
)

type chunk struct{ Type, Text, Name, Value, Traceback string }

// interpret runs a program and returns what came, all of one type as one.
func (w *world) interpret(body m) (map[string]string, websocket.CloseError) {
	w.t.Helper()
	ws, ctx := w.dial("/process/interpreter/execute")
	b, err := json.Marshal(body)
	must(w.t, err)
	must(w.t, ws.Write(ctx, websocket.MessageText, b))
	got := map[string]string{}
	for {
		_, b, err := ws.Read(ctx)
		var c websocket.CloseError
		if errors.As(err, &c) {
			return got, c
		}
		must(w.t, err)
		var k chunk
		must(w.t, json.Unmarshal(b, &k))
		got[k.Type] += k.Text + k.Name
		if k.Type == "error" {
			got["value"], got["traceback"] = k.Value, k.Traceback
		}
	}
}

func TestInterpreter(t *testing.T) {
	w := newWorld(t)
	var c struct {
		ID, Cwd, Language string
		Active            bool
	}
	w.do("POST", "/process/interpreter/context", m{"cwd": "/usr"}, 200, &c)
	if c.ID == "" || c.Cwd != "/usr" || c.Language != "python" || !c.Active {
		t.Errorf("context: %+v", c)
	}
	w.problem(w.do("POST", "/process/interpreter/context", m{"language": "ruby"}, 400, nil), 400, "BAD_REQUEST", "language")
	run := func(what string, body m, want map[string]string) {
		t.Helper()
		got, end := w.interpret(body)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s is %q, want %q (%v, %v)", what, k, got[k], v, got, end)
			}
		}
		if end.Code != websocket.StatusNormalClosure {
			t.Errorf("%s: %v", what, end)
		}
	}
	run("state", m{"code": "import os, sys\nx = 41\ndef f(): return x + 1\nprint('ü', end='')\nprint('e', file=sys.stderr)"},
		map[string]string{"stdout": "ü", "stderr": "e\n", "control": "completed", "error": ""})
	run("kept", m{"code": "print(f())"}, map[string]string{"stdout": "42\n"})
	run("apart", m{"code": "import os; print('x' in globals(), os.getcwd())", "contextId": c.ID}, map[string]string{"stdout": "False /usr\n"})
	run("envs", m{"code": "print(os.environ['A'])", "envs": m{"A": "1"}}, map[string]string{"stdout": "1\n"})
	run("envs are gone", m{"code": "print('A' in os.environ)"}, map[string]string{"stdout": "False\n"})
	run("a child", m{"code": "import subprocess; subprocess.run('echo child; echo bad >&2; cat', shell=True); print('after')"}, map[string]string{"stdout": "child\nafter\n", "stderr": "bad\n"})
	run("an error", m{"code": "def g():\n    return 1/0\ng()"}, map[string]string{"error": "ZeroDivisionError", "value": "division by zero", "control": "completed"})
	run("a syntax error", m{"code": "if"}, map[string]string{"error": "SyntaxError"})
	run("an exit", m{"code": "raise SystemExit(3)"}, map[string]string{"error": "SystemExit", "value": "3"})
	run("much", m{"code": "print('x' * 3000000)"}, map[string]string{"stdout": strings.Repeat("x", 3000000) + "\n"})
	got, _ := w.interpret(m{"code": "def g():\n    return 1/0\ng()"})
	if !strings.Contains(got["traceback"], "return 1/0") || strings.Contains(got["traceback"], "worker") {
		t.Errorf("traceback: %s", got["traceback"])
	}
	// A program that takes too long is interrupted, and its context goes on.
	_, end := w.interpret(m{"code": "import time\ntime.sleep(1000)", "timeout": 1})
	if end.Code != 4008 {
		t.Errorf("time-out: %v", end)
	}
	run("after a time-out", m{"code": "print(x)"}, map[string]string{"stdout": "41\n"})
	_, end = w.interpret(m{"code": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", "timeout": 1})
	if end.Code != 4008 {
		t.Errorf("a program that goes on: %v", end)
	}
	run("a new default context", m{"code": "print('x' in globals())"}, map[string]string{"stdout": "False\n"})
	got, end = w.interpret(m{"code": "import os; os._exit(3)", "contextId": c.ID})
	if end.Code != websocket.StatusGoingAway {
		t.Errorf("a context that ends itself: %v %v", got, end)
	}
	for _, bad := range []m{{"code": " "}, {"code": "x", "timeout": -1}, {"code": "x", "contextId": "none"}} {
		if _, end := w.interpret(bad); end.Code != websocket.StatusPolicyViolation {
			t.Errorf("%v: %v", bad, end)
		}
	}
	w.do("POST", "/process/interpreter/context", m{}, 200, &c)
	var list struct{ Contexts []struct{ ID string } }
	w.do("GET", "/process/interpreter/context", nil, 200, &list)
	if len(list.Contexts) != 1 || list.Contexts[0].ID != c.ID {
		t.Errorf("contexts: %+v", list)
	}
	w.again()
	run("the next server", m{"code": "print('here')", "contextId": c.ID}, map[string]string{"stdout": "here\n"})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			text := strings.Repeat(string(rune('a'+i)), 10)
			got, _ := w.interpret(m{"code": "print('" + text + "')", "contextId": c.ID})
			if got["stdout"] != text+"\n" {
				t.Errorf("at once: %v", got)
			}
		})
	}
	wg.Wait()
	w.do("DELETE", "/process/interpreter/context/"+c.ID, nil, 200, nil)
	w.problem(w.do("DELETE", "/process/interpreter/context/"+c.ID, nil, 404, nil), 404, "NOT_FOUND", c.ID)
	w.problem(w.do("DELETE", "/process/interpreter/context/default", nil, 400, nil), 400, "BAD_REQUEST", "default")
}
