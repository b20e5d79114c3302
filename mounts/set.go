package mounts

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/internal/secret"
)

// Target is a bucket, or part of one, through a connection.
type Target struct {
	Connection string // empty: the only one there is
	Bucket     string // empty: the connection's
	// Prefix as it is given; Complete returns it empty or ending with '/'.
	Prefix   string
	ReadOnly bool
}

// Rule is one thing that the operator lets sessions mount. Its yaml tags are
// keys of the config file.
type Rule struct {
	Connection string `yaml:"connection"` // "*": any
	Bucket     string `yaml:"bucket"`     // '*' stands for any text; empty: any
	Prefix     string `yaml:"prefix"`     // and what is below it; empty: all
	ReadOnly   bool   `yaml:"read_only"`  // only so
}

// Inline is the name of connections that came with a call. No connection of a
// Set has it.
const Inline = "inline"

// SetOptions of NewSet.
type SetOptions struct {
	// Rules bound what sessions mount; nil: everything that the connections reach.
	Rules []Rule
	// Inline lets calls bring connections of their own.
	Inline bool
	// Broken are connections that cannot be used, by name, each with the reason.
	// Unlike a faulty one in the map of NewSet they are no error until somebody
	// uses them.
	Broken map[string]error
}

// Set is the connections that there are, and what sessions may do with them. It
// is immutable; the zero Set and nil have none.
type Set struct {
	connections map[string]Connection
	options     SetOptions
}

// NewSet checks the connections and rules. Its error joins *Problems, with
// fields such as "connections.data.bucket" and "limits.buckets[0].prefix".
func NewSet(connections map[string]Connection, o SetOptions) (*Set, error) {
	s := &Set{connections: map[string]Connection{}, options: o}
	var l problems
	for _, name := range slices.Sorted(maps.Keys(connections)) {
		if !connectionName().MatchString(name) || name == Inline {
			l.add("connections."+name, "is no name of a connection", connectionNeeded+"; not "+Inline, "")
			continue
		}
		c, err := connections[name].Check()
		for _, p := range ProblemsOf(err) {
			l.add("connections."+name+"."+p.Field, p.Text, p.Allowed, p.Hint)
		}
		s.connections[name] = c
	}
	if s.options.Rules = slices.Clone(o.Rules); slices.ContainsFunc(o.Rules, func(r Rule) bool { return r == Rule{Connection: "*"} || r == Rule{Connection: "*", Bucket: "*"} }) {
		s.options.Rules = nil
	}
	for i := range s.options.Rules {
		r, key := &s.options.Rules[i], fmt.Sprintf("limits.buckets[%d].", i)
		_, known := s.connections[r.Connection]
		_, broken := o.Broken[r.Connection]
		if r.Connection != "*" && r.Connection != Inline && !known && !broken {
			l.add(key+"connection", shown(r.Connection)+" is not configured", "* for any, or "+orNone(s.Names()), "")
		}
		var in problems
		r.Prefix = in.prefix(r.Prefix)
		for _, p := range ProblemsOf(in.err()) {
			l.add(key+p.Field, p.Text, p.Allowed, p.Hint)
		}
	}
	return s, l.err()
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none is configured"
	}
	return strings.Join(names, ", ")
}

