package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"berth/mounts"
)

// file decodes a YAML document over the config. It walks the parsed nodes
// itself, so that every problem is found in one go and knows its line.
func (l *loader) file(name string, data []byte) {
	var doc yaml.Node
	d := yaml.NewDecoder(strings.NewReader(string(data)))
	if err := d.Decode(&doc); err != nil {
		if err.Error() != "EOF" { // an empty file changes nothing
			text, hint := strings.TrimPrefix(err.Error(), "yaml: "), "the file must be YAML; berth's config.example.yaml shows it"
			if tabbed(text, data) {
				hint = "that line begins with a tab: YAML wants spaces there"
			}
			l.report("", name, text, "", hint)
		}
		return
	}
	var second yaml.Node
	if d.Decode(&second) == nil {
		l.report("", at(name, &second), "a second YAML document", "", "keep everything in one document")
	}
	if len(doc.Content) == 1 {
		l.node(name, "", doc.Content[0], reflect.ValueOf(l.config).Elem(), false)
	}
}

// tabbed tells whether the line that a complaint of the YAML parser names has a
// tab before its text.
func tabbed(complaint string, data []byte) bool {
	var n int
	if _, err := fmt.Sscanf(complaint, "line %d:", &n); err != nil {
		return false
	}
	lines := strings.Split(string(data), "\n")
	if n < 1 || n > len(lines) {
		return false
	}
	line := lines[n-1]
	return strings.Contains(line[:len(line)-len(strings.TrimLeft(line, " \t-"))], "\t")
}

func at(file string, n *yaml.Node) string { return fmt.Sprintf("%s line %d", file, n.Line) }

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// keyed is an element of a list that the file writes as a mapping, in its order.
type keyed interface{ setKey(string) }

var keyedType = reflect.TypeFor[keyed]()

// node decodes n into v. hide keeps the value out of messages.
func (l *loader) node(file, key string, n *yaml.Node, v reflect.Value, hide bool) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	where := at(file, n)
	if key != "" {
		l.origin[key] = where
	}
	wrong := func(want string) {
		got := map[yaml.Kind]string{yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}[n.Kind]
		if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
			got = "no value"
		}
		l.report(key, where, got+" where "+want+" belongs", "", "")
	}
	switch {
	case v.Addr().Type().Implements(textUnmarshaler):
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			wrong("a text")
			return
		}
		l.scalar(key, where, n.Value, v, true)
	case v.Kind() == reflect.Struct:
		if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
			return // a section whose keys are all commented out
		}
		if n.Kind != yaml.MappingNode {
			wrong("a mapping of keys")
			return
		}
		l.mapping(file, key, n, v)
	case v.Kind() == reflect.Map:
		if n.Kind != yaml.MappingNode {
			wrong("a mapping of names")
			return
		}
		seen := map[string]bool{}
		m := reflect.MakeMap(v.Type())
		for i := 0; i < len(n.Content); i += 2 {
			name := n.Content[i].Value
			l.once(file, join(key, name), n.Content[i], seen)
			e := reflect.New(v.Type().Elem()).Elem()
			l.node(file, join(key, name), n.Content[i+1], e, true)
			m.SetMapIndex(reflect.ValueOf(name), e)
		}
		v.Set(m)
	case v.Kind() == reflect.Slice && reflect.PointerTo(v.Type().Elem()).Implements(keyedType):
		if n.Kind != yaml.MappingNode {
			wrong("a mapping of names")
			return
		}
		seen := map[string]bool{}
		s := reflect.MakeSlice(v.Type(), len(n.Content)/2, len(n.Content)/2)
		for i := range s.Len() {
			name, e := n.Content[2*i].Value, s.Index(i)
			l.once(file, join(key, name), n.Content[2*i], seen)
			l.node(file, join(key, name), n.Content[2*i+1], e, hide)
			e.Addr().Interface().(keyed).setKey(name)
		}
		v.Set(s)
	case v.Kind() == reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			wrong("a list")
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, e := range n.Content {
			l.node(file, fmt.Sprintf("%s[%d]", key, i), e, s.Index(i), hide)
		}
		v.Set(s)
	default:
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			wrong(kindName(v))
			return
		}
		l.scalar(key, where, n.Value, v, hide)
	}
}

