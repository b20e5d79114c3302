package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Errors that callers may test for with errors.Is. Files use fs.ErrNotExist,
// fs.ErrExist and fs.ErrPermission besides; time uses context's errors.
var (
	ErrNotFound     = errors.New("no such sandbox")
	ErrExists       = errors.New("sandbox exists already")
	ErrNotRunning   = errors.New("sandbox is not running")
	ErrMaybeStarted = errors.New("connection lost; the command may have started")
	ErrNoProcess    = errors.New("no such process")
	ErrNoProgram    = errors.New("no such program")
	ErrExited       = errors.New("process has exited")
	ErrStdinClosed  = errors.New("stdin is closed")
	ErrUnsupported  = errors.New("not supported")
	ErrLimit        = errors.New("limit reached")
	ErrUnavailable  = errors.New("unavailable")
	ErrIsDir        = errors.New("is a directory")
	ErrNotDir       = errors.New("is not a directory")
	ErrNotRegular   = errors.New("is not a regular file")
	ErrNotEmpty     = errors.New("directory is not empty")
	ErrClosed       = errors.New("closed")
	// ErrReadOnly is fs.ErrPermission too; other users, root among them, get no further.
	ErrReadOnly = fmt.Errorf("read-only file system: %w", fs.ErrPermission)
	// ErrMountpoint: a bucket cannot be shown at that place, or not taken away.
	ErrMountpoint = errors.New("cannot be a mount point")
	// ErrBuildFailed is every *BuildError.
	ErrBuildFailed = errors.New("build failed")
	// ErrStarting: the sandbox is on its way; the same call again waits on.
	ErrStarting = errors.New("still starting")
)

// ErrCancelled is the cause (context.Cause) that a transport cancels a call's
// context with when its client asked for it. A context that ends for any other
// cause hands running work over instead of killing it.
var ErrCancelled = errors.New("cancelled by the client")

// FieldError says which input was wrong, what is allowed and what to do.
type FieldError struct {
	Field   string // the argument's or key's name, with its path: "env.FOO"
	Problem string // what was wrong with which value
	Allowed string // what is allowed; may be empty
	Hint    string // what to do next; may be empty
}

func (e *FieldError) Error() string {
	var b strings.Builder
	b.WriteString(e.Field + ": " + e.Problem)
	if e.Allowed != "" {
		b.WriteString("; allowed: " + e.Allowed)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// UserError is a failure with a sentence for the model: what went wrong and
// what to do. Err is one of this package's kinds, for errors.Is; it may be nil.
type UserError struct {
	Text string
	Err  error
}

func (e *UserError) Error() string { return e.Text }
func (e *UserError) Unwrap() error { return e.Err }
