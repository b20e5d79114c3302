// Package compile makes of run_code's TypeScript and JavaScript what any node
// runs, with esbuild, outside of the server's process: New starts this program
// again for each compilation, and Main is what the child does. Deep nesting
// overflows a parser's stack, which is the end of a Go process; so only the
// child ends. What the child says is not trusted.
package compile

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	esbuild "github.com/evanw/esbuild/pkg/api"

	"berth/sandbox"
)

// inside is esbuild's namespace of files in the sandbox. In any other than its
// own, esbuild looks for nothing on the disk.
const inside = "sandbox"

// InProcess returns a Compiler that compiles in this process, which a hostile
// program can end: for tests.
func InProcess() sandbox.Compiler { return inProcess{} }

type inProcess struct{}

func (inProcess) Compile(ctx context.Context, job sandbox.CompileJob, imports sandbox.Imports) (sandbox.Compiled, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Compiled{}, err
	}
	return compile(ctx, job, imports), nil
}

func compile(ctx context.Context, job sandbox.CompileJob, imports sandbox.Imports) sandbox.Compiled {
	if job.Bundle {
		if res, ok := bundle(ctx, job, imports); ok {
			return res
		}
	}
	if job.Language != sandbox.JavaScript {
		return transpile(job.Code, job.Entry, esbuild.LoaderTS)
	}
	if !isModule(job.Code) {
		return sandbox.Compiled{Text: job.Code}
	}
	if strings.Contains(job.Code, "import.meta") {
		if res := transpile(job.Code, job.Entry, esbuild.LoaderJS); res.Fault == "" {
			return res
		}
	}
	return sandbox.Compiled{Text: job.Code, Module: true} // node tells its faults best
}

// metaOf makes esbuild write a module's own place into it.
func metaOf(file string) map[string]string {
	return map[string]string{"import.meta.filename": literal(file), "import.meta.dirname": literal(path.Dir(file)),
		"import.meta.url": literal((&url.URL{Scheme: "file", Path: file}).String())}
}

// literal is s as JavaScript writes it.
func literal(s string) string {
	t, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always can be
	}
	return string(t)
}

// bundle returns the program as one ES module, with its source map in it. Ok is
// false when node can run the program as it is.
func bundle(ctx context.Context, job sandbox.CompileJob, imports sandbox.Imports) (sandbox.Compiled, bool) {
	loader := esbuild.LoaderJS
	if job.Language == sandbox.TypeScript {
		loader = esbuild.LoaderTS
	}
	b := &bundler{ctx: ctx, entry: job.Entry, imports: imports}
	res := esbuild.Build(esbuild.BuildOptions{
		EntryPoints: []string{b.entry}, Outfile: path.Base(b.entry), Bundle: true, Write: false, LogLevel: esbuild.LogLevelSilent,
		Format: esbuild.FormatESModule, Platform: esbuild.PlatformNode, Target: esbuild.ES2022, TreeShaking: esbuild.TreeShakingFalse,
		Sourcemap: esbuild.SourceMapExternal, SourcesContent: esbuild.SourcesContentExclude, TsconfigRaw: "{}", Define: metaOf(b.entry),
		Plugins: []esbuild.Plugin{{Name: "sandbox", Setup: func(p esbuild.PluginBuild) {
			p.OnResolve(esbuild.OnResolveOptions{Filter: ".*"}, b.resolve)
			p.OnLoad(esbuild.OnLoadOptions{Filter: ".*", Namespace: inside}, func(a esbuild.OnLoadArgs) (esbuild.OnLoadResult, error) {
				if a.Path == b.entry {
					return esbuild.OnLoadResult{Contents: &job.Code, Loader: loader}, nil
				}
				return b.load(a.Path), nil
			})
		}}},
	})
	if len(res.Errors) > 0 {
		e := res.Errors[0]
		if job.Language == sandbox.JavaScript && e.PluginName == "" && (e.Location == nil || e.Location.File == inside+":"+b.entry) {
			return sandbox.Compiled{}, false // node says it best
		}
		return sandbox.Compiled{Fault: fault(e, b.display)}, true
	}
	if !b.changed.Load() {
		return sandbox.Compiled{}, false
	}
	text, err := b.join(res.OutputFiles)
	if err != nil {
		return sandbox.Compiled{Fault: err.Error()}, true
	}
	return sandbox.Compiled{Text: text, Module: true, Mapped: true}, true
}

// isModule tells whether a program must be an ES module. One with a fault is
// left to node, which says it best.
func isModule(code string) bool {
	res := esbuild.Build(esbuild.BuildOptions{
		Stdin: &esbuild.StdinOptions{Contents: code, Loader: esbuild.LoaderJS}, Metafile: true, Write: false,
		LogLevel: esbuild.LogLevelSilent, Format: esbuild.FormatCommonJS, Platform: esbuild.PlatformNode,
	})
	if len(res.Errors) > 0 {
		// Await at the top does not fit the format asked for.
		res := esbuild.Transform(code, esbuild.TransformOptions{Loader: esbuild.LoaderJS, Format: esbuild.FormatESModule, LogLevel: esbuild.LogLevelSilent})
		return len(res.Errors) == 0
	}
	var meta struct {
		Inputs map[string]struct {
			Format string `json:"format"`
		} `json:"inputs"`
	}
	if json.Unmarshal([]byte(res.Metafile), &meta) != nil {
		return true
	}
	for _, in := range meta.Inputs {
		if in.Format == "esm" {
			return true
		}
	}
	return false
}

