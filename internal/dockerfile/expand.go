package dockerfile

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Bounds of words, in bytes. A value may be repeated as often as a word names
// it; so their product is bounded too.
const (
	maxWord     = 32 << 10
	maxExpanded = 1 << 20
)

type env map[string]string

func (e env) Get(name string) (string, bool) { v, ok := e[name]; return v, ok }

func (e env) Keys() []string {
	var list []string
	for k := range e {
		list = append(list, k)
	}
	return list
}

// anything has every variable set.
type anything struct{}

func (anything) Get(string) (string, bool) { return "x", true }
func (anything) Keys() []string            { return nil }

// replacing is ${NAME/pattern/text}: the one form whose result can be the
// product of two values.
var replacing = regexp.MustCompile(`\$\{[A-Za-z0-9_]+/`)

func check(word string) error {
	switch {
	case len(word) > maxWord:
		return fmt.Errorf("a word of %d bytes is too long; allowed: at most %d", len(word), maxWord)
	case strings.ContainsRune(word, 0) || !utf8.ValidString(word):
		return errors.New("it holds a NUL byte or invalid UTF-8")
	case replacing.MatchString(word):
		return errors.New("${NAME/PATTERN/TEXT} is not possible here; allowed: $NAME, ${NAME}, ${NAME:-TEXT}, ${NAME:+TEXT}; set it in RUN")
	}
	_, err := process(word, anything{})
	return err
}

// Expand replaces the variables of a word, see sandbox.BuildStep, and removes
// its quotes. One that is not set is empty.
func Expand(word string, vars map[string]string) (string, error) {
	if err := check(word); err != nil {
		return "", err
	}
	if err := bounded(word, vars, maxExpanded); err != nil {
		return "", err
	}
	return process(word, env(vars))
}

// ExpandText replaces variables only: quotes are text, as in a document that
// COPY writes.
func ExpandText(text string, vars map[string]string) (string, error) {
	if !utf8.ValidString(text) || replacing.MatchString(text) {
		return "", errors.New("it holds invalid UTF-8, or ${NAME/PATTERN/TEXT}, in which no variable can be replaced")
	}
	if err := bounded(text, vars, 16*maxExpanded); err != nil {
		return "", err
	}
	lex := shell.NewLex(parser.DefaultEscapeToken)
	lex.SkipProcessQuotes = true
	out, _, err := lex.ProcessWord(text, env(vars))
	return out, tidy(err)
}

// trimming is ${NAME#pattern} and ${NAME%pattern}, which take as long as the
// product of both.
var trimming = regexp.MustCompile(`\$\{[A-Za-z0-9_]+[#%]`)

// trimmingByValue is one whose pattern is, or holds, another variable.
var trimmingByValue = regexp.MustCompile(`\$\{[A-Za-z0-9_]+[#%][^}]*\$`)

// bounded refuses what would come to more than most bytes, or take long.
func bounded(text string, vars map[string]string, most int) error {
	longest := 0
	for _, v := range vars {
		longest = max(longest, len(v))
	}
	if trimmingByValue.MatchString(text) && longest*longest > most {
		return errors.New("a pattern after # or % holds a variable, which may be too long; write the pattern out, or set it in RUN")
	}
	if strings.Count(text, "$")*longest+len(text) > most || trimming.MatchString(text) && len(text)*longest > most {
		return errors.New("what its variables stand for is too long")
	}
	return nil
}

func process(word string, vars shell.EnvGetter) (string, error) {
	out, _, err := shell.NewLex(parser.DefaultEscapeToken).ProcessWord(word, vars)
	return out, tidy(err)
}

// tidy keeps the last part of an error: what is wrong.
func tidy(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if _, rest, ok := strings.Cut(text, "\": "); ok && strings.HasPrefix(text, "failed to process") {
		text = rest
	}
	if strings.ContainsRune(text, utf8.RuneError) { // the lexer's word for the end
		return errors.New("the } of a ${ is missing")
	}
	return errors.New(oneLine(text))
}

// Quote makes text a word that stands for exactly that.
func Quote(text string) string { return quote(text, `\`, `"`, `$`) }

// quoteOpen is Quote, but variables are still replaced.
func quoteOpen(text string) string { return quote(text, `\`, `"`) }

func quote(text string, marks ...string) string {
	for _, m := range marks {
		text = strings.ReplaceAll(text, m, `\`+m)
	}
	return `"` + text + `"`
}
