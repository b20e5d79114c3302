package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of a Spec beside those of its intervals.
const (
	MaxName       = 63 // characters
	MaxLabels     = 64
	MaxLabelValue = 256       // bytes
	MaxEnv        = 256 << 10 // bytes, names and values together
	MaxPath       = 4096      // bytes
	MaxTimeout    = 24 * time.Hour
	MaxInterval   = 365 * 24 * time.Hour
)

// ServerMadeAutoDelete is when a sandbox is deleted whose session id the server
// made, counted from the stop, unless the spec says otherwise.
const ServerMadeAutoDelete = 30 * 24 * time.Hour

type serverMadeKey struct{}

// WithServerMadeSession marks a call whose session id was made by the server
// and not given by the caller. A sandbox that such a call creates is archived
// after DefaultAutoArchive and deleted after ServerMadeAutoDelete, unless the
// given spec or the operator's defaults name other intervals.
func WithServerMadeSession(ctx context.Context) context.Context {
	return context.WithValue(ctx, serverMadeKey{}, true)
}

func serverMade(ctx context.Context) bool {
	made, _ := ctx.Value(serverMadeKey{}).(bool)
	return made
}

// Clone returns a copy that shares nothing with s.
func (s Spec) Clone() Spec {
	s.Labels, s.Env = maps.Clone(s.Labels), maps.Clone(s.Env)
	s.Ephemeral, s.AutoStop, s.AutoArchive = clone(s.Ephemeral), clone(s.AutoStop), clone(s.AutoArchive)
	s.Public, s.Volumes, s.Mounts = clone(s.Public), slices.Clone(s.Volumes), slices.Clone(s.Mounts)
	if s.Network != nil {
		s.Network = s.Network.clone()
	}
	s.AutoDelete, s.Timeout = clone(s.AutoDelete), clone(s.Timeout)
	return s
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// WithDefaults returns the complete spec of s over the operator's defaults d
// over the built-in ones: every pointer is set, maps are merged key by key. The
// name may still be empty; the Manager puts the session id there.
func (s Spec) WithDefaults(d Spec) Spec {
	out := s.over(d)
	user := out.account()
	if out.Snapshot != "" {
		out.Image = ""
	}
	if out.Image != "" || out.Snapshot != "" {
		user, out.Account = "", "" // their own
	}
	out = out.over(Spec{Language: TypeScript, User: user, Ephemeral: new(bool), Public: new(bool),
		AutoStop: ptr(DefaultAutoStop), AutoArchive: ptr(DefaultAutoArchive), AutoDelete: ptr(Never), Timeout: ptr(DefaultTimeout)})
	if *out.AutoArchive == 0 {
		*out.AutoArchive = MaxAutoArchive
	}
	if *out.AutoDelete < 0 {
		*out.AutoDelete = Never
	}
	if *out.Ephemeral {
		*out.AutoDelete = 0
	}
	return out
}

func ptr[T any](v T) *T { return &v }

// account is the ordinary user of the default root.
func (s Spec) account() string { return cmp.Or(s.Account, DefaultAccount) }

// over returns s with what it lacks taken from d.
func (s Spec) over(d Spec) Spec {
	s, d = s.Clone(), d.Clone()
	merge := func(over, under map[string]string) map[string]string {
		if len(under) == 0 {
			return over
		}
		maps.Copy(under, over)
		return under
	}
	s.Labels, s.Env = merge(s.Labels, d.Labels), merge(s.Env, d.Env)
	if s.Name == "" {
		s.Name = d.Name
	}
	if s.Language == "" {
		s.Language = d.Language
	}
	// Who runs commands in the default root says nothing of an image, and one
	// ordinary user nothing of another.
	if s.User == "" && s.Snapshot == "" && (s.Image == "" || s.Image == d.Image) && (s.Account == "" || d.User != d.account()) {
		s.User = d.User
	}
	if s.Account == "" {
		s.Account = d.Account
	}
	if s.Image == "" && s.Snapshot == "" {
		s.Image, s.Snapshot = d.Image, d.Snapshot
	}
	if s.WorkingDirectory == "" {
		s.WorkingDirectory = d.WorkingDirectory
	}
	s.Resources = s.Resources.over(d.Resources)
	if s.Network == nil {
		s.Network = d.Network
	}
	if s.Ephemeral == nil {
		s.Ephemeral = d.Ephemeral
	}
	if s.Volumes == nil {
		s.Volumes = d.Volumes
	}
	if s.Mounts == nil {
		s.Mounts = d.Mounts
	}
	if s.Public == nil {
		s.Public = d.Public
	}
	for _, p := range []struct{ a, b **time.Duration }{{&s.AutoStop, &d.AutoStop}, {&s.AutoArchive, &d.AutoArchive},
		{&s.AutoDelete, &d.AutoDelete}, {&s.Timeout, &d.Timeout}} {
		if *p.a == nil {
			*p.a = *p.b
		}
	}
	return s
}

var (
	envName     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	accountName = pattern{32, regexp.MustCompile(`^[a-z_][a-z0-9_-]*$`)}
	labelPart   = pattern{63, regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)}
	dnsPrefix   = pattern{253, regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)}
)