func (l *loader) mapping(file, key string, n *yaml.Node, v reflect.Value) {
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		name := n.Content[i].Value
		full := join(key, name)
		l.once(file, full, n.Content[i], seen)
		f, ok := field(v, name)
		if !ok {
			known := keys(v.Type())
			hint := ""
			if near := Nearest(name, known); near != "" {
				hint = "did you mean " + join(key, near) + "?"
			}
			l.report(full, at(file, n.Content[i]), "unknown key", strings.Join(known, ", "), hint)
			continue
		}
		l.node(file, full, n.Content[i+1], f, false)
	}
}

func (l *loader) once(file, key string, n *yaml.Node, seen map[string]bool) {
	if seen[n.Value] {
		l.report(key, at(file, n), "given twice", "", "keep one of them")
	}
	seen[n.Value] = true
}

var variable = regexp.MustCompile(`\$?\$\{([^}]*)\}`)
var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand replaces ${NAME}; what came from the environment is never shown.
func (l *loader) expand(key, where, text string) (value string, expanded, ok bool) {
	ok = true
	value = variable.ReplaceAllStringFunc(text, func(m string) string {
		if strings.HasPrefix(m, "$$") {
			return m[1:]
		}
		name := m[2 : len(m)-1]
		if !variableName.MatchString(name) {
			ok = false
			l.report(key, where, m+" names no variable", "${NAME} of letters, digits and _", "write $${ for a plain ${")
			return ""
		}
		s, set := l.lookup(name)
		if !set {
			ok = false
			text, hint := m+": the environment variable "+name+" is not set", "set it, or write $${ for a plain ${"
			if c, field, of := strings.Cut(strings.TrimPrefix(key, "connections."), "."); of && strings.HasPrefix(key, "connections.") {
				l.unset[c] = errors.Join(l.unset[c], &mounts.Problem{Field: field, Text: text, Hint: hint})
				return ""
			}
			l.report(key, where, text, "", hint)
		}
		expanded = true
		return s
	})
	return value, expanded, ok
}

// scalar sets v from a text of the file.
func (l *loader) scalar(key, where, text string, v reflect.Value, hide bool) {
	value, expanded, ok := l.expand(key, where, text)
	if !ok {
		return
	}
	l.hidden[key] = hide || expanded
	l.parse(key, where, value, v, l.hidden[key])
}

// parse sets v, which is no struct or map, from a text.
func (l *loader) parse(key, where, text string, v reflect.Value, hide bool) bool {
	shown := strconv.Quote(text)
	if hide {
		shown = "the value"
	} else if len(text) > 80 {
		shown = strconv.Quote(text[:80]) + "…"
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			l.report(key, where, shown+" cannot be used", "", "")
			return false
		}
		return true
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		switch strings.ToLower(text) {
		case "true", "yes", "on", "1":
			v.SetBool(true)
		case "false", "no", "off", "0", "":
			v.SetBool(false)
		default:
			l.report(key, where, shown+" is neither true nor false", "true, false", "")
			return false
		}
	case reflect.Int:
		n, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 10, 64)
		if err != nil || int64(int(n)) != n {
			l.report(key, where, shown+" is not a whole number", "", "")
			return false
		}
		v.SetInt(n)
	case reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			l.report(key, where, shown+" is not a number", "", "")
			return false
		}
		v.SetFloat(n)
	default:
		panic("config: no way to set a " + v.Type().String())
	}
	return true
}

