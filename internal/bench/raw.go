package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"berth/internal/driver"
)

// raw is a stdio client that decodes nothing: answers are lines of bytes.
type raw struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	id  int
}

func startRaw(ctx context.Context, p driver.Program) (*raw, error) {
	c := &raw{cmd: exec.CommandContext(ctx, p.Path, "serve", "--state", p.State)}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReaderSize(out, 2<<20) // a line that does not fit is an error
	c.cmd.Stderr = os.Stderr
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = c.call("initialize", map[string]any{"protocolVersion": "2025-06-18", "capabilities": map[string]any{},
		"clientInfo": map[string]any{"name": "bench", "version": "1"}})
	return c, err
}

// call returns the answer's line, which is good until the next call.
func (c *raw) call(method string, params any) ([]byte, error) {
	c.id++
	req, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": c.id, "method": method, "params": params})
	if err != nil {
		return nil, err
	}
	if _, err := c.in.Write(append(req, '\n')); err != nil {
		return nil, err
	}
	return c.out.ReadSlice('\n')
}

func (c *raw) tool(name string, args map[string]any) ([]byte, error) {
	a, err := c.call("tools/call", map[string]any{"name": name, "arguments": args})
	if err == nil && (bytes.HasPrefix(a, []byte(`{"error"`)) || bytes.Contains(a[max(0, len(a)-100):], []byte(`"isError":true`))) {
		err = fmt.Errorf("%s: %.500s", name, a)
	}
	return a, err
}

func (c *raw) close() {
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

// between is what stands between the first begin and the end after it; "" when
// they are not there.
func between(b []byte, begin, end string) string {
	_, rest, ok := bytes.Cut(b, []byte(begin))
	if !ok {
		return ""
	}
	v, _, ok := bytes.Cut(rest, []byte(end))
	if !ok {
		return ""
	}
	return string(v)
}

// rawHTTP is a Streamable HTTP client that decodes nothing.
type rawHTTP struct {
	url, session string
	client       *http.Client
}

func dialRaw(ctx context.Context, url string) (*rawHTTP, error) {
	c := &rawHTTP{url: url, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}}
	_, err := c.post(ctx, `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`)
	return c, err
}

func (c *rawHTTP) post(ctx context.Context, body string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if c.session != "" {
		req.Header.Set("Mcp-Session-Id", c.session)
	}
	res, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if id := res.Header.Get("Mcp-Session-Id"); id != "" {
		c.session = id
	}
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", res.Status, b)
	}
	return b, err
}

// runTrue runs one command that must end with 0.
func (c *rawHTTP) runTrue(ctx context.Context, session string) error {
	b, err := c.post(ctx, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_command","arguments":{"session_id":"`+session+`","command":"true"}}}`)
	if err == nil && !bytes.Contains(b, []byte(`"exit_code":0`)) {
		err = fmt.Errorf("true answered %.300s", b)
	}
	return err
}
