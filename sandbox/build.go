package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a Build.
const (
	MaxBuildSteps = 100
	MaxBuildFiles = 10_000
)

// Build says how a snapshot is made: what it begins with, and steps. It is what
// a Dockerfile or a list of steps comes to, with nothing of a provider in it.
type Build struct {
	// Image or Snapshot is what the steps stand on; neither: what a sandbox
	// without an image is made of.
	Image    string
	Snapshot string
	// Account is that of Spec.Account, where neither Image nor Snapshot is given.
	Account string
	// Origin is how the base was written, for people ("FROM debian:12").
	Origin string
	Steps  []BuildStep
	// Files are what copy steps find, by path: relative, clean, with slashes.
	// A path whose file is a directory stands for an empty one.
	Files map[string]BuildFile
	// Fresh has every step done, whatever is known of it from earlier builds.
	Fresh bool
}

// StepKind is what a step of a build does.
type StepKind string

// The kinds of steps. Each means what the instruction of that name means in a
// Dockerfile.
const (
	StepRun     StepKind = "run"
	StepCopy    StepKind = "copy"
	StepEnv     StepKind = "env"
	StepArg     StepKind = "arg"
	StepWorkDir StepKind = "workdir"
	StepUser    StepKind = "user"
	StepShell   StepKind = "shell"
	StepLabel   StepKind = "label"
)

// BuildStep is one step. A *word* is text as it stands in a Dockerfile: quotes
// and backslashes are not removed yet, and $NAME and ${NAME:-text} stand for what the steps
// before, and the base, have set.
type BuildStep struct {
	Kind StepKind
	// Line is where it begins in a Dockerfile, from 1; 0: in no Dockerfile.
	Line int
	// Text is the instruction as it was written, or as a Dockerfile would have it.
	Text string

	// Script is what run hands to the shell, as it is; Argv, instead, is the
	// program and its arguments. For shell Argv is what runs scripts from now on.
	Script string
	Argv   []string
	// Vars are those of env, arg and label, in order.
	Vars []BuildVar
	// Word is that of workdir and user.
	Word string
	// Copy is what copy does.
	Copy BuildCopy
}

// BuildVar sets a variable or a label. Name and Value are words.
type BuildVar struct {
	Name, Value string
	Unset       bool // of arg: it has no default
}

// BuildCopy copies files of Build.Files, as root of the sandbox.
type BuildCopy struct {
	// From are words: paths or patterns (of path.Match) of files and
	// directories; of a directory its content is meant. Inline are files
	// besides, given in place.
	From   []string
	Inline []BuildInline
	// To is a word: a file, or a directory when it ends in a slash, is one, or
	// several things are copied. A relative one counts from the working directory.
	To string
	// Owner is a word, "user", "user:group" or numbers; "": root.
	Owner string
	// Mode of everything copied; nil: as it is.
	Mode *fs.FileMode
	// Unpack: archives would be unpacked (ADD).
	Unpack bool
}

// BuildInline is a file that stands in the step itself.
type BuildInline struct {
	Name, Content string
	Expand        bool // the content's variables are replaced
}

// BuildFile is a file for copy steps. Of the mode the permission bits count,
// and fs.ModeDir and fs.ModeSymlink.
type BuildFile struct {
	Mode fs.FileMode
	Size int64
	Link string // where a symbolic link leads
	// Digest is the content's SHA-256, in hex; of a regular file.
	Digest string
	Open   func() (io.ReadCloser, error)
}

// TextFile is a BuildFile of mode 0644 that holds text.
func TextFile(text string) BuildFile {
	sum := sha256.Sum256([]byte(text))
	return BuildFile{Mode: 0o644, Size: int64(len(text)), Digest: hex.EncodeToString(sum[:]),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }}
}

// Digest is the same for builds that say the same, wherever their files lie.
func (b Build) Digest() string {
	h := sha256.New()
	e := json.NewEncoder(h)
	put := func(v any) { _ = e.Encode(v) } // plain text and numbers always encode
	put([]string{"1", b.Image, b.Snapshot})
	if b.Account != "" && b.Image == "" && b.Snapshot == "" {
		put([]string{"account", b.Account})
	}
	for _, s := range b.Steps {
		s.Line = 0
		put(s)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Files)) {
		f := b.Files[name]
		put([]string{name, strconv.FormatUint(uint64(f.Mode), 8), f.Digest, f.Link})
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// BuildError is why a build failed: one of its steps, or what it stands on.
// It is ErrBuildFailed.
type BuildError struct {
	// Step is which of Steps failed, from 1; 0: the base.
	Step, Steps int
	Line        int    // in the Dockerfile; 0: none
	Text        string // of the step, its first line
	// ExitCode of its command; nil when there is none, or it is not known.
	ExitCode *int
	Problem  string // "exited with 1"; what to do about it
	// Log is the end of the build's log.
	Log string
}

func (e *BuildError) Error() string {
	var b strings.Builder
	b.WriteString("build_failed: ")
	switch {
	case e.Step > 0 && e.Line > 0:
		fmt.Fprintf(&b, "step %d of %d, line %d (%s) ", e.Step, e.Steps, e.Line, e.Text)
	case e.Step > 0:
		fmt.Fprintf(&b, "step %d of %d (%s) ", e.Step, e.Steps, e.Text)
	case e.Text != "":
		fmt.Fprintf(&b, "%s: ", e.Text)
	}
	b.WriteString(e.Problem)
	return b.String()
}

// Is makes it an ErrBuildFailed.
func (e *BuildError) Is(target error) bool { return target == ErrBuildFailed }
