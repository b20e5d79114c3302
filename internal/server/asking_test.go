package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/internal/server"
)

// asking is a tool that asks the user for a color.
func asking() (mcp.Tool, mcpserver.ToolHandlerFunc) {
	return mcp.NewTool("ask"), func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if e := mcpserver.ElicitationResponse(r.Params.InputResponses, "color"); e != nil {
			return mcp.NewToolResultText(fmt.Sprintf("%s %v", e.Action, e.Content)), nil
		}
		return mcpserver.NewInputRequestBuilder("").Elicit("color", mcp.ElicitationParams{Message: "Which color?",
			RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{"color": map[string]any{"type": "string"}}}}).ToolResult(), nil
	}
}

const answerFormat = `{"jsonrpc":"2.0","id":%s,"result":{"action":"accept","content":{"color":"red"}}}`

func TestLegacyClientsAreAskedOnTheRequestsStream(t *testing.T) {
	check := func(t *testing.T, m <-chan rpc, answer func(string)) {
		t.Helper()
		q := next(t, m, "question")
		if q.Method != "elicitation/create" {
			t.Fatalf("question = %+v", q)
		}
		answer(fmt.Sprintf(answerFormat, q.ID))
		if a := next(t, m, "answer"); a.text() != "accept map[color:red]" {
			t.Errorf("answer = %+v", a)
		}
	}
	for _, c := range []string{"http", "sse", "stdio"} {
		t.Run(c, func(t *testing.T) {
			if c == "stdio" {
				r := newRig(t, server.Options{})
				r.mcp.AddTool(asking())
				p := r.stdio()
				p.send(call(7, "ask"))
				check(t, p.out, func(s string) { p.send(s) })
				return
			}
			r := newHTTP(t, server.Options{})
			r.mcp.AddTool(asking())
			if c == "sse" {
				ctx, leave := context.WithCancel(context.Background())
				defer leave()
				endpoint, m := r.sse(ctx, nil)
				r.status("POST", endpoint, call(7, "ask"), nil)
				check(t, m, func(s string) { r.status("POST", endpoint, s, nil) })
				return
			}
			h := header{"Mcp-Session-Id": r.open(nil)}
			a := r.do(t.Context(), "POST", "/mcp", call(7, "ask"), h)
			defer a.Body.Close()
			check(t, events(t, a.Body), func(s string) {
				// Another session's answer must not count.
				if code, _ := r.status("POST", "/mcp", strings.Replace(s, "red", "stolen", 1), header{"Mcp-Session-Id": r.open(nil)}); code != 202 {
					t.Errorf("stranger's answer = %d", code)
				}
				if code, _ := r.status("POST", "/mcp", s, h); code != 202 {
					t.Errorf("answer = %d, want 202", code)
				}
			})
		})
	}
}

func TestModernClientsAreAskedByTheResult(t *testing.T) {
	r := newHTTP(t, server.Options{})
	r.mcp.AddTool(asking())
	body, h := modernCall(7, "ask")
	if code, got := r.status("POST", "/mcp", body, h); code != 200 || !strings.Contains(got, `"resultType":"input_required"`) {
		t.Errorf("first round = %d %s", code, got)
	}
	body = strings.Replace(body, `"arguments":{}`, `"arguments":{},"inputResponses":{"color":{"action":"accept","content":{"color":"red"}}}`, 1)
	if code, got := r.status("POST", "/mcp", body, h); code != 200 || !strings.Contains(got, "accept map[color:red]") {
		t.Errorf("second round = %d %s", code, got)
	}
}

func TestMissingCapabilityHasItsOwnCode(t *testing.T) {
	r := newHTTP(t, server.Options{})
	r.mcp.AddTool(mcp.NewTool("needs"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return nil, fmt.Errorf("look: %w", mcp.MissingRequiredClientCapabilityError{Capability: "elicitation"})
	})
	body, h := modernCall(7, "needs")
	if code, got := r.status("POST", "/mcp", body, h); code != 400 || !strings.Contains(got, "-32021") || !strings.Contains(got, `"requiredCapabilities":{"elicitation":{}}`) {
		t.Errorf("answer = %d %s", code, got)
	}
}

func TestQuietStreamsAreKeptAlive(t *testing.T) {
	r := newHTTP(t, server.Options{KeepAlive: time.Microsecond}) // shorter than initialize takes, whose header has the session
	release := make(chan struct{})
	r.mcp.AddTool(stuck(release))
	h := header{"Mcp-Session-Id": r.open(nil)}
	for name, q := range map[string][2]string{"call": {"POST", call(7, "stuck")}, "get": {"GET", ""}} {
		a := r.do(t.Context(), q[0], "/mcp", q[1], h)
		line, err := bufio.NewReader(a.Body).ReadString('\n')
		if err != nil || line != ": keep-alive\n" || a.Header.Get("X-Accel-Buffering") != "no" {
			t.Errorf("%s: first line %q, %v, header %v", name, line, err, a.Header)
		}
		if name == "get" {
			a.Body.Close()
			continue
		}
		close(release)
		rest, _ := io.ReadAll(a.Body)
		if !strings.Contains(string(rest), "late") {
			t.Errorf("result = %q", rest)
		}
		a.Body.Close()
	}
}
