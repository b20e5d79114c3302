package toolbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"berth/sandbox"
)

// Bounds of sessions.
const (
	maxSessionID = 256       // bytes
	maxArgText   = 100 << 10 // bytes of a command that travels as an argument; a longer one goes by file
	maxNoteText  = 32 << 10  // bytes of a command that its note has
	maxInput     = 4 << 20   // bytes of one input
)

const (
	startTime = 20 * time.Second // for a shell to start, or its guard to act
	lookEvery = 3 * time.Second  // at the shell, while a command is waited for
	toldIn    = 30 * time.Second // for commands that were told that their shell ended
	endGrace  = 5 * time.Second  // between TERM and KILL of a deleted session
)

// The kinds of processes that are the toolbox's own.
const (
	kindSession     = "session"
	kindCommand     = "command"
	kindEcho        = "echo"
	kindPTY         = "pty"
	kindInterpreter = "interpreter"
)

// note is what is kept with each of our processes.
type note struct {
	Kind    string `json:"daytona"`
	Session string `json:"session,omitempty"`
	Dir     string `json:"dir,omitempty"`  // the session's directory inside
	Text    string `json:"text,omitempty"` // of a command, or its beginning
	Echo    bool   `json:"echo,omitempty"` // input shows in the output
	// Of a terminal or an interpreter.
	ID   string            `json:"id,omitempty"`
	Lazy bool              `json:"lazy,omitempty"`
	Envs map[string]string `json:"envs,omitempty"`
	Once string            `json:"once,omitempty"` // random: tells one creation from another
}

func (n note) String() string {
	b, err := json.Marshal(n)
	if err != nil { // strings and numbers
		panic(err)
	}
	return string(b)
}

// parseNote reads a process's note; one that is not ours has no kind.
func parseNote(i sandbox.ProcessInfo) note {
	var n note
	if !strings.HasPrefix(i.Note, `{"daytona":`) || json.Unmarshal([]byte(i.Note), &n) != nil {
		return note{}
	}
	return n
}

// processID makes the id of a process that clients name themselves.
func processID(kind, name string) sandbox.ProcessID {
	sum := sha256.Sum256([]byte(name))
	return sandbox.ProcessID(kind + "-" + hex.EncodeToString(sum[:16]))
}

// ours finds a process of ours by kind and id.
func (t *Toolbox) ours(c *call, kind string, id sandbox.ProcessID) (sandbox.Process, sandbox.ProcessInfo, note, error) {
	p, err := t.manager.Process(c.ctx, c.key, id)
	var info sandbox.ProcessInfo
	if err == nil {
		info, err = p.Info(c.ctx)
	}
	n := parseNote(info)
	if err == nil && n.Kind != kind {
		err = sandbox.ErrNoProcess
	}
	return p, info, n, err
}

// list returns our processes of a kind, oldest first.
func (t *Toolbox) list(c *call, keep func(note) bool) ([]sandbox.ProcessInfo, error) {
	all, err := t.manager.ListProcesses(c.ctx, c.key)
	if err != nil {
		return nil, err
	}
	var out []sandbox.ProcessInfo
	for _, i := range all {
		if keep(parseNote(i)) {
			out = append(out, i)
		}
	}
	return out, nil
}

// swept tells that a process ended with the sandbox's last run, or is being
// deleted: sessions do not outlive that.
func swept(i sandbox.ProcessInfo) bool {
	return i.State == sandbox.ProcessLost || i.State == sandbox.ProcessExited && i.Killed
}

type sessionBody struct {
	SessionID string        `json:"sessionId"`
	Commands  []commandBody `json:"commands"`
}

type commandBody struct {
	ID       string `json:"id"`
	Command  string `json:"command"`
	ExitCode *int   `json:"exitCode,omitempty"`
}

func noSession(id string) error {
	return &apiError{status: http.StatusNotFound, code: codeNotFound, text: fmt.Sprintf("session %.80q not found; POST /process/session creates one", id)}
}

func sessionEnded(id string) error {
	return &apiError{status: http.StatusGone, code: codeSessionEnded, text: fmt.Sprintf(
		"the shell of session %.80q has ended; the output of its commands can still be read; delete the session, or use another, to run more", id)}
}

const entrypoint = "entrypoint"

var errEntrypoint = badRequest("session entrypoint: it is the image's own, which is not run here; use another session id")

