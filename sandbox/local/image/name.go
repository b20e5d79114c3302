//go:build linux

package image

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"berth/internal/imagename"
	"berth/sandbox"
)

// MaxName bounds an image's name, in bytes.
const MaxName = imagename.Most

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
	bare, tag := imagename.CutTag(text)
	to, ok := s.o.Aliases[bare]
	if !ok || tag == "" || isFile(to) {
		return to, ok
	}
	if b, t := imagename.CutTag(to); t == "" {
		return b + tag, true
	}
	return to, true
}

func isFile(text string) bool {
	return strings.HasPrefix(text, layoutPrefix) || strings.HasPrefix(text, archivePrefix)
}

func (s *Store) parse(text string) (Name, error) {
	if err := imagename.Check(text, isFile(text)); err != nil {
		return Name{}, err
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
	ref, full, err := imagename.Parse(text)
	if err != nil {
		return Name{}, err
	}
	return Name{Full: full, ref: ref}, nil
}

// Match tells whether one of patterns, in which * stands for any text, is the
// whole name or the name without its tag or digest. Images of Docker's registry
// are also known without its name, and aliases as they were asked for. Files of
// this machine are matched only by patterns that begin like them.
func (n Name) Match(patterns []string) bool {
	var also []string
	if n.Alias {
		also = []string{n.Text}
	}
	patterns = slices.DeleteFunc(slices.Clone(patterns), func(p string) bool { return isFile(p) != n.File })
	if !n.File {
		return imagename.Match(n.Full, also, patterns)
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		return imagename.Glob(p, n.Full) || n.Alias && imagename.Glob(p, n.Text)
	})
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
