// Package driver runs a real berth program and speaks to it as a real MCP
// client does. The demonstration, the benchmark and the chaos run are built on
// it; the product is not.
package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"
)

// Transport is how a client reaches a server.
type Transport string

// The transports.
const (
	Stdio Transport = "stdio"
	HTTP  Transport = "http"
	SSE   Transport = "sse"
)

// Program says which berth to run, and with which state directory.
type Program struct {
	Path   string   // the berth executable
	State  string   // its state directory
	Args   []string // more arguments of serve
	Env    []string // more environment
	Stderr io.Writer
}

func (p Program) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.Path, append(append([]string{"serve", "--state", p.State}, p.Args...), args...)...)
	cmd.Env = append(os.Environ(), p.Env...)
	if p.Stderr != nil {
		cmd.Stderr = p.Stderr
	}
	return cmd
}

// Server is a running berth that listens on HTTP.
type Server struct {
	URL  string // "http://127.0.0.1:PORT"
	PID  int
	cmd  *exec.Cmd
	done chan struct{}
}

// FreePort returns a loopback port that nobody listens on.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// ListenAndServe starts p on port (0: a free one) and waits until it answers.
func (p Program) ListenAndServe(ctx context.Context, port int) (*Server, error) {
	if port == 0 {
		var err error
		if port, err = FreePort(); err != nil {
			return nil, err
		}
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	cmd := p.command(ctx, "--http", addr)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Server{URL: "http://" + addr, PID: cmd.Process.Pid, cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(s.done) }()
	deadline := time.Now().Add(20 * time.Second)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/healthz", nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			return s, nil
		}
		select {
		case <-s.done:
			return nil, fmt.Errorf("berth ended at once: %v", cmd.ProcessState)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			return nil, errors.New("berth did not answer within 20 s")
		}
	}
}

// Kill ends the server as kill -9 does, and waits for its end.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// Stop asks the server to end, and waits.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.done
}

// Session is one connected MCP client.
type Session struct {
	Client *client.Client
	cmd    *exec.Cmd // stdio only
}

// Stdio starts p as a client's own child and connects to it.
func (p Program) Stdio(ctx context.Context, options ...client.ClientOption) (*Session, error) {
	s := &Session{}
	t := transport.NewStdioWithOptions(p.Path, nil, nil, transport.WithCommandFunc(
		func(context.Context, string, []string, []string) (*exec.Cmd, error) {
			s.cmd = p.command(context.WithoutCancel(ctx))
			return s.cmd, nil
		}))
	s.Client = client.NewClient(t, options...)
	return s, s.start(ctx)
}

// Dial connects to a listening server over HTTP or SSE.
func (s *Server) Dial(ctx context.Context, t Transport, token string, options ...client.ClientOption) (*Session, error) {
	headers := map[string]string{}
	if token != "" {
		headers["Authorization"] = "Bearer " + token
	}
	var c *client.Client
	switch t {
	case HTTP:
		tr, err := transport.NewStreamableHTTP(s.URL+"/mcp", transport.WithHTTPHeaders(headers))
		if err != nil {
			return nil, err
		}
		c = client.NewClient(tr, options...)
	case SSE:
		tr, err := transport.NewSSE(s.URL+"/sse", transport.WithHeaders(headers))
		if err != nil {
			return nil, err
		}
		c = client.NewClient(tr, options...)
	default:
		return nil, fmt.Errorf("no such transport %q", t)
	}
	session := &Session{Client: c}
	return session, session.start(ctx)
}

func (s *Session) start(ctx context.Context) error {
	if err := s.Client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	_, err := s.Client.Initialize(ctx, mcp.InitializeRequest{Params: mcp.InitializeParams{
		ProtocolVersion: mcp.LATEST_PROTOCOL_VERSION,
		ClientInfo:      mcp.Implementation{Name: "berth-driver", Version: "1"},
	}})
	return err
}

// PID of a stdio session's server; 0 otherwise.
func (s *Session) PID() int {
	if s.cmd == nil || s.cmd.Process == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Kill ends a stdio session's server as kill -9 does; otherwise it drops the
// connection.
func (s *Session) Kill() {
	if s.PID() != 0 {
		_ = s.cmd.Process.Kill() // it may have ended
	}
	_ = s.Client.Close()
}

// Close ends the connection in order.
func (s *Session) Close() error { return s.Client.Close() }

// Result is what berth tells programs about a command, in the answer's
// metadata under "berth/result".
type Result struct {
	ExitCode     *int   `json:"exit_code"`
	State        string `json:"state"`
	TimedOut     bool   `json:"timed_out"`
	Killed       bool   `json:"killed"`
	Signal       string `json:"signal"`
	DurationMS   int64  `json:"duration_ms"`
	ProcessID    string `json:"process_id"`
	Cursor       string `json:"cursor"`
	StdoutBytes  int64  `json:"stdout_bytes"`
	StderrBytes  int64  `json:"stderr_bytes"`
	DroppedBytes int64  `json:"dropped_bytes"`
	Cwd          string `json:"cwd"`
	SessionID    string `json:"session_id"`
}

// Answer of a tool call.
type Answer struct {
	Text       string
	IsError    bool
	Result     Result
	Structured map[string]any
}

// Call calls a tool. A tool's own failure is an Answer with IsError; an error
// is one of transport or protocol.
func (s *Session) Call(ctx context.Context, tool string, args map[string]any) (*Answer, error) {
	req := mcp.CallToolRequest{}
	req.Params.Name = tool
	req.Params.Arguments = args
	return s.Do(ctx, req)
}

// Do sends a prepared call.
func (s *Session) Do(ctx context.Context, req mcp.CallToolRequest) (*Answer, error) {
	res, err := s.Client.CallTool(ctx, req)
	if err != nil {
		return nil, err
	}
	a := &Answer{IsError: res.IsError}
	for _, c := range res.Content {
		if t, ok := c.(mcp.TextContent); ok {
			a.Text += t.Text
		}
	}
	if res.Meta != nil {
		if raw, ok := res.Meta.AdditionalFields["berth/result"]; ok {
			b, err := json.Marshal(raw)
			if err != nil {
				return nil, err
			}
			if err := json.Unmarshal(b, &a.Result); err != nil {
				return nil, fmt.Errorf("berth/result: %w", err)
			}
		}
	}
	if m, ok := res.StructuredContent.(map[string]any); ok {
		a.Structured = m
	}
	return a, nil
}

// Must is Call for callers to whom a tool's failure is an error too.
func (s *Session) Must(ctx context.Context, tool string, args map[string]any) (*Answer, error) {
	a, err := s.Call(ctx, tool, args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tool, err)
	}
	if a.IsError {
		return nil, fmt.Errorf("%s: %s", tool, a.Text)
	}
	return a, nil
}

// Output is a command answer's text without the bracketed lines of notices and
// state that end it.
func (a *Answer) Output() string {
	lines := strings.SplitAfter(a.Text, "\n")
	for range 2 {
		if n := len(lines) - 1; n >= 0 && strings.HasPrefix(lines[n], "[") {
			lines = lines[:n]
		}
	}
	return strings.Join(lines, "")
}

// Watch calls f with each progress message of the session.
func (s *Session) Watch(f func(token any, message string)) {
	s.Client.OnNotification(func(n mcp.JSONRPCNotification) {
		if n.Method != "notifications/progress" {
			return
		}
		m, _ := n.Params.AdditionalFields["message"].(string)
		f(n.Params.AdditionalFields["progressToken"], m)
	})
}