// set sets the key from one text, as environment variables and flags give it.
func (l *loader) set(key, where, text string, add bool) {
	v := reflect.ValueOf(l.config).Elem()
	for name := range strings.SplitSeq(key, ".") {
		f, ok := field(v, name)
		if !ok {
			panic("config: no key " + key)
		}
		v = f
	}
	l.origin[key], l.hidden[key] = where, false
	if v.Kind() != reflect.Slice {
		l.parse(key, where, text, v, false)
		return
	}
	list := reflect.MakeSlice(v.Type(), 0, 0)
	if add {
		list = reflect.AppendSlice(list, v)
	}
	parts := strings.Split(text, ",")
	if add {
		parts = []string{text}
	}
	for _, part := range parts {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		l.origin[fmt.Sprintf("%s[%d]", key, list.Len())] = where
		if h, ok := e.Addr().Interface().(*HostDir); ok {
			d, err := ParseHostDir(part)
			if err != nil {
				l.report(key, where, err.Error(), "HOST:PATH or HOST:PATH:ro", "")
				continue
			}
			*h = d
		} else if h, ok := e.Addr().Interface().(*Mount); ok {
			*h = parseMount(part)
		} else if h, ok := e.Addr().Interface().(*mounts.Rule); ok {
			*h = parseRule(part)
		} else if h, ok := e.Addr().Interface().(*Volume); ok {
			d, err := parseVolume(part)
			if err != nil {
				l.report(key, where, err.Error(), "VOLUME:PATH or VOLUME/SUBPATH:PATH:ro", "")
				continue
			}
			*h = d
		} else if !l.parse(key, where, part, e, false) {
			continue
		}
		list = reflect.Append(list, e)
	}
	v.Set(list)
}

// ParseHostDir reads "HOST:PATH" or "HOST:PATH:ro" (":rw" is the default).
func ParseHostDir(s string) (HostDir, error) {
	rest, mode, ok := cutLast(s, ":")
	d := HostDir{ReadOnly: mode == "ro"}
	if !ok || mode != "ro" && mode != "rw" {
		rest = s
	}
	d.Host, d.Path, ok = cutLast(rest, ":")
	if !ok || d.Host == "" || d.Path == "" {
		return HostDir{}, fmt.Errorf("%q does not name a folder here and one inside", s)
	}
	return d, nil
}

// parseVolume reads "VOLUME[/SUBPATH]:PATH[:ro]" (":rw" is the default).
func parseVolume(s string) (Volume, error) {
	d, err := ParseHostDir(s)
	if err != nil {
		return Volume{}, fmt.Errorf("%q does not name a volume and a place inside", s)
	}
	name, sub, _ := strings.Cut(d.Host, "/")
	return Volume{Volume: name, Subpath: sub, Path: d.Path, ReadOnly: d.ReadOnly}, nil
}

// parseRule reads "CONNECTION[:BUCKET[/PREFIX]][:ro]".
func parseRule(s string) mounts.Rule {
	var r mounts.Rule
	s, r.ReadOnly = strings.CutSuffix(s, ":ro")
	r.Connection, s, _ = strings.Cut(s, ":")
	r.Bucket, r.Prefix, _ = strings.Cut(s, "/")
	return r
}

// parseMount reads "PATH:CONNECTION[:BUCKET[/PREFIX]][:ro]".
func parseMount(s string) Mount {
	path, rest, _ := strings.Cut(s, ":")
	r := parseRule(rest)
	return Mount{Path: path, Connection: r.Connection, Bucket: r.Bucket, Prefix: r.Prefix, ReadOnly: r.ReadOnly}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// field finds the field of struct v with that key.
func field(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag == key && tag != "-" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// keys lists the keys of struct t in order.
func keys(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("yaml"); tag != "" && tag != "-" {
			names = append(names, tag)
		}
	}
	return names
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func kindName(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	default:
		return "a text"
	}
}

// Nearest returns the known name that s was probably meant to be, or "".
func Nearest(s string, known []string) string {
	best, bestDistance := "", max(len(s)/3, 1)+1
	for _, k := range known {
		d := distance(strings.ToLower(s), k)
		if len(s) >= 3 && (strings.HasPrefix(k, s) || strings.HasPrefix(s, k)) {
			d = min(d, 1)
		}
		if d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is the edit distance of two short names.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			substitute := diagonal
			if a[i-1] != b[j-1] {
				substitute++
			}
			diagonal = row[j]
			row[j] = slices.Min([]int{substitute, row[j] + 1, row[j-1] + 1})
		}
	}
	return row[len(b)]
}
