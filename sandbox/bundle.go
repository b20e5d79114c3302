package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
)

// Bounds of what a program may take in by its imports.
const (
	maxModules     = 300
	maxModule      = 2 << 20 // bytes of one file
	maxModuleBytes = 8 << 20 // of all
	maxLookups     = 3000    // paths tried
	maxImport      = 8192    // bytes of a path
)

// nearby finds texts that might import a file by its path, or none. It may say
// yes too often, never too rarely.
var nearby = regexp.MustCompile("[\"'`](\\.{1,2}[/\"'`]|/)")

// bundler gives a Compiler what puts a program and the local files that node
// itself cannot load (TypeScript, JSX, JSON by import) into one module. All other modules stay
// imports: packages, which node looks for from the working directory, and
// local JavaScript, which so stays one module for all who import it. Files are
// read through the sandbox, as its user.
type bundler struct {
	files Files
	entry string // the program's own path; nothing is there

	mu    sync.Mutex
	known map[string]module
	held  int   // bytes in known
	taken int   // modules that are part of the bundle, beside the program
	bytes int   // in them
	fatal error // of the sandbox, not of the program
}

// module is what a path was found to be.
type module struct {
	text    []byte
	tooMuch bool // it is there, but its text does not fit beside the others
	err     error
}

// prepare makes of JavaScript or TypeScript what any node runs, with the local
// files that node cannot load in it. A fault of the program is a FieldError, one
// of the sandbox is what Files gave.
func (m *Manager) prepare(ctx context.Context, files Files, cwd, code string, lang Language) (Compiled, error) {
	if m.options.Compiler == nil {
		return Compiled{}, &UserError{Err: ErrUnsupported, Text: "run_code " + string(lang) + ": this server has no compiler; run a file with execute_command. Nothing was run"}
	}
	job := CompileJob{Code: code, Language: lang, Entry: programFile(cwd, lang), Bundle: nearby.MatchString(code)}
	b := &bundler{files: files, entry: job.Entry, known: map[string]module{}}
	res, err := m.options.Compiler.Compile(ctx, job, b)
	b.mu.Lock()
	fatal := b.fatal
	b.mu.Unlock()
	var tooComplex *TooComplexError
	switch {
	case ctx.Err() != nil:
		return Compiled{}, ctx.Err()
	case errors.As(err, &tooComplex):
		return Compiled{}, &FieldError{Field: "code", Problem: tooComplex.Error(), Hint: "simplify it, or run it from a file with execute_command; nothing was run"}
	case fatal != nil:
		return Compiled{}, fatal
	case err != nil:
		return Compiled{}, fmt.Errorf("compile the code: %w", err)
	case res.Fault == "":
		return res, nil
	}
	if job.Bundle {
		if _, err := files.Stat(ctx, cwd); errors.Is(err, fs.ErrNotExist) {
			return Compiled{}, spawnError(err, Command{Cwd: cwd})
		}
	}
	return Compiled{}, &FieldError{Field: "code", Problem: res.Fault, Hint: "nothing was run"}
}

// Resolve implements Imports.
func (b *bundler) Resolve(ctx context.Context, i Import) Resolved {
	asIs := Resolved{Path: i.Path, External: true}
	if !isPath(i.Path) {
		return asIs
	}
	if len(i.Path) > maxImport || strings.Contains(i.Path, "\x00") {
		return Resolved{Problem: fmt.Sprintf("the import %.40q is no path: it has a NUL, or more than %d bytes", i.Path, maxImport)}
	}
	where := i.Path
	if !path.IsAbs(where) {
		where = path.Join(path.Dir(i.Importer), where)
	}
	found, err := b.find(ctx, where, strings.HasSuffix(i.Path, "/") || i.Path == "." || i.Path == "..")
	late := i.Kind == RequireCall || i.Kind == ImportCall || i.Kind == RequireResolve
	switch {
	case err != nil && !late:
		return Resolved{Problem: err.Error()}
	case err != nil:
		found = where // the program may be ready for its absence, so node tells it
	case takes(found, i.Kind):
		return Resolved{Path: found}
	}
	if i.Importer == b.entry && found == where {
		return asIs
	}
	// Node is told by an absolute name, since what imports it is elsewhere now.
	if i.Kind == RequireCall || i.Kind == RequireResolve {
		return Resolved{Path: found, External: true}
	}
	return Resolved{Path: (&url.URL{Scheme: "file", Path: found}).String(), External: true}
}

