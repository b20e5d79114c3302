package sandbox

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"berth/mounts"
)

// MaxWait bounds how long any Manager call waits for a sandbox or a process.
const MaxWait = 50 * time.Second

// Options of a Manager. The zero value works.
type Options struct {
	Logger   *slog.Logger // nil discards
	Defaults Spec         // the operator's; under what a session asks
	Limits   Limits
	// EventDir holds one event log a sandbox; empty keeps none. Processes that
	// serve the same sandboxes share it: locks of theirs are there too.
	EventDir string
	// ProviderReason tells why this provider was chosen, for get_sandbox.
	ProviderReason string
	// Buckets are the connections through which sessions mount buckets; nil:
	// there are none.
	Buckets *mounts.Set
	// Compiler is for run_code's TypeScript and JavaScript; nil refuses them.
	Compiler Compiler
}

// Limits are the operator's ceiling; zero fields mean the stated default.
type Limits struct {
	MaxSandboxes int // a running or stopped sandbox counts, per owner; 0 = 1000
	MaxProcesses int // running processes per sandbox; 0 = 512
	// AllowedImages are patterns of the images that sandboxes may be made of,
	// see Imager; nil: any of a registry. AnyImage allows all, files of this
	// machine too: for the operator's own commands. Defaults.Image is always
	// allowed.
	AllowedImages []string
	AnyImage      bool
	// Resources of each sandbox; one that asks for less has less, one that
	// asks for nothing has these. Zero fields: no ceiling.
	Resources Resources
	// Network is the widest policy: with BlockAll no more than its lists, else
	// the internet and, when a session lists them, its AllowCIDRs. So without
	// them no session opens the host's loopback, metadata or private ranges.
	Network NetworkPolicy
}

// Notice is what happened to the sandbox on the way to a result.
type Notice struct {
	Created  bool
	Replaced string   // why the former sandbox was replaced, and where it is
	Started  bool     // it was stopped or archived, and was started
	Revived  string   // what was found dead in the middle of the call
	Drift    []string // "env: asked …, in force …"
	Warnings []string
}

// StartOutcome is how start_sandbox and reconnect came to their sandbox.
type StartOutcome string

// The outcomes.
const (
	Created   StartOutcome = "created"
	Connected StartOutcome = "connected"
	Replaced  StartOutcome = "replaced"
)

// StartResult of StartSandbox and Reconnect.
type StartResult struct {
	Outcome StartOutcome
	Info    Info
	Notice  Notice
}

// RunRequest is what execute_command, run_code and spawn_process share.
type RunRequest struct {
	Command string // shell text; exactly one of Command and Argv
	Argv    []string
	Cwd     string             // absolute, or relative to the default; "~" is home
	Env     map[string]*string // nil value removes
	User    string             // "" = the sandbox's
	Stdin   *string            // nil = /dev/null (execute) or empty (spawn)
	Timeout *time.Duration     // nil = the spec's (execute) or none (spawn); 0 = none
	Wait    *time.Duration     // how long to wait before handing over; nil = 50 s (execute), 0 (spawn)
	// OnOutput, when set, is called with new output while the call waits,
	// from one goroutine, in order. It must not block.
	OnOutput func(Output)
}

// RunCodeRequest of RunCode. Command and Argv stay empty.
type RunCodeRequest struct {
	RunRequest
	Language Language // "" = the sandbox's
	Code     string
}

// SpawnRequest of SpawnProcess.
type SpawnRequest struct {
	RunRequest
	// ID names the process, for callers who must find it again; "" makes one.
	// A process that has the ID is answered as it is, and none is started.
	ID ProcessID
	// Language and Code are a program as run_code has it, with Args, in place
	// of Command and Argv.
	Language Language
	Code     string
	Args     []string
	// Display is what lists show in place of the command.
	Display   string
	OpenStdin bool
	TTY       *WindowSize
	// Merge, Note: see Command.
	Merge bool
	Note  string
	// Waiting processes only wait for others: they do not keep the sandbox
	// from idling out.
	Waiting bool
	WaitFor WaitFor
	Pattern string
}

// WaitFor is what a read waits for. Exit ends any wait.
type WaitFor string

