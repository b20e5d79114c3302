// Package wire is the protocol of the helper program box: between a berth
// process and a sandbox's monitor, and between the monitor and init (PID 1
// inside).
//
// A frame is a big-endian uint32 length of what follows, a big-endian uint32
// length of the JSON header, the header, and raw data. File descriptors travel
// as SCM_RIGHTS with the frame's first byte. Requests carry an ID unique to
// their connection and sender; the answer repeats it. Both sides may send
// requests. The reader of a connection to something less trusted bounds the
// frame's size and the number of descriptors, and treats every field as
// hostile.
//
// The package does without net and fmt, because box is started once per sandbox
// and stays resident.
package wire

import "encoding/json"

// Version of the protocol. A monitor outlives the berth that started it, so a
// berth must speak to all versions still running; Hello tells which.
const Version = 1

// MaxFrame bounds a frame in bytes, MaxFiles its descriptors.
const (
	MaxFrame = 20 << 20
	MaxFiles = 8
)

// Header is a frame's JSON part.
type Header struct {
	ID    uint64 `json:"id,omitempty"` // 0: an event, not to be answered
	Op    string `json:"op,omitempty"` // empty in an answer
	Error *Error `json:"error,omitempty"`
	// Once makes a request that is sent again, also over another connection, be
	// carried out once: the first one's answer is given again. Residents know it
	// for what changes something and is not the same a second time.
	Once string `json:"once,omitempty"`
	// Aside requests do not count as activity.
	Aside bool `json:"aside,omitempty"`
	// Body is the op's request or answer; see the types named after the ops.
	Body json.RawMessage `json:"body,omitempty"`
}

