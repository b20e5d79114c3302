//go:build linux

package toolbox_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// terminal is a connection to a terminal.
type terminal struct {
	t   *testing.T
	ws  *websocket.Conn
	ctx context.Context
	out string
	// control are the control messages, in order.
	control []string
	close   websocket.CloseError
}

func (w *world) terminal(path string, protocols ...string) *terminal {
	w.t.Helper()
	ws, ctx := w.dial(path, protocols...)
	return &terminal{t: w.t.(*testing.T), ws: ws, ctx: ctx}
}

// read reads one message; false at the close.
func (p *terminal) read() bool {
	p.t.Helper()
	kind, b, err := p.ws.Read(p.ctx)
	if err != nil {
		if !errors.As(err, &p.close) {
			p.t.Fatalf("read: %v, after %q", err, p.out)
		}
		return false
	}
	if kind == websocket.MessageText {
		p.control = append(p.control, string(b))
	} else {
		p.out += string(b)
	}
	return true
}

func (p *terminal) until(text string) {
	p.t.Helper()
	for !strings.Contains(p.out, text) {
		if !p.read() {
			p.t.Fatalf("closed (%v) before %q, after %q", p.close, text, p.out)
		}
	}
}

func (p *terminal) type1(text string) {
	p.t.Helper()
	must(p.t, p.ws.Write(p.ctx, websocket.MessageBinary, []byte(text)))
}

func (p *terminal) closed() {
	for p.read() {
	}
}

const exitControl = "X-Daytona-Pty-Exit-Control"

type ptyInfo struct {
	ID, Cwd           string
	Cols, Rows        int
	Active, LazyStart bool
	Envs              map[string]string
	CreatedAt         string
}

func TestPTY(t *testing.T) {
	w := newWorld(t)
	w.do("POST", "/process/pty", m{"id": "one", "cwd": "/usr", "envs": m{"A": "b c"}, "cols": 100, "rows": 30}, 201, nil)
	w.problem(w.do("POST", "/process/pty", m{"id": "one"}, 409, nil), 409, "CONFLICT", "one")
	w.problem(w.do("POST", "/process/pty", m{"id": ""}, 400, nil), 400, "BAD_REQUEST", "id")
	w.problem(w.do("POST", "/process/pty", m{"id": "x", "cols": 1001}, 400, nil), 400, "BAD_REQUEST", "cols")
	w.problem(w.do("POST", "/process/pty", m{"id": "x", "cwd": "/nowhere"}, 400, nil), 400, "BAD_REQUEST", "cwd")
	var i ptyInfo
	w.do("GET", "/process/pty/one", nil, 200, &i)
	if i.ID != "one" || i.Cwd != "/usr" || i.Cols != 100 || i.Rows != 30 || !i.Active || i.Envs["A"] != "b c" || i.CreatedAt == "" {
		t.Errorf("info: %+v", i)
	}
	p := w.terminal("/process/pty/one/connect", exitControl)
	p.type1("echo \"[$A] $TERM $(pwd) $(stty size)\"; tty | cut -c1-8\n")
	p.until("[b c] xterm-256color /usr 30 100")
	p.until("/dev/pts")
	if len(p.control) == 0 || !strings.Contains(p.control[0], `"status":"connected"`) || p.ws.Subprotocol() != exitControl {
		t.Errorf("control: %q, %q", p.control, p.ws.Subprotocol())
	}
	w.do("POST", "/process/pty/one/resize", m{"cols": 77, "rows": 11}, 200, &i)
	if i.Cols != 77 || i.Rows != 11 {
		t.Errorf("resized: %+v", i)
	}
	p.type1("stty size\n")
	p.until("11 77")
	w.problem(w.do("POST", "/process/pty/one/resize", m{"cols": 0, "rows": 11}, 400, nil), 400, "BAD_REQUEST", "cols")
	w.problem(w.do("POST", "/process/pty/none/resize", m{"cols": 10, "rows": 11}, 410, nil), 410, "GONE", "none")

	// A second client sees what comes from now on, and may type.
	q := w.terminal("/process/pty/one/connect")
	for len(q.control) == 0 {
		q.read()
	}
	q.type1("echo from'-'two\n")
	p.until("from-two")
	q.until("from-two")
	if strings.Contains(q.out, "xterm") {
		t.Errorf("the second client saw old output: %q", q.out)
	}
	var list struct{ Sessions []ptyInfo }
	w.do("GET", "/process/pty", nil, 200, &list)
	if len(list.Sessions) != 1 {
		t.Errorf("list: %+v", list)
	}
	// Another server finds it, as it was resized.
	w.again()
	w.do("GET", "/process/pty/one", nil, 200, &i)
	if i.Cols != 77 || !i.Active {
		t.Errorf("for the next server: %+v", i)
	}
	p = w.terminal("/process/pty/one/connect", exitControl)
	p.type1("exit 7\n")
	p.closed()
	if p.close.Code != websocket.StatusInternalError || p.close.Reason != `{"exitCode":7,"exitReason":"non-zero exit"}` ||
		p.control[len(p.control)-1] != `{"type":"control","status":"exited","exitCode":7,"exitReason":"non-zero exit"}` {
		t.Errorf("the end: %+v %q", p.close, p.control)
	}
	w.problem(w.do("GET", "/process/pty/one", nil, 404, nil), 404, "NOT_FOUND", "one")
	w.problem(w.do("DELETE", "/process/pty/one", nil, 404, nil), 404, "NOT_FOUND", "one")
	p = w.terminal("/process/pty/one/connect", exitControl)
	p.closed()
	if len(p.control) != 1 || !strings.Contains(p.control[0], `"status":"error"`) || !strings.Contains(p.close.Reason, "not found") {
		t.Errorf("a terminal that is gone: %q %+v", p.control, p.close)
	}
	// Its name is free.
	w.do("POST", "/process/pty", m{"id": "one", "lazyStart": true}, 201, nil)
	p = w.terminal("/process/pty/one/connect", exitControl)
	p.type1("exit\n")
	p.closed()
	if p.close.Code != websocket.StatusNormalClosure || p.close.Reason != `{"exitCode":0}` {
		t.Errorf("an end in order: %+v", p.close)
	}
}

