//go:build unix

package mcptest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/session"
)

// Transport is how a client reaches the server.
type Transport string

// The transports. Modern speaks protocol version 2026-07-28 over Streamable
// HTTP, without a connection; the others speak 2025-11-25.
const (
	InProcess Transport = "in-process"
	Stdio     Transport = "stdio"
	SSE       Transport = "sse"
	HTTP      Transport = "http"
	Modern    Transport = "modern"
)

// Transports lists all of them, for tests that every one must pass.
func Transports() []Transport { return []Transport{InProcess, Stdio, SSE, HTTP, Modern} }

// legacyVersion is the last protocol version with sessions.
const legacyVersion = "2025-11-25"

// callTime bounds each call of a Client.
const callTime = 70 * time.Second

// Client is a connected MCP client. It is safe for concurrent use.
type Client struct {
	*client.Client
	t      testing.TB
	caller *session.Caller // of in-process calls, which have no transport

	mu       sync.Mutex
	progress []Progress
}

// Progress is one progress notification.
type Progress struct {
	Token   any
	Value   float64
	Message string
	Time    time.Time
}

// Result is the answer of a tool call.
type Result struct {
	Text       string // all text contents, joined by newlines
	Images     []mcp.ImageContent
	IsError    bool
	Structured map[string]any
	Facts      map[string]any // _meta["berth/result"]
}

// Headers are sent with every HTTP request of a client.
type Headers map[string]string

// Client connects a client; it is closed with the test.
func (s *Server) Client(t testing.TB, how Transport, headers ...Headers) *Client {
	t.Helper()
	c := &Client{t: t}
	h := map[string]string{}
	for _, more := range headers {
		for k, v := range more {
			h[k] = v
		}
	}
	legacy := []client.ClientOption{client.WithProtocolVersion(legacyVersion)}
	var err error
	switch how {
	case InProcess:
		c.caller = &session.Caller{Connection: fmt.Sprintf("in-process-%p", c)}
		c.Client = client.NewClient(transport.NewInProcessTransport(s.MCP), legacy...)
	case Stdio:
		c.Client = client.NewClient(s.pipes(t), legacy...)
	case SSE:
		var tr *transport.SSE
		if tr, err = transport.NewSSE(s.URL()+"/sse", transport.WithHeaders(h)); err == nil {
			c.Client = client.NewClient(tr, legacy...)
		}
	case HTTP, Modern:
		var tr *transport.StreamableHTTP
		if tr, err = transport.NewStreamableHTTP(s.URL()+"/mcp", transport.WithHTTPHeaders(h)); err == nil {
			if how == Modern {
				legacy = nil
			}
			c.Client = client.NewClient(tr, legacy...)
		}
	default:
		err = fmt.Errorf("no transport %q", how)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.OnNotification(c.notified)
	// The connection lives until the clean-up, after the test's context.
	ctx := context.WithoutCancel(t.Context())
	if err := c.Start(ctx); err != nil {
		t.Fatalf("start the %s client: %v", how, err)
	}
	t.Cleanup(func() { _ = c.Close() }) // the server's end is checked, not the client's
	if _, err := c.Initialize(c.context(t.Context()), mcp.InitializeRequest{Params: mcp.InitializeParams{
		ProtocolVersion: mcp.LATEST_PROTOCOL_VERSION, ClientInfo: mcp.Implementation{Name: "mcptest", Version: "1"},
	}}); err != nil {
		t.Fatalf("initialize over %s: %v", how, err)
	}
	if modern := mcp.IsModernProtocol(c.ProtocolVersion()); modern != (how == Modern) {
		t.Fatalf("over %s the protocol version is %s", how, c.ProtocolVersion())
	}
	return c
}

// pipes serves a stdio client and returns its transport.
func (s *Server) pipes(t testing.TB) *transport.Stdio {
	toServer, fromClient := io.Pipe()
	toClient, fromServer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := s.Server.ServeStdio(context.WithoutCancel(t.Context()), toServer, fromServer)
		_ = fromServer.Close()
		ended <- err
	}()
	t.Cleanup(func() {
		_ = fromClient.Close()
		if err := <-ended; err != nil {
			t.Errorf("serve stdio: %v", err)
		}
	})
	return transport.NewIO(toClient, fromClient, io.NopCloser(strings.NewReader("")))
}

