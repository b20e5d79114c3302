package tools

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"berth/sandbox"
)

// Bounds of what the rule tags do not bound.
const (
	maxText  = 64 << 10 // bytes of a text
	maxItems = 1000     // entries of a list or map
	maxFault = 10       // faults named in one answer
	// faults put into words, to name the first in order
	maxWorded = 200
)

// validator checks the arguments of one tool.
type validator struct {
	tool   string
	args   reflect.Type
	fields []field
	// schema is compiled by the first call: all tools' together take a good part
	// of a server's start. That each can be is shown by a test.
	schema      func() (*jsonschema.Schema, error)
	unavailable map[string]string // argument -> why this version lacks it
}

func newValidator(tool string, args reflect.Type, o shape, unavailable map[string]string) *validator {
	return &validator{tool: tool, args: args, fields: fields(args), unavailable: unavailable,
		schema: sync.OnceValues(func() (*jsonschema.Schema, error) { return compileSchema(tool, o.schemaOf(args)) })}
}

func compileSchema(tool string, schema []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", tool, err)
	}
	c := jsonschema.NewCompiler()
	url := "mem:///" + tool
	if err := c.AddResource(url, doc); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", tool, err)
	}
	s, err := c.Compile(url)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", tool, err)
	}
	return s, nil
}

// decode checks raw, the JSON of the arguments as it came, and decodes it into
// a new argument struct. All faults are reported at once, each a
// *sandbox.FieldError.
func (v *validator) decode(raw json.RawMessage) (reflect.Value, error) {
	out := reflect.New(v.args)
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		raw = json.RawMessage("{}")
	}
	if err := checkEncoding(raw); err != nil {
		return out, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return out, &sandbox.FieldError{Field: "arguments", Problem: "not valid JSON", Allowed: "one JSON object"}
	}
	if _, ok := doc.(map[string]any); !ok {
		return out, &sandbox.FieldError{Field: "arguments", Problem: "not an object", Allowed: "one JSON object"}
	}
	schema, err := v.schema()
	if err != nil {
		return out, err
	}
	if err := schema.Validate(doc); err != nil {
		var ve *jsonschema.ValidationError
		if !errors.As(err, &ve) {
			return out, err
		}
		return out, v.faults(ve, doc)
	}
	if err := json.Unmarshal(raw, out.Interface()); err != nil {
		fe := &sandbox.FieldError{Field: "arguments", Problem: "a value does not fit its type", Hint: "compare the call with the tool's schema"}
		var te *json.UnmarshalTypeError
		if errors.As(err, &te) && te.Field != "" { // a number that Go cannot hold
			fe.Field, fe.Problem, fe.Hint = te.Field, "the "+te.Value+" does not fit", "give a smaller one"
		}
		return out, fe
	}
	return out, v.checkTexts(out.Elem())
}

// checkEncoding refuses text that JSON decoding would silently change.
func checkEncoding(raw []byte) error {
	bad := ""
	if !utf8.Valid(raw) {
		bad = "not valid UTF-8"
	} else if loneSurrogate(raw) {
		bad = `a \u escape is half of a surrogate pair`
	}
	if bad == "" {
		return nil
	}
	return &sandbox.FieldError{Field: "arguments", Problem: bad, Allowed: "UTF-8 text",
		Hint: "send bytes that are no text as base64 where the tool takes it (write_file, send_stdin)"}
}

// loneSurrogate finds a \uD800–\uDFFF escape without its other half.
func loneSurrogate(raw []byte) bool {
	code := func(i int) (uint64, bool) {
		if i+6 > len(raw) || raw[i] != '\\' || raw[i+1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(raw[i+2:i+6]), 16, 16)
		return n, err == nil
	}
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			next := bytes.IndexByte(raw[i:], '\\')
			if next < 0 {
				return false
			}
			i += next
		}
		n, ok := code(i)
		switch {
		case !ok:
			i++ // the escaped character
		case n >= 0xD800 && n < 0xDC00:
			low, ok := code(i + 6)
			if !ok || low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 11
		case n >= 0xDC00 && n <= 0xDFFF:
			return true
		default:
			i += 5
		}
	}
	return false
}

