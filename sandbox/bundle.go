package sandbox

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	esbuild "github.com/evanw/esbuild/pkg/api"
)

// Bounds of what a program may take in by its imports.
const (
	maxModules     = 300
	maxModule      = 2 << 20 // bytes of one file
	maxModuleBytes = 8 << 20 // of all
	maxLookups     = 3000    // paths tried
)

// inside is esbuild's namespace of files in the sandbox. In any other than its
// own, esbuild looks for nothing on the server's disk.
const inside = "sandbox"

// nearby finds texts that might import a file by its path, or none. It may say
// yes too often, never too rarely.
var nearby = regexp.MustCompile("[\"'`](\\.{1,2}[/\"'`]|/)")

// bundler puts a program and the local files that node itself cannot load
// (TypeScript, JSX, JSON by import) into one module. All other modules stay
// imports: packages, which node looks for from the working directory, and
// local JavaScript, which so stays one module for all who import it. Files are
// read through the sandbox, as its user.
type bundler struct {
	ctx   context.Context
	files Files
	cwd   string
	entry string // the program's own path; nothing is there

	mu      sync.Mutex
	known   map[string]module
	taken   int   // modules that are part of the bundle, beside the program
	bytes   int64 // in them
	fatal   error // of the sandbox, not of the program
	rewrote bool  // a specifier means another one to node
}

// module is what a path was found to be.
type module struct {
	text []byte
	err  error
}

// bundle returns the program as one ES module, with its source map in it. Ok is
// false when node can run the program as it is. A fault of the program is a
// FieldError, one of the sandbox is what Files gave.
func bundle(ctx context.Context, files Files, cwd, code string, lang Language) (js string, ok bool, err error) {
	if !nearby.MatchString(code) {
		return "", false, nil
	}
	entry, loader := programFile(cwd, lang), esbuild.LoaderJS
	if lang == TypeScript {
		loader = esbuild.LoaderTS
	}
	b := &bundler{ctx: ctx, files: files, cwd: cwd, entry: entry, known: map[string]module{}}
	res := esbuild.Build(esbuild.BuildOptions{
		EntryPoints: []string{b.entry}, Outfile: path.Base(entry), Bundle: true, Write: false, LogLevel: esbuild.LogLevelSilent,
		Format: esbuild.FormatESModule, Platform: esbuild.PlatformNode, Target: esbuild.ES2022, TreeShaking: esbuild.TreeShakingFalse,
		Sourcemap: esbuild.SourceMapExternal, SourcesContent: esbuild.SourcesContentExclude, TsconfigRaw: "{}", Define: metaOf(entry),
		Plugins: []esbuild.Plugin{{Name: "sandbox", Setup: func(p esbuild.PluginBuild) {
			p.OnResolve(esbuild.OnResolveOptions{Filter: ".*"}, b.resolve)
			p.OnLoad(esbuild.OnLoadOptions{Filter: ".*", Namespace: inside}, func(a esbuild.OnLoadArgs) (esbuild.OnLoadResult, error) {
				if a.Path == b.entry {
					return esbuild.OnLoadResult{Contents: &code, Loader: loader}, nil
				}
				return b.load(a.Path), nil
			})
		}}},
	})
	switch {
	case b.fatal != nil:
		return "", false, b.fatal
	case len(res.Errors) > 0:
		e := res.Errors[0]
		if lang == JavaScript && e.PluginName == "" && (e.Location == nil || e.Location.File == inside+":"+b.entry) {
			return "", false, nil // node says it best
		}
		if _, err := files.Stat(ctx, cwd); errors.Is(err, fs.ErrNotExist) {
			return "", false, spawnError(err, Command{Cwd: cwd})
		}
		return "", false, codeFault(e, b.display)
	case b.taken == 0 && !b.rewrote:
		return "", false, nil
	}
	js, err = b.join(res.OutputFiles)
	return js, true, err
}

// display is a module's name for people.
func (b *bundler) display(name string) string {
	name = strings.TrimPrefix(name, inside+":")
	if name == b.entry {
		return path.Base(name)
	}
	return name
}

// join is the bundle with its source map behind it.
func (b *bundler) join(out []esbuild.OutputFile) (string, error) {
	var js string
	var sources map[string]any
	for _, f := range out {
		if !strings.HasSuffix(f.Path, ".map") {
			js = string(f.Contents)
		} else if err := json.Unmarshal(f.Contents, &sources); err != nil {
			return "", fmt.Errorf("source map: %w", err)
		}
	}
	if list, ok := sources["sources"].([]any); ok {
		for i, s := range list {
			list[i] = b.display(fmt.Sprint(s))
		}
	}
	text, err := json.Marshal(sources)
	return js + "\n//# sourceMappingURL=data:application/json;base64," + base64.StdEncoding.EncodeToString(text), err
}

// resolve says what an import means.
func (b *bundler) resolve(a esbuild.OnResolveArgs) (esbuild.OnResolveResult, error) {
	if a.Kind == esbuild.ResolveEntryPoint {
		return esbuild.OnResolveResult{Path: a.Path, Namespace: inside}, nil
	}
	asIs := esbuild.OnResolveResult{Path: a.Path, External: true}
	if !isPath(a.Path) {
		return asIs, nil
	}
	where := a.Path
	if !path.IsAbs(where) {
		where = path.Join(path.Dir(a.Importer), where)
	}
	found, err := b.find(where, strings.HasSuffix(a.Path, "/") || a.Path == "." || a.Path == "..")
	late := a.Kind == esbuild.ResolveJSRequireCall || a.Kind == esbuild.ResolveJSDynamicImport || a.Kind == esbuild.ResolveJSRequireResolve
	switch {
	case err != nil && !late:
		return esbuild.OnResolveResult{Errors: []esbuild.Message{{Text: err.Error()}}}, nil
	case err != nil:
		found = where // the program may be ready for its absence, so node tells it
	case b.takes(found, a.Kind):
		return esbuild.OnResolveResult{Path: found, Namespace: inside}, nil
	}
	if a.Importer == b.entry && found == where {
		return asIs, nil
	}
	// Node is told by an absolute name, since what imports it is elsewhere now.
	b.mu.Lock()
	b.rewrote = true
	b.mu.Unlock()
	if a.Kind == esbuild.ResolveJSRequireCall || a.Kind == esbuild.ResolveJSRequireResolve {
		return esbuild.OnResolveResult{Path: found, External: true}, nil
	}
	return esbuild.OnResolveResult{Path: (&url.URL{Scheme: "file", Path: found}).String(), External: true}, nil
}

