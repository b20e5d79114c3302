//go:build linux

package image

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/name"

	"berth/sandbox"
)

// MaxName bounds an image's name, in bytes.
const MaxName = 1024

// Name is a parsed name of an image.
type Name struct {
	// Text is what was asked for.
	Text string
	// Full is the whole name that it stands for: "docker.io/library/debian:12",
	// "oci:/path:tag", "docker-archive:/path".
	Full string
	// File: it is a file or directory of this machine.
	File bool
	// Alias: the operator has given it a meaning.
	Alias bool

	ref     name.Reference // of a registry's
	archive bool           // docker save
	path    string         // of a file
	tag     string         // in an OCI layout; "" the only image
}

// The prefixes of images that are files of this machine.
const (
	layoutPrefix  = "oci:"
	archivePrefix = "docker-archive:"
)

// hub is Docker's registry: by the name that people know, and its own.
const hub, hubHost = "docker.io", name.DefaultRegistry

// Parse reads an image's name, and looks aliases up. It touches neither network
// nor, but for the place where an OCI layout's path ends, files. Its error is a
// *sandbox.FieldError for the field image.
func (s *Store) Parse(text string) (Name, error) {
	n, alias := text, false
	if to, ok := s.alias(text); ok {
		n, alias = to, true
	}
	out, err := s.parse(n)
	out.Text, out.Alias = text, alias
	if err != nil {
		return out, &sandbox.FieldError{Field: "image", Problem: err.Error(),
			Allowed: "a name in a registry, such as debian:12 or ghcr.io/owner/name@sha256:…", Hint: "write it as for docker pull"}
	}
	return out, nil
}

// alias finds what text stands for: as a whole, or without its tag, which then
// holds for the other name when that has none.
func (s *Store) alias(text string) (string, bool) {
	if to, ok := s.o.Aliases[text]; ok {
		return to, true
	}
	bare, tag := cutTag(text)
	to, ok := s.o.Aliases[bare]
	if !ok || tag == "" || isFile(to) {
		return to, ok
	}
	if b, t := cutTag(to); t == "" {
		return b + tag, true
	}
	return to, true
}

// cutTag separates ":tag" or "@digest" from a name.
func cutTag(text string) (bare, tag string) {
	if i := strings.IndexByte(text, '@'); i >= 0 {
		return text[:i], text[i:]
	}
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, '/') && i > 0 {
		return text[:i], text[i:]
	}
	return text, ""
}

func isFile(text string) bool {
	return strings.HasPrefix(text, layoutPrefix) || strings.HasPrefix(text, archivePrefix)
}

func (s *Store) parse(text string) (Name, error) {
	switch {
	case text == "":
		return Name{}, fmt.Errorf("it is empty")
	case len(text) > MaxName:
		return Name{}, fmt.Errorf("it has %d bytes, and at most %d are allowed", len(text), MaxName)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) && !isFile(text) }):
		return Name{}, fmt.Errorf("%.80q holds white space or control characters", text)
	}
	if p, ok := strings.CutPrefix(text, archivePrefix); ok {
		if !filepath.IsAbs(p) {
			return Name{}, fmt.Errorf("%.80q is not absolute", p)
		}
		p = filepath.Clean(p)
		return Name{Full: archivePrefix + p, File: true, archive: true, path: p}, nil
	}
	if p, ok := strings.CutPrefix(text, layoutPrefix); ok {
		if !filepath.IsAbs(p) {
			return Name{}, fmt.Errorf("%.80q is not absolute", p)
		}
		n := Name{File: true, path: filepath.Clean(p)}
		if i := strings.LastIndexByte(p, ':'); i > strings.LastIndexByte(p, '/') {
			if _, err := os.Stat(p); err != nil { // else the colon is the directory's own
				n.path, n.tag = filepath.Clean(p[:i]), p[i+1:]
			}
		}
		n.Full = layoutPrefix + n.path
		if n.tag != "" {
			n.Full += ":" + n.tag
		}
		return n, nil
	}
	text = strings.TrimPrefix(text, "docker://")
	ref, err := name.ParseReference(text)
	if err != nil {
		if strings.Contains(text, "://") {
			return Name{}, fmt.Errorf("%.80q is a URL", text)
		}
		return Name{}, fmt.Errorf("%.80q is no name of an image", text)
	}
	// The registry, or whatever stands before it, could take one of these for a
	// way to another repository than the one that was allowed.
	for part := range strings.SplitSeq(ref.Context().RepositoryStr(), "/") {
		if part == "" || strings.ContainsAny(part[:1], "._-") {
			return Name{}, fmt.Errorf("%.80q has a part that does not begin with a letter or digit", text)
		}
	}
	return Name{Full: fullName(ref), ref: ref}, nil
}

func fullName(ref name.Reference) string {
	full := ref.Name()
	if rest, ok := strings.CutPrefix(full, hubHost+"/"); ok {
		full = hub + "/" + rest
	}
	return full
}

// Match tells whether one of patterns, in which * stands for any text, is the
// whole name or the name without its tag or digest. Images of Docker's registry
// are also known without its name, and aliases as they were asked for. Files of
// this machine are matched only by patterns that begin like them.
func (n Name) Match(patterns []string) bool {
	full, short := []string{n.Full}, []string(nil)
	if !n.File {
		bare, _ := cutTag(n.Full)
		full = append(full, bare)
		for _, f := range full {
			if f, ok := strings.CutPrefix(f, hub+"/"); ok {
				short = append(short, f, strings.TrimPrefix(f, "library/"))
			}
		}
	}
	if n.Alias {
		short = append(short, n.Text)
	}
	for _, p := range patterns {
		if isFile(p) != n.File {
			continue
		}
		same := func(s string) bool { return match(p, s) }
		if slices.ContainsFunc(short, same) || (n.File || namesHost(p)) && slices.ContainsFunc(full, same) {
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

// match is a comparison in which * in p stands for any text.
func match(p, s string) bool {
	parts := strings.Split(p, "*")
	if len(parts) == 1 {
		return p == s
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

// mirror is where a registry's images are looked for.
type mirror struct {
	host     string
	prefix   string // path before the repository's name, without slashes around it
	insecure bool
}

func parseMirror(text string) (mirror, error) {
	m := mirror{}
	raw := text
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https" {
		return m, fmt.Errorf("%.80q is no registry", text)
	}
	m.host, m.prefix, m.insecure = u.Host, strings.Trim(u.Path, "/"), u.Scheme == "http"
	if _, err := name.NewRegistry(m.host); err != nil {
		return m, fmt.Errorf("%.80q is no registry", text)
	}
	return m, nil
}
