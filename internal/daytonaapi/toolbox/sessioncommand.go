package toolbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"berth/sandbox"
)

// execBody answers an execution. Fields that are not known are null.
type execBody struct {
	CmdID    string  `json:"cmdId"`
	Output   *string `json:"output"`
	Stdout   *string `json:"stdout"`
	Stderr   *string `json:"stderr"`
	ExitCode *int    `json:"exitCode"`
}

// execInSession has the session's shell run a command, after those before it.
func (t *Toolbox) execInSession(c *call) error {
	if c.r.PathValue("session") == entrypoint {
		return errEntrypoint
	}
	var q struct {
		Command           string `json:"command"`
		RunAsync          bool   `json:"runAsync"`
		Async             bool   `json:"async"` // as older clients say it
		SuppressInputEcho bool   `json:"suppressInputEcho"`
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	c.args["session"], c.args["command"] = c.r.PathValue("session"), q.Command
	switch {
	case strings.TrimSpace(q.Command) == "":
		return badRequest("command: it is missing; give the text of a command")
	case len(q.Command) > sandbox.MaxCommand:
		return badRequest("command: it has %d bytes; at most 1,048,576 fit; upload a script and run that", len(q.Command))
	case strings.ContainsRune(q.Command, 0):
		return badRequest("command: it holds a NUL byte")
	}
	shell, s, err := t.session(c)
	switch {
	case err != nil:
		return err
	case shell.State != sandbox.ProcessRunning:
		return sessionEnded(s.Session)
	}
	async := q.RunAsync || q.Async
	n := note{Kind: kindCommand, Session: s.Session, Dir: s.Dir, Text: beginning(q.Command), Echo: async && !q.SuppressInputEcho}
	id := sandbox.ProcessID(newUUID())
	arg := q.Command
	if len(arg) > maxArgText {
		arg = ""
		if err := t.putText(c, s.Dir+"/"+string(id)+".text", q.Command); errors.Is(err, fs.ErrNotExist) {
			return sessionEnded(s.Session)
		} else if err != nil {
			return err
		}
	}
	p, err := t.spawnNext(c, s.Dir, sandbox.SpawnRequest{ID: id, Note: n.String(), Display: q.Command, OpenStdin: async,
		RunRequest: sandbox.RunRequest{Argv: []string{"sh", "-c", commandScript, "sh", s.Dir, string(id), arg}, Cwd: "/"}})
	if err != nil {
		return err
	}
	if async {
		return c.answer(http.StatusAccepted, execBody{CmdID: string(id)})
	}
	info, err := t.ended(c.ctx, c.key, p, s)
	if err != nil {
		return err
	}
	c.args["exit_code"] = exitText(info)
	form := formOf(c.r)
	w := newJSONWriter(c.w, http.StatusOK)
	w.raw(`{"cmdId":"` + string(id) + `",`)
	err = writeOutput(c.ctx, w, p, info, form == formJSON)
	if form != formJSON {
		w.raw(`,"stdout":null,"stderr":null`)
	}
	code, _ := json.Marshal(info.ExitCode)
	w.raw(`,"exitCode":` + string(code) + "}")
	return w.end(err)
}

// spawnNext spawns a command of a session, and tells it of the one before it, if
// that still runs. One at a time, so that each is before one other.
func (t *Toolbox) spawnNext(c *call, dir string, r sandbox.SpawnRequest) (sandbox.Process, error) {
	one, _ := t.orders.LoadOrStore(dir, new(sync.Mutex))
	one.(*sync.Mutex).Lock()
	defer one.(*sync.Mutex).Unlock()
	before, err := t.list(c, func(n note) bool { return n.Kind == kindCommand && n.Dir == dir })
	if err != nil {
		return nil, err
	}
	if len(before) > 0 && before[len(before)-1].State == sandbox.ProcessRunning {
		r.Argv = append(r.Argv, string(before[len(before)-1].ID))
	}
	p, _, err := t.spawn(c.ctx, c.key, r)
	return p, err
}

// putText writes a command that is too long for an argument.
func (t *Toolbox) putText(c *call, path, text string) error {
	files, _, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return err
	}
	if _, err := files.Stat(c.ctx, path[:strings.LastIndexByte(path, '/')]); err != nil {
		return err // Write would make it anew
	}
	mode := fs.FileMode(0o600)
	_, err = files.Write(c.ctx, path, strings.NewReader(text+"\n"), sandbox.WriteOptions{Mode: &mode})
	return err
}

// beginning is as much of a command as a note has room for.
func beginning(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxNoteText && len(note{Text: text}.String()) <= sandbox.MaxNote-4096 {
		return text
	}
	cut := min(len(text), 8<<10)
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}

// ended waits for the end of a command, and brings it about when the session's
// shell is gone without having told the command so.
func (t *Toolbox) ended(ctx context.Context, key sandbox.Key, p sandbox.Process, s note) (sandbox.ProcessInfo, error) {
	for {
		wait, cancel := context.WithTimeout(ctx, lookEvery)
		err := p.Wait(wait, sandbox.Cursor{}, true)
		cancel()
		if err == nil {
			return p.Info(ctx)
		}
		if ctx.Err() != nil {
			return sandbox.ProcessInfo{}, ctx.Err()
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			return sandbox.ProcessInfo{}, err
		}
		if err := t.release(ctx, key, p, s); err != nil {
			return sandbox.ProcessInfo{}, err
		}
	}
}

