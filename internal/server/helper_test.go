package server_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/internal/secret"
	"berth/internal/server"
	"berth/internal/session"
)

const (
	initialize  = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`
	modernMeta  = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}`
	initialized = `{"jsonrpc":"2.0","method":"notifications/initialized"}`
	patience    = 10 * time.Second // before a test gives up
)

// rig is a running server with tools that tell what happens to them.
type rig struct {
	t       *testing.T
	mcp     *mcpserver.MCPServer
	s       *server.Server
	url     string
	causes  chan error // why block's context ended
	started chan struct{}
	callers chan session.Caller
	stop    context.CancelFunc
	served  chan error
	hc      *http.Client
}

// newRig makes a server and its tools; it serves nothing yet.
func newRig(t *testing.T, o server.Options) *rig {
	t.Helper()
	r := &rig{t: t, causes: make(chan error, 2000), started: make(chan struct{}, 2000), callers: make(chan session.Caller, 2000), hc: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}}
	r.mcp = server.NewMCP("test", "1", server.MCPOptions{Extra: []mcpserver.ServerOption{mcpserver.WithToolCapabilities(true), mcpserver.WithLogging()}})
	tool := func(name string, h mcpserver.ToolHandlerFunc) { r.mcp.AddTool(mcp.NewTool(name), h) }
	tool("hello", func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		r.callers <- session.From(ctx)
		return mcp.NewToolResultText("world"), nil
	})
	tool("block", func(ctx context.Context, _ mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		r.started <- struct{}{}
		<-ctx.Done()
		r.causes <- context.Cause(ctx)
		return mcp.NewToolResultText("handed over"), nil
	})
	tool("count", func(ctx context.Context, q mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		for i := range 100 {
			if err := r.mcp.SendNotificationToClient(ctx, "notifications/progress", map[string]any{"progressToken": q.Params.Meta.ProgressToken, "progress": i + 1, "total": 100}); err != nil {
				return nil, err
			}
		}
		return mcp.NewToolResultText("counted"), nil
	})
	tool("panic", func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) { panic("secret detail") })
	tool("huge", func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return mcp.NewToolResultText(strings.Repeat("x", 11<<20)), nil
	})
	var err error
	if r.s, err = server.New(r.mcp, o); err != nil {
		t.Fatal(err)
	}
	checkLeaks(t)
	return r
}

var leakChecked sync.Map // of *testing.T

// checkLeaks fails the test when goroutines of the package are left at its end.
func checkLeaks(t *testing.T) {
	if _, twice := leakChecked.LoadOrStore(t, true); twice {
		return // the check must come after all of the test's servers have ended
	}
	t.Cleanup(func() {
		var stacks string
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			buf := make([]byte, 4<<20)
			stacks = string(buf[:runtime.Stack(buf, true)])
			if !strings.Contains(stacks, "berth/internal/server.") {
				return
			}
		}
		t.Errorf("goroutines are left:\n%s", stacks)
	})
}

// http serves on a loopback port until the test ends.
func newHTTP(t *testing.T, o server.Options) *rig {
	t.Helper()
	r := newRig(t, o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop, r.served = cancel, make(chan error, 1)
	go func() { r.served <- r.s.ServeHTTP(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		r.hc.CloseIdleConnections()
		select {
		case err := <-r.served:
			if err != nil {
				t.Errorf("ServeHTTP = %v", err)
			}
		case <-time.After(patience):
			t.Error("ServeHTTP did not return")
		}
	})
	return r
}

type header map[string]string

// do sends a request. The caller closes the body.
func (r *rig) do(ctx context.Context, method, path, body string, h header) *http.Response {
	r.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	q, err := http.NewRequestWithContext(ctx, method, r.url+path, in)
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	q.Header.Set("Accept", "application/json, text/event-stream")
	for k, v := range h {
		if k == "Host" {
			q.Host = v
			continue
		}
		q.Header.Set(k, v)
	}
	a, err := r.hc.Do(q)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		r.t.Fatal(err)
	}
	return a
}

// status sends a request and returns its status and body.
func (r *rig) status(method, path, body string, h header) (int, string) {
	r.t.Helper()
	a := r.do(r.t.Context(), method, path, body, h)
	if a == nil { // the test is over
		return 0, ""
	}
	defer a.Body.Close()
	b, _ := io.ReadAll(a.Body)
	return a.StatusCode, string(b)
}