func isPath(specifier string) bool {
	return specifier == "." || specifier == ".." || strings.HasPrefix(specifier, "./") || strings.HasPrefix(specifier, "../") || strings.HasPrefix(specifier, "/")
}

// takes reports whether a file must be part of the bundle.
func takes(file string, kind ImportKind) bool {
	if kind == RequireResolve {
		return false
	}
	switch path.Ext(file) {
	case ".ts", ".mts", ".cts", ".tsx", ".jsx":
		return true
	case ".json":
		return kind != RequireCall // node can require it, of any version
	}
	return false
}

// endings are tried in this order where a path names no file.
var endings = []string{".ts", ".tsx", ".mts", ".cts", ".js", ".mjs", ".cjs", ".jsx", ".json"}

// written is what TypeScript is imported as: by the name of what it becomes.
var written = map[string][]string{".js": {".ts", ".tsx"}, ".mjs": {".mts"}, ".cjs": {".cts"}, ".jsx": {".tsx"}}

// find is the file that a path means.
func (b *bundler) find(ctx context.Context, where string, directory bool) (string, error) {
	var tries []string
	if !directory {
		tries = append(tries, where)
		for _, end := range written[path.Ext(where)] {
			tries = append(tries, strings.TrimSuffix(where, path.Ext(where))+end)
		}
		for _, end := range endings {
			tries = append(tries, where+end)
		}
	}
	for _, end := range endings {
		tries = append(tries, where+"/index"+end)
	}
	isDir := directory
	for i, p := range tries {
		if strings.HasPrefix(p, where+"/index") && !isDir {
			break
		}
		switch err := b.open(ctx, p).err; {
		case err == nil:
			return p, nil
		case errors.Is(err, ErrIsDir) && i == 0:
			isDir = true
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrIsDir), errors.Is(err, ErrNotDir):
		default:
			return "", err
		}
	}
	also := "nor that with " + strings.Join(endings, ", ")
	if isDir {
		also = "with no index file in it (" + strings.Join(endings, ", ") + ")"
	}
	return "", fmt.Errorf("there is no file %s, %s", where, also)
}

// open reads a file once; its error says what is wrong with it.
func (b *bundler) open(ctx context.Context, p string) module {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m, ok := b.known[p]; ok {
		return m
	}
	m := b.read(ctx, p)
	b.known[p] = m
	return m
}

func (b *bundler) read(ctx context.Context, p string) (m module) {
	switch {
	case b.fatal != nil:
		return module{err: errors.New("not looked for")}
	case len(b.known) >= maxLookups:
		return module{err: fmt.Errorf("too many imports: more than %d paths were looked for; run a file with execute_command instead", maxLookups)}
	}
	body, info, err := b.files.Open(ctx, p)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrNotRegular) {
			return module{err: errors.New(strings.TrimPrefix(fileError(err, p).Error(), "path: "))}
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrIsDir) && !errors.Is(err, ErrNotDir) {
			b.fatal = fmt.Errorf("read %s: %w", p, err)
		}
		return module{err: err}
	}
	defer body.Close()
	if !takes(p, ImportStatement) {
		return module{} // that it is there is all
	}
	if info.Size > maxModule {
		return module{err: fmt.Errorf("%s has %d bytes, more than the 2,097,152 of one imported file", p, info.Size)}
	}
	if m.text, err = io.ReadAll(io.LimitReader(body, maxModule)); err != nil {
		b.fatal = fmt.Errorf("read %s: %w", p, err)
	}
	// Counted here and not when it is loaded: an import may be resolved, and so
	// held, that is never loaded.
	if b.held += len(m.text); b.held > maxModuleBytes {
		return module{tooMuch: true}
	}
	return m
}

// Load implements Imports.
func (b *bundler) Load(_ context.Context, p string) Loaded {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, ok := b.known[p]
	if !ok || m.err != nil {
		return Loaded{Problem: fmt.Sprintf("there is no file %s", p)}
	}
	b.taken++
	b.bytes += len(m.text)
	if m.tooMuch || b.taken > maxModules || b.bytes > maxModuleBytes {
		return Loaded{Problem: fmt.Sprintf("too much is imported: at most %d files and 8,388,608 bytes; compile it in the sandbox instead", maxModules)}
	}
	return Loaded{Text: m.text}
}
