package tools

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"berth/internal/secret"
)

// Argument structs describe themselves by tags, so that what is published and
// what is decoded cannot differ:
//
//	json:"name"   the argument's name
//	doc:"text"    its description
//	schema:"…"    rules, separated by ';':
//	  required           must be given
//	  enum=a|b|c         the values allowed
//	  default=v          published; the handler applies it
//	  min=n, max=n       bounds of a number
//	  bytes=n            longest text in bytes, of each text in a list or map
//	  items=n, minitems=n  bounds of a list's or map's length
//	  pattern=re         published; says what a text looks like
//	  nul                the text may hold NUL bytes
//
// Strings without "nul" hold none. The rules bytes and items are not published: the
// list of tools is paid for on every request.

// field is one argument.
type field struct {
	name     string
	doc      string
	required bool
	rules    map[string]string
	typ      reflect.Type
	index    []int
}

// known holds what fields has found, by type: each call of a tool asks for it more
// than once.
var known sync.Map

// fields lists the arguments of an argument struct, embedded ones in place. The
// list is everybody's.
func fields(t reflect.Type) []field {
	if list, ok := known.Load(t); ok {
		return list.([]field)
	}
	var out []field
	for f := range fieldsOf(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		rules := map[string]string{}
		for rule := range strings.SplitSeq(f.Tag.Get("schema"), ";") {
			if rule == "" {
				continue
			}
			k, v, _ := strings.Cut(rule, "=")
			rules[k] = v
		}
		_, required := rules["required"]
		out = append(out, field{name: name, doc: f.Tag.Get("doc"), required: required,
			rules: rules, typ: f.Type, index: f.Index})
	}
	known.Store(t, out)
	return out
}

func fieldsOf(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for _, f := range reflect.VisibleFields(t) {
			if f.Anonymous || f.Tag.Get("json") == "" {
				continue
			}
			if !yield(f) {
				return
			}
		}
	}
}

// shape is what of an argument struct's schema its tags do not say.
type shape struct {
	bare []string // names of properties that go without their descriptions
	// enums are the values allowed of texts of that name, at any depth, which
	// are only known once a server is configured.
	enums map[string][]string
}

// schemaOf builds the JSON Schema of an argument struct, its properties in
// the order of the fields.
func (o shape) schemaOf(t reflect.Type) json.RawMessage {
	var props, required []string
	for _, f := range fields(t) {
		if slices.Contains(o.bare, f.name) {
			f.doc = ""
		}
		props = append(props, quote(f.name)+":"+o.schema(f))
		if f.required {
			required = append(required, quote(f.name))
		}
	}
	s := `{"type":"object","properties":{` + strings.Join(props, ",") + `}`
	if len(required) > 0 {
		s += `,"required":[` + strings.Join(required, ",") + `]`
	}
	return json.RawMessage(s + `,"additionalProperties":false}`)
}

// schema is the field's own schema.
func (o shape) schema(f field) string {
	t := f.typ
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	parts := []string{o.typeSchema(t)}
	allowed := o.enums[f.name]
	if v := f.rules["enum"]; v != "" {
		allowed = strings.Split(v, "|")
	}
	if len(allowed) > 0 {
		var values []string
		for _, e := range allowed {
			values = append(values, quote(e))
		}
		parts = append(parts, `"enum":[`+strings.Join(values, ",")+`]`)
	}
	for _, r := range [][2]string{{"min", "minimum"}, {"max", "maximum"}, {"minitems", "minItems"}} {
		if v := f.rules[r[0]]; v != "" {
			parts = append(parts, quote(r[1])+":"+v)
		}
	}
	if v := f.rules["pattern"]; v != "" {
		parts = append(parts, `"pattern":`+quote(v))
	}
	if v, ok := f.rules["default"]; ok {
		if t.Kind() == reflect.String {
			v = quote(v)
		}
		parts = append(parts, `"default":`+v)
	}
	if f.doc != "" {
		parts = append(parts, `"description":`+quote(f.doc))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// typeSchema is the inside of the schema of a Go type.
func (o shape) typeSchema(t reflect.Type) string {
	inner := shape{enums: o.enums}
	switch t.Kind() {
	case reflect.String:
		return `"type":"string"`
	case reflect.Bool:
		return `"type":"boolean"`
	case reflect.Int, reflect.Int64:
		return `"type":"integer"`
	case reflect.Float64:
		return `"type":"number"`
	case reflect.Struct:
		if t == reflect.TypeFor[secret.Text]() {
			return `"type":"string"`
		}
		s := string(inner.schemaOf(t))
		return s[1 : len(s)-1]
	case reflect.Slice:
		if t == reflect.TypeFor[textList]() {
			return `"type":["string","array"],"items":{"type":"string"}`
		}
		if t == reflect.TypeFor[mountList]() {
			return `"type":"object","additionalProperties":` + string(inner.schemaOf(t.Elem()))
		}
		if t.Elem().Kind() == reflect.Struct {
			return `"type":"array","items":` + string(inner.schemaOf(t.Elem()))
		}
		return `"type":"array","items":{` + inner.typeSchema(t.Elem()) + `}`
	case reflect.Map:
		if t.Elem().Kind() == reflect.Pointer {
			return `"type":"object","additionalProperties":{"type":["string","null"]}`
		}
		return `"type":"object","additionalProperties":{` + inner.typeSchema(t.Elem()) + `}`
	}
	panic(fmt.Sprintf("tools: no schema for %s", t))
}

func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	return strings.TrimSuffix(b.String(), "\n")
}

// limit reads a numeric rule; missing is no limit.
func (f field) limit(rule string, none int) int {
	v, ok := f.rules[rule]
	if !ok {
		return none
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		panic("tools: bad rule " + rule + "=" + v)
	}
	return n
}
