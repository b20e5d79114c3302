package server_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"berth/internal/server"
	"berth/sandbox"
)

// client is one way to talk to the server: send starts a call and returns its
// messages; leave disconnects; cancel asks to end call 7.
type client struct {
	name   string
	send   func(r *rig) (messages <-chan rpc, leave, cancel func())
	legacy bool
}

// clients start the given tool as request 7.
func clients(tool string) []client {
	post := func(r *rig, body string, h header) (<-chan rpc, context.CancelFunc) {
		ctx, leave := context.WithCancel(context.Background())
		out := make(chan rpc, 4096)
		go func() {
			defer close(out)
			a := r.do(ctx, "POST", "/mcp", body, h)
			if a == nil {
				return
			}
			defer a.Body.Close()
			if strings.HasPrefix(a.Header.Get("Content-Type"), "text/event-stream") {
				for m := range events(r.t, a.Body) {
					out <- m
				}
				return
			}
			if b, err := io.ReadAll(a.Body); err == nil {
				out <- decode(r.t, b)
			}
		}()
		return out, leave
	}
	return []client{
		{name: "legacy_http", legacy: true, send: func(r *rig) (<-chan rpc, func(), func()) {
			h := header{"Mcp-Session-Id": r.open(nil)}
			m, leave := post(r, call(7, tool), h)
			return m, leave, func() { r.status("POST", "/mcp", cancelled(7), h) }
		}},
		{name: "modern_http", send: func(r *rig) (<-chan rpc, func(), func()) {
			body, h := modernCall(7, tool)
			m, leave := post(r, body, h)
			return m, leave, leave
		}},
		{name: "sse", legacy: true, send: func(r *rig) (<-chan rpc, func(), func()) {
			ctx, leave := context.WithCancel(context.Background())
			endpoint, m := r.sse(ctx, nil)
			r.status("POST", endpoint, initialize, nil)
			next(r.t, m, "initialize")
			r.status("POST", endpoint, call(7, tool), nil)
			return m, leave, func() { r.status("POST", endpoint, cancelled(7), nil) }
		}},
	}
}

func TestProgressComesInOrderBeforeTheResult(t *testing.T) {
	check := func(t *testing.T, m <-chan rpc) {
		for i := 1; ; i++ {
			got := next(t, m, "progress or result")
			if got.Method == "" {
				if i != 101 || got.text() != "counted" {
					t.Fatalf("result after %d progress messages: %+v", i-1, got)
				}
				return
			}
			if got.Params.Progress != float64(i) || got.Params.Token != "token-7" {
				t.Fatalf("message %d = %+v", i, got)
			}
		}
	}
	for _, c := range clients("count") {
		t.Run(c.name, func(t *testing.T) {
			r := newHTTP(t, server.Options{})
			m, leave, _ := c.send(r)
			defer leave()
			check(t, m)
		})
	}
	t.Run("stdio", func(t *testing.T) {
		r := newRig(t, server.Options{})
		p := r.stdio()
		p.send(initialize)
		next(t, p.out, "initialize")
		p.send(call(7, "count"))
		check(t, p.out)
	})
	t.Run("modern_stdio", func(t *testing.T) {
		r := newRig(t, server.Options{})
		p := r.stdio()
		body, _ := modernCall(7, "count")
		p.send(body)
		check(t, p.out)
	})
}

func TestDisconnectCancelsOnlyModernCalls(t *testing.T) {
	for _, c := range clients("block") {
		t.Run(c.name, func(t *testing.T) {
			r := newHTTP(t, server.Options{})
			_, leave, _ := c.send(r)
			next(t, r.started, "start")
			leave()
			got := next(t, r.causes, "end")
			if got == nil || errors.Is(got, sandbox.ErrCancelled) == c.legacy {
				t.Errorf("cause = %v, legacy %v", got, c.legacy)
			}
		})
	}
}

func TestCancelReachesTheHandler(t *testing.T) {
	for _, c := range clients("block") {
		t.Run(c.name, func(t *testing.T) {
			r := newHTTP(t, server.Options{})
			_, leave, cancel := c.send(r)
			defer leave()
			next(t, r.started, "start")
			cancel()
			if got := next(t, r.causes, "end"); !errors.Is(got, sandbox.ErrCancelled) {
				t.Errorf("cause = %v, want ErrCancelled", got)
			}
		})
	}
	for _, era := range []string{"legacy", "modern"} {
		t.Run(era+"_stdio", func(t *testing.T) {
			r := newRig(t, server.Options{})
			p := r.stdio()
			body, _ := modernCall(7, "block")
			if era == "legacy" {
				body = call(7, "block")
			}
			p.send(body)
			next(t, r.started, "start")
			p.send(cancelled(7))
			if got := next(t, r.causes, "end"); !errors.Is(got, sandbox.ErrCancelled) {
				t.Errorf("cause = %v, want ErrCancelled", got)
			}
			next(t, p.out, "answer")
		})
	}
}

