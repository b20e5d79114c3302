package toolbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"berth/sandbox"
)

// toolOutput is how much of a tool's output is read, in bytes, and how much of
// its complaint.
const (
	toolOutput    = 16 << 20
	toolComplaint = 4 << 10
)

// toolError is a program inside that failed.
type toolError struct {
	argv   []string
	code   int
	stderr string
}

func (e *toolError) Error() string {
	text := e.stderr
	if text == "" {
		text = fmt.Sprintf("it failed with exit code %d", e.code)
	}
	return e.argv[0] + ": " + text
}

// Is makes the usual complaints of coreutils kinds of errors.
func (e *toolError) Is(target error) bool {
	for text, kind := range map[string]error{"Permission denied": fs.ErrPermission, "Operation not permitted": fs.ErrPermission,
		"Read-only file system": sandbox.ErrReadOnly, "No such file or directory": fs.ErrNotExist, "Directory not empty": fs.ErrExist} {
		if errors.Is(kind, target) && strings.Contains(e.stderr, text) {
			return true
		}
	}
	return false
}

// tool runs a program inside, for what is not worth a request of its own.
// Arguments reach it as they are.
func (t *Toolbox) tool(c *call, env map[string]string, argv ...string) error {
	_, err := t.toolOutput(c.ctx, c.key, sandbox.RunRequest{Argv: argv, Env: envOf(env), Cwd: "/"})
	return err
}

// toolOutput runs a program inside and returns its stdout. A failure is a
// *toolError.
func (t *Toolbox) toolOutput(ctx context.Context, key sandbox.Key, q sandbox.RunRequest) (string, error) {
	if q.Env == nil {
		q.Env = map[string]*string{}
	}
	for _, name := range []string{"LC_ALL", "LANGUAGE"} { // its complaints are read
		if q.Env[name] == nil {
			c := "C.UTF-8"
			q.Env[name] = &c
		}
	}
	p, info, err := t.spawn(ctx, key, sandbox.SpawnRequest{RunRequest: q})
	if err != nil {
		return "", err
	}
	if info.State == sandbox.ProcessRunning {
		if err = p.Wait(ctx, sandbox.Cursor{}, true); err == nil {
			info, err = p.Info(ctx)
		}
		if err != nil {
			if ctx.Err() != nil { // nobody waits for it any more
				kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endGrace)
				defer cancel()
				_ = p.Kill(kctx, "TERM", endGrace, "the request was left")
			}
			return "", err
		}
	}
	var out, complaint strings.Builder
	err = readAll(ctx, p, stdout, info.Produced, func(b []byte) error {
		if out.Len()+len(b) > toolOutput {
			return fmt.Errorf("%s prints more than 16 MiB: %w", q.Argv[0], sandbox.ErrLimit)
		}
		out.Write(b)
		return nil
	})
	if err == nil {
		err = readAll(ctx, p, stderr, info.Produced, func(b []byte) error {
			complaint.Write(b[:min(len(b), toolComplaint-min(toolComplaint, complaint.Len()))])
			return nil
		})
	}
	// Its record serves nobody.
	if ferr := t.forget(ctx, key, p.ID()); ferr != nil && !errors.Is(ferr, sandbox.ErrUnsupported) {
		err = errors.Join(err, ferr)
	}
	switch {
	case err != nil:
		return "", err
	case info.ExitCode == nil:
		return "", fmt.Errorf("%s: how it ended is not known (%s): %w", q.Argv[0], info.Reason, sandbox.ErrUnavailable)
	case *info.ExitCode != 0:
		return out.String(), &toolError{argv: q.Argv, code: *info.ExitCode, stderr: strings.TrimSpace(strings.ToValidUTF8(complaint.String(), "\uFFFD"))}
	}
	return out.String(), nil
}
