package toolbox

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"berth/sandbox"
)

// A terminal is a process with one, whose id is made of the terminal's. It
// only waits for its user: what keeps its sandbox from idling out is a
// connection, not the terminal.

const (
	protocolExit = "X-Daytona-Pty-Exit-Control" // the client wants to be told of the exit by a message
	protocolEnvs = "X-Daytona-Pty-Envs~"        // and the variables of a new terminal, in base64

	defaultCols, defaultRows = 80, 24
	maxWindow                = 1000
	retryInput               = 20 * time.Millisecond
)

// loginShell is run as the terminal's program.
const loginShell = `s=$(command -v bash) || s=sh
exec "$s" -i -l`

type ptyBody struct {
	ID        string            `json:"id"`
	Cwd       string            `json:"cwd"`
	Envs      map[string]string `json:"envs"`
	Cols      uint16            `json:"cols"`
	Rows      uint16            `json:"rows"`
	CreatedAt time.Time         `json:"createdAt"`
	Active    bool              `json:"active"`
	LazyStart bool              `json:"lazyStart"`
}

func ptyOf(i sandbox.ProcessInfo, n note) ptyBody {
	envs := n.Envs
	if envs == nil {
		envs = map[string]string{}
	}
	return ptyBody{ID: n.ID, Cwd: i.Cwd, Envs: envs, Cols: i.Window.Cols, Rows: i.Window.Rows, CreatedAt: i.Started.UTC(),
		Active: i.State == sandbox.ProcessRunning, LazyStart: n.Lazy}
}

type ptyRequest struct {
	ID        string            `json:"id"`
	Cwd       string            `json:"cwd"`
	Envs      map[string]string `json:"envs"`
	Cols      *int              `json:"cols"`
	Rows      *int              `json:"rows"`
	LazyStart bool              `json:"lazyStart"`
}

// window checks a size; 0 and nothing mean the usual one.
func window(cols, rows *int) (sandbox.WindowSize, error) {
	w := sandbox.WindowSize{Cols: defaultCols, Rows: defaultRows}
	for _, v := range []struct {
		name string
		n    *int
		to   *uint16
	}{{"cols", cols, &w.Cols}, {"rows", rows, &w.Rows}} {
		switch {
		case v.n == nil || *v.n == 0:
		case *v.n < 1 || *v.n > maxWindow:
			return w, badRequest("%s: %d does not fit; allowed: 1 to 1000", v.name, *v.n)
		default:
			*v.to = uint16(*v.n)
		}
	}
	return w, nil
}

// startPTY starts a terminal.
func (t *Toolbox) startPTY(c *call, q ptyRequest) error {
	c.args["id"], c.args["cwd"], c.args["env"] = q.ID, q.Cwd, q.Envs
	if !named(q.ID) {
		return badRequest("id: %.80q does not fit; allowed: "+allowedNames, q.ID)
	}
	size, err := window(q.Cols, q.Rows)
	if err != nil {
		return err
	}
	envs := map[string]string{"TERM": "xterm-256color"}
	for k, v := range q.Envs {
		envs[k] = v
	}
	id := processID(kindPTY, q.ID)
	for {
		n := note{Kind: kindPTY, ID: q.ID, Lazy: q.LazyStart, Once: newUUID(), Envs: q.Envs}
		if len(n.String()) > sandbox.MaxNote {
			n.Envs = nil
		}
		_, info, err := t.spawn(c.ctx, c.key, sandbox.SpawnRequest{ID: id, Note: n.String(), TTY: &size, Waiting: true, OpenStdin: true,
			Display: "terminal " + q.ID, RunRequest: sandbox.RunRequest{Argv: []string{"sh", "-c", loginShell}, Cwd: q.Cwd, Env: envOf(envs)}})
		switch {
		case err != nil:
			return err
		case parseNote(info).Once == n.Once:
			t.mu.Lock()
			if len(t.unseen) >= maxUnseen { // nobody came to most of them, and nobody will
				clear(t.unseen)
			}
			t.unseen[ptyKey{c.key, n.Once}] = true
			t.mu.Unlock()
			return nil
		case info.State == sandbox.ProcessRunning:
			return &apiError{status: http.StatusConflict, code: codeConflict, text: fmt.Sprintf("terminal %.80q exists already", q.ID)}
		}
		if err := t.forget(c.ctx, c.key, id); err != nil {
			return err
		}
	}
}

// maxUnseen is of how many terminals it is known that nobody was connected to them:
// those of sandboxes that were deleted are among them.
const maxUnseen = 10_000

