package toolbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
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

const allowedNames = "1 to 256 bytes of text in one line, but not . and .."

// named tells whether clients can name something so: what they would have to
// write as . or .. in a path is never asked for.
func named(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= maxSessionID && utf8.ValidString(s) && !strings.ContainsAny(s, "\x00\n")
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
	case !named(q.SessionID):
		return badRequest("sessionId: %.80q does not fit; allowed: "+allowedNames, q.SessionID)
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