// faults turns the validator's tree into one FieldError per fault, in the
// order of the arguments.
func (v *validator) faults(ve *jsonschema.ValidationError, doc any) error {
	var list []error
	left := 0 // not put into words, which takes longer than to find them
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		switch k, _ := e.ErrorKind.(*kind.AdditionalProperties); {
		case len(e.Causes) != 0:
		case len(list) >= maxWorded:
			left += 1
			if k != nil {
				left += len(k.Properties) - 1
			}
		default:
			if k != nil && len(k.Properties) > maxWorded {
				slices.Sort(k.Properties)
				left += len(k.Properties) - maxWorded
				k.Properties = k.Properties[:maxWorded]
			}
			list = append(list, v.fault(e, doc)...)
		}
		for _, c := range e.Causes {
			walk(c)
		}
	}
	walk(ve)
	slices.SortStableFunc(list, func(a, b error) int {
		return strings.Compare(a.Error(), b.Error())
	})
	if len(list) > maxFault {
		list = append(list[:maxFault], moreFaults(len(list)-maxFault+left))
	}
	return errors.Join(list...)
}

// fault describes one leaf of the validator's tree.
func (v *validator) fault(e *jsonschema.ValidationError, doc any) []error {
	name := strings.Join(e.InstanceLocation, ".")
	one := func(problem, allowed string) []error {
		return []error{&sandbox.FieldError{Field: name, Problem: problem, Allowed: allowed}}
	}
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		var out []error
		for _, m := range k.Missing {
			out = append(out, &sandbox.FieldError{Field: join(name, m), Problem: "missing, but required", Allowed: v.meaning(e.InstanceLocation, m)})
		}
		return out
	case *kind.AdditionalProperties:
		var out []error
		for _, p := range k.Properties {
			out = append(out, v.unknown(e.InstanceLocation, p))
		}
		return out
	case *kind.Type:
		got := at(doc, e.InstanceLocation)
		problem := strings.TrimSuffix(article(k.Got)+", "+shown(e.InstanceLocation, got), ", ")
		if k.Got == "null" {
			problem = "null"
		}
		fe := &sandbox.FieldError{Field: name, Problem: problem, Allowed: typeNames(k.Want)}
		if s, ok := got.(string); ok && len(k.Want) == 1 {
			switch _, err := strconv.ParseFloat(s, 64); {
			case err == nil && (k.Want[0] == "number" || k.Want[0] == "integer"):
				fe.Problem, fe.Hint = "the number is in quotes", "pass it without quotes: "+s
			case k.Want[0] == "boolean" && (s == "true" || s == "false"):
				fe.Problem, fe.Hint = "the value is in quotes", "pass it without quotes: "+s
			}
		}
		return []error{fe}
	case *kind.Enum:
		var want []string
		for _, w := range k.Want {
			want = append(want, fmt.Sprint(w))
		}
		fe := &sandbox.FieldError{Field: name, Problem: show(k.Got) + " is not one of its values", Allowed: strings.Join(want, ", ")}
		if s, ok := k.Got.(string); ok {
			if near := nearest(s, want); near != "" {
				fe.Hint = "did you mean " + near + "?"
			}
		}
		return []error{fe}
	case *kind.Minimum:
		return one(show(at(doc, e.InstanceLocation))+" is too small", v.bounds(e.InstanceLocation))
	case *kind.Maximum:
		return one(show(at(doc, e.InstanceLocation))+" is too large", v.bounds(e.InstanceLocation))
	case *kind.MinItems:
		return one("empty", fmt.Sprintf("%d entry or more", k.Want))
	case *kind.Pattern:
		return one(strings.TrimSpace(shown(e.InstanceLocation, k.Got)+" has the wrong form"), "text that matches "+k.Want)
	}
	return one("not allowed here", "what the tool's schema says")
}

// unknown refuses an argument that does not exist, and says which was meant.
func (v *validator) unknown(location []string, name string) error {
	if why := v.unavailable[name]; why != "" && len(location) == 0 {
		return &sandbox.FieldError{Field: name, Problem: why, Hint: "leave it out"}
	}
	known := v.known(location)
	fe := &sandbox.FieldError{Field: join(strings.Join(location, "."), clip(name, 80)),
		Problem: v.tool + " has no such argument", Allowed: strings.Join(known, ", ")}
	if near := nearest(name, known); near != "" {
		fe.Hint = "did you mean " + near + "?"
	}
	return fe
}

// known lists the names allowed at a place.
func (v *validator) known(location []string) []string {
	fs := v.fields
	if f := v.find(location); f != nil && inner(f.typ) != nil {
		fs = fields(inner(f.typ))
	}
	names := make([]string, len(fs))
	for i, f := range fs {
		names[i] = f.name
	}
	return names
}

