// Package resident keeps processes and files in a Daytona sandbox as berth keeps
// them in its own: by berth's helper box, which is brought into the sandbox once
// and stays there. The platform's own processes would not do: its output comes with
// newlines added and NULs dropped, and its stdin has no end.
//
// Every request is one run of `box call` through the platform's command execution,
// of which only text comes back; package wire says how both are written. Whatever
// breaks on the way, a request can be sent again: it has an id, and is carried out
// once. A quick command costs one such run: the answer to its start has its end and
// its output.
//
// The helper inside is of another berth, perhaps, which started it, and whose
// processes still run. One that speaks this version (wire.CallVersion) is used as
// it is; one of another version is left alone, and another starts beside it, with a
// state of its own. Facts tells.
package resident

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/boxbin"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Transport is the platform's way into one running sandbox. Its errors are those of
// package api, where they are known; any other error means that nothing was done.
// It is safe for concurrent use.
type Transport interface {
	// Exec has a shell read command, a text of POSIX shell without secrets in
	// arguments, and returns what it printed, both streams together, as far as the
	// platform keeps that whole. The platform kills it after timeout (0: never).
	Exec(ctx context.Context, command string, timeout time.Duration) (output string, exitCode int, err error)
	// Upload makes the file path hold what r gives, size bytes (-1: not known).
	// Missing parents are made. The permission bits may be others than mode: what
	// needs them sets them itself.
	Upload(ctx context.Context, path string, mode fs.FileMode, r io.Reader, size int64) error
	// Session has a shell of its own, which the platform does not wait for, read
	// command.
	Session(ctx context.Context, command string) error
}

// Options of a Box.
type Options struct {
	// ID names the sandbox, as the platform does: a copy of a sandbox has its files,
	// also the helper's, and must not take the other's processes for its own.
	ID string
	// User is whose rights Files has, and who commands without a user run as; empty:
	// the platform's user.
	User string
	// Base is the directory inside that the helper lives below; empty: .berth in the
	// home directory, or one in /var/tmp or /tmp where that cannot be.
	Base string
	// LogBytes of one stream are kept (0: 16 MiB), KeepLogBytes of all (0: 256 MiB),
	// and so many ended processes (0: 200). They hold from the helper's next start on.
	LogBytes, KeepLogBytes int64
	KeepProcesses          int
	// Program returns the helper for an architecture ("amd64"), nil when there is
	// none; nil: the one that is built in.
	Program func(goarch string) []byte
	// Log takes what happens to the helper; nil: nobody.
	Log *slog.Logger
}

// Defaults of Options: sandboxes there have small disks.
const (
	defaultLogBytes     = 16 << 20
	defaultKeepLogBytes = 256 << 20
)

// Box is the helper in one sandbox. It is safe for concurrent use, and need not be
// closed. Any number of them, in any number of programs, share a sandbox.
type Box struct {
	t Transport
	o Options

	ensuring chan struct{} // holds one token while nobody is at it
	mu       sync.Mutex
	place    *place // where the helper is; nil: not known
}

// place is what Ensure found out.
type place struct {
	program string // box, a path inside
	base    string
	facts   *wire.Facts
}

// New makes a Box. It does nothing with the sandbox.
func New(t Transport, o Options) *Box {
	if o.LogBytes <= 0 {
		o.LogBytes = defaultLogBytes
	}
	if o.KeepLogBytes <= 0 {
		o.KeepLogBytes = defaultKeepLogBytes
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Box{t: t, o: o, ensuring: make(chan struct{}, 1)}
	b.ensuring <- struct{}{}
	return b
}

// Spawn starts a process; see sandbox.Instance. It waits for its exit as
// Command.Await says.
func (b *Box) Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error) {
	if c.User == "" {
		c.User = b.o.User
	}
	call := &wire.Call{Spawn: terms.Command(&c), Watch: &wire.CallWatch{ID: string(c.ID), WaitMS: terms.Milliseconds(c.Await), ExitOnly: true, Most: windowBytes, Ends: true}}
	a, data, err := b.act(ctx, call, c.Stdin, c.Await)
	if err != nil {
		return nil, err
	}
	p := &process{b: b, id: c.ID, stdin: int64(len(c.Stdin)), stdinKnown: true}
	p.learn(a, data, false)
	return p, nil
}

// act is ask for what changes something. When it is not known whether it did, that
// is sandbox.ErrMaybeStarted.
func (b *Box) act(ctx context.Context, c *wire.Call, data []byte, wait time.Duration) (*wire.Answer, []byte, error) {
	a, out, err := b.ask(ctx, c, data, wait)
	var doubt *doubtError
	if errors.As(err, &doubt) {
		return nil, nil, fmt.Errorf("%w: %w", sandbox.ErrMaybeStarted, doubt.err)
	}
	return a, out, err
}

