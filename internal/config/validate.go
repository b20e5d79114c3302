package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
)

// Toolsets are the names that toolsets may hold.
var Toolsets = []string{"default", "all", "core", "sandbox", "files", "buckets", "snapshots", "volumes", "network"}

var ownerPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]*$`)

// OwnerNames is what OwnerName allows, for messages.
const OwnerNames = "1 to 63 letters, digits, '.', '_', '@' and '-', the first a letter or digit"

// OwnerName reports whether name can be an owner's.
func OwnerName(name string) bool { return len(name) <= 63 && ownerPattern.MatchString(name) }

// validate checks the whole config. It needs no file system.
func (l *loader) validate() {
	c := l.config
	bad := l.wrong
	oneOf := func(key, got string, allowed ...string) {
		if !slices.Contains(allowed, got) {
			hint := ""
			if near := Nearest(got, allowed); near != "" {
				hint = "did you mean " + near + "?"
			}
			bad(key, l.quote(key, got)+" is not known", strings.Join(allowed, ", "), hint)
		}
	}
	atLeast := func(key string, got, low, high int, meaning string) {
		if got < low || got > high {
			bad(key, strconv.Itoa(got)+" is out of range", fmt.Sprintf("%d to %d%s", low, high, meaning), "")
		}
	}

	oneOf("provider", c.Provider, "auto", "local", "daytona")
	if c.State != "" && !filepath.IsAbs(c.State) {
		bad("state", l.quote("state", c.State)+" is not absolute", "an absolute path, or ~/ and one below your home directory", "")
	}
	if c.Session != "" {
		if _, err := sandbox.ParseSessionID(c.Session); err != nil {
			bad("session", l.quote("session", c.Session)+" is no session id", "1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit", "")
		}
	}
	if len(c.Toolsets) == 0 {
		bad("toolsets", "names nothing", strings.Join(Toolsets, ", "), "")
	}
	for i, t := range c.Toolsets {
		oneOf(fmt.Sprintf("toolsets[%d]", i), t, Toolsets...)
	}
	l.validateHTTP()
	oneOf("daytona.adopt", c.Daytona.Adopt, "auto", "yes", "no")
	l.validateDaytona()
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "auto", "text", "json")

	d := &c.Defaults
	oneOf("defaults.language", d.Language, "typescript", "javascript", "python")
	oneOf("defaults.user", d.User, "agent", "root")
	const maxMinutes = int(sandbox.MaxInterval / time.Minute)
	atLeast("defaults.auto_stop_minutes", d.AutoStopMinutes, 0, maxMinutes, " minutes; 0 never stops")
	atLeast("defaults.auto_archive_minutes", d.AutoArchiveMinutes, 0, int(sandbox.MaxAutoArchive/time.Minute), " minutes; 0 is the maximum")
	atLeast("defaults.auto_delete_minutes", d.AutoDeleteMinutes, -1, maxMinutes, " minutes; 0 deletes at once, -1 never")
	atLeast("defaults.timeout_seconds", d.TimeoutSeconds, 0, int(sandbox.MaxTimeout/time.Second), " seconds; 0 is none")
	if d.WorkingDirectory != "" && !path.IsAbs(d.WorkingDirectory) {
		bad("defaults.working_directory", l.quote("defaults.working_directory", d.WorkingDirectory)+" is not absolute", "an absolute path inside the sandbox", "")
	}
	for _, name := range slices.Sorted(maps.Keys(d.Env)) {
		if !variableName.MatchString(name) {
			bad("defaults.env."+name, "is no name of an environment variable", "letters, digits and '_', not beginning with a digit", "")
		} else if strings.ContainsRune(d.Env[name], 0) {
			bad("defaults.env."+name, "holds a NUL byte", "", "")
		}
	}

	amount := func(key string, got, low, high float64, unit string) {
		if got != 0 && !(got >= low && got <= high) {
			bad(key, strconv.FormatFloat(got, 'f', -1, 64)+" is out of range", fmt.Sprintf("%v to %v %s; 0 sets none", low, high, unit), "")
		}
	}
	gib := func(n int64) float64 { return float64(n) / (1 << 30) }
	within := func(key string, got, most float64, ceiling string) {
		if most > 0 && got > most {
			bad(key, strconv.FormatFloat(got, 'f', -1, 64)+" is more than "+ceiling+" allows", "", "lower it, or raise "+ceiling)
		}
	}
	for _, r := range []struct {
		name      string
		cpu       float64
		mem, disk float64
	}{{"defaults.resources.", d.Resources.CPU, d.Resources.MemoryGiB, d.Resources.DiskGiB}, {"limits.max_", c.Limits.MaxCPU, c.Limits.MaxMemoryGiB, c.Limits.MaxDiskGiB}} {
		amount(r.name+"cpu", r.cpu, sandbox.MinCPU, sandbox.MaxCPU, "cores")
		amount(r.name+"memory_gib", r.mem, gib(sandbox.MinMemory), gib(sandbox.MaxMemory), "GiB")
		amount(r.name+"disk_gib", r.disk, gib(sandbox.MinDisk), gib(sandbox.MaxDisk), "GiB")
	}
	within("defaults.resources.cpu", d.Resources.CPU, c.Limits.MaxCPU, "limits.max_cpu")
	within("defaults.resources.memory_gib", d.Resources.MemoryGiB, c.Limits.MaxMemoryGiB, "limits.max_memory_gib")
	within("defaults.resources.disk_gib", d.Resources.DiskGiB, c.Limits.MaxDiskGiB, "limits.max_disk_gib")
	if n := c.Limits.MaxPIDs; n != 0 {
		atLeast("limits.max_pids", n, 16, 1<<22, "; 0 is the built-in bound")
	}
	for _, n := range []struct {
		key            string
		cidrs, domains []string
	}{{"defaults.", d.NetworkAllowList, d.NetworkAllowDomains}, {"limits.", c.Limits.NetworkAllowList, c.Limits.NetworkAllowDomains}} {
		_, cidrs := sandbox.ParseCIDRs("network_allow_list", n.cidrs)
		p := policy(false, nil, n.domains)
		for _, err := range faultsOf(errors.Join(cidrs, (sandbox.Spec{Network: &p}).Validate())) {
			l.report(n.key+err.Field, l.where(n.key+err.Field), err.Problem, err.Allowed, err.Hint)
		}
	}
	if u := c.Local.UpstreamProxy.Reveal(); u != "" {
		if parsed, err := url.Parse(u); err != nil || parsed.Scheme != "http" || parsed.Hostname() == "" {
			bad("local.upstream_proxy", "it is no address of a proxy", "http://[user:password@]host:port", "")
		}
	}
	atLeast("limits.max_sandboxes", c.Limits.MaxSandboxes, 1, 100000, "")
	atLeast("limits.max_processes", c.Limits.MaxProcesses, 1, 100000, "")
	seen := map[string]bool{}
	for i, h := range c.Limits.HostDirs {
		key := fmt.Sprintf("limits.host_dirs[%d]", i)
		if !filepath.IsAbs(h.Host) {
			bad(key+".host", l.quote(key+".host", h.Host)+" is not absolute", "an absolute path of a folder of this machine", "")
		}
		if !path.IsAbs(h.Path) || path.Clean(h.Path) == "/" {
			bad(key+".path", l.quote(key+".path", h.Path)+" cannot be where a folder is shown", "an absolute path inside the sandbox, not /", "")
		} else if p := path.Clean(h.Path); seen[p] {
			bad(key+".path", l.quote(key+".path", h.Path)+" is used twice", "", "give each folder a place of its own")
		} else {
			seen[p] = true
		}
	}
	atLeast("local.log_mib", c.Local.LogMiB, 1, 1<<20, " MiB")
	atLeast("local.keep_processes", c.Local.KeepProcesses, 1, 100000, "")
	atLeast("local.keep_log_mib", c.Local.KeepLogMiB, 1, 1<<20, " MiB")
	atLeast("local.images.keep_days", c.Local.Images.KeepDays, 0, 10000, " days; 0 keeps them for ever")
	atLeast("local.images.max_gib", c.Local.Images.MaxGiB, 1, 1<<14, " GiB")
	if p := c.Local.Images.Platform; p != "" && !platformPattern.MatchString(p) {
		bad("local.images.platform", l.quote("local.images.platform", p)+" is no platform", "linux/ARCHITECTURE, such as linux/arm64", "")
	}
	image := func(key, name string) {
		if name == "" || len(name) > sandbox.MaxImage || strings.ContainsAny(name, " \t\r\n") {
			bad(key, l.quote(key, name)+" is no name of an image", "such as debian:12, oci:/path:tag or docker-archive:/path", "")
		}
	}
	for alias, name := range c.Local.Images.Aliases {
		image("local.images.aliases."+alias, name)
	}
	if d.Image != "" {
		image("defaults.image", d.Image)
	}
	if (sandbox.Spec{Snapshot: d.Snapshot}).Validate() != nil {
		bad("defaults.snapshot", l.quote("defaults.snapshot", d.Snapshot)+" is not a snapshot's name", "1 to 63 characters: a letter or digit, then letters, digits, '.', '_' or '-'", "")
	}
	for _, err := range faultsOf((sandbox.Spec{Volumes: d.volumes()}).Validate()) {
		bad("defaults."+err.Field, err.Problem, err.Allowed, err.Hint)
	}
	l.validateBuckets()
	for i, p := range c.Limits.AllowedImages {
		image(fmt.Sprintf("limits.allowed_images[%d]", i), p)
	}
	for i, p := range c.Local.ExtraPaths {
		if !filepath.IsAbs(p) || filepath.Clean(p) == "/" {
			bad(fmt.Sprintf("local.extra_paths[%d]", i), l.quote(fmt.Sprintf("local.extra_paths[%d]", i), p)+" cannot be shown", "an absolute path, not /", "")
		}
	}
}

var platformPattern = regexp.MustCompile(`^linux/[a-z0-9_]+(/[a-z0-9]+)?$`)

// wrong reports a bad value, unless the key has been reported already.
func (l *loader) wrong(key, text, allowed, hint string) {
	if !slices.ContainsFunc(l.problems, func(p Problem) bool { return p.Key == key }) {
		l.report(key, l.where(key), text, allowed, hint)
	}
}

// quote shows a key's value in a message, unless it came from a variable of
// the operator's that may hold a secret.
func (l *loader) quote(key, value string) string {
	if l.hidden[key] {
		return "the value"
	}
	return fmt.Sprintf("%.80q", value)
}

func (l *loader) validateHTTP() {
	c, bad := l.config, l.wrong
	for _, a := range []struct{ key, address string }{{"http", c.HTTP}, {"daytona_api", c.DaytonaAPI}} {
		if a.address == "" {
			continue
		}
		host, port, err := net.SplitHostPort(a.address)
		n, perr := strconv.Atoi(port)
		if err != nil || perr != nil || n < 0 || n > 65535 {
			bad(a.key, l.quote(a.key, a.address)+" is no address", "host:port, such as 127.0.0.1:8080", "")
		} else if !Loopback(host) && len(c.Auth.Tokens) == 0 && !c.Auth.Generate && !c.Insecure {
			bad(a.key, l.quote(a.key, a.address)+" can be reached from other machines, and no token is asked for", "",
				"set BERTH_TOKEN or auth.tokens, listen on 127.0.0.1, or pass --insecure")
		}
	}
	if c.Listens() && l.emptyToken && len(c.Auth.Tokens) == 0 && !c.Auth.Generate {
		bad("auth.tokens", "BERTH_TOKEN is set and empty, so nobody would be asked for a token", "", "give it a value, or unset it")
	}
	if p := c.Ports.PublicURL; p != "" {
		u, err := url.Parse(p)
		key := "ports.public_url"
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil:
			bad(key, l.quote(key, p)+" is no web address", "http(s)://name or http(s)://name:port", "a port is then at https://PORT-LABEL.name")
		case net.ParseIP(u.Hostname()) != nil:
			bad(key, l.quote(key, p)+" is an IP address, and names are put before it", "a host name", "")
		case !c.Listens():
			bad(key, "needs an HTTP listener, to which that name leads", "", "set http, or leave it out")
		}
	}
	for i, o := range c.AllowedOrigins {
		u, err := url.Parse(o)
		if o != "*" && (err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil) {
			bad(fmt.Sprintf("allowed_origins[%d]", i), l.quote(fmt.Sprintf("allowed_origins[%d]", i), o)+" is no web origin", "scheme://host or scheme://host:port", "")
		}
	}
	for i, h := range c.AllowedHosts {
		if h == "" || strings.ContainsAny(h, "/ @") {
			bad(fmt.Sprintf("allowed_hosts[%d]", i), l.quote(fmt.Sprintf("allowed_hosts[%d]", i), h)+" is no host name", "a host name, or host:port", "")
		}
	}
	for i, p := range c.TrustedProxies {
		if _, err := netip.ParseAddr(p); err != nil {
			if _, err := netip.ParsePrefix(p); err != nil {
				bad(fmt.Sprintf("trusted_proxies[%d]", i), l.quote(fmt.Sprintf("trusted_proxies[%d]", i), p)+" is no address", "an IP address or a CIDR range", "")
			}
		}
	}
	owners := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Auth.Tokens)) {
		key, token := "auth.tokens."+name, c.Auth.Tokens[name].Reveal()
		if !OwnerName(name) {
			bad(key, "is no name of an owner", OwnerNames, "")
		}
		if sum, ok := strings.CutPrefix(token, "sha256:"); ok {
			if b, err := hex.DecodeString(sum); err != nil || len(b) != 32 {
				bad(key, "the text after sha256: is no hash", "64 hexadecimal digits", "make one with: printf %s TOKEN | sha256sum")
			}
		} else if len(token) < 16 || strings.ContainsAny(token, " \t\r\n") {
			bad(key, "the token is too easy to guess or holds white space", "at least 16 characters without white space", "make one with: openssl rand -hex 32")
		}
		if other, ok := owners[token]; ok {
			bad(key, "is the token of "+other+" too", "", "give each owner a token of its own")
		}
		owners[token] = name
	}
}

// Loopback reports whether a listening host can be reached from this machine
// only. A name other than localhost is not trusted to be.
func Loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// Spec returns the defaults as the Manager wants them.
func (d Defaults) network() *sandbox.NetworkPolicy {
	p := policy(d.NetworkBlockAll, d.NetworkAllowList, d.NetworkAllowDomains)
	if !p.Limited() {
		return nil
	}
	return &p
}

// Network is the widest policy of a session.
func (l Limits) Network() sandbox.NetworkPolicy {
	return policy(l.NetworkBlockAll, l.NetworkAllowList, l.NetworkAllowDomains)
}

// policy leaves out what Validate refuses.
func policy(block bool, cidrs, domains []string) sandbox.NetworkPolicy {
	p := sandbox.NetworkPolicy{BlockAll: block}
	p.AllowCIDRs, _ = sandbox.ParseCIDRs("", cidrs)
	for _, d := range domains {
		p.AllowDomains = append(p.AllowDomains, strings.ToLower(d))
	}
	return p
}

// Placed makes of err, which a provider has found with its options, what Load
// says of settings: each fault with the place where it was given, since who
// wrote a flag or a variable need not know the key. Anything else stays as it is.
func (c *Config) Placed(err error) error {
	l := loader{origin: c.Origin}
	placed := false
	for _, f := range faultsOf(err) {
		where := l.where(f.Field)
		placed = placed || where != ""
		l.report(f.Field, where, f.Problem, f.Allowed, f.Hint)
	}
	if !placed {
		return err
	}
	return &Error{Problems: l.problems}
}

// faultsOf are the faults that err joins.
func faultsOf(err error) []*sandbox.FieldError {
	var fe *sandbox.FieldError
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var list []*sandbox.FieldError
		for _, e := range j.Unwrap() {
			list = append(list, faultsOf(e)...)
		}
		return list
	}
	if errors.As(err, &fe) {
		return []*sandbox.FieldError{fe}
	}
	return nil
}

func (d Defaults) mounts() []sandbox.Mount {
	var list []sandbox.Mount
	for _, m := range d.Mounts {
		list = append(list, sandbox.Mount(m))
	}
	return list
}

func (d Defaults) volumes() []sandbox.VolumeMount {
	var list []sandbox.VolumeMount
	for _, v := range d.Volumes {
		list = append(list, sandbox.VolumeMount(v))
	}
	return list
}

// Spec is what sandboxes are made of by default.
func (d Defaults) Spec() sandbox.Spec {
	minutes := func(n int) *time.Duration { v := time.Duration(n) * time.Minute; return &v }
	var autoDelete *time.Duration // not told: never, or that of server-made ids
	if d.AutoDeleteMinutes >= 0 {
		autoDelete = minutes(d.AutoDeleteMinutes)
	}
	timeout := time.Duration(d.TimeoutSeconds) * time.Second
	user := d.User
	if (d.Image != "" || d.Snapshot != "") && user == Default().Defaults.User {
		user = "" // the image's own
	}
	return sandbox.Spec{
		Image:            d.Image,
		Snapshot:         d.Snapshot,
		Labels:           d.Labels,
		Language:         sandbox.Language(d.Language),
		Env:              d.Env,
		User:             user,
		Ephemeral:        &d.Ephemeral,
		Public:           &d.Public,
		AutoStop:         minutes(d.AutoStopMinutes),
		AutoArchive:      minutes(d.AutoArchiveMinutes),
		AutoDelete:       autoDelete,
		Timeout:          &timeout,
		WorkingDirectory: d.WorkingDirectory,
		Resources:        d.Resources.domain(),
		Network:          d.network(),
		Volumes:          d.volumes(),
		Mounts:           d.mounts(),
	}
}