func isPath(specifier string) bool {
	return specifier == "." || specifier == ".." || strings.HasPrefix(specifier, "./") || strings.HasPrefix(specifier, "../") || strings.HasPrefix(specifier, "/")
}

// takes reports whether a file must be part of the bundle.
func (b *bundler) takes(file string, kind esbuild.ResolveKind) bool {
	if kind == esbuild.ResolveJSRequireResolve {
		return false
	}
	switch path.Ext(file) {
	case ".ts", ".mts", ".cts", ".tsx", ".jsx":
		return true
	case ".json":
		return kind != esbuild.ResolveJSRequireCall // node can require it, of any version
	}
	return false
}

// endings are tried in this order where a path names no file.
var endings = []string{".ts", ".tsx", ".mts", ".cts", ".js", ".mjs", ".cjs", ".jsx", ".json"}

// written is what TypeScript is imported as: by the name of what it becomes.
var written = map[string][]string{".js": {".ts", ".tsx"}, ".mjs": {".mts"}, ".cjs": {".cts"}, ".jsx": {".tsx"}}

// find is the file that a path means.
func (b *bundler) find(where string, directory bool) (string, error) {
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
		switch err := b.open(p).err; {
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
func (b *bundler) open(p string) module {
	b.mu.Lock()
	defer b.mu.Unlock() // esbuild asks from several goroutines
	if m, ok := b.known[p]; ok {
		return m
	}
	m := b.read(p)
	b.known[p] = m
	return m
}

func (b *bundler) read(p string) (m module) {
	switch {
	case b.fatal != nil:
		return module{err: errors.New("not looked for")}
	case len(b.known) >= maxLookups:
		return module{err: fmt.Errorf("too many imports: more than %d paths were looked for; run a file with execute_command instead", maxLookups)}
	}
	body, info, err := b.files.Open(b.ctx, p)
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
	if !b.takes(p, esbuild.ResolveJSImportStatement) {
		return module{} // that it is there is all
	}
	if info.Size > maxModule {
		return module{err: fmt.Errorf("%s has %d bytes, more than the 2,097,152 of one imported file", p, info.Size)}
	}
	if m.text, err = io.ReadAll(io.LimitReader(body, maxModule)); err != nil {
		b.fatal = fmt.Errorf("read %s: %w", p, err)
	}
	return m
}

// load gives esbuild a file of the bundle.
func (b *bundler) load(p string) esbuild.OnLoadResult {
	text := b.open(p).text
	b.mu.Lock()
	b.taken++
	b.bytes += int64(len(text))
	tooMany := b.taken > maxModules || b.bytes > maxModuleBytes
	b.mu.Unlock()
	if tooMany {
		return esbuild.OnLoadResult{Errors: []esbuild.Message{{Text: fmt.Sprintf("too much is imported: at most %d files and 8,388,608 bytes; compile it in the sandbox instead", maxModules)}}}
	}
	loader := esbuild.LoaderTS
	switch path.Ext(p) {
	case ".tsx":
		loader = esbuild.LoaderTSX
	case ".jsx":
		loader = esbuild.LoaderJSX
	case ".json":
		loader = esbuild.LoaderJSON
	}
	code := string(text)
	if loader != esbuild.LoaderJSON && slices.ContainsFunc([]string{"__filename", "__dirname", "import.meta"}, func(s string) bool { return strings.Contains(code, s) }) {
		code, loader = b.placed(p, code, loader)
	}
	return esbuild.OnLoadResult{Contents: &code, Loader: loader}
}

// placed makes a file's text say where the file is, as it did on its own. One
// with a fault is left as it is; the bundle's own errors say it.
func (b *bundler) placed(p, code string, loader esbuild.Loader) (string, esbuild.Loader) {
	define := metaOf(p)
	define["__filename"], define["__dirname"] = literal(p), literal(path.Dir(p))
	res := esbuild.Transform(code, esbuild.TransformOptions{
		Loader: loader, Target: esbuild.ES2022, LogLevel: esbuild.LogLevelSilent, Platform: esbuild.PlatformNode,
		Sourcemap: esbuild.SourceMapInline, SourcesContent: esbuild.SourcesContentExclude, Sourcefile: p, TsconfigRaw: "{}",
		Define: define,
	})
	if len(res.Errors) > 0 {
		return code, loader
	}
	return string(res.Code), esbuild.LoaderJS
}

// codeFault is esbuild's first complaint with its place.
func codeFault(e esbuild.Message, display func(string) string) error {
	problem := e.Text
	if l := e.Location; l != nil {
		problem = fmt.Sprintf("%s:%d:%d: %s\n%s\n%s^", display(l.File), l.Line, l.Column+1, e.Text, l.LineText, strings.Repeat(" ", l.Column))
	}
	return &FieldError{Field: "code", Problem: problem, Hint: "nothing was run"}
}
