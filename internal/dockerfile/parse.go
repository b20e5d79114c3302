// Package dockerfile reads Dockerfiles, and lists of steps, into a
// sandbox.Build. Reading is BuildKit's own, so that what is written elsewhere
// means the same here; which instructions there are is decided here: a snapshot
// is files and a few settings, and what would say more is an error with its line,
// never left out in silence.
package dockerfile

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"berth/sandbox"
)

// MaxText bounds a Dockerfile, in bytes.
const MaxText = 256 << 10

// maxFaults bounds those that one answer names.
const maxFaults = 10

// SnapshotPrefix begins a base that is one of the caller's snapshots.
const SnapshotPrefix = "snapshot:"

// instructions are those there are, for errors.
const instructions = "FROM, RUN, COPY, ADD, ENV, ARG, WORKDIR, USER, SHELL, LABEL"

// refused are instructions of Docker's that mean nothing for a snapshot, with
// what to do instead.
var refused = map[string]string{
	"cmd":         "a snapshot starts nothing; leave it out, and start the program with spawn_process or execute_command",
	"entrypoint":  "a snapshot starts nothing; leave it out, and start the program with spawn_process or execute_command",
	"expose":      "leave it out; expose_port shows a port of a running sandbox",
	"volume":      "leave it out; start_sandbox attaches volumes",
	"healthcheck": "leave it out; nothing watches it",
	"stopsignal":  "leave it out; a sandbox's processes get TERM, then KILL",
	"onbuild":     "leave it out, or write its instruction where it is to run",
	"maintainer":  "leave it out, or write LABEL maintainer=NAME",
}

// noEffect are those of them without which an image is the same files: Skipping
// tells of them, where Parse refuses them.
var noEffect = map[string]bool{"cmd": true, "entrypoint": true, "expose": true, "volume": true, "healthcheck": true, "stopsignal": true, "maintainer": true}

type reader struct {
	skipped func(line int, text string) // nil: nothing is

	field string
	b     sandbox.Build
	errs  []error
	args  map[string]string // those before FROM
	base  bool              // FROM was read
}

func (r *reader) add(line int, problem, allowed, hint string) {
	if line > 0 {
		problem = fmt.Sprintf("line %d: %s", line, problem)
	}
	r.errs = append(r.errs, &sandbox.FieldError{Field: r.field, Problem: problem, Allowed: allowed, Hint: hint})
}

func (r *reader) err() error {
	if n := len(r.errs); n > maxFaults {
		r.errs = append(r.errs[:maxFaults:maxFaults], &sandbox.FieldError{Field: r.field, Problem: fmt.Sprintf("and %d faults more", n-maxFaults)})
	}
	return errors.Join(r.errs...)
}

// Parse reads a Dockerfile, whose COPY and ADD find files. Its error joins a
// *sandbox.FieldError of the field dockerfile for each fault, with its line.
func Parse(text string, files map[string]sandbox.BuildFile) (b sandbox.Build, err error) {
	return parse(text, files, nil)
}

// Skipping is Parse for Dockerfiles that were written for another builder: it
// goes over instructions that mean nothing for a snapshot's files (CMD,
// ENTRYPOINT, EXPOSE, VOLUME, HEALTHCHECK, STOPSIGNAL, MAINTAINER), and calls
// skipped for each.
func Skipping(text string, files map[string]sandbox.BuildFile, skipped func(line int, text string)) (sandbox.Build, error) {
	return parse(text, files, skipped)
}