// createSession starts a session's shell.
func (t *Toolbox) createSession(c *call) error {
	var q struct {
		SessionID string `json:"sessionId"`
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	c.args["session"] = q.SessionID
	switch {
	case q.SessionID == "" || len(q.SessionID) > maxSessionID || !utf8.ValidString(q.SessionID) || strings.ContainsAny(q.SessionID, "\x00\n"):
		return badRequest("sessionId: %.80q does not fit; allowed: 1 to 256 bytes of text in one line", q.SessionID)
	case q.SessionID == entrypoint:
		return errEntrypoint
	}
	ctx, cancel := context.WithTimeout(c.ctx, startTime)
	defer cancel()
	id := processID(kindSession, q.SessionID)
	for {
		once := newUUID()
		n := note{Kind: kindSession, Session: q.SessionID, Dir: "/tmp/.session-" + once, Once: once}
		p, info, err := t.spawn(ctx, c.key, sandbox.SpawnRequest{ID: id, Note: n.String(), Waiting: true, Display: "session " + q.SessionID,
			RunRequest: sandbox.RunRequest{Argv: []string{"sh", "-c", shellScript, "sh", n.Dir}}})
		if err != nil {
			return err
		}
		if parseNote(info).Once != once {
			if !swept(info) {
				return &apiError{status: http.StatusConflict, code: codeConflict, text: fmt.Sprintf("session %.80q exists already", q.SessionID)}
			}
			if err := t.forget(ctx, c.key, id); err != nil {
				return err
			}
			continue
		}
		if err := p.Wait(ctx, sandbox.Cursor{}, false); err != nil {
			return fmt.Errorf("start the session's shell: %w", err)
		}
		if info, err = p.Info(ctx); err != nil {
			return err
		}
		if info.Produced.Stdout == 0 {
			why, _ := p.Read(ctx, sandbox.Cursor{}, 1000)
			_ = t.forget(ctx, c.key, id)
			return badRequest("session %.80q: its shell does not start: %s", q.SessionID, strings.TrimSpace(string(why.Stderr)))
		}
		return c.empty(http.StatusCreated)
	}
}

// forget drops an ended process; one that only just ends is waited for.
func (t *Toolbox) forget(ctx context.Context, key sandbox.Key, id sandbox.ProcessID) error {
	err := t.manager.ForgetProcess(ctx, key, id)
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	p, err := t.manager.Process(ctx, key, id)
	if errors.Is(err, sandbox.ErrNoProcess) {
		return nil
	}
	if err == nil {
		err = p.Wait(ctx, sandbox.Cursor{}, true)
	}
	if err != nil {
		return err
	}
	return t.manager.ForgetProcess(ctx, key, id)
}

// session finds the session of the request, ended or not.
func (t *Toolbox) session(c *call) (sandbox.ProcessInfo, note, error) {
	id := c.r.PathValue("session")
	_, info, n, err := t.ours(c, kindSession, processID(kindSession, id))
	if errors.Is(err, sandbox.ErrNoProcess) || err == nil && swept(info) {
		return info, n, noSession(id)
	}
	return info, n, err
}

func (t *Toolbox) listSessions(c *call) error {
	infos, err := t.list(c, func(n note) bool { return n.Kind == kindSession || n.Kind == kindCommand })
	if err != nil {
		return err
	}
	sessions := []*sessionBody{}
	byDir := map[string]*sessionBody{}
	for _, i := range infos {
		n := parseNote(i)
		if n.Kind == kindSession && !swept(i) {
			s := &sessionBody{SessionID: n.Session, Commands: []commandBody{}}
			byDir[n.Dir] = s
			sessions = append(sessions, s)
		}
	}
	for _, i := range infos {
		n := parseNote(i)
		if s := byDir[n.Dir]; s != nil && n.Kind == kindCommand {
			s.Commands = append(s.Commands, commandOf(i, n))
		}
	}
	return c.answer(http.StatusOK, sessions)
}

func commandOf(i sandbox.ProcessInfo, n note) commandBody {
	return commandBody{ID: string(i.ID), Command: n.Text, ExitCode: i.ExitCode}
}

func (t *Toolbox) getSession(c *call) error {
	if id := c.r.PathValue("session"); id == entrypoint {
		return c.answer(http.StatusOK, sessionBody{SessionID: id, Commands: []commandBody{}})
	}
	_, s, err := t.session(c)
	if err != nil {
		return err
	}
	infos, err := t.list(c, func(n note) bool { return n.Kind == kindCommand && n.Dir == s.Dir })
	if err != nil {
		return err
	}
	body := sessionBody{SessionID: s.Session, Commands: []commandBody{}}
	for _, i := range infos {
		body.Commands = append(body.Commands, commandOf(i, parseNote(i)))
	}
	return c.answer(http.StatusOK, body)
}

// deleteSession ends a session and all that it runs, and drops its output. It
// can be repeated: the shell, by which the session is known, goes last.
func (t *Toolbox) deleteSession(c *call) error {
	if c.r.PathValue("session") == entrypoint {
		return errEntrypoint
	}
	shell, s, err := t.session(c)
	if err != nil {
		return err
	}
	// A session once begun to be deleted is deleted, caller or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), startTime)
	defer cancel()
	if err := t.end(ctx, c.key, shell.ID, "the session was deleted"); err != nil {
		return err
	}
	infos, err := t.list(c, func(n note) bool { return n.Dir == s.Dir && n.Kind != kindSession })
	if err != nil {
		return err
	}
	for _, i := range infos {
		if err := t.end(ctx, c.key, i.ID, "the session was deleted"); err != nil {
			return err
		}
		if err := t.forget(ctx, c.key, i.ID); err != nil {
			return err
		}
	}
	// Unless what it ran had to be killed, the guard has removed it.
	if files, _, err := t.manager.Files(c.ctx, c.key); err == nil {
		if _, err := files.Stat(c.ctx, s.Dir); err == nil {
			_ = t.tool(c, nil, "rm", "-rf", "--", s.Dir) // litter in /tmp is no reason to fail
		}
	}
	if err := t.forget(ctx, c.key, shell.ID); err != nil {
		return err
	}
	t.orders.Delete(s.Dir)
	return c.empty(http.StatusNoContent)
}

// end ends a process with all below it, and waits for that.
func (t *Toolbox) end(ctx context.Context, key sandbox.Key, id sandbox.ProcessID, why string) error {
	p, err := t.manager.Process(ctx, key, id)
	if err == nil {
		err = p.Kill(ctx, "TERM", endGrace, why)
	}
	if err == nil {
		err = p.Wait(ctx, sandbox.Cursor{}, true)
	}
	if errors.Is(err, sandbox.ErrNoProcess) {
		return nil
	}
	return err
}

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
