//go:build linux

package client

import (
	"errors"
	"io/fs"
	"syscall"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// ErrGone tells that no monitor serves the sandbox: it does not run. It is a
// sandbox.ErrNotRunning.
var ErrGone error = &kindError{text: "the sandbox has no live monitor", kind: sandbox.ErrNotRunning}

// kindError keeps a text of the other side and adds what errors.Is finds.
type kindError struct {
	text string
	kind error
}

func (e *kindError) Error() string { return e.text }
func (e *kindError) Unwrap() error { return e.kind }

var kinds = map[string]error{
	wire.CodeNotExist:    fs.ErrNotExist,
	wire.CodeBadCwd:      fs.ErrNotExist,
	wire.CodeExist:       fs.ErrExist,
	wire.CodePermission:  fs.ErrPermission,
	wire.CodeIsDir:       sandbox.ErrIsDir,
	wire.CodeNotDir:      sandbox.ErrNotDir,
	wire.CodeNotRegular:  sandbox.ErrNotRegular,
	wire.CodeNoSpace:     syscall.ENOSPC,
	wire.CodeNoProcess:   sandbox.ErrNoProcess,
	wire.CodeExited:      sandbox.ErrExited,
	wire.CodeStdinClosed: sandbox.ErrStdinClosed,
	wire.CodeLimit:       sandbox.ErrLimit,
	wire.CodeUnsupported: sandbox.ErrUnsupported,
	wire.CodeStopping:    sandbox.ErrNotRunning,
	wire.CodeRefused:     syscall.ECONNREFUSED,
	wire.CodeNotEmpty:    sandbox.ErrNotEmpty,
	wire.CodeOtherDevice: syscall.EXDEV,
	wire.CodeBusy:        syscall.EBUSY,
}

// convert makes an error of package sandbox or io/fs of one that crossed the
// wire. Its text is the other side's.
func convert(e *wire.Error) error {
	switch e.Code {
	case wire.CodeNoUser:
		return &sandbox.FieldError{Field: "user", Problem: e.Text}
	case wire.CodeBadSubpath:
		return &sandbox.FieldError{Field: "volumes.subpath", Problem: e.Text, Allowed: "a directory of the volume, or the name of one to be made"}
	case wire.CodeNoProgram:
		return &sandbox.UserError{Text: e.Text, Err: sandbox.ErrNoProgram}
	case wire.CodeInvalid:
		if e.Path != "" { // one that no file can have, or that leads through a link of /proc
			return &sandbox.UserError{Text: e.Text}
		}
	case wire.CodeBadCwd:
		return &fs.PathError{Op: "chdir", Path: e.Path, Err: &kindError{text: e.Text, kind: fs.ErrNotExist}}
	}
	kind := kinds[e.Code]
	if kind == nil {
		return errors.New(e.Text)
	}
	return &kindError{text: e.Text, kind: kind}
}
