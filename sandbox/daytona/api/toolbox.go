package api

import (
	"context"
	"fmt"
	"io"
	"math"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Toolbox is what a sandbox can be asked inside. Its requests count as use of
// the sandbox, but for those of Quiet. It holds nothing.
type Toolbox struct {
	c     *Client
	base  string
	quiet bool
}

// Toolbox of the sandbox with that id, below the address that the sandbox told.
func (c *Client) Toolbox(toolboxURL, id string) *Toolbox {
	return &Toolbox{c: c, base: strings.TrimRight(toolboxURL, "/") + "/" + url.PathEscape(id)}
}

// Quiet is the same, without counting as use.
func (t *Toolbox) Quiet() *Toolbox { return &Toolbox{c: t.c, base: t.base, quiet: true} }

func (t *Toolbox) request(method, path string, body any) request {
	r := request{method: method, base: t.base, path: path, body: body}
	if t.quiet {
		r.header = http.Header{"X-Daytona-Skip-Last-Activity-Update": {"true"}}
	}
	return r
}

// Execute feeds command to a shell and returns what it wrote to both streams,
// as far as JSON can carry that, and its exit code: nil when it is not known. A
// timeout, rounded up to seconds, ends in ErrTimeout; 0: none.
func (t *Toolbox) Execute(ctx context.Context, command string, timeout time.Duration) (output string, exitCode *int, err error) {
	var out struct {
		Result   string `json:"result"`
		ExitCode *int   `json:"exitCode"`
		Code     *int   `json:"code"` // older daemons
	}
	r := t.request("POST", "/process/execute", struct {
		Command string `json:"command"`
		Timeout int    `json:"timeout,omitempty"`
	}{command, int(math.Ceil(timeout.Seconds()))})
	if r.timeout = -1; timeout > 0 {
		r.timeout = timeout + 15*time.Second
	}
	if err := t.c.do(ctx, r, &out); err != nil {
		return "", nil, err
	}
	if out.ExitCode == nil {
		out.ExitCode = out.Code
	}
	return out.Result, out.ExitCode, nil
}

// Session makes a session, a shell of its own, of that id.
func (t *Toolbox) Session(ctx context.Context, id string) error {
	return t.c.do(ctx, t.request("POST", "/process/session", struct {
		ID string `json:"sessionId"`
	}{id}), nil)
}

// Run hands command to a session's shell and does not wait for it.
func (t *Toolbox) Run(ctx context.Context, session, command string) error {
	return t.c.do(ctx, t.request("POST", "/process/session/"+url.PathEscape(session)+"/exec", struct {
		Command string `json:"command"`
		Async   bool   `json:"runAsync"`
		Quiet   bool   `json:"suppressInputEcho"`
	}{command, true, true}), nil)
}

// Upload writes a file as r gives it, size bytes (-1: not known); it makes parents,
// and a new file has mode 0644. The file is not held in memory.
func (t *Toolbox) Upload(ctx context.Context, path string, r io.Reader, size int64) error {
	var head, tail strings.Builder
	m := multipart.NewWriter(&head)
	if err := m.WriteField("files[0].path", path); err != nil {
		return err
	}
	if _, err := m.CreateFormFile("files[0].file", "file"); err != nil {
		return err
	}
	n := head.Len()
	if err := m.Close(); err != nil {
		return err
	}
	tail.WriteString(head.String()[n:])
	begin := head.String()[:n]
	if size >= 0 {
		r = io.LimitReader(r, size)
	}
	counted := &counting{r: r}
	req := t.request("POST", "/files/bulk-upload", nil)
	req.stream = io.MultiReader(strings.NewReader(begin), counted, strings.NewReader(tail.String()))
	req.kind, req.size = m.FormDataContentType(), -1
	if size >= 0 {
		req.size = int64(len(begin)) + size + int64(tail.Len())
	}
	req.timeout = -1
	if err := t.c.do(ctx, req, nil); err != nil {
		return err
	}
	if size >= 0 && counted.n != size {
		return fmt.Errorf("upload %s: %d of %d bytes", path, counted.n, size)
	}
	return nil
}

// SetMode sets a file's permission bits.
func (t *Toolbox) SetMode(ctx context.Context, path string, mode uint32) error {
	r := t.request("POST", "/files/permissions", nil)
	r.query = url.Values{"path": {path}, "mode": {fmt.Sprintf("%04o", mode)}}
	r.again = true
	return t.c.do(ctx, r, nil)
}

// HomeDir is the home of the sandbox's user.
func (t *Toolbox) HomeDir(ctx context.Context) (string, error) {
	var out struct {
		Dir string `json:"dir"`
	}
	r := t.request("GET", "/user-home-dir", nil)
	r.again = true
	err := t.c.do(ctx, r, &out)
	return out.Dir, err
}

type counting struct {
	r io.Reader
	n int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
