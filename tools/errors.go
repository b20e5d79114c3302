package tools

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"berth/sandbox"
)

// sentences is the one table from kinds of errors to text for the model. In a
// text, %s stands for what the call was about: a path, a process, a session.
// The first that fits is used.
var sentences = []struct {
	kind error
	text func(c *call) string
}{
	{sandbox.ErrCancelled, fixed("the call was cancelled")},
	{sandbox.ErrNoProcess, func(c *call) string {
		return fmt.Sprintf("process_id: session %s has no process %s; list_processes shows those it has", c.key.Session, show(c.argument("process_id")))
	}},
	{sandbox.ErrExited, func(c *call) string {
		return fmt.Sprintf("process_id: process %s has exited and takes no input; read_output shows its output and exit code", show(c.argument("process_id")))
	}},
	{sandbox.ErrStdinClosed, func(c *call) string {
		return fmt.Sprintf("process_id: stdin of process %s is closed; start it by spawn_process with open_stdin true", show(c.argument("process_id")))
	}},
	{sandbox.ErrMaybeStarted, fixed("the connection to the sandbox broke while the command was being started: it may have run, and was not run again; list_processes shows what runs, then decide whether to repeat it")},
	{errLate, fixed("no answer came within 50 s, and whether it was done, or is done yet, is not known: look at that (list_processes, read_output, read_file) before you make the same call again")},
	{sandbox.ErrNotFound, func(c *call) string {
		return fmt.Sprintf("session_id: there is no sandbox for session %s; execute_command or start_sandbox makes one, list_sandboxes shows those there are", c.key.Session)
	}},
	{sandbox.ErrNotRunning, func(c *call) string {
		return fmt.Sprintf("the sandbox of session %s is not running; execute_command or start_sandbox starts it", c.key.Session)
	}},
	{sandbox.ErrExists, func(c *call) string {
		return fmt.Sprintf("the sandbox of session %s is just being made by another call; make the same call again", c.key.Session)
	}},
	{sandbox.ErrIsDir, path("is a directory; give a file's path, or list it with execute_command: ls -la")},
	{sandbox.ErrNotDir, path("leads through something that is no directory; check the path with execute_command: ls -la")},
	{sandbox.ErrNotRegular, path("is a device, pipe or socket, not a regular file; use execute_command for it")},
	{fs.ErrNotExist, path("does not exist in the sandbox; check it with execute_command: ls -la")},
	{fs.ErrExist, path("exists already")},
	{sandbox.ErrReadOnly, path("is on a read-only file system, for root too; write elsewhere")}, // before fs.ErrPermission, which it is too
	{fs.ErrPermission, path("may not be used by the sandbox's user; execute_command with user root can change that")},
	{sandbox.ErrLimit, fixed("a limit of this server is reached; end processes or destroy sandboxes you no longer need (list_processes, list_sandboxes), then try again")},
	{sandbox.ErrUnsupported, fixed("this server's provider cannot do that")},
	{sandbox.ErrUnavailable, fixed("the sandbox does not answer at the moment; make the same call again, and if it goes on, ask the operator to run berth doctor")},
	{sandbox.ErrClosed, fixed("the server is shutting down; the sandbox and its processes live on, so connect again and make the same call")},
	{context.DeadlineExceeded, fixed("not finished within 50 s; it goes on by itself: make the same call again to wait for it, or ask get_sandbox")},
	// Asked for it is ErrCancelled, so here the connection or the server goes away.
	{context.Canceled, fixed("the call ended before it was done, since its connection or the server is going away; the sandbox and its processes live on, so connect again and make the same call")},
}

// errLate is what came of a call that was left behind and would do something
// another time if it were repeated.
var errLate = errors.New("left behind")

func fixed(s string) func(*call) string { return func(*call) string { return s } }

// path is a sentence about the path the call named; without one there is none,
// for then it was a file of the server's own.
func path(s string) func(*call) string {
	return func(c *call) string {
		for _, name := range []string{"path", "cwd", "working_directory"} {
			if v := c.argument(name); v != nil {
				return fmt.Sprintf("%s: %s %s", name, show(v), s)
			}
		}
		return ""
	}
}

// explain turns an error into text for the model: what was wrong with which
// value, what is allowed, what to do next. What no table knows is an internal
// error with a reference that the operator's log repeats.
func (r *registry) explain(c *call, err error) string {
	if list := split(err); len(list) > 1 {
		lines := make([]string, len(list))
		for i, e := range list {
			lines[i] = r.explain(c, e)
		}
		return strings.Join(lines, "\n")
	}
	var fe *sandbox.FieldError
	if errors.As(err, &fe) {
		return fe.Error()
	}
	var ue *sandbox.UserError
	if errors.As(err, &ue) {
		return ue.Text
	}
	var build *sandbox.BuildError
	if errors.As(err, &build) {
		return build.Error() + "; the end of the log:\n" + strings.TrimSuffix(build.Log, "\n")
	}
	for _, s := range sentences {
		if errors.Is(err, s.kind) {
			if errors.Is(s.kind, context.DeadlineExceeded) || errors.Is(s.kind, sandbox.ErrUnavailable) {
				r.log.Warn("tool failed", slog.String("tool", c.tool.name), slog.String("session", string(c.key.Session)), slog.Any("err", err))
			}
			if text := s.text(c); text != "" {
				return text
			}
		}
	}
	var more moreFaults
	if errors.As(err, &more) {
		return more.Error()
	}
	reference := newReference()
	r.log.Error("internal error", slog.String("reference", reference), slog.String("tool", c.tool.name), slog.String("session", string(c.key.Session)), slog.Any("err", err))
	return fmt.Sprintf("internal error, reference %s: the operator finds it in the server's log under that word; try again, or go on another way", reference)
}

// moreFaults counts faults that an answer leaves out.
type moreFaults int

func (m moreFaults) Error() string { return fmt.Sprintf("and %d more", int(m)) }

// split takes joined errors that name faulty fields apart, also when the join
// is wrapped; an error alone is a list of one.
func split(err error) []error {
	var fe *sandbox.FieldError
	if !errors.As(err, &fe) {
		return []error{err}
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		joined, ok := e.(interface{ Unwrap() []error })
		if !ok {
			continue
		}
		var out []error
		for _, one := range joined.Unwrap() {
			out = append(out, split(one)...)
		}
		return out
	}
	return []error{err}
}

// argument is the value a call gave for an argument, nil when it gave none.
func (c *call) argument(name string) any {
	if !c.args.IsValid() {
		return nil
	}
	for _, f := range fields(c.args.Elem().Type()) {
		if f.name == name {
			if v := c.args.Elem().FieldByIndex(f.index); !v.IsZero() {
				return v.Interface()
			}
		}
	}
	return nil
}