// Process finds a process; sandbox.ErrNoProcess when there is none.
func (b *Box) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	p := &process{b: b, id: id}
	if err := p.look(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Processes lists running and kept processes, oldest first.
func (b *Box) Processes(ctx context.Context) ([]sandbox.ProcessInfo, error) {
	a, _, err := b.ask(ctx, &wire.Call{List: true}, nil, 0)
	if err != nil {
		return nil, plain(err)
	}
	return terms.Processes(a.Processes), nil
}

// ForgetProcess drops what is kept of an ended process; see
// sandbox.ProcessForgetter.
func (b *Box) ForgetProcess(ctx context.Context, id sandbox.ProcessID) error {
	_, _, err := b.ask(ctx, &wire.Call{Forget: &wire.ProcessRef{ID: string(id)}}, nil, 0)
	return plain(err)
}

// Usage is what all processes together use.
type Usage struct {
	Memory    int64 // bytes
	Processes int   // live ones, children too
	// Busy: a process of Command.Busy runs. Else IdleSince is when the last one
	// ended, or when somebody last worked with the sandbox.
	Busy      bool
	IdleSince time.Time
}

// Usage tells what all processes together use.
func (b *Box) Usage(ctx context.Context) (Usage, error) {
	a, _, err := b.ask(ctx, &wire.Call{Usage: true}, nil, 0)
	if err != nil {
		return Usage{}, plain(err)
	}
	u := Usage{Memory: a.Usage.Memory, Processes: a.Usage.Processes, Busy: a.Usage.IdleSince == 0}
	if !u.Busy {
		u.IdleSince = time.Unix(0, a.Usage.IdleSince)
	}
	return u, nil
}

// Busy tells whether a process of Command.Busy runs.
func (b *Box) Busy(ctx context.Context) (bool, error) {
	u, err := b.Usage(ctx)
	return u.Busy, err
}

// Stop ends all processes (TERM, then KILL after 2 s), records how they ended, and
// ends the helper. Call it before the sandbox is stopped.
func (b *Box) Stop(ctx context.Context, reason string) error {
	_, _, err := b.ask(ctx, &wire.Call{Stop: &wire.Stop{Reason: reason}}, nil, stopWait)
	var gone *wire.Error
	if errors.As(err, &gone) && gone.Code == wire.CodeNoResident {
		return nil
	}
	if err == nil {
		b.forget(nil)
	}
	return plain(err)
}

// stopWait is longer than the helper gives processes to end.
const stopWait = 10 * time.Second

// Facts of a sandbox, and of the helper in it.
type Facts struct {
	User     string // whom the platform's commands run as
	UID, GID int
	Home     string
	Cwd      string // where the platform's commands begin
	Arch     string // as Go names it
	Base     string // the directory that the helper lives below
	Kernel   string // its release
	// Programs are those found, with their paths.
	Programs map[string]string
	// Helper is the path of the helper that runs, HelperBuild tells builds of it
	// apart, and OwnHelper whether it is the one that this berth brings.
	Helper      string
	HelperBuild string
	OwnHelper   bool
}

// Facts tells about the sandbox, and which of programs are on its PATH.
func (b *Box) Facts(ctx context.Context, programs ...string) (Facts, error) {
	a, _, err := b.ask(ctx, &wire.Call{Facts: &wire.CallFacts{Programs: programs}}, nil, 0)
	if err != nil {
		return Facts{}, plain(err)
	}
	f := a.Facts
	facts := Facts{User: f.User, UID: f.UID, GID: f.GID, Home: f.Home, Cwd: f.Cwd, Arch: f.Arch, Kernel: f.Kernel, Programs: f.Programs}
	if r := f.Resident; r != nil {
		facts.Base, facts.Helper, facts.HelperBuild, facts.OwnHelper = r.Base, r.Program, r.Build, r.Build == b.build(f.Arch)
	}
	return facts, nil
}

// Reaches tells whether a TCP connection to an address can be made within wait.
func (b *Box) Reaches(ctx context.Context, to netip.AddrPort, wait time.Duration) (bool, error) {
	a, _, err := b.ask(ctx, &wire.Call{Reach: &wire.CallReach{Address: to.String(), WaitMS: terms.Milliseconds(wait)}}, nil, wait)
	if err != nil {
		return false, plain(err)
	}
	return a.Reached, nil
}

// build tells builds of the helper apart; empty when there is none for goarch.
func (b *Box) build(goarch string) string {
	if p := b.program(goarch); p != nil {
		return p.build
	}
	return ""
}

// program is the helper for an architecture; nil when there is none.
func (b *Box) program(goarch string) *binary {
	if b.o.Program == nil {
		if open := builtIn[goarch]; open != nil {
			return open()
		}
		return nil
	}
	if p := b.o.Program(goarch); len(p) > 0 {
		return newBinary(bytes.NewReader(p), int64(len(p)))
	}
	return nil
}

// binary is a helper that can be brought.
type binary struct {
	io.ReaderAt
	size  int64
	build string
}

// builtIn are the helpers in this program. They are megabytes: every Box reads
// them where they lie.
var builtIn = map[string]func() *binary{"amd64": embedded("amd64"), "arm64": embedded("arm64")}

func embedded(goarch string) func() *binary {
	return sync.OnceValue(func() *binary {
		if box := boxbin.Open(goarch); box != nil {
			return newBinary(box, box.Size())
		}
		return nil
	})
}

// newBinary reads r once; nil when that fails.
func newBinary(r io.ReaderAt, size int64) *binary {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(r, 0, size)); err != nil {
		return nil
	}
	return &binary{r, size, hex.EncodeToString(sum.Sum(nil)[:8])}
}

func newID() string {
	var b [9]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