func (c *Client) context(ctx context.Context) context.Context {
	if c.caller != nil {
		ctx = session.With(ctx, *c.caller)
	}
	return ctx
}

func (c *Client) notified(n mcp.JSONRPCNotification) {
	if n.Method != string(mcp.MethodNotificationProgress) {
		return
	}
	f := n.Params.AdditionalFields
	p := Progress{Token: f["progressToken"], Time: time.Now()}
	p.Value, _ = f["progress"].(float64)
	p.Message, _ = f["message"].(string)
	c.mu.Lock()
	c.progress = append(c.progress, p)
	c.mu.Unlock()
}

// Progress is what came so far for a token.
func (c *Client) Progress(token any) []Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Progress
	for _, p := range c.progress {
		if p.Token == token {
			out = append(out, p)
		}
	}
	return out
}

// Args are a call's arguments.
type Args = map[string]any

// Call calls a tool; a failure of transport or protocol fails the test.
func (c *Client) Call(tool string, args Args) *Result {
	c.t.Helper()
	r, err := c.Try(c.t.Context(), tool, args, nil)
	if err != nil {
		c.t.Errorf("%s: %v", tool, err)
		return &Result{IsError: true, Text: "transport: " + err.Error()}
	}
	return r
}

// Must is Call for calls that must succeed.
func (c *Client) Must(tool string, args Args) *Result {
	c.t.Helper()
	r := c.Call(tool, args)
	if r.IsError {
		c.t.Fatalf("%s(%v) failed: %s", tool, brief(args), r.Text)
	}
	return r
}

// Refused calls a tool that must answer with an error, and returns its text.
func (c *Client) Refused(tool string, args Args) string {
	c.t.Helper()
	r := c.Call(tool, args)
	if !r.IsError {
		c.t.Errorf("%s(%v) succeeded: %s", tool, brief(args), r.Text)
	}
	return r.Text
}

// Try calls a tool, with a progress token unless token is nil.
func (c *Client) Try(ctx context.Context, tool string, args any, token any) (*Result, error) {
	ctx, cancel := context.WithTimeout(c.context(ctx), callTime)
	defer cancel()
	req := mcp.CallToolRequest{Params: mcp.CallToolParams{Name: tool, Arguments: args}}
	if token != nil {
		req.Params.Meta = &mcp.Meta{ProgressToken: token}
	}
	res, err := c.CallTool(ctx, req)
	if err != nil {
		return nil, err
	}
	r := &Result{IsError: res.IsError}
	var texts []string
	for _, content := range res.Content {
		switch content := content.(type) {
		case mcp.TextContent:
			texts = append(texts, content.Text)
		case mcp.ImageContent:
			r.Images = append(r.Images, content)
		}
	}
	r.Text = strings.Join(texts, "\n")
	r.Structured, _ = res.StructuredContent.(map[string]any)
	if res.Meta != nil {
		r.Facts, _ = res.Meta.AdditionalFields["berth/result"].(map[string]any)
	}
	return r, nil
}

// LastLine is the text's last line.
func (r *Result) LastLine() string {
	lines := strings.Split(r.Text, "\n")
	return lines[len(lines)-1]
}

// Output is the text before the bracketed lines at its end.
func (r *Result) Output() string {
	lines := strings.Split(r.Text, "\n")
	for len(lines) > 0 && strings.HasPrefix(lines[len(lines)-1], "[") {
		lines = lines[:len(lines)-1]
	}
	return strings.Join(lines, "\n")
}

// brief shows arguments in a failure.
func brief(args Args) string {
	b, err := json.Marshal(args)
	if err != nil {
		return err.Error()
	}
	if len(b) > 200 {
		b = append(b[:200], "…"...)
	}
	return string(b)
}