// Validate checks what is given in s. Its error joins a *FieldError for every
// fault, each named by its key.
func (s Spec) Validate() error { return s.validate(false) }

// validate is Validate; ownUsers: as an OwnUsers provider has it.
func (s Spec) validate(ownUsers bool) error {
	var f faults
	if utf8.RuneCountInString(s.Name) > MaxName || !printable(s.Name) {
		f.add("name", fmt.Sprintf("%.80q does not fit", s.Name), "at most 63 printable characters", "")
	}
	f.labels(s.Labels)
	switch s.Language {
	case "", TypeScript, JavaScript, Python:
	default:
		f.add("language", fmt.Sprintf("there is no default language %.40q", s.Language), "typescript, javascript, python", "bash runs by execute_command, and by run_code when asked for")
	}
	f.env(s.Env)
	if s.Snapshot != "" {
		f.snapshot("snapshot", s.Snapshot)
	}
	f.image(s.Image)
	f.account(s.Account)
	if s.Image == "" && s.Snapshot == "" && !ownUsers { // a snapshot may be an image's
		f.user(s.User, s.account())
	} else {
		f.userName(s.User)
	}
	span := func(field string, d *time.Duration, least, most time.Duration, allowed string) {
		if d != nil && (*d < least || *d > most) {
			f.add(field, fmt.Sprintf("%v does not fit", *d), allowed, "")
		}
	}
	span("auto_stop_minutes", s.AutoStop, 0, MaxInterval, "0 (never) to 525,600 minutes")
	span("auto_archive_minutes", s.AutoArchive, 0, MaxAutoArchive, "0 (the maximum) to 43,200 minutes")
	if s.AutoDelete != nil && *s.AutoDelete > MaxInterval {
		f.add("auto_delete_minutes", fmt.Sprintf("%v does not fit", *s.AutoDelete), "negative (never), 0 (at the stop) to 525,600 minutes", "")
	}
	span("timeout_seconds", s.Timeout, 0, MaxTimeout, "0 (none) to 86,400 seconds")
	if w := s.WorkingDirectory; w != "" {
		switch {
		case !path.IsAbs(w):
			f.add("working_directory", fmt.Sprintf("%.80q is not absolute", w), "an absolute path, such as /workspace", "")
		case !plainPath(w):
			f.add("working_directory", "it is too long, or holds a NUL byte or invalid UTF-8", "at most 4,096 bytes of UTF-8", "")
		}
	}
	f.resources(s.Resources)
	f.volumes(s.Volumes)
	f.mounts(s.Mounts, s.Volumes)
	f.network(s.Network)
	return f.err()
}

// faults collects what is wrong with an input.
type faults []error

func (f *faults) add(field, problem, allowed, hint string) {
	*f = append(*f, &FieldError{Field: field, Problem: problem, Allowed: allowed, Hint: hint})
}

