// Package sandbox is berth's domain: what a sandbox is, what a provider of
// sandboxes must do, and the Manager that keeps one sandbox per agent session.
//
// A call goes one way: a tool decodes its arguments and calls the Manager
// method of its name; the Manager applies policy, starts the sandbox when it
// must, and calls the Provider and its Instances. The package knows neither
// MCP nor JSON.
package sandbox

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// SessionID names one agent's line of work. It is the reconnection key of the
// session's sandbox: 1 to 63 characters, the first a letter or digit, the rest
// letters, digits, '.', '_' or '-'.
type SessionID string

var sessionIDPattern = pattern{63, regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)}

// pattern is what names of at most max bytes look like. Counts within the expression,
// as {0,62}, would have it compiled to as many copies of what is counted: with all
// that there were this took a tenth of the server's start.
type pattern struct {
	max int
	re  *regexp.Regexp
}

func (p pattern) matches(s string) bool { return len(s) <= p.max && p.re.MatchString(s) }

// ParseSessionID checks a session id that came from outside. Its error is a
// *FieldError for the field session_id.
func ParseSessionID(s string) (SessionID, error) {
	if !sessionIDPattern.matches(s) {
		return "", &FieldError{Field: "session_id", Problem: fmt.Sprintf("%.80q is not a session id", s),
			Allowed: "1 to 63 characters: a letter or digit, then letters, digits, '.', '_' or '-'"}
	}
	return SessionID(s), nil
}

// NewSessionID makes an unguessable session id (130 random bits), for callers
// that brought none.
func NewSessionID() SessionID {
	var b [17]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	enc := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])
	return SessionID("s-" + strings.ToLower(enc[:26]))
}

// Owner is who calls: a bearer token's name over HTTP, LocalOwner otherwise.
// Sessions of one owner do not exist for another.
type Owner string

// LocalOwner is the owner on stdio, on HTTP without tokens, and for the
// commands for people.
const LocalOwner Owner = "local"

// Key identifies a sandbox: session ids are unique per owner only.
type Key struct {
	Owner   Owner
	Session SessionID
}

// Status is where a sandbox is in its life.
type Status string

// The statuses; there are no others.
const (
	StatusPending    Status = "pending" // not created yet
	StatusStarting   Status = "starting"
	StatusRunning    Status = "running"
	StatusStopping   Status = "stopping"
	StatusStopped    Status = "stopped"
	StatusArchiving  Status = "archiving"
	StatusArchived   Status = "archived"
	StatusDestroying Status = "destroying"
	StatusDestroyed  Status = "destroyed" // known by its tombstone
	StatusError      Status = "error"
)

// Transitional reports whether s ends by itself; callers poll it.
func (s Status) Transitional() bool {
	switch s {
	case StatusStarting, StatusStopping, StatusArchiving, StatusDestroying:
		return true
	}
	return false
}

// Language is the default of run_code in a sandbox.
type Language string

// The languages of run_code. Bash can be run, but is no sandbox's default.
const (
	TypeScript Language = "typescript"
	JavaScript Language = "javascript"
	Python     Language = "python"
	Bash       Language = "bash"
)

// Never means, as an AutoDelete interval, that the sandbox is never deleted by
// itself.
const Never time.Duration = -1

// DefaultAccount is the ordinary user of the default root.
const DefaultAccount = "agent"

// The defaults and bounds of a Spec's intervals.
const (
	DefaultAutoStop    = 15 * time.Minute
	DefaultAutoArchive = 7 * 24 * time.Hour
	MaxAutoArchive     = 43200 * time.Minute
	DefaultTimeout     = 300 * time.Second
)

