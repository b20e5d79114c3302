// Package imagename reads names of images in registries, as people write them
// for docker pull, and holds them against an operator's patterns.
package imagename

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/name"
)

// Most bounds an image's name, in bytes.
const Most = 1024

// Hub is Docker's registry by the name that people know, HubHost its own.
const (
	Hub     = "docker.io"
	HubHost = name.DefaultRegistry
)

// Check refuses what is no name of any kind. blanks: it may hold white space.
func Check(text string, blanks bool) error {
	switch {
	case text == "":
		return fmt.Errorf("it is empty")
	case len(text) > Most:
		return fmt.Errorf("it has %d bytes, and at most %d are allowed", len(text), Most)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) && !blanks }):
		return fmt.Errorf("%.80q holds white space or control characters", text)
	}
	return nil
}

// Parse reads a name. full is the whole name that it stands for,
// "docker.io/library/debian:12".
func Parse(text string) (ref name.Reference, full string, err error) {
	if err := Check(text, false); err != nil {
		return nil, "", err
	}
	ref, err = name.ParseReference(strings.TrimPrefix(text, "docker://"))
	if err != nil {
		if strings.Contains(strings.TrimPrefix(text, "docker://"), "://") {
			return nil, "", fmt.Errorf("%.80q is a URL", text)
		}
		return nil, "", fmt.Errorf("%.80q is no name of an image", text)
	}
	// The registry, or whatever stands before it, could take one of these for a
	// way to another repository than the one that was allowed.
	for part := range strings.SplitSeq(ref.Context().RepositoryStr(), "/") {
		if part == "" || strings.ContainsAny(part[:1], "._-") {
			return nil, "", fmt.Errorf("%.80q has a part that does not begin with a letter or digit", text)
		}
	}
	full = ref.Name()
	if rest, ok := strings.CutPrefix(full, HubHost+"/"); ok {
		full = Hub + "/" + rest
	}
	return ref, full, nil
}

// CutTag separates ":tag" or "@digest" from a name.
func CutTag(text string) (bare, tag string) {
	if i := strings.IndexByte(text, '@'); i >= 0 {
		return text[:i], text[i:]
	}
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, '/') && i > 0 {
		return text[:i], text[i:]
	}
	return text, ""
}

// Match tells whether one of patterns, in which * stands for any text, is the
// whole name, or the name without its tag or digest, or one of also. Images of
// Docker's registry are also known without its name.
func Match(full string, also, patterns []string) bool {
	bare, _ := CutTag(full)
	whole, short := []string{full, bare}, slices.Clone(also)
	for _, f := range whole {
		if f, ok := strings.CutPrefix(f, Hub+"/"); ok {
			short = append(short, f, strings.TrimPrefix(f, "library/"))
		}
	}
	for _, p := range patterns {
		same := func(s string) bool { return Glob(p, s) }
		if slices.ContainsFunc(short, same) || namesHost(p) && slices.ContainsFunc(whole, same) {
			return true
		}
	}
	return false
}

var hostPort = regexp.MustCompile(`^[^/:*]+:[0-9]+/`)

// namesHost tells whether a pattern says which registry it means, or that any
// will do, as "*" does. One that does not means Docker's: what people write for
// all tags, debian:*, would else also be the port of a host, debian:5000/x.
func namesHost(pattern string) bool {
	first := pattern
	if i := strings.IndexAny(pattern, "/:@*"); i >= 0 {
		first = pattern[:i]
	}
	return first == "" && strings.HasPrefix(pattern, "*") || first == "localhost" || strings.Contains(first, ".") ||
		strings.HasPrefix(first, "[") || hostPort.MatchString(pattern)
}

// Glob is a comparison in which * in pattern stands for any text.
func Glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}
