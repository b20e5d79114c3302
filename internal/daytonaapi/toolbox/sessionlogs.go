package toolbox

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/coder/websocket"

	"berth/sandbox"
)

// form is how output travels; which one depends on the client's version.
type form int

const (
	formPlain  form = iota // text, both streams as one
	formMarked             // text, each piece after the mark of its stream
	formJSON               // JSON with both streams apart; live output is marked
)

const (
	headerVersion = "X-Daytona-SDK-Version"
	headerSplit   = "X-Daytona-Split-Output"
)

// formOf reads the version that a client says it is: from 0.167.0 on it takes
// JSON, from 0.27 on marks. What says nothing gets plain text, unless it asks
// for marks.
func formOf(r *http.Request) form {
	v := strings.TrimSpace(r.Header.Get(headerVersion))
	if v == "" { // a browser's WebSocket has no headers of its own
		for p := range protocols(r) {
			if rest, ok := strings.CutPrefix(p, headerVersion+"~"); ok {
				v = rest
			}
		}
	}
	if v == "" {
		if split, _ := strconv.ParseBool(r.Header.Get(headerSplit)); split {
			return formMarked
		}
		return formPlain
	}
	if strings.Contains(v, "dev") {
		return formJSON
	}
	minor, ok := minorVersion(v)
	switch {
	case !ok || minor >= 27 && minor < 167:
		return formMarked
	case minor >= 167:
		return formJSON
	}
	return formPlain
}

// minorVersion reads the second number of a version; that of 1.x and later
// counts as larger than all of 0.x.
func minorVersion(v string) (int, bool) {
	v, _, _ = strings.Cut(strings.TrimPrefix(v, "v"), "-")
	v, _, _ = strings.Cut(v, "+")
	parts := strings.Split(v, ".")
	if len(parts) != 3 {
		return 0, false
	}
	var n [3]int
	for i, p := range parts {
		var err error
		if n[i], err = strconv.Atoi(p); err != nil || n[i] < 0 {
			return 0, false
		}
	}
	if n[0] > 0 {
		return 1 << 30, true
	}
	return n[1], true
}

// writeOutput writes the members output and, if apart, stdout and stderr of an
// answer. With apart, output has the marks.
func writeOutput(ctx context.Context, w *jsonWriter, p sandbox.Process, info sandbox.ProcessInfo, apart bool) error {
	w.raw(`"output":`)
	w.open()
	var err error
	for s := range marks {
		emit := w.text
		if apart {
			emit = func(b []byte) error {
				if err := w.text(marks[s]); err != nil {
					return err
				}
				return w.text(b)
			}
		}
		if err == nil {
			err = readAll(ctx, p, s, info.Produced, emit)
		}
	}
	w.shut()
	if !apart {
		return err
	}
	for s, name := range [...]string{"stdout", "stderr"} {
		w.raw(`,"` + name + `":`)
		w.open()
		if err == nil {
			err = readAll(ctx, p, s, info.Produced, w.text)
		}
		w.shut()
	}
	return err
}

// commandLogs answers the output of a command: what there is, or with follow
// all of it, live, until the command's end.
func (t *Toolbox) commandLogs(c *call) error {
	p, info, n, err := t.command(c)
	if err != nil {
		return err
	}
	live, _ := strconv.ParseBool(c.r.URL.Query().Get("follow"))
	form := formOf(c.r)
	if isWebSocket(c.r) {
		return t.streamLogs(c, p, n, form, live)
	}
	if !live && form == formJSON {
		w := newJSONWriter(c.w, http.StatusOK)
		w.raw("{")
		err := writeOutput(c.ctx, w, p, info, true)
		w.raw("}")
		return w.end(err)
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(c.w)
	emit := func(stream int, b []byte) error {
		if form != formPlain {
			if _, err := c.w.Write(marks[stream]); err != nil {
				return err
			}
		}
		_, err := c.w.Write(b)
		if err == nil && live {
			err = flush.Flush()
		}
		return err
	}
	if live {
		_ = flush.Flush()
		err = t.followCommand(c, p, n, emit)
	} else {
		for s := range marks {
			if err == nil {
				err = readAll(c.ctx, p, s, info.Produced, func(b []byte) error { return emit(s, b) })
			}
		}
	}
	if err != nil {
		return errAborted
	}
	return nil
}

// followCommand follows a command to its end, which it brings about when its
// shell is gone.
func (t *Toolbox) followCommand(c *call, p sandbox.Process, n note, emit func(int, []byte) error) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = t.ended(ctx, c.key, p, n)
	}()
	err := follow(ctx, p, sandbox.Cursor{}, emit)
	cancel()
	<-done
	return err
}

// streamLogs is commandLogs over a WebSocket: binary messages, and a close in
// order at the end.
func (t *Toolbox) streamLogs(c *call, p sandbox.Process, n note, form form, live bool) error {
	ws, err := t.accept(c)
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	c.ctx = ws.CloseRead(c.ctx) // nothing is expected; answers pings, ends with the peer
	stop := t.keepAlive(c.ctx, c.key, ws)
	defer stop()
	emit := func(stream int, b []byte) error {
		if form == formPlain {
			return send(c.ctx, ws, websocket.MessageBinary, b)
		}
		return send(c.ctx, ws, websocket.MessageBinary, append(append(make([]byte, 0, len(b)+3), marks[stream]...), b...))
	}
	if live {
		err = t.followCommand(c, p, n, emit)
	} else {
		var info sandbox.ProcessInfo
		if info, err = p.Info(c.ctx); err == nil {
			for s := range marks {
				if err == nil {
					err = readAll(c.ctx, p, s, info.Produced, func(b []byte) error { return emit(s, b) })
				}
			}
		}
	}
	switch {
	case t.ctx.Err() != nil:
		_ = ws.Close(websocket.StatusGoingAway, "the server is shutting down")
	case err != nil && c.ctx.Err() == nil && statusOf(err) != http.StatusNotFound: // a deleted session's logs end in order
		_ = ws.Close(websocket.StatusInternalError, "the output cannot be read any more")
	default:
		_ = ws.Close(websocket.StatusNormalClosure, "")
	}
	return nil
}

// entrypointLogs answers the output of the image's entrypoint, which is not run.
func (t *Toolbox) entrypointLogs(c *call) error {
	if isWebSocket(c.r) {
		ws, err := t.accept(c)
		if err != nil {
			return err
		}
		return ws.Close(websocket.StatusNormalClosure, "")
	}
	if formOf(c.r) == formJSON {
		return c.answer(http.StatusOK, map[string]string{"output": "", "stdout": "", "stderr": ""})
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	return c.empty(http.StatusOK)
}
