//go:build linux

// Package local makes sandboxes on this Linux machine with nothing to install:
// namespaces, the host's own system directories read-only under an overlay, and
// a small helper program that watches each sandbox and outlives the server.
//
// This package keeps what outlives every program: a state directory with one
// directory a sandbox, life-cycle operations that survive kill -9 at any step,
// archives, and the layers of the default root. The helper's monitor (packages
// monitor, isolate and guest) runs the sandbox; package client speaks to it.
package local

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"berth/internal/secret"
	"berth/sandbox"
)

// Options of New. The zero value works but for Dir.
type Options struct {
	// Dir is the state directory, absolute; see DefaultDir. It is made when
	// absent. Several berth processes may share it.
	Dir    string
	Logger *slog.Logger // nil discards
	// Proxy is an HTTP proxy through which sandboxes reach the world; empty:
	// directly. NoProxy lists what is reached directly all the same.
	Proxy   secret.Text
	NoProxy []string
	// HostAddresses are prefixes: of the machine's own public addresses, those
	// that a policy's AllowCIDRs may open. They are the operator's; a session's
	// list alone opens none.
	HostAddresses []netip.Prefix
	// HostDirs are the operator's folders shown inside every sandbox.
	HostDirs []sandbox.HostDir
	// ExtraPaths are more system directories of the host to show inside at
	// the same place, read-only; absolute. Run by root, berth shows of them what
	// everyone on the host may read; run by an ordinary user, what that user may.
	ExtraPaths []string
	// Limits of every sandbox whose spec names none. A number that is given
	// must hold, like a spec's; the built-in ones are best effort.
	Limits Limits
	// BestEffort makes sandboxes also where a limit that was asked for cannot
	// be held; Info.Guarantees tell. Otherwise they are refused.
	BestEffort bool
	// LogBytes bounds the log of one output stream, in bytes; 0: 64 MiB.
	LogBytes int64
	// KeepProcesses bounds the finished processes kept per sandbox; 0: 200.
	KeepProcesses int
	// KeepLogBytes bounds all logs of a sandbox, in bytes; 0: 1 GiB.
	KeepLogBytes int64
	// Images say where images come from.
	Images ImageOptions
	// Bucketd finds the program that serves buckets, and may put it below dir, which is
	// private; nil: there is none, and no buckets.
	Bucketd func(dir string) (path string, err error)
	// NoFUSE keeps programs inside from mounting file systems of their own.
	NoFUSE bool
	// Progress is told how far an archive or a restore is; nil: nobody. It
	// must not block.
	Progress func(sandbox.Key, Progress)

	// step is called at every step of a life-cycle operation whose
	// interruption tests try; nil outside of tests.
	step func(name string) error
	// now tells sweeps what is old; nil: time.Now.
	now func() time.Time
	// engine runs monitors; nil: the real one.
	engine engine
}

// Progress of an archive or a restore.
type Progress struct {
	Step  string // "packing", "verifying", "unpacking"
	Bytes int64  // of files, so far
}

// Limits of all commands of a sandbox together. 0 means the built-in number,
// negative none.
type Limits struct {
	// PIDs counts processes and threads; built in: 4096.
	PIDs int64
	// Memory in bytes; built in: 80 % of the machine's, or of what berth
	// itself may use where that is less.
	Memory int64
	// CPUMilli is thousandths of a core; built in: none, all cores.
	CPUMilli int64
}

// builtinPIDs is room for a parallel build with its threads, and an end to a
// fork bomb.
const builtinPIDs = 4096

// DefaultDir tells where the state directory is when the configuration does not
// say: $BERTH_STATE, else /var/lib/berth for root, else berth below
// $XDG_STATE_HOME or ~/.local/state. getenv is os.Getenv, uid os.Getuid().
func DefaultDir(getenv func(string) string, uid int) (string, error) {
	if dir := getenv("BERTH_STATE"); dir != "" {
		if !filepath.IsAbs(dir) {
			return "", &sandbox.FieldError{Field: "BERTH_STATE", Problem: strconv.Quote(dir) + " is not absolute", Allowed: "an absolute path"}
		}
		return filepath.Clean(dir), nil
	}
	if uid == 0 {
		return "/var/lib/berth", nil
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "berth"), nil
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "berth"), nil
	}
	return "", &sandbox.UserError{Text: "no place for berth's state: neither BERTH_STATE, XDG_STATE_HOME nor HOME is set; set BERTH_STATE to a directory of your own"}
}

