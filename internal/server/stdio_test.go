package server_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"berth/internal/server"
	"berth/internal/session"
	"berth/sandbox"
)

func TestStdioAnswersAfterEOF(t *testing.T) {
	r := newRig(t, server.Options{})
	in := strings.NewReader(initialize + "\n" + initialized + "\n" + call(2, "hello")) // no newline at the end
	var out bytes.Buffer
	if err := r.s.ServeStdio(t.Context(), in, &out); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		m := decode(t, []byte(line))
		seen = append(seen, string(m.ID)+m.text())
	}
	if got := strings.Join(seen, " "); got != "1 2world" && got != "2world 1" {
		t.Errorf("answers = %s", got)
	}
}

func TestStdioHandsOverAtEOF(t *testing.T) {
	r := newRig(t, server.Options{})
	p := r.stdio()
	p.send(call(7, "block"))
	next(t, r.started, "start")
	p.in.Close()
	if got := next(t, r.causes, "end"); got == nil || errors.Is(got, sandbox.ErrCancelled) {
		t.Errorf("cause = %v, want a hand-over", got)
	}
	if a := next(t, p.out, "answer"); a.text() != "handed over" {
		t.Errorf("answer = %+v", a)
	}
	if err := next(t, p.end, "return"); err != nil {
		t.Errorf("ServeStdio = %v", err)
	}
}

func TestStdioSurvivesBadInput(t *testing.T) {
	r := newRig(t, server.Options{})
	p := r.stdio()
	p.send(initialize)
	next(t, p.out, "initialize")
	for name, c := range map[string]struct {
		line string
		code int
	}{
		"nonsense":    {"}{", -32700},
		"invalid":     {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\x00\"}", -32700},
		"batch":       {"[" + initialize + "]", -32600},
		"number":      {"7", -32600},
		"version":     {`{"jsonrpc":"1.0","id":1,"method":"ping"}`, -32600},
		"object_id":   {`{"jsonrpc":"2.0","id":{},"method":"ping"}`, -32600},
		"empty":       {`{"jsonrpc":"2.0"}`, -32600},
		"method":      {`{"jsonrpc":"2.0","id":1,"method":"no/such"}`, -32601},
		"unknown":     {call(3, "no_such_tool"), -32602},
		"too_large":   {`{"jsonrpc":"2.0","id":1,"method":"ping","params":"` + strings.Repeat("x", server.MessageLimit) + `"}`, -32600},
		"huge_answer": {call(9, "huge"), -32603},
	} {
		p.send("", c.line)
		a := next(t, p.out, name)
		if a.Error == nil || a.Error.Code != c.code {
			t.Errorf("%s: answer = %+v, want code %d", name, a, c.code)
		}
	}
	p.send(cancelled(99), `{"jsonrpc":"2.0","id":12345,"result":{}}`, call(2, "hello"))
	if a := next(t, p.out, "a good call"); a.text() != "world" {
		t.Errorf("a good call after bad ones = %+v", a)
	}
}

func TestStdioRefusesWhenFull(t *testing.T) {
	r := newRig(t, server.Options{})
	p := r.stdio()
	for i := range 1100 {
		p.send(call(i, "block"))
	}
	for range 100 {
		next(t, r.started, "start")
	}
	p.send(call(5000, "block"))
	a := next(t, p.out, "refusal")
	if a.Result["isError"] != true || !strings.Contains(a.text(), "busy") || string(a.ID) != "5000" {
		t.Errorf("answer = %+v, want a busy tool error", a)
	}
	p.send(`{"jsonrpc":"2.0","id":5001,"method":"ping"}`)
	if a := next(t, p.out, "ping"); a.Error != nil || a.Result == nil {
		t.Errorf("ping while full = %+v", a)
	}
	// A call that waits can be cancelled before it starts.
	p.send(cancelled(1099))
	if a := next(t, p.out, "cancelled in the queue"); string(a.ID) != "1099" {
		t.Errorf("answer = %+v", a)
	}
	p.in.Close()
	if err := next(t, p.end, "return"); err != nil {
		t.Errorf("ServeStdio = %v", err)
	}
}

func TestStdioEndsWhenTheOutputBreaks(t *testing.T) {
	r := newRig(t, server.Options{})
	p := r.stdio()
	p.raw.Close()
	p.send(initialize)
	if err := next(t, p.end, "return"); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("ServeStdio = %v, want the write error", err)
	}
}

func TestStdioEndsWithStuckHandlers(t *testing.T) {
	r := newRig(t, server.Options{})
	release := make(chan struct{})
	r.mcp.AddTool(stuck(release))
	p := r.stdio()
	p.send(call(1, "stuck"))
	p.in.Close()
	start := time.Now()
	if err := next(t, p.end, "return"); err != nil {
		t.Errorf("ServeStdio = %v", err)
	}
	if d := time.Since(start); d > 3*time.Second { // 0.8 s on an idle machine
		t.Errorf("took %v to leave a stuck handler behind", d)
	}
	close(release)
}

func TestStdioCallers(t *testing.T) {
	key := bytes.Repeat([]byte("k"), 32)
	var seen []session.Caller
	for range 2 {
		r := newRig(t, server.Options{Key: key})
		p := r.stdio()
		modern, _ := modernCall(2, "hello")
		p.send(call(1, "hello"))
		first := next(t, r.callers, "call")
		p.send(modern)
		if second := next(t, r.callers, "modern call"); second != first {
			t.Errorf("callers of one process differ: %+v, %+v", first, second)
		}
		seen = append(seen, first)
		p.in.Close()
		next(t, p.end, "return")
	}
	for _, c := range seen {
		if _, err := sandbox.ParseSessionID(string(c.DefaultSession)); err != nil || c.Owner != sandbox.LocalOwner || c.Connection == "" || c.Transport != "stdio" {
			t.Errorf("caller = %+v, %v", c, err)
		}
	}
	if seen[0].DefaultSession == seen[1].DefaultSession {
		t.Error("two processes have one default session")
	}
}