// find returns the field at the first step of a place.
func (v *validator) find(location []string) *field {
	if len(location) == 0 {
		return nil
	}
	for i := range v.fields {
		if v.fields[i].name == location[0] {
			return &v.fields[i]
		}
	}
	return nil
}

// inner is the struct that t is, points to, or lists; nil when there is none.
func inner(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

func (v *validator) meaning(location []string, name string) string {
	fs := v.fields
	if f := v.find(location); f != nil && inner(f.typ) != nil {
		fs = fields(inner(f.typ))
	}
	for _, f := range fs {
		if f.name != name {
			continue
		}
		var schema struct {
			Type string `json:"type"`
		}
		_ = json.Unmarshal([]byte(shape{}.schema(f)), &schema) // made by us
		what := typeNames([]string{schema.Type})
		if f.doc != "" {
			what += " (" + strings.TrimSuffix(f.doc, ".") + ")"
		}
		return what
	}
	return ""
}

func (v *validator) bounds(location []string) string {
	f := v.find(location)
	if f == nil {
		return ""
	}
	if t := inner(f.typ); t != nil && len(location) > 1 {
		for _, g := range fields(t) {
			if g.name == location[len(location)-1] {
				f = &g
			}
		}
	}
	lo, hi := f.rules["min"], f.rules["max"]
	switch {
	case lo != "" && hi != "":
		return lo + " to " + hi
	case lo != "":
		return lo + " or more"
	}
	return "at most " + hi
}

func typeNames(want []string) string {
	names := make([]string, len(want))
	for i, w := range want {
		names[i] = article(w)
	}
	return strings.Join(names, " or ")
}

// article is a JSON type's name in a sentence.
func article(jsonType string) string {
	switch jsonType {
	case "array":
		return "a list"
	case "object":
		return "an object"
	case "integer":
		return "a whole number"
	case "string":
		return "text"
	case "boolean":
		return "true or false"
	case "null":
		return "null"
	}
	return "a " + jsonType
}

// at finds the value at a place in a document.
func at(doc any, location []string) any {
	for _, step := range location {
		switch d := doc.(type) {
		case map[string]any:
			doc = d[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(d) {
				return nil
			}
			doc = d[i]
		default:
			return nil
		}
	}
	return doc
}

// private are the arguments whose values are repeated nowhere: they may hold
// secrets.
var private = map[string]bool{"env": true, "stdin": true, "text": true, "base64": true,
	"content": true, "code": true, "edits": true, "dockerfile": true, "files": true, "steps": true, "credentials": true}

// shown is show, but nothing for the value of a private argument.
func shown(location []string, v any) string {
	if len(location) > 0 && private[location[0]] {
		return ""
	}
	return show(v)
}

// show is a value for an error's text: short, and on one line.
func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "a value"
	}
	return clip(string(b), 60)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

// aliases are words that callers use for ours, beyond what spelling finds.
var aliases = map[string][]string{
	"timeout": {"timeout_seconds"}, "timeout_ms": {"timeout_seconds"}, "timeoutms": {"timeout_seconds"},
	"cmd": {"command"}, "script": {"command", "code"}, "args": {"argv"}, "arguments": {"argv"},
	"workdir": {"cwd", "working_directory"}, "dir": {"cwd", "path"}, "directory": {"cwd", "path"}, "working_dir": {"cwd", "working_directory"},
	"environment": {"env"}, "envs": {"env"}, "input": {"stdin", "text"}, "data": {"text", "content"}, "pid": {"process_id"}, "id": {"session_id"},
	"sandbox_id": {"session_id"}, "sandbox": {"session_id"}, "file": {"path"}, "filename": {"path"}, "file_path": {"path"}, "contents": {"content"},
	"old_string": {"edits"}, "new_string": {"edits"}, "old_str": {"old_text", "edits"}, "new_str": {"new_text", "edits"},
	"wait": {"wait_seconds"}, "wait_ms": {"wait_seconds"}, "lines": {"limit", "tail_lines"}, "tail": {"tail_lines"}, "pty": {"tty"}, "lang": {"language"},
	"runtime": {"language"}, "shell": {"command"}, "background": {"wait_seconds"}, "auto_stop_interval": {"auto_stop_minutes"},
	"auto_archive_interval": {"auto_archive_minutes"}, "auto_delete_interval": {"auto_delete_minutes"},
}