// validate checks what a person wrote; everything wrong is reported at once.
func (o *Options) validate() error {
	var errs []error
	bad := func(field, problem, allowed string) {
		errs = append(errs, &sandbox.FieldError{Field: field, Problem: problem, Allowed: allowed})
	}
	if !filepath.IsAbs(o.Dir) {
		bad("state", strconv.Quote(o.Dir)+" is not absolute", "an absolute path")
	}
	seen := map[string]string{}
	for i, h := range o.HostDirs {
		field := "limits.host_dirs[" + strconv.Itoa(i) + "]"
		if err := checkHostDir(h, o.Dir); err != nil {
			bad(field, err.Error(), "")
			continue
		}
		if other, ok := seen[filepath.Clean(h.Path)]; ok {
			bad(field, h.Path+" is the place of "+other+" already", "one folder a place")
		}
		seen[filepath.Clean(h.Path)] = h.Host
	}
	for i, p := range o.ExtraPaths {
		field := "local.extra_paths[" + strconv.Itoa(i) + "]"
		if err := checkExtraPath(p, o.Dir); err != nil {
			bad(field, err.Error(), "")
		}
	}
	return errors.Join(errs...)
}

// ownPlaces cannot be covered by a host folder: they make the sandbox.
var ownPlaces = []string{"/", "/proc", "/sys", "/dev", "/run/berth", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/tmp", "/var", "/run", "/root", "/home"}

func checkHostDir(h sandbox.HostDir, state string) error {
	if !filepath.IsAbs(h.Host) {
		return fmt.Errorf("host folder %q is not absolute", h.Host)
	}
	if !filepath.IsAbs(h.Path) {
		return fmt.Errorf("path inside %q is not absolute", h.Path)
	}
	in := filepath.Clean(h.Path)
	for _, p := range ownPlaces {
		if in == p {
			return fmt.Errorf("%s belongs to the sandbox itself; choose another path inside, such as /workspace/%s", in, filepath.Base(h.Host))
		}
	}
	for _, p := range []string{"/proc/", "/sys/", "/dev/", "/run/berth/"} {
		if strings.HasPrefix(in, p) {
			return fmt.Errorf("%s belongs to the sandbox itself; choose another path inside", in)
		}
	}
	real, err := filepath.EvalSymlinks(h.Host)
	if err != nil {
		return fmt.Errorf("host folder %s: %w", h.Host, reason(err))
	}
	fi, err := os.Stat(real)
	if err != nil {
		return fmt.Errorf("host folder %s: %w", h.Host, reason(err))
	}
	if !fi.IsDir() {
		return fmt.Errorf("host folder %s is no directory", h.Host)
	}
	if overlaps(real, state) {
		return fmt.Errorf("host folder %s holds berth's state directory or lies in it; sandboxes would see each other's files", h.Host)
	}
	return nil
}

func checkExtraPath(p, state string) error {
	if !filepath.IsAbs(p) || filepath.Clean(p) == "/" {
		return fmt.Errorf("%q cannot be shown; give an absolute path, not /", p)
	}
	p = filepath.Clean(p)
	for _, own := range ownPlaces {
		if p == own {
			return fmt.Errorf("%s is composed by berth; name directories below it or others, such as /opt", p)
		}
	}
	for _, no := range []string{"/proc", "/sys", "/dev", "/run", "/boot"} {
		if strings.HasPrefix(p, no+"/") || p == no {
			return fmt.Errorf("%s cannot be shown", p)
		}
	}
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return fmt.Errorf("%s: %w", p, reason(err))
	}
	if fi, err := os.Stat(real); err != nil || !fi.IsDir() {
		return fmt.Errorf("%s is no directory", p)
	}
	if overlaps(real, state) {
		return fmt.Errorf("%s holds berth's state directory or lies in it", p)
	}
	return nil
}

// overlaps tells whether one of two directories lies in the other. The state
// directory need not exist yet.
func overlaps(a, b string) bool {
	for parent, rest := b, ""; ; parent, rest = filepath.Dir(parent), filepath.Join(filepath.Base(parent), rest) {
		if real, err := filepath.EvalSymlinks(parent); err == nil {
			b = filepath.Join(real, rest)
			break
		}
		if parent == "/" || parent == "." {
			break
		}
	}
	within := func(child, parent string) bool {
		return child == parent || parent == "/" || strings.HasPrefix(child, parent+"/")
	}
	return within(a, b) || within(b, a)
}

// reason strips an error of its operation and path, which the caller names.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// effective fills in the built-in numbers; -1 becomes wire's 0, no limit.
func (l Limits) effective(machine int64) Limits {
	fill := func(v, builtin int64) int64 {
		switch {
		case v < 0:
			return 0
		case v == 0:
			return builtin
		}
		return v
	}
	return Limits{PIDs: fill(l.PIDs, builtinPIDs), Memory: fill(l.Memory, machine/10*8), CPUMilli: fill(l.CPUMilli, 0)}
}