func TestClientsCannotReachEachOther(t *testing.T) {
	r := newHTTP(t, server.Options{})
	a, b := header{"Mcp-Session-Id": r.open(nil)}, header{"Mcp-Session-Id": r.open(nil)}
	// b listens; nothing of a's may come.
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	get := r.do(ctx, "GET", "/mcp", "", b)
	defer get.Body.Close()
	heard := events(t, get.Body)

	go r.status("POST", "/mcp", call(7, "block"), a)
	next(t, r.started, "start")
	body, h := modernCall(7, "block")
	mctx, mleave := context.WithCancel(context.Background())
	defer mleave()
	go func() {
		if q := r.do(mctx, "POST", "/mcp", body, h); q != nil {
			q.Body.Close()
		}
	}()
	next(t, r.started, "modern start")

	for name, try := range map[string]header{
		"another session": b,
		"no session":      nil,
		"forged session":  {"Mcp-Session-Id": strings.Repeat("A", len(a["Mcp-Session-Id"]))},
		"modern":          {"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "notifications/cancelled"},
	} {
		r.status("POST", "/mcp", cancelled(7), try)
		select {
		case cause := <-r.causes:
			t.Errorf("%s cancelled another's call: %v", name, cause)
		default:
		}
	}
	withMeta := strings.Replace(cancelled(7), `"requestId"`, `"_meta":{`+modernMeta+`},"requestId"`, 1)
	if got, body := r.status("POST", "/mcp", withMeta, header{"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "notifications/cancelled"}); got != 400 || !strings.Contains(body, "closing its stream") {
		t.Errorf("modern cancelled = %d %s", got, body)
	}
	// a's and a modern client's notifications are theirs alone.
	r.status("POST", "/mcp", call(8, "count"), a)
	body, h = modernCall(8, "count")
	r.status("POST", "/mcp", body, h)
	// The session's own cancel does work, and proves that the others could have.
	r.status("POST", "/mcp", cancelled(7), a)
	if got := next(t, r.causes, "own cancel"); !errors.Is(got, sandbox.ErrCancelled) {
		t.Errorf("cause = %v", got)
	}
	mleave()
	next(t, r.causes, "modern end")
	leave()
	for m := range heard {
		t.Errorf("leaked to another client: %+v", m)
	}
}

func TestShutdownWithOpenStreams(t *testing.T) {
	r := newHTTP(t, server.Options{})
	// A legacy stream, a modern one, an SSE client with a running call.
	get := r.do(t.Context(), "GET", "/mcp", "", header{"Mcp-Session-Id": r.open(nil)})
	defer get.Body.Close()
	listen := r.do(t.Context(), "POST", "/mcp", `{"jsonrpc":"2.0","id":"sub","method":"subscriptions/listen","params":{"_meta":{`+modernMeta+`},"notifications":{"toolsListChanged":true}}}`,
		header{"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "subscriptions/listen"})
	defer listen.Body.Close()
	listened := events(t, listen.Body)
	if ack := next(t, listened, "acknowledgement"); ack.Params.Meta["io.modelcontextprotocol/subscriptionId"] != "sub" {
		t.Errorf("acknowledgement = %+v", ack)
	}
	r.mcp.DeleteTools("huge")
	if n := next(t, listened, "broadcast"); n.Method != "notifications/tools/list_changed" || n.Params.Meta["io.modelcontextprotocol/subscriptionId"] != "sub" {
		t.Errorf("broadcast = %+v", n)
	}
	endpoint, m := r.sse(t.Context(), nil)
	r.status("POST", endpoint, call(7, "block"), nil)
	next(t, r.started, "start")

	r.stop()
	if got := next(t, r.causes, "end of the call"); got == nil || errors.Is(got, sandbox.ErrCancelled) {
		t.Errorf("cause = %v, want a hand-over", got)
	}
	if a := next(t, m, "answer"); a.text() != "handed over" {
		t.Errorf("answer = %+v", a)
	}
	if a := next(t, listened, "end of listen"); a.Result == nil {
		t.Errorf("listen ended with %+v", a)
	}
	for range m { // all streams end
	}
	for range listened {
	}
	if _, err := io.Copy(io.Discard, get.Body); err != nil {
		t.Errorf("GET stream ended with %v", err)
	}
	select {
	case err := <-r.served:
		r.served <- err
	case <-time.After(patience):
		t.Error("the server is still there")
	}
}

func TestPanicsAreToolErrorsWithoutDetails(t *testing.T) {
	r := newHTTP(t, server.Options{})
	_, body := r.status("POST", "/mcp", call(7, "panic"), header{"Mcp-Session-Id": r.open(nil)})
	if !strings.Contains(body, `"isError":true`) || !strings.Contains(body, "reference") || strings.Contains(body, "secret detail") {
		t.Errorf("answer = %s", body)
	}
}
