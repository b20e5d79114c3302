package toolbox

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"berth/sandbox"
)

// An interpreter context is a process that runs programs in one and the same
// Python module: jobs go in by its stdin, and what they do comes out by its
// stdout, each line with its job. So jobs queue up in the pipe, and outlive the
// server as the context does.

//go:embed interpreter.py
var interpreterScript string

const (
	defaultContext = "default"
	interpreterRun = 600 * time.Second // when a request has no time-out
	interruptGrace = 2 * time.Second
	maxJob         = 1 << 20 // bytes of a job, which stdin must have room for

	closeTimeout websocket.StatusCode = 4008
)

type contextBody struct {
	ID        string    `json:"id"`
	Cwd       string    `json:"cwd"`
	Language  string    `json:"language"`
	Active    bool      `json:"active"`
	CreatedAt time.Time `json:"createdAt"`
}

func contextOf(i sandbox.ProcessInfo, n note) contextBody {
	return contextBody{ID: n.ID, Cwd: i.Cwd, Language: "python", Active: i.State == sandbox.ProcessRunning, CreatedAt: i.Started.UTC()}
}

// startContext starts the context of that id, or finds the one there is.
func (t *Toolbox) startContext(c *call, id, cwd string) (sandbox.Process, sandbox.ProcessInfo, note, error) {
	n := note{Kind: kindInterpreter, ID: id, Once: newUUID()}
	for {
		p, info, err := t.spawn(c.ctx, c.key, sandbox.SpawnRequest{ID: processID(kindInterpreter, id), Note: n.String(), OpenStdin: true, Waiting: true,
			Display: "python interpreter " + id, RunRequest: sandbox.RunRequest{Argv: []string{"python3", "-u", "-c", interpreterScript}, Cwd: cwd}})
		if err != nil {
			return nil, info, n, err
		}
		if info.State == sandbox.ProcessRunning || parseNote(info).Once == n.Once {
			return p, info, parseNote(info), nil
		}
		if err := t.forget(c.ctx, c.key, p.ID()); err != nil {
			return nil, info, n, err
		}
	}
}

func (t *Toolbox) createContext(c *call) error {
	var q struct{ Cwd, Language string }
	if err := c.decode(&q); err != nil {
		return err
	}
	if q.Language != "" && q.Language != "python" {
		return badRequest("language: %.40q is not supported; allowed: python", q.Language)
	}
	_, info, n, err := t.startContext(c, newUUID(), q.Cwd)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, contextOf(info, n))
}

func (t *Toolbox) listContexts(c *call) error {
	infos, err := t.list(c, func(n note) bool { return n.Kind == kindInterpreter && n.ID != defaultContext })
	if err != nil {
		return err
	}
	list := []contextBody{}
	for _, i := range infos {
		if i.State == sandbox.ProcessRunning {
			list = append(list, contextOf(i, parseNote(i)))
		}
	}
	return c.answer(http.StatusOK, map[string]any{"contexts": list})
}

// interpreter finds the running context of an id.
func (t *Toolbox) interpreter(c *call, id string) (sandbox.Process, error) {
	p, info, _, err := t.ours(c, kindInterpreter, processID(kindInterpreter, id))
	if errors.Is(err, sandbox.ErrNoProcess) || err == nil && info.State != sandbox.ProcessRunning {
		err = &apiError{status: http.StatusNotFound, code: codeNotFound, text: fmt.Sprintf("interpreter context %.80q not found", id)}
	}
	return p, err
}

func (t *Toolbox) deleteContext(c *call) error {
	id := c.r.PathValue("context")
	if id == defaultContext {
		return badRequest("the default interpreter context cannot be deleted")
	}
	p, err := t.interpreter(c, id)
	if err != nil {
		return err
	}
	if err := t.end(c.ctx, c.key, p.ID(), "the interpreter context was deleted"); err != nil {
		return err
	}
	if err := t.forget(c.ctx, c.key, p.ID()); err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]string{"message": "Interpreter context deleted"})
}

// interpreterRequest is the one message that a client sends.
type interpreterRequest struct {
	Code      string            `json:"code"`
	ContextID string            `json:"contextId"`
	Envs      map[string]string `json:"envs"`
	Timeout   *float64          `json:"timeout"` // seconds; absent: 600, 0: none
}

// chunk is a message of the server.
type chunk struct {
	Type      string `json:"type"`
	Text      string `json:"text"`
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback"`
}