// What can be waited for. WaitOutput is the default of reads.
const (
	WaitNone    WaitFor = "none"
	WaitOutput  WaitFor = "output"
	WaitExit    WaitFor = "exit"
	WaitPattern WaitFor = "pattern"
)

// ReadRequest of ReadOutput.
type ReadRequest struct {
	Process   ProcessID
	Cursor    string // from an earlier result; "" = the oldest kept, or the newest when more is kept than fits
	TailLines int    // instead of Cursor
	WaitFor   WaitFor
	Pattern   string
	Wait      *time.Duration // nil = 5 s
	MaxBytes  int64          // 0 = 30,000; at most 1 MiB
	Raw       bool           // exact bytes, no text clean-up
	OnOutput  func(Output)
}

// StdinRequest of SendStdin.
type StdinRequest struct {
	Process ProcessID
	Data    []byte
	End     bool
	Resize  *WindowSize
	WaitFor WaitFor // "" = output
	Pattern string
	Wait    *time.Duration // nil = 2 s
}

// KillRequest of KillProcess. Signal "" = TERM, then KILL after 2 s.
type KillRequest struct {
	Process ProcessID
	Signal  string
}

// Text is one stream's output, bounded and cleaned for a reader: valid UTF-8,
// no escape sequences, cut on line and rune ends.
type Text struct {
	Head, Tail string // Tail is empty when nothing was cut
	Cut        int64  // bytes left out between Head and Tail
}

// RunResult is the answer of everything that touches one process.
type RunResult struct {
	Process        ProcessInfo
	Stdout, Stderr Text
	// RawStdout and RawStderr replace the texts when raw bytes were asked.
	RawStdout, RawStderr []byte
	// Cursor continues after what was returned; CutCursor reads what was cut.
	Cursor    string
	CutCursor string
	// Oldest is the cursor of the oldest kept byte, when more is kept before what was returned.
	Oldest       string
	Dropped      int64 // bytes that are gone for ever, before what was returned
	Matched      bool  // the pattern was found
	HandedOver   bool  // still running after the wait, or the call was left
	AlreadyEnded bool  // kill found it ended
	Duration     time.Duration
	Cwd          string   // the one used; "" for reads
	HomeCwd      bool     // Cwd is home
	Remarks      []string // such as "the text did not end in a newline"
	Notice       Notice
}

// ListRequest of ListSandboxes.
type ListRequest struct {
	Labels map[string]string
	Status Status
	Limit  int    // 0 = 50, at most 200
	Cursor string // from ListResult.Next
}

// ListResult of ListSandboxes.
type ListResult struct {
	Sandboxes []Info
	Next      string // "" at the end
}

// DestroyResult of DestroySandbox.
type DestroyResult struct {
	Existed bool
	Status  Status // before
	Freed   int64  // bytes; negative: not known
}

// ReadFileRequest of ReadFile. Offset is the first line, from 1; Limit counts
// lines, 0 = all that fits.
type ReadFileRequest struct {
	Path          string
	Offset, Limit int
	Raw           bool
}

// FileContent is the answer of ReadFile.
type FileContent struct {
	File               FileInfo
	Data               []byte // text, or raw bytes when Raw or when MIME is an image's
	MIME               string // "text/plain" or the detected type
	First, Last, Lines int    // lines returned, and in the file (-1: not counted)
	Truncated          bool
	Notice             Notice
}

// WriteFileRequest of WriteFile.
type WriteFileRequest struct {
	Path   string
	Data   []byte
	Append bool
	Mode   *fs.FileMode
}

// WriteFileResult of WriteFile.
type WriteFileResult struct {
	WriteResult
	Notice Notice
}

// Edit is one replacement of EditFile.
type Edit struct {
	OldText, NewText string
	ReplaceAll       bool
}

// EditFileRequest of EditFile: all edits or none.
type EditFileRequest struct {
	Path  string
	Edits []Edit
}

// EditFileResult of EditFile.
type EditFileResult struct {
	Path   string
	Diff   string // unified
	Count  int    // replacements
	Notice Notice
}