func (f faults) err() error { return errors.Join(f...) }

func (f *faults) env(env map[string]string) {
	total := 0
	for _, k := range slices.Sorted(maps.Keys(env)) {
		f.envVar(k, env[k])
		total += len(k) + len(env[k]) + 2
	}
	f.envSize(total)
}

func (f *faults) envVar(name, value string) {
	if !envName.MatchString(name) {
		f.add("env", fmt.Sprintf("%.80q is not a variable name", name), "letters, digits and '_', not beginning with a digit", "")
		return
	}
	if strings.ContainsRune(value, 0) {
		f.add("env."+name, "the value holds a NUL byte", "", "")
	}
	if len(value) > 120<<10 {
		f.add("env."+name, fmt.Sprintf("the value has %d bytes", len(value)), "at most 122,880 bytes", "put long data in a file with write_file")
	}
}

func (f *faults) envSize(total int) {
	if total > MaxEnv {
		f.add("env", fmt.Sprintf("it has %d bytes in all", total), "at most 262,144 bytes", "put long data in a file with write_file")
	}
}

func (f *faults) user(user, account string) {
	if user != "" && user != account && user != "root" {
		f.add("user", fmt.Sprintf("there is no user %.40q", user), account+", root", "")
	}
}

func (f *faults) account(name string) {
	if name != "" && (!accountName.matches(name) || name == "root") {
		f.add("account", fmt.Sprintf("%.40q is no name of an ordinary user", name), "1 to 32 lower-case letters, digits, '_' and '-', the first a letter or '_'", "")
	}
}

func (f *faults) labels(labels map[string]string) {
	if len(labels) > MaxLabels {
		f.add("labels", fmt.Sprintf("there are %d", len(labels)), "at most 64", "")
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		prefix, name, has := strings.Cut(k, "/")
		if !has {
			prefix, name = "", k
		}
		if !labelPart.matches(name) || has && !dnsPrefix.matches(prefix) {
			f.add("labels", fmt.Sprintf("%.80q is not a label key", k),
				"at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit, after an optional DNS prefix and '/'", "")
			continue
		}
		if v := labels[k]; len(v) > MaxLabelValue || !printable(v) {
			f.add("labels."+k, "the value does not fit", "at most 256 bytes of printable text", "")
		}
	}
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) })
}

func plainPath(p string) bool {
	return len(p) <= MaxPath && utf8.ValidString(p) && !strings.ContainsRune(p, 0)
}

// updated is the spec in force once s is applied to it: what is given wins,
// given maps replace those in force. Only a new sandbox can be made ephemeral,
// or with another image or other resources.
func (s Spec) updated(inForce, defaults Spec) Spec {
	want := s.over(Spec{Env: map[string]string{}, Labels: map[string]string{}})
	if s.Env != nil {
		want.Env = s.over(Spec{Env: defaults.Env}).Env
	} else {
		want.Env = maps.Clone(inForce.Env)
	}
	if s.Labels != nil {
		want.Labels = s.over(Spec{Labels: defaults.Labels}).Labels
	} else {
		want.Labels = maps.Clone(inForce.Labels)
	}
	under := inForce.Clone()
	under.Env, under.Labels = nil, nil
	want = want.over(under)
	want.Ephemeral, want.Resources, want.Image, want.Snapshot = clone(inForce.Ephemeral), inForce.Resources, inForce.Image, inForce.Snapshot
	want.Account = inForce.Account
	if s.User == "" {
		want.User = inForce.User
	}
	if want.AutoArchive != nil && *want.AutoArchive == 0 {
		*want.AutoArchive = MaxAutoArchive
	}
	if want.AutoDelete != nil && *want.AutoDelete < 0 {
		*want.AutoDelete = Never
	}
	if want.Ephemeral != nil && *want.Ephemeral && want.AutoDelete != nil {
		*want.AutoDelete = 0
	}
	return want
}