func TestPTYCreateConnect(t *testing.T) {
	w := newWorld(t)
	envs, err := json.Marshal(map[string]string{"A": "ü"})
	must(t, err)
	p := w.terminal("/process/pty/create-connect?id=two&cols=90&rows=20&cwd=/tmp", "X-Daytona-Pty-Envs~"+base64.RawURLEncoding.EncodeToString(envs), exitControl)
	p.type1("echo \"<$A>\" $PWD; stty size; sleep 1000 & sleep 1000\n")
	p.until("<ü> /tmp")
	p.until("20 90")
	dup := w.terminal("/process/pty/create-connect?id=two", exitControl)
	dup.closed()
	if len(dup.control) != 1 || !strings.Contains(dup.control[0], "exists already") {
		t.Errorf("a second of the same name: %q", dup.control)
	}
	for _, bad := range []string{"?id=", "?id=x&cols=no", "?id=x&rows=5000", "?id=x&cwd=/nowhere"} {
		b := w.terminal("/process/pty/create-connect"+bad, exitControl)
		b.closed()
		if len(b.control) != 1 || !strings.Contains(b.control[0], `"status":"error"`) {
			t.Errorf("%s: %q", bad, b.control)
		}
	}
	w.do("DELETE", "/process/pty/two", nil, 200, nil)
	p.closed()
	if p.close.Code != websocket.StatusInternalError || p.close.Reason != `{"exitCode":137,"exitReason":"SIGKILL"}` {
		t.Errorf("deleted: %+v", p.close)
	}
	if out := w.run("ps -e -o args= | grep '[s]leep 1000' || echo none"); out != "none\n" {
		t.Errorf("left behind: %s", out)
	}
	a := w.request("GET", "/process/pty/two/connect", "", nil)
	w.problem(a, 426, "BAD_REQUEST", "WebSocket")
}