// Event is one line of a sandbox's event log.
type Event struct {
	Time     time.Time
	Session  SessionID
	Tool     string
	Args     map[string]any // without secrets, file contents and environment values
	Outcome  string         // "ok", "error", "exit 3", "handed over" …; Begun while no end is recorded
	Error    string
	Duration time.Duration
	Bytes    int64
	Call     string // pairs the end of a call with its beginning; empty when no beginning was recorded
}

// Begun is the outcome of a call that runs, or whose server ended before it.
const Begun = "begun, no end is recorded"

// Manager keeps one sandbox per session. Its methods are named after the tools
// that call them. Every one of them returns within MaxWait or so; longer work goes on
// by itself, and the same call again waits on. A call whose context ends with
// the cause ErrCancelled kills its own foreground command; ended otherwise it
// hands the command over. A Manager is safe for concurrent use.
type Manager struct {
	provider Provider
	options  Options
	log      *slog.Logger
	events   *eventLog

	// ctx is the life of the work that outlives its caller; Close ends it.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	flights  map[Key]*flight
	boxes    map[Key]*box // those seen running, believed for recheck
	running  map[Key]int  // at most so many processes run, see admit
	creating map[Key]bool
	builds   map[buildKey]*building
	mounted  map[Key]bool                          // whose mounts were looked at since this Manager began
	inline   map[Key]map[string]*mounts.Connection // credentials that came with calls, by path
	owned    map[Owner]int                         // at most so many sandboxes are there, see makeRoom

	edits [editLocks]sync.Mutex // striped by key and path
}

// NewManager returns a Manager of p's sandboxes. It fails when the operator's
// defaults or limits are faulty, naming each. The caller calls Close, and closes
// p after that.
func NewManager(p Provider, o Options) (*Manager, error) {
	var f faults
	if err := o.Defaults.validate(ownUsers(p)); err != nil {
		f = append(f, fmt.Errorf("defaults: %w", err))
	}
	if err := (Spec{Resources: o.Limits.Resources, Network: &o.Limits.Network}).Validate(); err != nil {
		f = append(f, fmt.Errorf("limits: %w", err))
	}
	o.Defaults = o.Defaults.Clone()
	if list, err := complete(o.Buckets, o.Defaults.Mounts, true); err != nil {
		f = append(f, fmt.Errorf("defaults: %w", err))
	} else {
		o.Defaults.Mounts = list
	}
	f.ceiling(o.Defaults.Resources, o.Limits.Resources)
	f.networkWithin(o.Defaults.Network, o.Limits.Network)
	if o.Limits.MaxSandboxes < 0 {
		f.add("limits.max_sandboxes", fmt.Sprintf("%d does not fit", o.Limits.MaxSandboxes), "0 (1000) or more", "")
	}
	if o.Limits.MaxProcesses < 0 {
		f.add("limits.max_processes", fmt.Sprintf("%d does not fit", o.Limits.MaxProcesses), "0 (512) or more", "")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if o.Limits.AllowedImages == nil {
		o.Limits.AllowedImages = []string{"*"}
	}
	if o.Limits.MaxSandboxes == 0 {
		o.Limits.MaxSandboxes = 1000
	}
	if o.Limits.MaxProcesses == 0 {
		o.Limits.MaxProcesses = 512
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{provider: p, options: o, log: o.Logger, flights: map[Key]*flight{}, boxes: map[Key]*box{},
		running: map[Key]int{}, creating: map[Key]bool{}, builds: map[buildKey]*building{}, owned: map[Owner]int{}, mounted: map[Key]bool{}, inline: map[Key]map[string]*mounts.Connection{}}
	if o.EventDir != "" {
		m.events = &eventLog{dir: o.EventDir}
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

// Close detaches from everything and waits; it stops no sandbox. Calls that
// come later fail with ErrClosed.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
	return nil
}

// ProviderName is the name of the provider whose sandboxes these are, and why
// it was chosen.
func (m *Manager) ProviderName() (name, reason string) {
	return m.provider.Name(), m.options.ProviderReason
}

// Sweep lets the provider enforce the intervals that nobody else does; it is
// called when a berth starts and each minute by a running server.
func (m *Manager) Sweep(ctx context.Context) error {
	if s, ok := m.provider.(Sweeper); ok {
		return s.Sweep(ctx)
	}
	return nil
}
