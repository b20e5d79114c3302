package sandbox

import (
	"context"
	"encoding/base32"
	"strings"
	"time"

	"crypto/rand"
)

// ProcessID is our opaque name of a process, not the system's pid. It is made
// by the Manager before the process is started, so that a start which is sent
// twice runs once.
type ProcessID string

// NewProcessID makes a process id, unique over all sandboxes.
func NewProcessID() ProcessID {
	var b [10]byte
	_, _ = rand.Read(b[:])
	return ProcessID("p-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:])))
}

// Command is a process to start. Manager has validated it and filled in
// defaults.
type Command struct {
	ID ProcessID
	// Shell is text for `bash -c` (or `sh -c` where there is no bash); it
	// reaches the shell as one argument, or as a file when it is longer than
	// 100 KiB. Exactly one of Shell and Argv is set.
	Shell string
	Argv  []string
	// Display is what lists show: the shell text or the quoted argv, or
	// "run_code python", at most 200 runes.
	Display string
	// Cwd is absolute. One that is no directory fails with fs.ErrNotExist
	// before anything runs.
	Cwd string
	// Env is complete but for what the provider's base environment holds
	// (HOME, PATH, USER, LANG, TERM …): values here win; Unset removes.
	Env   map[string]string
	Unset []string
	User  string
	// Stdin is written first; then stdin stays open when OpenStdin, else it
	// is at its end. With neither, stdin is /dev/null.
	Stdin     []byte
	OpenStdin bool
	// TTY gives the process a terminal of that size; stderr and stdout are
	// then one stream, stdout.
	TTY *WindowSize
	// Merge makes stderr what stdout is, so that both come in the order in
	// which they were written, as stdout.
	Merge bool
	// Note is kept with the process and told by ProcessInfo; nothing else is
	// made of it, and nothing inside can change it. At most MaxNote bytes.
	Note string
	// Timeout kills the process tree, counted from the start, also when no
	// server runs; 0 = none.
	Timeout time.Duration
	// Busy processes keep the sandbox from idling out; all that a caller
	// starts are, unless it says that they only wait.
	Busy bool
	// Await is how long the caller will wait for the exit right after the start. A
	// provider to which each request is a journey may answer Spawn only at the exit,
	// at most so much later, and then knows the end and the output without asking
	// again. 0: the start is to be answered at once. Others pass it over.
	Await time.Duration
	// Watched: the caller shows output as it comes, so that such an answer is due at
	// the first of it where the provider can tell.
	Watched bool
}

// MaxNote bounds Command.Note, in bytes.
const MaxNote = 64 << 10

// WindowSize is a terminal's size in characters.
type WindowSize struct{ Cols, Rows uint16 }

// Cursor is a place in the two output streams of one process: the absolute
// offsets of the next bytes to read. The zero Cursor is the very beginning.
type Cursor struct{ Stdout, Stderr int64 }

// ProcessState is where a process is in its life.
type ProcessState string

// The process states. Lost means that how it ended will never be known, because the machine
// or the sandbox's monitor went away beneath it.
const (
	ProcessRunning ProcessState = "running"
	ProcessExited  ProcessState = "exited"
	ProcessLost    ProcessState = "lost"
)

// ProcessInfo describes a process, running or finished.
type ProcessInfo struct {
	ID      ProcessID
	Command string // Command.Display
	Note    string // Command.Note
	Cwd     string
	User    string
	State   ProcessState
	// ExitCode is nil while running and when lost. 124 timed out; 137 killed
	// by berth; 128+n ended by another signal n; else the program's own.
	ExitCode *int
	// Signal that ended it, such as "SIGKILL"; empty when it exited.
	Signal   string
	TimedOut bool
	// Killed tells that berth ended it (kill_process, time-out, cancel, a
	// limit, the sandbox's stop).
	Killed bool
	// Reason says why it was killed or lost, such as
	// "memory limit 512 MiB"; else empty.
	Reason    string
	Started   time.Time
	Ended     time.Time // zero while running
	TTY       bool
	Window    WindowSize // of the terminal, as it is now
	StdinOpen bool
	// Produced counts all bytes ever written; Kept is the oldest offset that
	// can still be read.
	Produced Cursor
	Kept     Cursor
	// Lost counts produced bytes that could not be kept because the disk was
	// full; reading over them counts them as Dropped.
	Lost Cursor
	// Leftovers are processes of its tree that outlive its exit, as
	// "pid command", at most 20.
	Leftovers []string
	// Struck names the sandbox's limits that were met while it ran and that may be why it
	// failed, such as "disk limit 1 GiB reached".
	Struck []string
	// Refused are connections of its that the network policy did not let out,
	// and those of nobody known while it ran; at most 10.
	Refused []Refusal
	// Processes counts the live ones of its tree; 0: not known, or none.
	Processes int
	CPU       time.Duration // negative: not known
	Memory    int64         // bytes; negative: not known
}

// over tells that nothing more comes of the process.
func (i ProcessInfo) over() bool { return i.State != ProcessRunning && len(i.Leftovers) == 0 }

// Process is a handle on one process, running or finished. It is safe for
// concurrent use and need not be closed.
type Process interface {
	// ID is the id given in Command.
	ID() ProcessID
	// Info never fails for a process that is kept; ErrNoProcess after it was
	// reaped by age or count.
	Info(ctx context.Context) (ProcessInfo, error)
	// Read returns bytes from c on, at most max in all (stdout first), and
	// never waits. When the oldest bytes are gone, it begins at the oldest
	// kept and says so by Dropped.
	Read(ctx context.Context, c Cursor, max int64) (Output, error)
	// Wait returns when more than c was produced (unless exitOnly), when the
	// process has exited and all its output is in the log, or when ctx ends,
	// with ctx's error.
	Wait(ctx context.Context, c Cursor, exitOnly bool) error
	// Write appends p to stdin and then, if end, closes it. It fails with
	// ErrExited after the exit, ErrStdinClosed when stdin is closed or was
	// never open, and ErrLimit when the process does not read and 1 MiB
	// waits. It never writes a part of p.
	Write(ctx context.Context, p []byte, end bool) error
	// Resize sets the terminal's size; ErrUnsupported without a tty.
	Resize(ctx context.Context, w WindowSize) error
	// Kill sends sig (such as "TERM") to the whole tree, then, if grace > 0,
	// KILL to what is left after grace. It does not wait for the exit. After
	// the exit it still reaches leftovers; with none, it does nothing.
	// reason is recorded as ProcessInfo.Reason.
	Kill(ctx context.Context, sig string, grace time.Duration, reason string) error
}

// Output is what one Read returned.
type Output struct {
	Stdout, Stderr []byte
	// Next continues after these bytes.
	Next Cursor
	// Dropped counts bytes between the asked cursor and the first returned,
	// which are gone.
	Dropped int64
}