// ptyKey names one creation of a terminal.
type ptyKey struct {
	key  sandbox.Key
	once string
}

// firstLook tells whether nobody was connected to a terminal since it was made,
// as far as this server knows: then what it has printed is new to its client.
func (t *Toolbox) firstLook(key sandbox.Key, n note) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := ptyKey{key, n.Once}
	first := t.unseen[k]
	delete(t.unseen, k)
	return first
}

func (t *Toolbox) createPTY(c *call) error {
	var q ptyRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	if err := t.startPTY(c, q); err != nil {
		return err
	}
	return c.answer(http.StatusCreated, map[string]string{"sessionId": q.ID})
}

func noPTY(id string) error {
	return &apiError{status: http.StatusNotFound, code: codeNotFound, text: fmt.Sprintf("terminal %.80q not found; POST /process/pty creates one", id)}
}

// pty finds the running terminal of the request.
func (t *Toolbox) pty(c *call, id string) (sandbox.Process, sandbox.ProcessInfo, note, error) {
	p, info, n, err := t.ours(c, kindPTY, processID(kindPTY, id))
	if errors.Is(err, sandbox.ErrNoProcess) || err == nil && info.State != sandbox.ProcessRunning {
		err = noPTY(id)
	}
	return p, info, n, err
}

func (t *Toolbox) listPTYs(c *call) error {
	infos, err := t.list(c, func(n note) bool { return n.Kind == kindPTY })
	if err != nil {
		return err
	}
	list := []ptyBody{}
	for _, i := range infos {
		if i.State == sandbox.ProcessRunning {
			list = append(list, ptyOf(i, parseNote(i)))
		}
	}
	return c.answer(http.StatusOK, map[string]any{"sessions": list})
}

func (t *Toolbox) getPTY(c *call) error {
	_, info, n, err := t.pty(c, c.r.PathValue("pty"))
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, ptyOf(info, n))
}

func (t *Toolbox) resizePTY(c *call) error {
	var q struct{ Cols, Rows *int }
	if err := c.decode(&q); err != nil {
		return err
	}
	if q.Cols == nil || q.Rows == nil || *q.Cols == 0 || *q.Rows == 0 {
		return badRequest("cols, rows: both must be given; allowed: 1 to 1000")
	}
	size, err := window(q.Cols, q.Rows)
	if err != nil {
		return err
	}
	id := c.r.PathValue("pty")
	p, _, n, err := t.pty(c, id)
	if err == nil {
		err = p.Resize(c.ctx, size)
	}
	if errors.Is(err, sandbox.ErrExited) || statusOf(err) == http.StatusNotFound {
		return &apiError{status: http.StatusGone, code: codeGone, text: fmt.Sprintf("terminal %.80q is not there, or has ended", id)}
	}
	if err != nil {
		return err
	}
	info, err := p.Info(c.ctx)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, ptyOf(info, n))
}

func (t *Toolbox) deletePTY(c *call) error {
	p, _, n, err := t.pty(c, c.r.PathValue("pty"))
	if err != nil {
		return err
	}
	t.firstLook(c.key, n)
	if err = p.Kill(c.ctx, "KILL", 0, "the terminal was deleted"); err == nil {
		err = p.Wait(c.ctx, sandbox.Cursor{}, true)
	}
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]string{"message": "PTY session deleted"})
}

// control is a message of the server's beside the output.
type control struct {
	Type       string `json:"type"`
	Status     string `json:"status"`
	Error      string `json:"error,omitempty"`
	ExitCode   *int   `json:"exitCode,omitempty"`
	ExitReason string `json:"exitReason,omitempty"`
}

func sendControl(ctx context.Context, ws *websocket.Conn, m control) error {
	m.Type = "control"
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return send(ctx, ws, websocket.MessageText, b)
}

// connectPTY connects a client to a terminal. Several may be connected; the
// input of all goes in, and each sees the output.
func (t *Toolbox) connectPTY(c *call) error {
	ws, err := t.accept(c, protocolExit)
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	return t.servePTY(c, ws, c.r.PathValue("pty"))
}