// Names lists the connections, also broken ones, in order.
func (s *Set) Names() []string {
	if s == nil {
		return nil
	}
	names := slices.Collect(maps.Keys(s.connections))
	for name := range s.options.Broken {
		if _, ok := s.connections[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// InlineAllowed tells whether calls may bring connections of their own.
func (s *Set) InlineAllowed() bool { return s != nil && s.options.Inline }

// Offer is what a session may know of a connection.
type Offer struct {
	Name   string
	Kind   Kind
	Bucket string // the one that mounts show which name none; may be empty
	Prefix string
	// Allowed lists what may be mounted, as "BUCKET/PREFIX" with " (read-only)"
	// after it; nil: whatever the connection reaches.
	Allowed  []string
	ReadOnly bool
	// Broken tells why it cannot be used; else empty.
	Broken string
}

// Offers lists what sessions may mount, by name; connections that no rule lets
// them use are left out.
func (s *Set) Offers() []Offer {
	var list []Offer
	for _, name := range s.Names() {
		if err, broken := s.options.Broken[name]; broken {
			list = append(list, Offer{Name: name, Broken: err.Error()})
			continue
		}
		c := s.connections[name]
		o := Offer{Name: name, Kind: c.Kind, Bucket: c.Bucket, Prefix: c.Prefix, ReadOnly: c.ReadOnly}
		any := s.options.Rules == nil
		for _, r := range s.options.Rules {
			if r.Connection != "*" && r.Connection != name {
				continue
			}
			any = true
			text := r.Bucket
			if text == "" {
				text = "*"
			}
			if r.Prefix != "" {
				text += "/" + r.Prefix
			}
			if r.ReadOnly {
				text += " (read-only)"
			}
			o.Allowed = append(o.Allowed, text)
		}
		if any {
			list = append(list, o)
		}
	}
	return list
}

// Complete fills in what t leaves to the configuration, and refuses what the
// operator does not allow. Its error joins *Problems. A nil inline takes t's
// connection from the Set, else t.Connection becomes Inline.
func (s *Set) Complete(t Target, inline *Connection) (Target, error) {
	t, _, err := s.resolve(t, inline)
	return t, err
}

func (s *Set) resolve(t Target, inline *Connection) (Target, Connection, error) {
	var l problems
	c, ok := s.find(&l, &t, inline)
	if !ok {
		return t, c, l.err()
	}
	if t.Bucket == "" {
		if t.Bucket = c.Bucket; t.Prefix == "" {
			t.Prefix = c.Prefix
		}
	}
	if t.Bucket == "" {
		l.add("bucket", "it is missing, and the connection "+t.Connection+" has no bucket of its own", "a bucket's name", "")
	} else {
		l.bucket(c.Kind, t.Bucket)
	}
	t.Prefix = l.prefix(t.Prefix)
	if l == nil {
		s.permit(&l, &t)
	}
	t.ReadOnly = t.ReadOnly || c.ReadOnly
	return t, c, l.err()
}

// find is the connection of t, whose name it fills in.
func (s *Set) find(l *problems, t *Target, inline *Connection) (Connection, bool) {
	if inline != nil {
		t.Connection = Inline
		if !s.InlineAllowed() {
			l.add("credentials", "the operator does not allow them", "a connection: "+orNone(s.Names()), "limits.inline_credentials in the config allows them")
			return Connection{}, false
		}
		c, err := inline.Check()
		for _, p := range ProblemsOf(err) {
			l.add("credentials."+p.Field, p.Text, p.Allowed, p.Hint)
		}
		if c.Ambient {
			l.add("credentials.ambient", "the machine's own identity is the operator's alone", "keys, or anonymous", "")
		}
		return c, len(*l) == 0
	}
	names := s.Names()
	switch {
	case len(names) == 0:
		l.add("connection", "none is configured", "", "the operator configures them: connections in the config file, or the variables S3_*, GCS_* and AZURE_*; docs/buckets.md shows how")
		return Connection{}, false
	case t.Connection == "" && len(names) == 1:
		t.Connection = names[0]
	case t.Connection == "":
		l.add("connection", "it is missing, and there are several", strings.Join(names, ", "), "")
		return Connection{}, false
	}
	if err, broken := s.options.Broken[t.Connection]; broken {
		l.add("connection", t.Connection+" cannot be used: "+err.Error(), "", "the operator has to set this right")
		return Connection{}, false
	}
	c, ok := s.connections[t.Connection]
	if !ok {
		l.add("connection", "there is no connection "+shown(t.Connection), strings.Join(names, ", "), "the operator configures them")
	}
	return c, ok
}

// permit holds t to the operator's rules; where only reading is allowed it is
// made so.
func (s *Set) permit(l *problems, t *Target) {
	if s.options.Rules == nil {
		return
	}
	readOnly := false
	var allowed []string
	for _, r := range s.options.Rules {
		if r.Connection != "*" && r.Connection != t.Connection {
			continue
		}
		bucket := r.Bucket
		if bucket == "" {
			bucket = "*"
		}
		text := bucket
		if r.Prefix != "" {
			text += "/" + r.Prefix
		}
		allowed = append(allowed, text)
		if !like(bucket, t.Bucket) || !within(t.Prefix, r.Prefix) {
			continue
		}
		if !r.ReadOnly {
			return
		}
		readOnly = true
	}
	switch {
	case readOnly:
		t.ReadOnly = true
	case len(allowed) == 0:
		l.add("connection", "sessions may mount nothing of "+t.Connection, "", "the operator sets this: limits.buckets in the config")
	default:
		what := t.Bucket
		if t.Prefix != "" {
			what += "/" + t.Prefix
		}
		l.add("bucket", shown(what)+" is more than sessions may mount of "+t.Connection, strings.Join(allowed, ", "), "the operator sets this: limits.buckets in the config")
	}
}

// like matches a name with a pattern in which '*' stands for any text.
func like(pattern, name string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == name
	}
	if !strings.HasPrefix(name, first) {
		return false
	}
	name = name[len(first):]
	for {
		part, more, again := strings.Cut(rest, "*")
		if !again {
			return strings.HasSuffix(name, part)
		}
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(part):], more
	}
}

// Job is what bucketd is told about t, which Complete has returned with the same
// inline. What only the provider knows is missing.
func (s *Set) Job(t Target, inline *Connection) (Job, error) {
	done, c, err := s.resolve(t, inline) // the operator may allow less by now
	if err != nil {
		return Job{}, err
	}
	if done.ReadOnly && !t.ReadOnly {
		return Job{}, &Problem{Field: "read_only", Text: "sessions may only read this by now", Hint: "mount it read-only; the operator sets this"}
	}
	j := Job{Service: c.service(), Bucket: done.Bucket, Prefix: done.Prefix, ReadOnly: done.ReadOnly}
	// An agent's choice of an endpoint reaches what the internet is, and nothing
	// of this machine or its networks.
	j.Service.PublicOnly = inline != nil
	return j, nil
}

// Fingerprint tells jobs apart, also by their keys, without telling of them:
// who has guessed all of a job can see that he was right, and no more.
func (j Job) Fingerprint() string {
	j.Mountpoint, j.Staging = "", ""
	b, err := json.Marshal(j)
	if err != nil {
		panic(err) // of strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Environment makes the connections s3, gcs and azure of the variables S3_*,
// GCS_* and AZURE_*, as lookup knows them. What is given and cannot be used is
// in broken, by the connection's name, told by the variables' names.
func Environment(lookup func(string) (secret.Text, bool)) (found map[string]Connection, broken map[string]error) {
	get := func(name string) secret.Text { v, _ := lookup(name); return v }
	plain := func(name string) string { return strings.TrimSpace(get(name).Reveal()) }
	either := func(names ...string) secret.Text {
		for _, n := range names {
			if v := get(n); !v.IsZero() {
				return v
			}
		}
		return secret.Text{}
	}
	found, broken = map[string]Connection{}, map[string]error{}
	for _, e := range []struct {
		name, prefix string
		c            Connection
		variables    map[string]string // of fields
	}{
		{"s3", "S3_", Connection{Kind: S3, Bucket: plain("S3_BUCKET"), Region: plain("S3_REGION"), Endpoint: plain("S3_ENDPOINT"),
			AccessKeyID: get("S3_ACCESS_KEY_ID"), SecretAccessKey: get("S3_SECRET_ACCESS_KEY"), SessionToken: get("S3_SESSION_TOKEN")},
			nil},
		{"gcs", "GCS_", Connection{Kind: GCS, Bucket: plain("GCS_BUCKET"), Endpoint: plain("GCS_ENDPOINT"), ServiceAccountKey: get("GCS_SERVICE_ACCOUNT_KEY")},
			nil},
		{"azure", "AZURE_STORAGE_", Connection{Kind: Azure, Bucket: either("AZURE_STORAGE_CONTAINER", "AZURE_CONTAINER").Reveal(), Endpoint: plain("AZURE_STORAGE_ENDPOINT"),
			Account: plain("AZURE_STORAGE_ACCOUNT"), AccountKey: either("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"), SASToken: get("AZURE_STORAGE_SAS_TOKEN"), ConnectionString: get("AZURE_STORAGE_CONNECTION_STRING")},
			map[string]string{"bucket": "AZURE_STORAGE_CONTAINER", "account_key": "AZURE_STORAGE_KEY"}},
	} {
		if bare := (Connection{Kind: e.c.Kind}); e.c.Bucket == "" && e.c.service() == bare.service() {
			continue
		}
		if e.name == "azure" && !e.c.ConnectionString.IsZero() {
			e.c.Account = "" // the usual environment names both
		}
		c, err := e.c.Check()
		if err == nil {
			found[e.name] = c
			continue
		}
		var told []error
		for _, p := range ProblemsOf(err) {
			if v := e.variables[p.Field]; v != "" {
				p.Field = v
			} else {
				p.Field = e.prefix + strings.ToUpper(p.Field)
			}
			told = append(told, p)
		}
		broken[e.name] = errors.Join(told...)
	}
	return found, broken
}
