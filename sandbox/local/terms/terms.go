// Package terms puts what crosses the wire into the terms of package sandbox. It
// builds on every system, since a berth on any of them may speak to a resident.
package terms

import (
	"errors"
	"io/fs"
	"path"
	"strconv"
	"syscall"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// KindError keeps a text of the other side and adds what errors.Is finds.
type KindError struct {
	Text string
	Kind error
}

func (e *KindError) Error() string { return e.Text }

// Unwrap gives the kind.
func (e *KindError) Unwrap() error { return e.Kind }

var kinds = map[string]error{
	wire.CodeNotExist:    fs.ErrNotExist,
	wire.CodeBadCwd:      fs.ErrNotExist,
	wire.CodeExist:       fs.ErrExist,
	wire.CodePermission:  fs.ErrPermission,
	wire.CodeReadOnly:    sandbox.ErrReadOnly,
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
	wire.CodeMaybe:       sandbox.ErrMaybeStarted,
	wire.CodeNotEmpty:    sandbox.ErrNotEmpty,
	wire.CodeOtherDevice: syscall.EXDEV,
	wire.CodeBusy:        syscall.EBUSY,
	wire.CodeDied:        sandbox.ErrUnavailable,
}

// Error makes an error of package sandbox or io/fs of one that crossed the wire.
// Its text is the other side's.
func Error(e *wire.Error) error {
	switch e.Code {
	case wire.CodeNoUser:
		return &sandbox.FieldError{Field: "user", Problem: e.Text}
	case wire.CodeBadSubpath:
		return &sandbox.FieldError{Field: "volumes.subpath", Problem: e.Text, Allowed: "a directory of the volume, or the name of one to be made"}
	case wire.CodeMountpoint:
		return &sandbox.UserError{Text: e.Text, Err: sandbox.ErrMountpoint}
	case wire.CodeHeldUp:
		return &sandbox.UserError{Text: e.Text, Err: sandbox.ErrLimit}
	case wire.CodeNoProgram:
		return &sandbox.UserError{Text: e.Text, Err: sandbox.ErrNoProgram}
	case wire.CodeInvalid:
		if e.Path != "" { // one that no file can have, or that leads through a link of /proc
			return &sandbox.UserError{Text: e.Text}
		}
	case wire.CodeBadCwd:
		return &fs.PathError{Op: "chdir", Path: e.Path, Err: &KindError{Text: e.Text, Kind: fs.ErrNotExist}}
	}
	kind := kinds[e.Code]
	if kind == nil {
		return errors.New(e.Text)
	}
	return &KindError{Text: e.Text, Kind: kind}
}

// Command makes a request of a command.
func Command(c *sandbox.Command) *wire.Command {
	w := &wire.Command{ID: string(c.ID), Shell: c.Shell, Argv: c.Argv, Display: c.Display, Cwd: c.Cwd, Env: c.Env, Unset: c.Unset,
		User: c.User, HasStdin: len(c.Stdin) > 0 || c.OpenStdin, OpenStdin: c.OpenStdin, TimeoutMS: Milliseconds(c.Timeout), Busy: c.Busy, Merge: c.Merge, Note: c.Note}
	if c.TTY != nil {
		w.Cols, w.Rows = max(1, c.TTY.Cols), max(1, c.TTY.Rows)
	}
	return w
}

// Milliseconds rounds up what is less than one.
func Milliseconds(d time.Duration) int64 {
	if d > 0 && d < time.Millisecond {
		return 1
	}
	return d.Milliseconds()
}

// Processes is Process for a list.
func Processes(ps []wire.Process) []sandbox.ProcessInfo {
	list := make([]sandbox.ProcessInfo, len(ps))
	for i := range ps {
		list[i] = Process(&ps[i])
	}
	return list
}

// Process describes a process.
func Process(p *wire.Process) sandbox.ProcessInfo {
	i := sandbox.ProcessInfo{
		ID: sandbox.ProcessID(p.ID), Command: p.Display, Note: p.Note, Cwd: p.Cwd, User: p.User, State: sandbox.ProcessState(p.State),
		ExitCode: p.ExitCode, Signal: p.Signal, TimedOut: p.TimedOut, Killed: p.Killed, Reason: p.Reason,
		Started: time.Unix(0, p.Started), TTY: p.TTY, Window: sandbox.WindowSize{Cols: p.Cols, Rows: p.Rows}, StdinOpen: p.StdinOpen,
		Produced:  sandbox.Cursor{Stdout: p.Stdout, Stderr: p.Stderr},
		Kept:      sandbox.Cursor{Stdout: p.StdoutKept, Stderr: p.StderrKept},
		Lost:      sandbox.Cursor{Stdout: p.StdoutLost, Stderr: p.StderrLost},
		Leftovers: p.Leftovers, Struck: p.Struck, Refused: Refusals(p.Refused), Processes: p.Count, CPU: time.Duration(p.CPUNS), Memory: p.Memory,
	}
	if p.Ended != 0 {
		i.Ended = time.Unix(0, p.Ended)
	}
	return i
}

// Refusals lists refused connections.
func Refusals(list []wire.Refusal) []sandbox.Refusal {
	var out []sandbox.Refusal
	for _, r := range list {
		out = append(out, sandbox.Refusal{Host: r.Host, Port: int(r.Port), Protocol: r.Proto, Rule: r.Rule, Allow: r.Allow,
			Count: r.Count, First: time.Unix(0, r.First), Process: sandbox.ProcessID(r.Process)})
	}
	return out
}

// File describes a file.
func File(i *wire.File) sandbox.FileInfo {
	return sandbox.FileInfo{Path: path.Clean("/" + i.Path), Mode: FileMode(i.Mode), Size: max(0, i.Size), ModTime: time.Unix(0, i.ModTime),
		Owner: strconv.FormatUint(uint64(i.UID), 10), Group: strconv.FormatUint(uint64(i.GID), 10)}
}

// Linux's bits of st_mode, which other systems' packages do not name alike.
const (
	sIFMT   = 0xf000
	sIFSOCK = 0xc000
	sIFLNK  = 0xa000
	sIFREG  = 0x8000
	sIFBLK  = 0x6000
	sIFDIR  = 0x4000
	sIFCHR  = 0x2000
	sIFIFO  = 0x1000
	sISUID  = 0x800
	sISGID  = 0x400
	sISVTX  = 0x200
)

// FileMode makes Go's mode of st_mode.
func FileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & sIFMT {
	case sIFDIR:
		mode |= fs.ModeDir
	case sIFLNK:
		mode |= fs.ModeSymlink
	case sIFIFO:
		mode |= fs.ModeNamedPipe
	case sIFSOCK:
		mode |= fs.ModeSocket
	case sIFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case sIFBLK:
		mode |= fs.ModeDevice
	case sIFREG:
	default:
		mode |= fs.ModeIrregular
	}
	if m&sISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if m&sISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if m&sISVTX != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// UnixMode makes permission bits of Go's mode.
func UnixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		u |= sISUID
	}
	if m&fs.ModeSetgid != 0 {
		u |= sISGID
	}
	if m&fs.ModeSticky != 0 {
		u |= sISVTX
	}
	return u
}