// Spec is what a session asks of its sandbox. The zero value of each field
// means "not given"; where zero itself has a meaning the field is a pointer.
// Manager merges a given Spec over the operator's defaults and hands providers
// a complete one (see Spec.WithDefaults), in which every pointer is set.
type Spec struct {
	// Name is for display, at most 63 characters; the session id when absent.
	Name string
	// Labels are the caller's own; keys as Kubernetes label keys, at most 64.
	Labels   map[string]string
	Language Language
	// Env is merged into each command's environment; it is never written to
	// a file inside the sandbox. Names match [A-Za-z_][A-Za-z0-9_]*.
	Env map[string]string
	// Snapshot is the name of the owner's snapshot that the sandbox is made of;
	// it beats Image.
	Snapshot string
	// Image is what the sandbox is made of, as for docker pull; empty: the
	// provider's default root. Its environment, user and working directory hold
	// unless the spec says otherwise; its entrypoint is not run.
	Image string
	// Account is the ordinary user of a sandbox of the default root, whose home
	// is /home/NAME; DefaultAccount when absent. It stays what it is for what is
	// made of that sandbox; an image and a snapshot have their own.
	Account string
	// User runs commands: the Account when absent, or "root". With an image it is
	// one of the image's, or a number; absent: the one the image names, else root.
	User string
	// Ephemeral sandboxes are deleted as soon as they stop.
	Ephemeral *bool
	// AutoStop is the idle time after which the sandbox stops; 0 = never.
	AutoStop *time.Duration
	// AutoArchive counts from the stop; 0 = MaxAutoArchive.
	AutoArchive *time.Duration
	// AutoDelete counts from the stop; 0 = at once, Never = never.
	AutoDelete *time.Duration
	// Timeout is the default of execute_command and run_code; 0 = none.
	Timeout *time.Duration
	// WorkingDirectory is absolute; commands start there when it is given.
	WorkingDirectory string
	// Volumes are attached when the sandbox is made, and stay attached.
	Volumes []VolumeMount
	// Mounts are buckets shown as directories, in order; nil: not given.
	Mounts []Mount
	// Public makes exposed ports answer without a token, unless exposing one
	// says otherwise.
	Public *bool
	// Resources that the sandbox may use.
	Resources Resources
	// Network says what the sandbox reaches.
	Network *NetworkPolicy
}

// Info is what is known of a sandbox. Reading it never starts anything.
type Info struct {
	Key      Key
	Name     string
	Provider string
	Status   Status
	// Reason tells why the status is error, or what was lost at the last
	// stop ("the machine was restarted: 2 processes were lost"); else empty.
	Reason  string
	Created time.Time
	// Stopped is when the sandbox last stopped; zero while it runs.
	Stopped time.Time
	// StopReason tells why it last stopped in order ("idle for 15 minutes",
	// "asked to"); empty while it runs, and when nobody knows.
	StopReason string
	// Expires is when it will be deleted by itself; zero when never or when
	// that depends on when it stops.
	Expires time.Time
	// IdleDeadline is when it will stop unless used; zero when busy or off.
	IdleDeadline time.Time
	Spec         Spec
	// Home and the user's name inside.
	Home string
	User string
	// Runtimes are the interpreters found for run_code, by language; the
	// value is a path inside.
	Runtimes map[Language]string
	// Refused are connections that the network policy did not let out since
	// the sandbox started, oldest first; at most 200.
	Refused []Refusal
	// Usage is set while running.
	Usage *Usage
	// Guarantees tell what holds here, in display order.
	Guarantees []Guarantee
	// Image is what the sandbox was made of; nil for the default root.
	Image *ImageUse
	// HostDirs are the operator's host folders shown inside.
	HostDirs []HostDir
	// Ports that are exposed, by number.
	Ports []Port
	// Mounts that the sandbox is to have, see Mounter.
	Mounts []MountInfo
	// BaseChanged tells that the host's system directories changed since the
	// sandbox was made; empty when not.
	BaseChanged string
}

// ImageUse is the image that a sandbox was made of: it stays the same whatever
// its name leads to later.
type ImageUse struct {
	Name     string // whole: "docker.io/library/debian:12"
	Digest   string // of its manifest
	Platform string
}

// HostDir is a folder of the host shown inside, the operator's choice alone.
type HostDir struct {
	Host     string
	Path     string
	ReadOnly bool
}

// Usage is what a running sandbox uses now. Negative means not known here.
type Usage struct {
	CPU       time.Duration // consumed since the start
	Memory    int64         // bytes
	Processes int
	Disk      int64 // bytes written over the root
}

// Enforcement is how well a guarantee holds.
type Enforcement string

// The degrees of enforcement.
const (
	Enforced    Enforcement = "enforced"
	Soft        Enforcement = "soft"
	NotEnforced Enforcement = "not enforced"
)

// Guarantee is one line of what a sandbox's walls are made of.
type Guarantee struct {
	Name   string // snake_case, such as "memory_limit"
	State  Enforcement
	Detail string // such as "4 GiB, cgroup v1", or why it is not enforced
}
