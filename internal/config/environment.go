package config

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"berth/internal/secret"
)

// variables is a process environment.
type variables map[string]string

func environ(list []string) variables {
	v := variables{}
	for _, e := range list {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			v[name] = value
		}
	}
	return v
}

func (v variables) get(name string) string { return v[name] }

func (v variables) lookup(name string) (string, bool) { s, ok := v[name]; return s, ok }

// VariableOf returns the environment variable of a key.
func VariableOf(key string) string {
	return "BERTH_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Keys lists every key that has a variable, in the file's order: all but maps,
// which only the file can give.
func Keys() []string {
	var list []string
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			tag := f.Tag.Get("yaml")
			switch {
			case tag == "" || tag == "-" || f.Type.Kind() == reflect.Map:
			case f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[secret.Text]():
				walk(join(prefix, tag), f.Type)
			default:
				list = append(list, join(prefix, tag))
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	return list
}

// Variables with a meaning of their own: the config file, one token, and what
// tests use.
var otherVariables = []string{"BERTH_CONFIG", "BERTH_TOKEN"}

// environment applies the BERTH_* variables. A variable that is set but empty
// counts as not given, as MCP clients pass empty strings for settings left blank.
func (l *loader) environment(env variables) {
	known := slices.Clone(otherVariables)
	for _, key := range Keys() {
		name := VariableOf(key)
		known = append(known, name)
		if value := env[name]; value != "" {
			l.set(key, name, value, false)
		}
	}
	if token, set := env["BERTH_TOKEN"]; set && token == "" {
		l.emptyToken = true
	} else if token != "" {
		if l.config.Auth.Tokens == nil {
			l.config.Auth.Tokens = map[string]secret.Text{}
		}
		l.config.Auth.Tokens[TokenOwner] = secret.New(token)
		l.origin["auth.tokens."+TokenOwner] = "BERTH_TOKEN"
	}
	var unknown []string
	for name := range env {
		if strings.HasPrefix(name, "BERTH_") && !strings.HasPrefix(name, "BERTH_TEST_") && !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		text := "environment variable " + name + " is not known and has no effect"
		if near := Nearest(strings.TrimPrefix(name, "BERTH_"), trimAll(known, "BERTH_")); near != "" {
			text += "; did you mean BERTH_" + strings.ToUpper(near) + "?"
		}
		l.config.Warnings = append(l.config.Warnings, text)
	}
}

func trimAll(list []string, prefix string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ToLower(strings.TrimPrefix(s, prefix))
	}
	return out
}

// services are the prefixes that .env files may give variables of.
var services = []string{"DAYTONA_", "S3_", "GCS_", "AZURE_"}

// Environment holds the variables that belong to services (DAYTONA_*, S3_*,
// GCS_*, AZURE_*): the real environment's and, beneath it, those of .env and
// .env.local in the working directory, of which the later wins.
//
// The working directory may be somebody else's repository. A URL or endpoint
// from such a file is therefore used only when the service's keys come from the same
// file; it cannot direct the user's own key elsewhere.
type Environment struct {
	values map[string]secret.Text
	source map[string]string // name → "the environment", ".env", ".env.local"
	// ignored are addresses of files that had no key of theirs.
	ignored map[string]string // name → file
}

// Lookup returns a service's variable.
func (e Environment) Lookup(name string) (secret.Text, bool) {
	v, ok := e.values[name]
	return v, ok
}

// Source tells where a variable came from; "" when it is not set.
func (e Environment) Source(name string) string { return e.source[name] }

const realEnvironment = "the environment"

func loadEnvironment(dir string, env variables, warnings *[]string) Environment {
	e := Environment{values: map[string]secret.Text{}, source: map[string]string{}, ignored: map[string]string{}}
	for _, file := range []string{".env", ".env.local"} {
		for name, value := range readDotenv(filepath.Join(dir, file), warnings) {
			e.values[name], e.source[name] = secret.New(value), file
		}
	}
	for name, value := range env {
		if value != "" && serviceOf(name) != "" {
			e.values[name], e.source[name] = secret.New(value), realEnvironment
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.values)) {
		file := e.source[name]
		if file == realEnvironment || !isAddress(name) || e.keysFrom(serviceOf(name), file) {
			continue
		}
		delete(e.values, name)
		delete(e.source, name)
		e.ignored[name] = file
		*warnings = append(*warnings, ignoredText(name, file))
	}
	return e
}

func ignoredText(name, file string) string {
	return name + " in " + file + " is ignored: an address from such a file is used only with a key from the same file"
}

// astray tells that a service's variables are all of files, and mean a place of
// their own that was ignored: they would lead elsewhere than was meant.
func (e Environment) astray(name string) error {
	file, ignored := e.ignored[name]
	if !ignored {
		return nil
	}
	for n, from := range e.source {
		if from == realEnvironment && serviceOf(n) == serviceOf(name) {
			return nil
		}
	}
	return errors.New(ignoredText(name, file))
}

// keysFrom reports whether the service has keys, and all of them from file.
func (e Environment) keysFrom(service, file string) bool {
	found := false
	for name := range e.values {
		if serviceOf(name) == service && isKey(name) {
			if e.source[name] != file {
				return false
			}
			found = true
		}
	}
	return found
}

func serviceOf(name string) string {
	for _, s := range services {
		if strings.HasPrefix(name, s) {
			return s
		}
	}
	return ""
}

// isKey recognises what authenticates.
func isKey(name string) bool {
	for _, part := range []string{"KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "CONNECTION_STRING", "SAS"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// isAddress recognises what says where to send it.
func isAddress(name string) bool {
	if isKey(name) {
		return false
	}
	for _, part := range []string{"URL", "URI", "ENDPOINT", "HOST", "SERVER", "DOMAIN", "PROXY", "PORT"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// readDotenv reads the service variables of a .env file: lines NAME=value,
// "export " before them, # comments, single and double quotes, in which there
// may be several lines. Nothing is expanded. A file that is absent, no regular
// file, or over 64 KiB gives nothing.
func readDotenv(path string, warnings *[]string) map[string]string {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 64<<10 {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		*warnings = append(*warnings, filepath.Base(path)+" cannot be read: "+cause(err))
		return nil
	}
	return dotenv(string(text))
}

// dotenv parses what readDotenv reads.
func dotenv(text string) map[string]string {
	values := map[string]string{}
	for line := ""; text != ""; {
		line, text, _ = strings.Cut(text, "\n")
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "export "))
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || !variableName.MatchString(name) {
			continue
		}
		if open(value) {
			if end := strings.IndexByte(text, value[0]); end >= 0 {
				value += "\n" + text[:end+1]
				_, text, _ = strings.Cut(text[end+1:], "\n")
			}
		}
		if value = unquote(value); value != "" && serviceOf(name) != "" {
			values[name] = value
		}
	}
	return values
}

// open tells whether s begins with a quote that it does not end.
func open(s string) bool {
	return s != "" && (s[0] == '"' || s[0] == '\'') && strings.IndexByte(s[1:], s[0]) < 0
}

func unquote(s string) string {
	if s == "" {
		return s
	}
	if q := s[0]; q == '"' || q == '\'' {
		if end := strings.IndexByte(s[1:], q); end >= 0 {
			return s[1 : 1+end]
		}
		return s
	}
	if i := strings.Index(s, " #"); i >= 0 {
		s = strings.TrimSpace(s[:i])
	}
	return s
}
