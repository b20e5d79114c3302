package toolbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
)

// newUUID makes a random id (version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// executeRequest is the body of POST /process/execute.
type executeRequest struct {
	Command string            `json:"command"`
	Cwd     string            `json:"cwd"`
	Envs    map[string]string `json:"envs"`
	Timeout *float64          `json:"timeout"` // seconds; absent or 0: none
}

// codeRunRequest is the body of POST /process/code-run.
type codeRunRequest struct {
	Code     string            `json:"code"`
	Language string            `json:"language"`
	Argv     []string          `json:"argv"`
	Envs     map[string]string `json:"envs"`
	Timeout  *float64          `json:"timeout"`
}

// timeout reads seconds.
func timeout(seconds *float64) (*time.Duration, error) {
	d := time.Duration(0)
	if s := seconds; s != nil {
		if *s < 0 || *s > sandbox.MaxTimeout.Seconds() {
			return nil, badRequest("timeout: %v does not fit; allowed: 0 (none) to 86,400 seconds", *s)
		}
		d = time.Duration(*s * float64(time.Second))
	}
	return &d, nil
}

func envOf(envs map[string]string) map[string]*string {
	if len(envs) == 0 {
		return nil
	}
	env := make(map[string]*string, len(envs))
	for k, v := range envs {
		env[k] = &v
	}
	return env
}

// execute runs one command in a shell of its own, with stdout and stderr as one,
// and answers when it has ended. What it leaves running does not keep the
// answer; a caller who leaves does not end it.
func (t *Toolbox) execute(c *call) error {
	var q executeRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	if strings.TrimSpace(q.Command) == "" {
		return badRequest("command: it is missing; give the text of a command")
	}
	c.args["command"], c.args["cwd"], c.args["env"] = q.Command, q.Cwd, q.Envs
	limit, err := timeout(q.Timeout)
	if err != nil {
		return err
	}
	return t.run(c, sandbox.SpawnRequest{Merge: true,
		RunRequest: sandbox.RunRequest{Command: q.Command, Cwd: q.Cwd, Env: envOf(q.Envs), Timeout: limit}}, "")
}

// codeRun runs a program in a fresh interpreter.
func (t *Toolbox) codeRun(c *call) error {
	var q codeRunRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	switch sandbox.Language(q.Language) {
	case sandbox.Python, sandbox.JavaScript, sandbox.TypeScript:
	default:
		return badRequest("language: %.40q is not supported; allowed: python, javascript, typescript", q.Language)
	}
	c.args["language"], c.args["code"], c.args["env"] = q.Language, q.Code, q.Envs
	limit, err := timeout(q.Timeout)
	if err != nil {
		return err
	}
	err = t.run(c, sandbox.SpawnRequest{Merge: true, Language: sandbox.Language(q.Language), Code: q.Code, Args: q.Argv,
		RunRequest: sandbox.RunRequest{Env: envOf(q.Envs), Timeout: limit}}, `,"artifacts":{"charts":[]}`)
	var field *sandbox.FieldError
	if errors.As(err, &field) && field.Field == "code" && strings.TrimSpace(q.Code) != "" {
		// A program that cannot be compiled is one that failed.
		return t.result(c, 1, field.Problem+"\n", `,"artifacts":{"charts":[]}`)
	}
	if errors.Is(err, sandbox.ErrUnsupported) {
		return badRequest("language: %v", err)
	}
	return err
}

// run starts what q says, waits for its end and answers its merged output.
func (t *Toolbox) run(c *call, q sandbox.SpawnRequest, rest string) error {
	p, info, err := t.spawn(c.ctx, c.key, q)
	var field *sandbox.FieldError
	switch {
	case errors.As(err, &field) && field.Field == "cwd":
		return t.result(c, -1, fmt.Sprintf("cwd: %s; nothing was run\n", field.Problem), rest)
	case err != nil:
		return err
	}
	if info.State == sandbox.ProcessRunning {
		if err = p.Wait(c.ctx, sandbox.Cursor{}, true); err == nil {
			info, err = p.Info(c.ctx)
		}
		if err != nil {
			return lost(err)
		}
	}
	c.args["exit_code"] = exitText(info)
	switch {
	case info.TimedOut:
		return &apiError{status: http.StatusRequestTimeout, code: codeExecTimeout,
			text: fmt.Sprintf("the command did not end within %v and was killed", q.Timeout)}
	case info.ExitCode == nil:
		return &apiError{status: http.StatusBadGateway, code: codeUnavailable,
			text: fmt.Sprintf("the command was started, and how it ended is not known (%s); it was not run again", info.Reason)}
	}
	w := newJSONWriter(c.w, http.StatusOK)
	w.raw(`{"exitCode":` + strconv.Itoa(*info.ExitCode) + `,"result":`)
	w.open()
	err = readAll(c.ctx, p, stdout, info.Produced, w.text)
	w.shut()
	w.raw(rest + "}")
	return w.end(err)
}

// lost is the answer for a command that was started and is out of sight: no status
// that says the request was not carried out, so that nobody sends it again.
func lost(err error) error {
	if errors.Is(err, sandbox.ErrNotRunning) || errors.Is(err, sandbox.ErrNotFound) {
		return fmt.Errorf("wait for the command: %w", err) // clients look for when it stopped
	}
	return &apiError{status: http.StatusBadGateway, code: codeUnavailable, text: fmt.Sprintf("the command was started, and how it ends is not known (%v); it was not run again", err)}
}

// result answers what ended before anything was run.
func (t *Toolbox) result(c *call, code int, text, rest string) error {
	w := newJSONWriter(c.w, http.StatusOK)
	w.raw(`{"exitCode":` + strconv.Itoa(code) + `,"result":`)
	w.open()
	_ = w.text([]byte(text))
	w.shut()
	w.raw(rest + "}")
	return w.end(nil)
}

func exitText(i sandbox.ProcessInfo) string {
	if i.ExitCode == nil {
		return string(i.State)
	}
	return strconv.Itoa(*i.ExitCode)
}

// spawn starts a process and returns its handle. Field names in its errors are
// those of this API.
func (t *Toolbox) spawn(ctx context.Context, key sandbox.Key, q sandbox.SpawnRequest) (sandbox.Process, sandbox.ProcessInfo, error) {
	res, err := t.manager.SpawnProcess(ctx, key, q)
	if err != nil {
		var field *sandbox.FieldError
		if errors.As(err, &field) && (field.Field == "env" || strings.HasPrefix(field.Field, "env.")) {
			renamed := *field
			renamed.Field = "envs" + strings.TrimPrefix(field.Field, "env")
			return nil, sandbox.ProcessInfo{}, &renamed
		}
		return nil, sandbox.ProcessInfo{}, err
	}
	p, err := t.manager.Process(ctx, key, res.Process.ID)
	return p, res.Process, err
}