// transpile turns TypeScript, or JavaScript that asks for its place, into
// JavaScript for any node, with a source map in it.
func transpile(code, file string, loader esbuild.Loader) sandbox.Compiled {
	res := esbuild.Transform(code, esbuild.TransformOptions{
		Loader: loader, Target: esbuild.ES2022, Format: esbuild.FormatDefault, Define: metaOf(file), Platform: esbuild.PlatformNode,
		Sourcemap: esbuild.SourceMapInline, SourcesContent: esbuild.SourcesContentInclude, Sourcefile: path.Base(file),
		LogLevel: esbuild.LogLevelSilent,
	})
	if len(res.Errors) > 0 {
		return sandbox.Compiled{Fault: fault(res.Errors[0], func(name string) string { return name })}
	}
	// Always a module: node applies source maps to no other text of this kind.
	return sandbox.Compiled{Text: string(res.Code), Module: true, Mapped: true}
}

// bundler is esbuild's plugin, which asks Imports.
type bundler struct {
	ctx     context.Context
	entry   string
	imports sandbox.Imports
	changed atomic.Bool // a file is in the bundle, or node is told another name
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

// kinds are esbuild's words for the forms of an import.
var kinds = map[esbuild.ResolveKind]sandbox.ImportKind{
	esbuild.ResolveJSImportStatement: sandbox.ImportStatement, esbuild.ResolveJSDynamicImport: sandbox.ImportCall,
	esbuild.ResolveJSRequireCall: sandbox.RequireCall, esbuild.ResolveJSRequireResolve: sandbox.RequireResolve,
}

// resolve says what an import means.
func (b *bundler) resolve(a esbuild.OnResolveArgs) (esbuild.OnResolveResult, error) {
	if a.Kind == esbuild.ResolveEntryPoint {
		return esbuild.OnResolveResult{Path: a.Path, Namespace: inside}, nil
	}
	kind, ok := kinds[a.Kind]
	if !ok {
		kind = sandbox.ImportStatement
	}
	switch r := b.imports.Resolve(b.ctx, sandbox.Import{Path: a.Path, Importer: a.Importer, Kind: kind}); {
	case r.Problem != "":
		return esbuild.OnResolveResult{Errors: []esbuild.Message{{Text: r.Problem}}}, nil
	case r.External:
		if r.Path != a.Path {
			b.changed.Store(true)
		}
		return esbuild.OnResolveResult{Path: r.Path, External: true}, nil
	default:
		return esbuild.OnResolveResult{Path: r.Path, Namespace: inside}, nil
	}
}

// load gives esbuild a file of the bundle.
func (b *bundler) load(p string) esbuild.OnLoadResult {
	b.changed.Store(true)
	l := b.imports.Load(b.ctx, p)
	if l.Problem != "" {
		return esbuild.OnLoadResult{Errors: []esbuild.Message{{Text: l.Problem}}}
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
	code := string(l.Text)
	if loader != esbuild.LoaderJSON && slices.ContainsFunc([]string{"__filename", "__dirname", "import.meta"}, func(s string) bool { return strings.Contains(code, s) }) {
		code, loader = placed(p, code, loader)
	}
	return esbuild.OnLoadResult{Contents: &code, Loader: loader}
}

// placed makes a file's text say where the file is, as it did on its own. One
// with a fault is left as it is; the bundle's own errors say it.
func placed(p, code string, loader esbuild.Loader) (string, esbuild.Loader) {
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

// Bytes of what a fault quotes: of the line, on each side of its column, and of
// the complaint, which may hold a name of any length.
const (
	besideFault = 100
	maxProblem  = 500
)

// fault is esbuild's complaint with its place.
func fault(e esbuild.Message, display func(string) string) string {
	text := cut(e.Text, 0, maxProblem)
	l := e.Location
	if l == nil {
		return text
	}
	at := min(max(l.Column, 0), len(l.LineText))
	before, after := cut(l.LineText[:at], at-besideFault, at), cut(l.LineText[at:], 0, besideFault)
	return fmt.Sprintf("%s:%d:%d: %s\n%s%s\n%s^", display(l.File), l.Line, l.Column+1, text, before, after, strings.Repeat(" ", utf8.RuneCountInString(before)))
}

// cut is the bytes of s from one place to another, without parts of characters;
// an ellipsis stands for what is left out.
func cut(s string, from, to int) string {
	from, to = max(from, 0), min(to, len(s))
	for from > 0 && from < to && !utf8.RuneStart(s[from]) {
		from++
	}
	for to < len(s) && to > from && !utf8.RuneStart(s[to]) {
		to--
	}
	text := s[from:to]
	if from > 0 {
		text = "…" + text
	}
	if to < len(s) {
		text += "…"
	}
	return text
}