// createAndConnectPTY makes a terminal and connects the client to it.
func (t *Toolbox) createAndConnectPTY(c *call) error {
	query := c.r.URL.Query()
	q := ptyRequest{ID: query.Get("id"), Cwd: query.Get("cwd")}
	var bad error
	for name, to := range map[string]**int{"cols": &q.Cols, "rows": &q.Rows} {
		if s := query.Get(name); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil {
				bad = badRequest("%s: %.40q is no number", name, s)
			}
			*to = &n
		}
	}
	for p := range protocols(c.r) {
		if text, ok := strings.CutPrefix(p, protocolEnvs); ok {
			b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
			if err == nil {
				err = json.Unmarshal(b, &q.Envs)
			}
			if err != nil {
				bad = badRequest("the subprotocol %s… has no JSON object of variables in base64", protocolEnvs)
			}
		}
	}
	ws, err := t.accept(c, protocolExit)
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	if bad == nil {
		bad = t.startPTY(c, q)
	}
	if bad != nil {
		return t.refuse(c, ws, bad)
	}
	return t.servePTY(c, ws, q.ID)
}

// refuse tells an error over a connection that is open already.
func (t *Toolbox) refuse(c *call, ws *websocket.Conn, cause error) error {
	text := publicText(cause, "")
	if statusOf(cause) >= http.StatusInternalServerError {
		text = "internal error"
	}
	_ = sendControl(c.ctx, ws, control{Status: "error", Error: text})
	reason, _ := json.Marshal(map[string]string{"error": text})
	if len(reason) > maxReason {
		reason = nil
	}
	_ = ws.Close(websocket.StatusInternalError, string(reason))
	return cause
}

// maxReason bounds a close's reason, in bytes; the protocol does.
const maxReason = 123

func (t *Toolbox) servePTY(c *call, ws *websocket.Conn, id string) error {
	p, info, n, err := t.pty(c, id)
	if err != nil {
		return t.refuse(c, ws, err)
	}
	from := info.Produced
	if t.firstLook(c.key, n) {
		from = sandbox.Cursor{}
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	if err := sendControl(ctx, ws, control{Status: "connected"}); err != nil {
		return nil // it has left
	}
	stop := t.keepAlive(ctx, c.key, ws)
	defer stop()
	input := make(chan struct{})
	go func() {
		defer close(input)
		defer cancel()
		pumpInput(ctx, ws, p)
	}()
	defer func() { cancel(); <-input }()
	err = follow(ctx, p, from, func(_ int, b []byte) error { return send(ctx, ws, websocket.MessageBinary, b) })
	if err != nil {
		if c.ctx.Err() != nil && t.ctx.Err() != nil {
			return ws.Close(websocket.StatusGoingAway, "the server is shutting down")
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return ws.Close(websocket.StatusPolicyViolation, "the client reads too slowly")
		}
		return nil // it has left
	}
	info, err = p.Info(c.ctx)
	if err != nil {
		return ws.Close(websocket.StatusInternalError, "")
	}
	m := control{Status: "exited", ExitCode: info.ExitCode, ExitReason: exitReason(info)}
	if ws.Subprotocol() == protocolExit || offers(c.r, protocolExit) {
		_ = sendControl(c.ctx, ws, m)
	}
	reason, err := json.Marshal(struct {
		ExitCode   *int   `json:"exitCode,omitempty"`
		ExitReason string `json:"exitReason,omitempty"`
	}{m.ExitCode, m.ExitReason})
	if err != nil {
		return err
	}
	code := websocket.StatusInternalError
	if info.ExitCode != nil && *info.ExitCode == 0 {
		code = websocket.StatusNormalClosure
	}
	_ = ws.Close(code, string(reason))
	return nil
}

// pumpInput hands what the client types to the terminal, until it leaves.
func pumpInput(ctx context.Context, ws *websocket.Conn, p sandbox.Process) {
	for {
		_, b, err := ws.Read(ctx)
		if err != nil {
			return
		}
		for len(b) > 0 {
			err := p.Write(ctx, b, false)
			if err == nil {
				break
			}
			if !errors.Is(err, sandbox.ErrLimit) {
				// The terminal has ended, and its end is on its way; what is
				// typed now is lost with it.
				break
			}
			select { // nothing reads: hold the client back, too
			case <-ctx.Done():
				return
			case <-time.After(retryInput):
			}
		}
	}
}

// exitReason says how a terminal's shell ended; empty when with 0.
func exitReason(i sandbox.ProcessInfo) string {
	if i.ExitCode == nil {
		return "lost: " + i.Reason
	}
	switch code := *i.ExitCode; {
	case code == 0:
		return ""
	case code == 130:
		return "Ctrl+C"
	case code == 137:
		return "SIGKILL"
	case code == 143:
		return "SIGTERM"
	case code > 128 && code < 128+65:
		return fmt.Sprintf("signal %d", code-128)
	}
	return "non-zero exit"
}