// open begins a legacy protocol session.
func (r *rig) open(h header) string {
	r.t.Helper()
	a := r.do(r.t.Context(), "POST", "/mcp", initialize, h)
	defer a.Body.Close()
	id := a.Header.Get("Mcp-Session-Id")
	if a.StatusCode != 200 || id == "" {
		r.t.Fatalf("initialize = %d, session %q", a.StatusCode, id)
	}
	return id
}

func call(id int, tool string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":{},"_meta":{"progressToken":"token-%d"}}}`, id, tool, id)
}

func modernCall(id int, tool string) (string, header) {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":{},"_meta":{"progressToken":"token-%d",%s}}}`, id, tool, id, modernMeta),
		header{"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool}
}

func cancelled(id int) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}`, id)
}

// rpc is any message of the server.
type rpc struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Token    string         `json:"progressToken"`
		Progress float64        `json:"progress"`
		Meta     map[string]any `json:"_meta"`
	} `json:"params"`
	Result map[string]any `json:"result"`
	Error  *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func (m rpc) text() string {
	c, _ := m.Result["content"].([]any)
	if len(c) == 0 {
		return ""
	}
	first, _ := c[0].(map[string]any)
	s, _ := first["text"].(string)
	return s
}

// events reads an event stream's messages; the channel closes at its end. The
// endpoint event comes as a message whose Method is the endpoint.
func events(t *testing.T, body io.Reader) <-chan rpc {
	out := make(chan rpc, 4096)
	go func() {
		defer close(out)
		s := bufio.NewScanner(body)
		s.Buffer(nil, 32<<20)
		kind := ""
		for s.Scan() {
			line := s.Text()
			if k, ok := strings.CutPrefix(line, "event: "); ok {
				kind = k
			}
			data, ok := strings.CutPrefix(line, "data: ")
			if !ok {
				continue
			}
			if kind == "endpoint" {
				out <- rpc{Method: data}
				continue
			}
			out <- decode(t, []byte(data))
		}
	}()
	return out
}

func decode(t *testing.T, b []byte) rpc {
	var m rpc
	if err := json.Unmarshal(bytes.TrimSpace(b), &m); err != nil {
		t.Errorf("not a message: %q: %v", b, err)
	}
	return m
}

// next returns the next value or fails.
func next[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v, ok := <-c:
		if !ok {
			t.Fatalf("%s: the stream ended", what)
		}
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing came", what)
	}
	panic("unreachable")
}

// sse opens a client of the old transport; closing ctx disconnects it.
func (r *rig) sse(ctx context.Context, h header) (endpoint string, messages <-chan rpc) {
	r.t.Helper()
	a := r.do(ctx, "GET", "/sse", "", h)
	if a.StatusCode != 200 {
		a.Body.Close()
		r.t.Fatalf("GET /sse = %d", a.StatusCode)
	}
	r.t.Cleanup(func() { a.Body.Close() })
	messages = events(r.t, a.Body)
	return next(r.t, messages, "endpoint").Method, messages
}

// pipe is a stdio client.
type pipe struct {
	t   *testing.T
	in  *io.PipeWriter
	out <-chan rpc
	raw *io.PipeReader
	end chan error
}

func (r *rig) stdio() *pipe {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	p := &pipe{t: r.t, in: inW, raw: outR, end: make(chan error, 1)}
	go func() {
		p.end <- r.s.ServeStdio(context.Background(), inR, outW)
		outW.Close()
		inR.Close()
	}()
	out := make(chan rpc, 4096)
	go func() {
		defer close(out)
		s := bufio.NewScanner(outR)
		s.Buffer(nil, 32<<20)
		for s.Scan() {
			out <- decode(r.t, s.Bytes())
		}
	}()
	p.out = out
	r.t.Cleanup(func() { inW.Close(); outR.Close() })
	return p
}

func (p *pipe) send(lines ...string) {
	p.t.Helper()
	for _, l := range lines {
		if _, err := io.WriteString(p.in, l+"\n"); err != nil {
			p.t.Fatal(err)
		}
	}
}

func tokens(pairs ...string) []server.Token {
	var all []server.Token
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, server.Token{Name: pairs[i], Token: secret.New(pairs[i+1])})
	}
	return all
}

func bearer(token string, h header) header {
	out := header{"Authorization": "Bearer " + token}
	for k, v := range h {
		out[k] = v
	}
	return out
}

// stuck is a tool that does not care about its context.
func stuck(release <-chan struct{}) (mcp.Tool, mcpserver.ToolHandlerFunc) {
	return mcp.NewTool("stuck"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		<-release
		return mcp.NewToolResultText("late"), nil
	}
}