// drift names every key in which inForce is not what was wanted. Values of
// environment variables are never told.
func drift(want, inForce Spec) []string {
	var d []string
	say := func(field string, asked, is any) {
		d = append(d, fmt.Sprintf("%s: asked %v, in force %v", field, asked, is))
	}
	if want.Name != inForce.Name {
		say("name", want.Name, inForce.Name)
	}
	if want.Snapshot != inForce.Snapshot {
		say("snapshot", orNone(want.Snapshot), orNone(inForce.Snapshot))
	}
	if want.Image != inForce.Image {
		say("image", orNone(want.Image), orNone(inForce.Image))
	}
	if want.Language != inForce.Language {
		say("language", want.Language, inForce.Language)
	}
	if want.User != inForce.User {
		say("user", want.User, inForce.User)
	}
	if want.Account != inForce.Account {
		say("account", want.account(), inForce.account())
	}
	if want.WorkingDirectory != inForce.WorkingDirectory {
		say("working_directory", orNone(want.WorkingDirectory), orNone(inForce.WorkingDirectory))
	}
	keys := func(field string, want, is map[string]string, tell bool) {
		all := maps.Clone(want)
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, is)
		for _, k := range slices.Sorted(maps.Keys(all)) {
			w, asked := want[k]
			v, have := is[k]
			switch {
			case asked && have && w == v:
			case tell && asked && have:
				say(field+"."+k, w, v)
			case asked && have:
				d = append(d, field+"."+k+": asked another value than the one in force")
			case asked:
				d = append(d, field+"."+k+": asked, not in force")
			default:
				d = append(d, field+"."+k+": in force, not asked")
			}
		}
	}
	keys("labels", want.Labels, inForce.Labels, true)
	keys("env", want.Env, inForce.Env, false)
	if a := want.Network; a != nil {
		var is NetworkPolicy
		if inForce.Network != nil {
			is = *inForce.Network
		}
		if !a.Equal(is) {
			say("network", *a, is)
		}
	}
	if a, b := want.Resources.CPU, inForce.Resources.CPU; a != 0 && a != b {
		say("resources.cpu", cores(a), orNone(asked(b > 0, cores(b))))
	}
	if a, b := want.Resources.Memory, inForce.Resources.Memory; a != 0 && a != b {
		say("resources.memory_gib", GiB(a), orNone(asked(b > 0, GiB(b))))
	}
	if a, b := want.Resources.Disk, inForce.Resources.Disk; a != 0 && a != b {
		say("resources.disk_gib", GiB(a), orNone(asked(b > 0, GiB(b))))
	}
	if a, b := want.Ephemeral, inForce.Ephemeral; a != nil && b != nil && *a != *b {
		say("ephemeral", *a, *b)
	}
	if want.Volumes != nil && !slices.Equal(want.Volumes, inForce.Volumes) {
		d = append(d, "volumes: asked others than those in force; they are attached when a sandbox is made, so destroy_sandbox and start anew")
	}
	if want.Mounts != nil && !slices.Equal(want.Mounts, inForce.Mounts) {
		d = append(d, "mounts: asked others than those in force")
	}
	if a, b := want.Public, inForce.Public; a != nil && *a != (b != nil && *b) {
		say("public", *a, b != nil && *b)
	}
	for _, p := range []struct {
		field string
		a, b  *time.Duration
	}{{"auto_stop_minutes", want.AutoStop, inForce.AutoStop}, {"auto_archive_minutes", want.AutoArchive, inForce.AutoArchive},
		{"auto_delete_minutes", want.AutoDelete, inForce.AutoDelete}, {"timeout_seconds", want.Timeout, inForce.Timeout}} {
		if p.a == nil || p.b != nil && *p.a == *p.b {
			continue
		}
		is := "unknown"
		if p.b != nil {
			is = span(*p.b)
		}
		say(p.field, span(*p.a), is)
	}
	return d
}

func span(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	return d.String()
}

func asked(is bool, s string) string {
	if is {
		return s
	}
	return ""
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