// Error crosses the wire. Code is one of the constants below.
type Error struct {
	Code string `json:"code"`
	Text string `json:"text"`
	Path string `json:"path,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Error codes. The client maps them onto package sandbox's errors and fs's.
const (
	CodeNotExist    = "not_exist"
	CodeExist       = "exist"
	CodePermission  = "permission"
	CodeReadOnly    = "read_only" // the file system is
	CodeIsDir       = "is_dir"
	CodeNotDir      = "not_dir"
	CodeNotRegular  = "not_regular"
	CodeNoSpace     = "no_space"
	CodeNoProcess   = "no_process"
	CodeExited      = "exited"
	CodeStdinClosed = "stdin_closed"
	CodeLimit       = "limit"
	CodeHeldUp      = "held_up" // a command was stopped from inside before its program began
	CodeUnsupported = "unsupported"
	CodeStopping    = "stopping" // the sandbox is being stopped; nothing was started
	CodeNoProgram   = "no_program"
	CodeBadCwd      = "bad_cwd"
	CodeBadSubpath  = "bad_subpath"
	CodeRefused     = "refused" // nothing listens on that port
	CodeNoUser      = "no_user"
	CodeInvalid     = "invalid"
	CodeNotEmpty    = "not_empty"
	CodeOtherDevice = "other_device"
	CodeBusy        = "busy"
	CodeInternal    = "internal"
	CodeMountpoint  = "mountpoint" // a bucket cannot be there, or not go; Path is the place
)

// Ops from berth to the monitor. Those marked (init) the monitor hands on to init.
const (
	OpHello     = "hello"     // Hello -> Hello
	OpSpawn     = "spawn"     // Command -> Process
	OpWait      = "wait"      // Wait -> Process
	OpCancel    = "cancel"    // Cancel: ends a pending wait -> nothing
	OpProcess   = "process"   // ProcessRef -> Process
	OpProcesses = "processes" // -> Processes
	OpStdin     = "stdin"     // Stdin + data ->
	OpResize    = "resize"    // Resize ->
	OpKill      = "kill"      // Kill ->
	OpForget    = "forget"    // ProcessRef: drops an ended process and its logs ->
	OpUsage     = "usage"     // -> Usage
	OpConfigure = "configure" // Intervals ->
	OpLimit     = "limit"     // LimitChange -> ; other limits for what runs, held by cgroups, or an error and no change
	OpStop      = "stop"      // Stop -> after everything inside has ended; then the monitor exits
	OpMakeWay   = "makeway"   // -> MadeWay; as OpStop, but only if nothing runs inside, and what is to be deleted on a stop is kept
	OpFreeze    = "freeze"    // -> once nothing inside runs or changes a file, until OpThaw or the connection's end
	OpThaw      = "thaw"      // ->
	OpTouch     = "touch"     // counts as activity ->
	OpStat      = "stat"      // Path -> File (init)
	OpOpen      = "open"      // Path -> File + one descriptor, O_RDONLY, regular files only (init)
	OpReadDir   = "readdir"   // Path -> Files (init)
	OpCreate    = "create"    // Create -> Created + one descriptor to write to (init)
	OpCommit    = "commit"    // Commit -> File (init)
	OpMkdir     = "mkdir"     // Mkdir -> (init)
	OpSymlink   = "symlink"   // Symlink -> (init)
	OpRemove    = "remove"    // Remove -> (init)
	OpRename    = "rename"    // Rename -> (init)
	OpPermit    = "permit"    // Permit -> (init)
	OpDial      = "dial"      // Dial -> one descriptor, a connected TCP socket (init)
)

// Ops from box call to a resident.
const (
	OpRecall = "recall" // -> what the request of that Header.Once was answered, or CodeNotExist
	OpKeep   = "keep"   // Kept + one descriptor -> ; holds it for a time
	OpKept   = "kept"   // Kept -> one descriptor; CodeNotExist when it is kept no more
	OpUnkeep = "unkeep" // Kept ->
)

// Kept names a descriptor that a resident holds between calls.
type Kept struct {
	Token string `json:"token"`
}

// Ops between the monitor and init.
const (
	OpSetup  = "setup"  // Launch -> Ready; the monitor's first request
	OpStart  = "start"  // StartProcess + stdin, stdout, stderr -> Started (+ the terminal's master if TTY)
	OpSignal = "signal" // Signal -> Signalled
	OpTree   = "tree"   // ProcessRef -> Tree
	OpDisk   = "disk"   // -> DiskUse, with DiskSoft in other modes than IDsRange
	OpExited = "exited" // event from init: Exited
	OpGone   = "gone"   // event from init: ProcessRef; nothing is left of a tree that outlived its OpExited
	OpHalt   = "halt"   // -> ; TERM to all, KILL after grace, answered when nothing is left
)

// Hello opens a connection.
type Hello struct {
	Version int    `json:"version"`
	Boot    string `json:"boot,omitempty"` // kernel boot id
	PID     int    `json:"pid,omitempty"`
	Started int64  `json:"started,omitempty"` // unix nanoseconds
}

// Command starts a process; sandbox.Command says what the fields mean.
// Initial stdin bytes are the frame's data.
type Command struct {
	ID        string            `json:"id"`
	Shell     string            `json:"shell,omitempty"`
	Argv      []string          `json:"argv,omitempty"`
	Display   string            `json:"display"`
	Cwd       string            `json:"cwd"`
	Env       map[string]string `json:"env,omitempty"`
	Unset     []string          `json:"unset,omitempty"`
	User      string            `json:"user,omitempty"`
	HasStdin  bool              `json:"has_stdin,omitempty"` // a pipe, not /dev/null
	OpenStdin bool              `json:"open_stdin,omitempty"`
	Cols      uint16            `json:"cols,omitempty"` // 0: no terminal
	Rows      uint16            `json:"rows,omitempty"`
	TimeoutMS int64             `json:"timeout_ms,omitempty"`
	Busy      bool              `json:"busy,omitempty"`
	Merge     bool              `json:"merge,omitempty"` // stderr is what stdout is
	Note      string            `json:"note,omitempty"`
	// AwaitMS is how long the answer may wait for the end, and for output when
	// AwaitOutput is set, so that a short command takes one request.
	AwaitMS     int64 `json:"await_ms,omitempty"`
	AwaitOutput bool  `json:"await_output,omitempty"`
}

// Process is a process's state, in answers and in the journal.
type Process struct {
	ID         string `json:"id"`
	Display    string `json:"display"`
	Note       string `json:"note,omitempty"`
	Cwd        string `json:"cwd,omitempty"`
	User       string `json:"user,omitempty"`
	State      string `json:"state"` // running, exited, lost
	ExitCode   *int   `json:"exit_code,omitempty"`
	Signal     string `json:"signal,omitempty"`
	TimedOut   bool   `json:"timed_out,omitempty"`
	Killed     bool   `json:"killed,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Started    int64  `json:"started"` // unix nanoseconds
	Ended      int64  `json:"ended,omitempty"`
	TTY        bool   `json:"tty,omitempty"`
	Cols       uint16 `json:"cols,omitempty"`
	Rows       uint16 `json:"rows,omitempty"`
	StdinOpen  bool   `json:"stdin_open,omitempty"`
	StdinBytes int64  `json:"stdin_bytes,omitempty"` // taken so far, also those not read yet
	Stdout     int64  `json:"stdout"`                // bytes produced
	Stderr     int64  `json:"stderr"`
	StdoutKept int64  `json:"stdout_kept,omitempty"` // oldest offset
	StderrKept int64  `json:"stderr_kept,omitempty"`
	// StdoutLost and StderrLost count produced bytes that could not be
	// logged, because the disk was full; they are holes in the log.
	StdoutLost int64    `json:"stdout_lost,omitempty"`
	StderrLost int64    `json:"stderr_lost,omitempty"`
	Leftovers  []string `json:"leftovers,omitempty"`
	// Refused are connections that the egress gate refused it, and those of
	// nobody known while it ran; at most 10.
	Refused []Refusal `json:"refused,omitempty"`
	// Struck names the limits that were met while it ran.
	Struck []string `json:"struck,omitempty"`
	// Count is how many live processes its tree has; 0: not known.
	Count  int   `json:"count,omitempty"`
	CPUNS  int64 `json:"cpu_ns"` // -1: not known
	Memory int64 `json:"memory"` // -1: not known
}