// release ends a command whose session has no shell any more. The guard does
// that, so it is a guard that was killed too; or one that is just doing it.
func (t *Toolbox) release(ctx context.Context, key sandbox.Key, p sandbox.Process, s note) error {
	shell, err := t.manager.Process(ctx, key, processID(kindSession, s.Session))
	var info sandbox.ProcessInfo
	if err == nil {
		info, err = shell.Info(ctx)
	}
	switch {
	case errors.Is(err, sandbox.ErrNoProcess):
	case err != nil:
		return err
	case parseNote(info).Dir == s.Dir:
		grace := lookEvery
		if info.Signal == "" {
			grace = toldIn // it has told its commands, and they end by themselves
		}
		if info.State == sandbox.ProcessRunning || time.Since(info.Ended) < grace {
			return nil
		}
	}
	err = p.Kill(ctx, "KILL", 0, "the session's shell was killed")
	if errors.Is(err, sandbox.ErrNoProcess) {
		return nil
	}
	return err
}

// command finds the command of the request.
func (t *Toolbox) command(c *call) (sandbox.Process, sandbox.ProcessInfo, note, error) {
	name, id := c.r.PathValue("session"), c.r.PathValue("command")
	if name == entrypoint {
		return nil, sandbox.ProcessInfo{}, note{}, errEntrypoint
	}
	_, s, err := t.session(c)
	if err != nil {
		return nil, sandbox.ProcessInfo{}, note{}, err
	}
	p, info, n, err := t.ours(c, kindCommand, sandbox.ProcessID(id))
	if errors.Is(err, sandbox.ErrNoProcess) || err == nil && n.Dir != s.Dir {
		return nil, info, n, &apiError{status: http.StatusNotFound, code: codeNoProcess, text: fmt.Sprintf(
			"session %.80q has no command %.80q (the oldest finished ones are forgotten)", name, id)}
	}
	if err == nil && info.State == sandbox.ProcessRunning {
		if err = t.release(c.ctx, c.key, p, n); err == nil {
			info, err = p.Info(c.ctx)
		}
	}
	return p, info, n, err
}

func (t *Toolbox) getCommand(c *call) error {
	_, info, n, err := t.command(c)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, commandOf(info, n))
}

// commandInput sends input to a command that was started to run on its own.
func (t *Toolbox) commandInput(c *call) error {
	var q struct {
		Data string `json:"data"`
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	c.args["session"], c.args["data"] = c.r.PathValue("session"), q.Data
	p, info, n, err := t.command(c)
	switch {
	case err != nil:
		return err
	case info.State != sandbox.ProcessRunning:
		return &apiError{status: http.StatusGone, code: codeCompleted, text: fmt.Sprintf("command %s has ended; it takes no more input", info.ID)}
	case len(q.Data) > maxInput:
		return badRequest("data: it has %d bytes; at most 4,194,304 fit; send it in parts", len(q.Data))
	}
	data := q.Data
	if !strings.HasSuffix(data, "\n") {
		data += "\n"
	}
	if n.Echo {
		if err := t.echo(c, n, info.ID, data); err != nil {
			return err
		}
	}
	switch err = p.Write(c.ctx, []byte(data), false); {
	case errors.Is(err, sandbox.ErrExited):
		return &apiError{status: http.StatusGone, code: codeCompleted, text: fmt.Sprintf("command %s has ended; it takes no more input", info.ID)}
	case errors.Is(err, sandbox.ErrStdinClosed):
		return &apiError{status: http.StatusGone, code: codeGone, text: "the command has no input: only one run with runAsync has"}
	case errors.Is(err, sandbox.ErrLimit):
		return &apiError{status: http.StatusServiceUnavailable, code: codeUnavailable,
			text: "the command does not read its input, and 1 MiB waits for it; nothing of this was sent, try again when it has read"}
	case err != nil:
		return err
	}
	return c.empty(http.StatusNoContent)
}

// echo puts input into the command's output.
func (t *Toolbox) echo(c *call, n note, id sandbox.ProcessID, data string) error {
	for len(data) > 0 {
		part := data[:min(len(data), maxArgText)]
		for len(part) < len(data) && len(part) > 0 && !utf8.RuneStart(data[len(part)]) {
			part = part[:len(part)-1]
		}
		data = data[len(part):]
		p, info, err := t.spawn(c.ctx, c.key, sandbox.SpawnRequest{Waiting: true, Display: "echo of an input",
			Note:       note{Kind: kindEcho, Session: n.Session, Dir: n.Dir}.String(),
			RunRequest: sandbox.RunRequest{Argv: []string{"sh", "-c", echoScript, "sh", n.Dir, string(id), strings.ReplaceAll(part, "\x00", "")}, Cwd: "/"}})
		if err == nil && info.State == sandbox.ProcessRunning {
			err = p.Wait(c.ctx, sandbox.Cursor{}, true)
		}
		if err != nil {
			return err
		}
		if err := t.forget(c.ctx, c.key, p.ID()); err != nil && !errors.Is(err, sandbox.ErrUnsupported) {
			return err
		}
	}
	return nil
}