func parse(text string, files map[string]sandbox.BuildFile, skipped func(line int, text string)) (b sandbox.Build, err error) {
	r := &reader{field: "dockerfile", args: map[string]string{}, skipped: skipped}
	if len(text) > MaxText {
		r.add(0, fmt.Sprintf("it has %d bytes", len(text)), fmt.Sprintf("at most %d", MaxText), "copy long text from files")
		return b, r.err()
	}
	defer func() {
		// Foreign code reads foreign text; a fault of it is no end of the server.
		if p := recover(); p != nil {
			err = &sandbox.FieldError{Field: "dockerfile", Problem: "it cannot be read", Hint: "simplify it"}
		}
	}()
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		line := 0
		var at *parser.LocationError
		if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
			line = at.Locations[0][0].Start.Line
		}
		r.add(line, oneLine(err.Error()), "", "write it as for docker build")
		return b, r.err()
	}
	if parsed.EscapeToken != parser.DefaultEscapeToken {
		r.add(1, "escape is not the backslash", `escape=\`, "leave the directive out")
		return b, r.err()
	}
	for _, n := range parsed.AST.Children {
		r.instruction(n)
	}
	if !r.base && len(r.errs) == 0 {
		r.add(0, "there is no FROM", "FROM IMAGE, or FROM snapshot:NAME, first", "")
	}
	r.b.Files = files
	return r.b, r.err()
}

func (r *reader) instruction(n *parser.Node) {
	name := strings.ToLower(n.Value)
	line := n.StartLine
	if r.skipped != nil && noEffect[name] {
		r.skipped(line, source(n))
		return
	}
	if what, ok := refused[name]; ok {
		r.add(line, strings.ToUpper(name)+" is not possible here", instructions, what)
		return
	}
	if !r.base && name != "from" && name != "arg" {
		if r.known(name) {
			r.add(line, strings.ToUpper(name)+" comes before FROM", "only ARG before FROM", "")
			r.base = true // said once
		} else {
			r.unknown(n)
		}
		return
	}
	step := sandbox.BuildStep{Kind: sandbox.StepKind(name), Line: line, Text: source(n)}
	var ok bool
	switch name {
	case "from":
		r.from(n)
		return
	case "run":
		ok = r.run(n, &step)
	case "copy", "add":
		step.Kind = sandbox.StepCopy
		ok = r.copy(n, name, &step)
	case "env", "label":
		ok = r.pairs(n, name, &step)
	case "arg":
		if ok = r.arg(n, &step); ok && !r.base {
			for _, v := range step.Vars {
				if !v.Unset {
					r.args[v.Name], _ = Expand(v.Value, r.args) // checked
				}
			}
			return
		}
		for i, v := range step.Vars {
			// One declared again has the value it had before FROM.
			if value, was := r.args[v.Name]; was && v.Unset {
				step.Vars[i] = sandbox.BuildVar{Name: v.Name, Value: Quote(value)}
			}
		}
	case "workdir", "user":
		ok = r.noFlags(n) && r.word(n, &step)
	case "shell":
		step.Argv = words(n.Next)
		if ok = r.noFlags(n); ok && (!n.Attributes["json"] || len(step.Argv) == 0) {
			ok = false
			r.add(line, "SHELL is no list of texts", `SHELL ["/bin/bash", "-c"]`, "")
		}
	default:
		r.unknown(n)
	}
	if ok {
		r.b.Steps = append(r.b.Steps, step)
	}
}

func (r *reader) known(name string) bool {
	for k := range strings.SplitSeq(instructions, ", ") {
		if strings.EqualFold(k, name) {
			return true
		}
	}
	return false
}

func (r *reader) unknown(n *parser.Node) {
	r.add(n.StartLine, fmt.Sprintf("there is no instruction %.40q", n.Value), instructions, "")
}

func (r *reader) noFlags(n *parser.Node) bool {
	for _, f := range n.Flags {
		r.add(n.StartLine, fmt.Sprintf("%s has no flag %.40s here", strings.ToUpper(n.Value), f), "", "leave it out")
	}
	return len(n.Flags) == 0
}

func (r *reader) from(n *parser.Node) {
	line := n.StartLine
	if r.base && r.b.Origin != "" {
		r.add(line, "a second FROM: several stages are not possible", "one FROM", "build the first stage as a snapshot of its own, and begin with FROM snapshot:NAME")
		return
	}
	r.base = true
	r.b.Origin = source(n)
	if !r.noFlags(n) {
		return
	}
	list := words(n.Next)
	if len(list) != 1 && (len(list) != 3 || !strings.EqualFold(list[1], "as")) {
		r.add(line, "FROM names no image", "FROM IMAGE, or FROM snapshot:NAME", "")
		return
	}
	base, err := Expand(list[0], r.args)
	if err != nil {
		r.add(line, err.Error(), "", "")
		return
	}
	if err := From(&r.b, base); err != nil {
		r.add(line, err.Error(), "FROM IMAGE, or FROM snapshot:NAME", "")
	}
}

// From makes base, as it stands after FROM, the base of b.
func From(b *sandbox.Build, base string) error {
	switch name, ok := strings.CutPrefix(base, SnapshotPrefix); {
	case ok && name == "":
		return errors.New("snapshot: names no snapshot; list_snapshots shows those there are")
	case ok:
		b.Snapshot = name
	case base == "":
		return errors.New("the image's name is empty")
	case base == "scratch":
		return errors.New("scratch has no shell and no user, so that no step and no sandbox could run in it; begin with a small image, or pass steps without an image, which begin with this machine's own system")
	default:
		b.Image = base
	}
	return nil
}

func (r *reader) run(n *parser.Node, step *sandbox.BuildStep) bool {
	line := n.StartLine
	for _, f := range n.Flags {
		r.add(line, fmt.Sprintf("RUN has no flag %.40s here", f), "", "leave it out: each step has the network and the limits of every sandbox, and finished steps are kept")
	}
	if len(n.Flags) > 0 {
		return false
	}
	list := words(n.Next)
	if len(list) == 0 {
		r.add(line, "RUN has no command", `RUN COMMAND, or RUN ["PROGRAM", "ARGUMENT"]`, "")
		return false
	}
	if n.Attributes["json"] {
		if step.Argv = list; list[0] == "" {
			r.add(line, "RUN has no program", `RUN ["PROGRAM", "ARGUMENT"]`, "")
			return false
		}
		return true
	}
	step.Script = list[0]
	if len(n.Heredocs) == 0 {
		return true
	}
	// Nothing but a document is the script itself; else the shell reads it.
	if d := n.Heredocs[0]; len(n.Heredocs) == 1 && onlyDocument.MatchString(step.Script) {
		step.Script = d.Content
		if d.Chomp {
			step.Script = parser.ChompHeredocContent(d.Content)
		}
		if strings.TrimSpace(step.Script) == "" {
			r.add(line, "RUN has an empty document", "", "leave it out")
			return false
		}
		if strings.HasPrefix(step.Script, "#!") {
			r.add(line, "a document that names its own interpreter is not possible here", "", "name the interpreter before it: RUN python3 - <<EOF")
			return false
		}
		return true
	}
	for _, d := range n.Heredocs {
		step.Script += "\n" + d.Content + d.Name
	}
	return true
}

var onlyDocument = regexp.MustCompile(`^<<-?\s*\S+$`)

func (r *reader) copy(n *parser.Node, name string, step *sandbox.BuildStep) bool {
	line := n.StartLine
	upper := strings.ToUpper(name)
	ok := true
	bad := func(problem, allowed, hint string) {
		ok = false
		r.add(line, problem, allowed, hint)
	}
	c := &step.Copy
	c.Unpack = name == "add"
	for _, f := range n.Flags {
		flag, value, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		switch flag {
		case "chown":
			if c.Owner = value; value == "" || !r.checkWord(line, value) {
				bad("--chown has no user", "--chown=USER, USER:GROUP or numbers", "")
			}
		case "chmod":
			mode, err := strconv.ParseUint(value, 8, 16)
			if err != nil || mode > 0o777 {
				bad(fmt.Sprintf("--chmod=%.40s is no mode here", value), "000 to 777 in octal", "RUN chmod for anything else")
				continue
			}
			m := fs.FileMode(mode)
			c.Mode = &m
		case "from":
			bad(upper+" --from copies from a stage or another image", "files that are given", "begin FROM that image, or fetch what is needed in RUN")
		default:
			bad(fmt.Sprintf("%s has no flag %.40s here", upper, f), "--chown, --chmod", "leave it out")
		}
	}
	list := words(n.Next)
	if len(list) < 2 {
		bad(upper+" names no source or no destination", upper+" SOURCE... DESTINATION", "")
		return false
	}
	documents := map[string]parser.Heredoc{}
	for _, d := range n.Heredocs {
		documents[d.Name] = d
	}
	c.To = list[len(list)-1]
	ok = r.checkWord(line, c.To) && ok
	for _, w := range list[:len(list)-1] {
		if d := parser.MustParseHeredoc(w); d != nil && !n.Attributes["json"] {
			d := documents[d.Name]
			if d.Chomp {
				d.Content = parser.ChompHeredocContent(d.Content)
			}
			c.Inline = append(c.Inline, sandbox.BuildInline{Name: d.Name, Content: d.Content, Expand: d.Expand})
			continue
		}
		if name == "add" && remote.MatchString(w) {
			bad(fmt.Sprintf("ADD does not fetch %.200s", w), "files that are given", "fetch it in RUN, with curl for example")
			continue
		}
		ok = r.checkWord(line, w) && ok
		c.From = append(c.From, w)
	}
	return ok
}

var remote = regexp.MustCompile(`^(?i:[a-z][a-z0-9+.-]*://|git@)`)

var (
	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	labelKey = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]*$`)
)

func (r *reader) pairs(n *parser.Node, name string, step *sandbox.BuildStep) bool {
	if !r.noFlags(n) {
		return false
	}
	line, upper := n.StartLine, strings.ToUpper(name)
	list := words(n.Next)
	if len(list) == 0 || len(list)%3 != 0 {
		r.add(line, upper+" sets nothing", upper+" NAME=VALUE", "")
		return false
	}
	ok := true
	for i := 0; i < len(list); i += 3 {
		key, err := Expand(list[i], nil)
		switch {
		case name == "env" && (err != nil || !variable.MatchString(list[i])):
			ok = false
			r.add(line, fmt.Sprintf("%.80q is not a variable name", list[i]), "letters, digits and '_', not beginning with a digit", "")
		case name == "label" && (err != nil || len(key) > 128 || !labelKey.MatchString(key)):
			ok = false
			r.add(line, fmt.Sprintf("%.80q is not a label key", list[i]), "at most 128 letters, digits, '.', '_', '/' and '-'", "")
		}
		ok = r.checkWord(line, list[i+1]) && ok
		step.Vars = append(step.Vars, sandbox.BuildVar{Name: key, Value: list[i+1]})
	}
	return ok
}

func (r *reader) arg(n *parser.Node, step *sandbox.BuildStep) bool {
	if !r.noFlags(n) {
		return false
	}
	line := n.StartLine
	list := words(n.Next)
	if len(list) == 0 {
		r.add(line, "ARG names nothing", "ARG NAME, or ARG NAME=DEFAULT", "")
		return false
	}
	ok := true
	for _, w := range list {
		name, value, has := strings.Cut(w, "=")
		if !variable.MatchString(name) {
			ok = false
			r.add(line, fmt.Sprintf("%.80q is not a variable name", name), "letters, digits and '_', not beginning with a digit", "")
			continue
		}
		ok = r.checkWord(line, value) && ok
		step.Vars = append(step.Vars, sandbox.BuildVar{Name: name, Value: value, Unset: !has})
	}
	return ok
}

func (r *reader) word(n *parser.Node, step *sandbox.BuildStep) bool {
	if list := words(n.Next); len(list) == 1 {
		step.Word = list[0]
		return r.checkWord(n.StartLine, step.Word)
	}
	r.add(n.StartLine, strings.ToUpper(n.Value)+" names nothing", strings.ToUpper(n.Value)+" NAME", "")
	return false
}

// checkWord finds out whether a word can be expanded, whatever is set.
func (r *reader) checkWord(line int, w string) bool {
	if err := check(w); err != nil {
		r.add(line, err.Error(), "", "")
		return false
	}
	return true
}

func words(n *parser.Node) []string {
	var list []string
	for ; n != nil; n = n.Next {
		list = append(list, n.Value)
	}
	return list
}

// source is an instruction as it was written, with its documents.
func source(n *parser.Node) string {
	text := strings.TrimSpace(n.Original)
	for _, d := range n.Heredocs {
		text += "\n" + d.Content + d.Name
	}
	return text
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