// Processes lists, oldest first.
type Processes struct {
	Processes []Process `json:"processes"`
}

// ProcessRef names a process.
type ProcessRef struct {
	ID string `json:"id"`
}

// Wait is answered when one stream has grown past its offset (unless
// ExitOnly), or when the process has exited and its output is in the log.
type Wait struct {
	ID       string `json:"id"`
	Stdout   int64  `json:"stdout"`
	Stderr   int64  `json:"stderr"`
	ExitOnly bool   `json:"exit_only,omitempty"`
}

// Cancel ends the pending wait of that request id, which is then answered too.
type Cancel struct {
	Request uint64 `json:"request"`
}

// Stdin appends the frame's data to a process's stdin.
type Stdin struct {
	ID  string `json:"id"`
	End bool   `json:"end,omitempty"`
	// At, when given, is how many bytes stdin must have taken before; with another
	// count nothing is written, and the error is CodeStdinMoved. So a write that
	// comes late, after others, does no harm.
	At *int64 `json:"at,omitempty"`
}

// Resize a terminal.
type Resize struct {
	ID   string `json:"id"`
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// Kill a process's tree. Signal is a name such as "TERM".
type Kill struct {
	ID      string `json:"id"`
	Signal  string `json:"signal"`
	GraceMS int64  `json:"grace_ms,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// Usage of the whole sandbox; -1 where not known.
type Usage struct {
	CPUNS     int64 `json:"cpu_ns"`
	Memory    int64 `json:"memory"`
	Processes int   `json:"processes"`
	Disk      int64 `json:"disk"`       // bytes; 0 too: not known
	IdleSince int64 `json:"idle_since"` // unix nanoseconds; 0: busy
}

// Intervals that the monitor enforces, with or without a berth.
type Intervals struct {
	AutoStopMS   int64 `json:"auto_stop_ms"` // 0: off
	DeleteOnStop bool  `json:"delete_on_stop,omitempty"`
}

// Stop the sandbox.
type Stop struct {
	Reason string `json:"reason,omitempty"`
}

// MadeWay answers OpMakeWay.
type MadeWay struct {
	// Busy: something runs, or a file is being written, and nothing was done.
	Busy bool `json:"busy,omitempty"`
}

// FreezeMost bounds a freeze, in milliseconds.
const FreezeMost = 60_000

// SyncedName is a file that `box settle` makes in a directory once all that
// stood in it is on the disk.
const SyncedName = "synced"

// Path names a file inside, absolute. User whose rights count; empty: the
// sandbox's.
type Path struct {
	Path string `json:"path"`
	User string `json:"user,omitempty"`
}

// File describes a file inside.
type File struct {
	Path    string `json:"path"` // resolved
	Mode    uint32 `json:"mode"` // st_mode
	Size    int64  `json:"size"`
	ModTime int64  `json:"mod_time"` // unix nanoseconds
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	// Fresh, in the answer to Commit: there was no such file.
	Fresh bool `json:"fresh,omitempty"`
}

// Files lists a directory by name, at most 10,000 entries.
type Files struct {
	Files     []File `json:"files"`
	Truncated bool   `json:"truncated,omitempty"`
}

// Create begins a write: a temporary file beside the target, or the target
// itself, opened for appending.
type Create struct {
	Path   string `json:"path"`
	User   string `json:"user,omitempty"`
	Append bool   `json:"append,omitempty"`
	Mode   int64  `json:"mode"` // permission bits; -1: keep, or 0644
	// Source, with Append, says that the frame brings a file: its bytes are added by
	// Commit, all of them. The descriptor that is answered is that file.
	Source bool `json:"source,omitempty"`
}

// Mkdir makes a directory, and its parents with 0755; one that is there stays
// as it is.
type Mkdir struct {
	Path string `json:"path"`
	User string `json:"user,omitempty"`
	Mode uint32 `json:"mode"` // permission bits
}

// Symlink makes Path a link that holds Target, in place of what is no directory.
type Symlink struct {
	Path   string `json:"path"`
	User   string `json:"user,omitempty"`
	Target string `json:"target"`
}

// Remove a file or link, or an empty directory.
type Remove struct {
	Path        string `json:"path"`
	User        string `json:"user,omitempty"`
	Directories bool   `json:"directories,omitempty"`
}

// Rename gives the file, link or directory From the name To, which nothing has.
type Rename struct {
	From string `json:"from"`
	To   string `json:"to"`
	User string `json:"user,omitempty"`
}

// Permit changes the permission bits and the owner of what Path leads to.
type Permit struct {
	Path  string `json:"path"`
	User  string `json:"user,omitempty"`
	Mode  int64  `json:"mode"`            // -1: as it is
	Owner string `json:"owner,omitempty"` // a name or a number; empty: as it is
	Group string `json:"group,omitempty"`
}

// Dial connects to a port of the loopback interface inside: 127.0.0.1, then ::1.
type Dial struct {
	Port uint16 `json:"port"`
}

// Created answers Create. Token is given to Commit; a token that is not
// committed within 10 minutes, or whose connection ends, is dropped with its
// temporary file.
type Created struct {
	Token uint64 `json:"token"`
	Fresh bool   `json:"fresh"` // there was no such file
}

// Commit ends a write: the file is renamed over its target, or dropped.
type Commit struct {
	Token uint64 `json:"token"`
	Abort bool   `json:"abort,omitempty"`
}
