package sandbox

import (
	"context"
	"fmt"
)

// Compiler makes of TypeScript and JavaScript what any node runs. A parser that
// reads hostile text may die of it (deep nesting overflows its stack, which Go
// cannot recover from), so the product's runs outside of the server's process;
// see internal/compile.
type Compiler interface {
	// Compile compiles one program. A fault of the program is in the result. A
	// TooComplexError says that the program cannot be compiled within the
	// limits; other errors are the compiler's own, or the context's.
	Compile(ctx context.Context, job CompileJob, imports Imports) (Compiled, error)
}

// CompileJob is one program.
type CompileJob struct {
	Code     string
	Language Language // JavaScript or TypeScript
	Entry    string   // its absolute path inside the sandbox; nothing is there
	Bundle   bool     // it may import local files, which then become part of it
}

// Compiled is what became of a program.
type Compiled struct {
	Text   string
	Module bool   // an ES module
	Mapped bool   // with a source map in it
	Fault  string // what is wrong with the program, with its place; the rest is then empty
}

// Imports is how a Compiler sees the files of the sandbox, and all it sees of
// it. Its methods bound what they give, whatever they are asked; they may be
// called at the same time.
type Imports interface {
	// Resolve says what an import means.
	Resolve(ctx context.Context, i Import) Resolved
	// Load returns the text of a file that Resolve made part of the program.
	Load(ctx context.Context, path string) Loaded
}

// ImportKind is the form of an import.
type ImportKind string

// The forms.
const (
	ImportStatement ImportKind = "import"
	ImportCall      ImportKind = "dynamic"
	RequireCall     ImportKind = "require"
	RequireResolve  ImportKind = "resolve"
)

// Import is one import, as it is written in the file Importer.
type Import struct {
	Path     string
	Importer string // an absolute path
	Kind     ImportKind
}

// Resolved is a file that becomes part of the program, or with External what
// node is told to import.
type Resolved struct {
	Path     string
	External bool
	Problem  string // why it cannot be imported; the rest is then empty
}

// Loaded is the text of a file.
type Loaded struct {
	Text    []byte
	Problem string // why there is none
}

// TooComplexError is a program that a Compiler gave up on.
type TooComplexError struct {
	Limits string // of the compiler, for people: "10 seconds, …"
}

func (e *TooComplexError) Error() string {
	return fmt.Sprintf("it is nested too deeply or too large to be compiled (limit: %s)", e.Limits)
}
