package mounts

import (
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// lazily compiles a pattern when it is first used: at every start of berth it
// would cost all that need none.
func lazily(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// Bounds of names, in bytes.
const (
	maxPath   = 4096
	maxPrefix = 900 // of a key's 1,024; the rest is for the names below
)

var (
	pathPattern      = lazily(`^/[A-Za-z0-9_./-]+$`)
	s3Bucket         = lazily(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	gcsBucket        = lazily(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
	azureContainer   = lazily(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)
	azureAccount     = lazily(`^[a-z0-9]{3,24}$`)
	regionPattern    = lazily(`^[a-z0-9][a-z0-9-]{0,62}$`)
	connectionName   = lazily(`^[a-z0-9][a-z0-9_-]{0,31}$`)
	connectionNeeded = "1 to 32 lower-case letters, digits, '-' and '_', the first a letter or digit"
)

// CheckPath checks where a bucket is to be seen; its error is a *Problem of the
// given field. The path is then absolute and clean.
func CheckPath(field, p string) error {
	const allowed = "an absolute path of letters, digits, '_', '-', '.' and '/', such as /data"
	bad := func(text string) error { return &Problem{Field: field, Text: text, Allowed: allowed} }
	switch {
	case p == "":
		return bad("it is missing")
	case len(p) > maxPath || !pathPattern().MatchString(p):
		return bad(shown(p) + " cannot be the place of a bucket")
	case strings.Contains(p, "//"):
		return bad(shown(p) + " has an empty part (//)")
	case path.Clean(p) != strings.TrimSuffix(p, "/"):
		return bad(shown(p) + " has a part . or ..")
	case path.Clean(p) == "/":
		return bad("the root cannot be the place of a bucket")
	}
	return nil
}

func (l *problems) bucket(kind Kind, name string) {
	switch kind {
	case S3:
		_, ip := netip.ParseAddr(name)
		if !s3Bucket().MatchString(name) || strings.Contains(name, "..") || ip == nil {
			l.add("bucket", shown(name)+" is no name of an S3 bucket", "3 to 63 lower-case letters, digits, '.' and '-', the first and last a letter or digit", bucketHint(name))
		}
	case GCS:
		if !gcsBucket().MatchString(name) || strings.Contains(name, "..") || len(name) > 63 && !strings.Contains(name, ".") {
			l.add("bucket", shown(name)+" is no name of a GCS bucket", "3 to 63 lower-case letters, digits, '.', '-' and '_', the first and last a letter or digit", bucketHint(name))
		}
	case Azure:
		if !azureContainer().MatchString(name) || strings.Contains(name, "--") {
			l.add("bucket", shown(name)+" is no name of an Azure container", "3 to 63 lower-case letters, digits and single '-', the first and last a letter or digit", bucketHint(name))
		}
	}
}

// bucketHint tells of a usual mistake.
func bucketHint(name string) string {
	if strings.Contains(name, "://") || strings.Contains(name, "/") {
		return "give the bucket's name alone, and what is below it as prefix"
	}
	return ""
}

// prefix checks a prefix as given and returns it as keys have it: without
// outer slashes, ending with one; empty when none is given.
func (l *problems) prefix(p string) string {
	if p == "" {
		return ""
	}
	const allowed = "parts divided by single slashes, none of them . or .., such as reports/2024"
	in := strings.Trim(p, "/")
	bad := in == "" || len(in) > maxPrefix || !utf8.ValidString(in) || strings.ContainsFunc(in, unicode.IsControl)
	for part := range strings.SplitSeq(in, "/") {
		bad = bad || part == "" || part == "." || part == ".." || len(part) > 255
	}
	if bad {
		l.add("prefix", shown(p)+" is no prefix of keys", allowed, "")
		return ""
	}
	return in + "/"
}

// endpoint checks a service's URL and returns it without a slash at its end.
func (l *problems) endpoint(s string) string {
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	bad := ""
	switch {
	case err != nil || len(s) > 1024 || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }):
		bad = "it is no URL"
	case u.Scheme != "http" && u.Scheme != "https":
		bad = shown(s) + " begins with neither https:// nor http://"
		if u.User != nil {
			bad = "it begins with neither https:// nor http://"
		}
	case u.Hostname() == "":
		bad = "it names no host"
	case u.User != nil:
		bad = "it holds a user or password"
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		bad = "it holds a query or fragment"
	}
	if bad != "" {
		l.add("endpoint", bad, "https://HOST or http://HOST:PORT", "")
		return ""
	}
	return strings.TrimRight(s, "/")
}

// within tells whether all that begins with inner begins with outer, both as
// keys have them.
func within(inner, outer string) bool { return strings.HasPrefix(inner, outer) }