// interpret runs one program over a WebSocket.
func (t *Toolbox) interpret(c *call) error {
	ws, err := t.accept(c)
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	ws.SetReadLimit(maxJob)
	rctx, cancel := context.WithTimeout(c.ctx, sendTime)
	kind, b, err := ws.Read(rctx)
	cancel()
	if err != nil {
		return nil // it has left
	}
	var q interpreterRequest
	if kind != websocket.MessageText || json.Unmarshal(b, &q) != nil {
		return ws.Close(websocket.StatusProtocolError, "the first message must be a JSON object")
	}
	limit := interpreterRun
	switch {
	case strings.TrimSpace(q.Code) == "":
		return ws.Close(websocket.StatusPolicyViolation, "code: it is missing")
	case q.Timeout != nil && (*q.Timeout < 0 || *q.Timeout > sandbox.MaxTimeout.Seconds()):
		return ws.Close(websocket.StatusPolicyViolation, "timeout: allowed are 0 (none) to 86,400 seconds")
	case q.Timeout != nil:
		limit = time.Duration(*q.Timeout * float64(time.Second))
	}
	c.args["code"], c.args["env"] = q.Code, q.Envs
	var p sandbox.Process
	if q.ContextID == "" || q.ContextID == defaultContext {
		p, _, _, err = t.startContext(c, defaultContext, "")
	} else {
		p, err = t.interpreter(c, q.ContextID)
	}
	if err != nil {
		code := websocket.StatusInternalError
		if s := statusOf(err); s >= 400 && s < 500 {
			code = websocket.StatusPolicyViolation
		}
		_ = ws.Close(code, reason(publicText(err, "")))
		return err
	}
	c.ctx = ws.CloseRead(c.ctx)
	stop := t.keepAlive(c.ctx, c.key, ws)
	defer stop()
	code, why := t.job(c, ws, p, q, limit)
	_ = ws.Close(code, why)
	return nil
}

// reason cuts a text to what a close can have.
func reason(text string) string {
	for len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "")
	}
	return text
}

// job has a context run a program, and sends what it does until its end. It
// returns with what the connection is closed.
func (t *Toolbox) job(c *call, ws *websocket.Conn, p sandbox.Process, q interpreterRequest, limit time.Duration) (websocket.StatusCode, string) {
	id := newUUID()
	line, err := json.Marshal(map[string]any{"job": id, "code": q.Code, "envs": q.Envs})
	if err != nil {
		return websocket.StatusInternalError, ""
	}
	info, err := p.Info(c.ctx) // before the job: from there its lines begin
	if err == nil {
		err = p.Write(c.ctx, append(line, '\n'), false)
	}
	if err != nil {
		return websocket.StatusGoingAway, reason("the context takes no job: " + publicText(err, ""))
	}
	late, ended := make(chan struct{}), make(chan struct{})
	var watch sync.WaitGroup
	defer func() { close(ended); watch.Wait() }()
	started := false
	done := false
	lines := lineReader{emit: func(text []byte) error {
		var m struct {
			Job string `json:"job"`
			chunk
		}
		if json.Unmarshal(text, &m) != nil || m.Job != id {
			return nil //nolint:nilerr // another's
		}
		if m.Type == "started" {
			if limit > 0 && !started {
				started = true
				watch.Go(func() {
					select {
					case <-time.After(limit):
						close(late)
						t.interrupt(c, p, ended)
					case <-ended:
					}
				})
			}
			return nil
		}
		b, err := json.Marshal(m.chunk)
		if err != nil {
			return err
		}
		if done = m.Type == "control"; done && isClosed(late) {
			return errEnough
		}
		if err := send(c.ctx, ws, websocket.MessageText, b); err != nil || !done {
			return err
		}
		return errEnough
	}}
	from := sandbox.Cursor{Stdout: info.Produced.Stdout, Stderr: info.Produced.Stderr}
	err = follow(c.ctx, p, from, func(stream int, b []byte) error {
		if stream != stdout {
			return nil
		}
		return lines.add(b)
	})
	switch {
	case isClosed(late):
		return closeTimeout, "the program did not end in time"
	case done:
		return websocket.StatusNormalClosure, ""
	case err == nil:
		return websocket.StatusGoingAway, "the interpreter has ended"
	case errors.Is(err, context.DeadlineExceeded):
		return websocket.StatusPolicyViolation, "the client reads too slowly"
	}
	return websocket.StatusInternalError, ""
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// interrupt has a context give up its program; one that does not is ended.
func (t *Toolbox) interrupt(c *call, p sandbox.Process, ended chan struct{}) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), startTime)
	defer cancel()
	_ = p.Kill(ctx, "INT", 0, "time-out of a program")
	select {
	case <-time.After(interruptGrace):
		_ = p.Kill(ctx, "KILL", 0, "a program did not end when it was interrupted")
	case <-ended: // the program gave up
	}
}

// lineReader makes lines of pieces.
type lineReader struct {
	part []byte
	emit func(line []byte) error
}

// maxPart bounds a line, in bytes: what prints without end is cut by the worker
// long before.
const maxPart = 4 << 20

func (l *lineReader) add(b []byte) error {
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			if len(l.part)+len(b) <= maxPart {
				l.part = append(l.part, b...)
			}
			return nil
		}
		line := append(l.part, b[:i]...)
		l.part, b = nil, b[i+1:]
		if err := l.emit(line); err != nil {
			return err
		}
	}
}
