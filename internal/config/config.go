// Package config turns flags, the environment, a YAML file and the defaults
// into one Config, checked as a whole.
//
// A value comes from the first of these that gives one: a flag, an environment
// variable, the file, the default. Each key has a variable: "limits.max_sandboxes"
// is BERTH_LIMITS_MAX_SANDBOXES; lists are written with commas there. In the
// file, ${NAME} in a value is replaced by that environment variable after
// parsing ($${ stands for a plain ${), and an unset one is an error. All
// problems are reported at once, each with its key and where it was given.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth/internal/secret"
	"berth/mounts"
	"berth/sandbox"
)

// Config is everything that an operator can set. Zero and empty mean "the
// default" where the comment says so. Its yaml tags are the file's keys.
type Config struct {
	// Provider is "auto", "local" or "daytona".
	Provider string `yaml:"provider"`
	// State is the state directory, absolute; empty: see StateDir of the provider.
	State string `yaml:"state"`
	// Session is the session of calls that name none; empty: one is made.
	Session string `yaml:"session"`
	// Toolsets lists what to offer: "default", "all", or names of toolsets.
	Toolsets []string `yaml:"toolsets"`
	// ReadOnly keeps only tools that change nothing.
	ReadOnly bool `yaml:"read_only"`

	// HTTP is the address to listen on, "host:port"; empty serves stdio.
	HTTP string `yaml:"http"`
	// DaytonaAPI is the address at which the Daytona API is served, "host:port";
	// empty: it is not.
	DaytonaAPI string `yaml:"daytona_api"`
	// Insecure permits an address that is not loopback without any token.
	Insecure bool `yaml:"insecure"`
	// AllowedHosts are more values of the Host header to accept, beside
	// loopback names and the address itself.
	AllowedHosts []string `yaml:"allowed_hosts"`
	// AllowedOrigins are the web origins ("https://app.example") to accept.
	AllowedOrigins []string `yaml:"allowed_origins"`
	// TrustedProxies are addresses or CIDR ranges whose X-Forwarded-* headers are believed.
	TrustedProxies []string `yaml:"trusted_proxies"`

	Auth     Auth     `yaml:"auth"`
	Log      Log      `yaml:"log"`
	Defaults Defaults `yaml:"defaults"`
	Limits   Limits   `yaml:"limits"`
	Local    Local    `yaml:"local"`
	Daytona  Daytona  `yaml:"daytona"`
	Ports    Ports    `yaml:"ports"`
	// Connections are access to bucket services, by the names that sessions say.
	Connections map[string]mounts.Connection `yaml:"connections"`
	// BestEffort starts sandboxes also where a limit that was asked for cannot be held.
	BestEffort bool `yaml:"best_effort"`

	// File is the config file that was read; empty when none was.
	File string `yaml:"-"`
	// Warnings are remarks for the log, such as a variable that no key has.
	Warnings []string `yaml:"-"`
	// Buckets are the connections of this config and of the environment, and what
	// sessions may do with them.
	Buckets *mounts.Set `yaml:"-"`
	// Environment holds what providers read from the environment and .env files.
	Environment Environment `yaml:"-"`
	// Origin is where settings were given, by key: a line of the file, a variable
	// or a flag. See Placed.
	Origin map[string]string `yaml:"-"`
}

// Listens tells that some address is listened on.
func (c *Config) Listens() bool { return c.HTTP != "" || c.DaytonaAPI != "" }

// Auth says who may call over HTTP.
type Auth struct {
	// Tokens maps an owner's name to its bearer token: the token itself, or
	// "sha256:" and the hexadecimal SHA-256 of it.
	Tokens map[string]secret.Text `yaml:"tokens"`
	// Generate makes a token on the first start over HTTP when none is given,
	// keeps it in the state directory, and prints it once.
	Generate bool `yaml:"generate"`
}

// Log says what is logged, always to stderr.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // auto (text on a terminal, else json), text, json
}

// Defaults are what a sandbox is made of unless its session says otherwise.
type Defaults struct {
	Labels             map[string]string `yaml:"labels"`
	Image              string            `yaml:"image"`
	Snapshot           string            `yaml:"snapshot"`
	Language           string            `yaml:"language"`
	Env                map[string]string `yaml:"env"`
	User               string            `yaml:"user"`
	Ephemeral          bool              `yaml:"ephemeral"`
	Public             bool              `yaml:"public"`
	AutoStopMinutes    int               `yaml:"auto_stop_minutes"`
	AutoArchiveMinutes int               `yaml:"auto_archive_minutes"`
	AutoDeleteMinutes  int               `yaml:"auto_delete_minutes"`
	TimeoutSeconds     int               `yaml:"timeout_seconds"`
	WorkingDirectory   string            `yaml:"working_directory"`
	Resources          Resources         `yaml:"resources"`
	// Volumes are attached to sandboxes whose sessions name none.
	Volumes []Volume `yaml:"volumes"`
	// Mounts are buckets that sandboxes show whose sessions name none.
	Mounts []Mount `yaml:"mounts"`
	// What sandboxes reach: nothing but the lists, and only them.
	NetworkBlockAll     bool     `yaml:"network_block_all"`
	NetworkAllowList    []string `yaml:"network_allow_list"`
	NetworkAllowDomains []string `yaml:"network_allow_domains"`
}

// Resources are limits on what a sandbox uses; 0: none is set.
type Resources struct {
	CPU       float64 `yaml:"cpu"` // cores
	MemoryGiB float64 `yaml:"memory_gib"`
	DiskGiB   float64 `yaml:"disk_gib"`
}

// Limits are the ceiling that no session passes.
type Limits struct {
	MaxSandboxes int `yaml:"max_sandboxes"` // per owner
	MaxProcesses int `yaml:"max_processes"` // running at once, per sandbox
	// MaxCPU and so on are what one sandbox may ask for, and what one that asks
	// for nothing has; 0: no ceiling.
	MaxCPU       float64 `yaml:"max_cpu"` // cores
	MaxMemoryGiB float64 `yaml:"max_memory_gib"`
	MaxDiskGiB   float64 `yaml:"max_disk_gib"`
	// MaxPIDs bounds the processes and threads of all that one sandbox runs;
	// 0: the built-in bound, best effort.
	MaxPIDs int `yaml:"max_pids"`
	// The widest that sandboxes may reach: with NetworkBlockAll the lists and no
	// more, else the internet, and in NetworkAllowList the special ranges that
	// a session may ask for.
	NetworkBlockAll     bool     `yaml:"network_block_all"`
	NetworkAllowList    []string `yaml:"network_allow_list"`
	NetworkAllowDomains []string `yaml:"network_allow_domains"`
	// AllowedImages are patterns of the images that sessions may name, in which
	// * stands for any text; none: no image.
	AllowedImages []string `yaml:"allowed_images"`
	// Buckets are what sessions may mount; none: nothing.
	Buckets []mounts.Rule `yaml:"buckets"`
	// InlineCredentials lets mount_bucket bring credentials of its own.
	InlineCredentials bool `yaml:"inline_credentials"`
	// HostDirs are folders of this machine shown in every sandbox.
	HostDirs []HostDir `yaml:"host_dirs"`
}

// Volume is a volume, an owner's own of that name, and where it is seen inside.
type Volume struct {
	Volume   string `yaml:"volume"`
	Path     string `yaml:"path"`
	Subpath  string `yaml:"subpath"`
	ReadOnly bool   `yaml:"read_only"`
}

// Mount is a bucket, or part of one, and where it is seen inside. The file writes
// mounts as a mapping of their paths, in whose order they are mounted.
type Mount struct {
	Path       string `yaml:"-"`
	Connection string `yaml:"connection"`
	Bucket     string `yaml:"bucket"`
	Prefix     string `yaml:"prefix"`
	ReadOnly   bool   `yaml:"read_only"`
}

func (m *Mount) setKey(path string) { m.Path = path }

// HostDir is one folder of the host and where it is seen inside.
type HostDir struct {
	Host     string `yaml:"host"`
	Path     string `yaml:"path"`
	ReadOnly bool   `yaml:"read_only"`
}

// Resources of a sandbox at the most.
func (l Limits) Resources() sandbox.Resources {
	return Resources{CPU: l.MaxCPU, MemoryGiB: l.MaxMemoryGiB, DiskGiB: l.MaxDiskGiB}.domain()
}

func (r Resources) domain() sandbox.Resources {
	return sandbox.Resources{CPU: r.CPU, Memory: sandbox.FromGiB(r.MemoryGiB), Disk: sandbox.FromGiB(r.DiskGiB)}
}

// Local holds the settings of the local provider.
type Local struct {
	// ExtraPaths are more system directories of the host to show, read-only.
	ExtraPaths []string `yaml:"extra_paths"`
	// LogMiB bounds the log of one output stream of a process.
	LogMiB int `yaml:"log_mib"`
	// KeepProcesses and KeepLogMiB bound what is kept of finished processes,
	// per sandbox.
	KeepProcesses int `yaml:"keep_processes"`
	KeepLogMiB    int `yaml:"keep_log_mib"`
	// UpstreamProxy is an HTTP proxy through which sandboxes reach the world,
	// "http://[user:password@]host:port"; empty: directly. NoProxy lists what
	// is reached directly all the same: names, ".suffix", addresses, CIDRs.
	UpstreamProxy secret.Text `yaml:"upstream_proxy"`
	NoProxy       []string    `yaml:"no_proxy"`
	// FUSE lets programs inside mount file systems of their own, by fusermount3.
	FUSE bool `yaml:"fuse"`
	// Images say where images come from, and how long they stay.
	Images Images `yaml:"images"`
}

// Daytona holds the settings of the Daytona provider. What is empty here is taken
// from the DAYTONA_* variables of the environment and of .env files; see
// Config.DaytonaAccess.
type Daytona struct {
	APIKey secret.Text `yaml:"api_key"`
	// JWT is used where there is no key, with Organization.
	JWT          secret.Text `yaml:"jwt"`
	Organization string      `yaml:"organization"`
	// URL of the control plane, its path included.
	URL string `yaml:"url"`
	// Target is the region of new sandboxes.
	Target string `yaml:"target"`
	// Adopt lets a session be a sandbox that berth did not make: "auto" (where
	// berth serves stdio), "yes", "no".
	Adopt string `yaml:"adopt"`
	// Seal is what sessions' environment variables are sealed with, which are
	// kept with their sandboxes; empty: the key.
	Seal secret.Text `yaml:"seal"`
	// Probe is an address that no sandbox with a limited network may reach.
	Probe string `yaml:"probe"`
}

// Images are the settings of images.
type Images struct {
	// Aliases are names of the operator's own for images.
	Aliases map[string]string `yaml:"aliases"`
	// Mirrors of registries are asked first, in order.
	Mirrors map[string][]string `yaml:"mirrors"`
	// Platform is "linux/ARCHITECTURE"; empty: this machine's.
	Platform string `yaml:"platform"`
	// KeepDays is how long an image stays that no sandbox uses; 0: for ever.
	KeepDays int `yaml:"keep_days"`
	// MaxGiB bounds what an image unpacks to.
	MaxGiB int `yaml:"max_gib"`
}

// Ports says where exposed ports are reached.
type Ports struct {
	// PublicURL is where a name before its host leads to this server's HTTP
	// listener, such as https://preview.example.com; empty: this machine alone.
	PublicURL string `yaml:"public_url"`
}

// TokenOwner is the owner's name that BERTH_TOKEN and a generated token stand for.
const TokenOwner = "default"

// Default returns the built-in settings.
func Default() *Config {
	return &Config{
		Provider: "auto",
		Toolsets: []string{"default"},
		Log:      Log{Level: "info", Format: "auto"},
		Defaults: Defaults{
			Language:           "typescript",
			User:               "agent",
			AutoStopMinutes:    15,
			AutoArchiveMinutes: 7 * 24 * 60,
			AutoDeleteMinutes:  -1,
			TimeoutSeconds:     300,
		},
		Limits:  Limits{MaxSandboxes: 1000, MaxProcesses: 512, AllowedImages: []string{"*"}, Buckets: []mounts.Rule{{Connection: "*"}}},
		Local:   Local{FUSE: true, LogMiB: 64, KeepProcesses: 200, KeepLogMiB: 1024, Images: Images{KeepDays: 30, MaxGiB: 64}},
		Daytona: Daytona{Adopt: "auto", Probe: "1.1.1.1:443"},
	}
}

// Source is where Load reads from.
type Source struct {
	// Flags are key paths and values given on the command line, with the
	// flag's name. They win over everything else.
	Flags []Flag
	// Environ is the process environment, as os.Environ gives it.
	Environ []string
	// File is the config file asked for; empty: BERTH_CONFIG, then the first
	// of DefaultFiles that exists, then none.
	File string
	// Dir is where .env files are looked for; empty reads none.
	Dir string
}

// Flag is one setting given on the command line.
type Flag struct {
	Name  string // "--log-level", for messages
	Key   string // "log.level"
	Value string
	Add   bool // appends to a list instead of replacing it
}

// DefaultFiles are the config files tried when none is named: the user's, then
// the machine's. The working directory is not among them, since it may be
// somebody else's repository.
func DefaultFiles(getenv func(string) string) []string {
	var files []string
	if dir := getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		files = append(files, filepath.Join(dir, "berth", "config.yaml"))
	} else if home := getenv("HOME"); home != "" {
		files = append(files, filepath.Join(home, ".config", "berth", "config.yaml"))
	} else if dir := getenv("AppData"); dir != "" {
		files = append(files, filepath.Join(dir, "berth", "config.yaml"))
	}
	return append(files, "/etc/berth/config.yaml")
}

// Load reads and checks the settings. Its error is a *Error when settings are
// wrong; then it lists all that is wrong.
func Load(s Source) (*Config, error) {
	env := environ(s.Environ)
	l := &loader{config: Default(), lookup: env.lookup, origin: map[string]string{}, hidden: map[string]bool{}, unset: map[string]error{}}

	file, required := cmp.Or(s.File, env.get("BERTH_CONFIG")), true
	if file == "" {
		required = false
		for _, f := range DefaultFiles(env.get) {
			if _, err := os.Stat(f); err == nil {
				file = f
				break
			}
		}
	}
	if file != "" {
		data, err := os.ReadFile(file)
		switch {
		case err == nil:
			l.config.File = file
			l.file(file, data)
		case errors.Is(err, fs.ErrNotExist) && required:
			l.report("", file, "there is no such config file", "", "check --config and BERTH_CONFIG")
		default:
			l.report("", file, "cannot be read: "+cause(err), "", "")
		}
	}
	l.environment(env)
	for _, f := range s.Flags {
		l.set(f.Key, f.Name, f.Value, f.Add)
	}
	if s.Dir != "" {
		l.config.Environment = loadEnvironment(s.Dir, env, &l.config.Warnings)
	}
	l.expandHome(env.get("HOME"))
	l.validate()
	if len(l.problems) > 0 {
		slices.SortStableFunc(l.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(a.line(), b.line()))
		})
		return nil, &Error{Problems: l.problems}
	}
	l.config.Origin = l.origin
	return l.config, nil
}

// expandHome makes paths of this machine that begin with ~ begin with home:
// shells do that for words of their own only.
func (l *loader) expandHome(home string) {
	paths := map[string]*string{"state": &l.config.State}
	for i := range l.config.Limits.HostDirs {
		paths[fmt.Sprintf("limits.host_dirs[%d].host", i)] = &l.config.Limits.HostDirs[i].Host
	}
	for key, p := range paths {
		rest, ok := strings.CutPrefix(*p, "~")
		switch {
		case !ok || rest != "" && rest[0] != '/':
		case !filepath.IsAbs(home):
			l.wrong(key, l.quote(key, *p)+" begins with ~, and HOME names no home directory", "an absolute path", "")
		default:
			*p = filepath.Join(home, rest)
		}
	}
}

// cause is err without the path that os puts around it.
func cause(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// Error lists everything that is wrong with the settings.
type Error struct {
	Problems []Problem
}

// Problem is one wrong setting.
type Problem struct {
	Where   string // "/etc/berth/config.yaml line 3", "BERTH_LOG_LEVEL", "--http"; may be empty
	Key     string // "log.level"; empty when it concerns the whole source
	Text    string // what is wrong
	Allowed string // what is allowed; may be empty
	Hint    string // what to do; may be empty
}

func (p Problem) String() string {
	var b strings.Builder
	for i, s := range []string{p.Where, p.Key} {
		if s != "" && (i == 0 || !strings.HasPrefix(p.Where, "--")) { // a flag is its key's name
			b.WriteString(s + ": ")
		}
	}
	b.WriteString(p.Text)
	if p.Allowed != "" {
		b.WriteString("; allowed: " + p.Allowed)
	}
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// rank orders problems by where they come from: the file, the environment, the
// command line, nowhere.
func (p Problem) rank() int {
	switch {
	case p.Where == "":
		return 3
	case strings.HasPrefix(p.Where, "--"):
		return 2
	case strings.HasPrefix(p.Where, "BERTH_"):
		return 1
	}
	return 0
}

// line is the line of the file; 0 when it concerns the whole source.
func (p Problem) line() int {
	_, text, _ := cutLast(p.Where, " line ")
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

// Error lists the problems, one a line.
func (e *Error) Error() string {
	var b strings.Builder
	if len(e.Problems) == 1 {
		b.WriteString("1 problem in the settings:")
	} else {
		fmt.Fprintf(&b, "%d problems in the settings:", len(e.Problems))
	}
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// loader collects settings, where they came from, and what is wrong with them.
type loader struct {
	config *Config
	lookup func(string) (string, bool) // the real environment
	origin map[string]string           // key → where its value was given
	hidden map[string]bool             // keys whose value is not shown in messages
	// emptyToken tells that BERTH_TOKEN is there and empty, as of a command that failed.
	emptyToken bool
	// unset are connections of the file that name a variable which is not set,
	// each with what is to be said of it: only those who use them need them.
	unset    map[string]error
	problems []Problem
}

func (l *loader) report(key, where, text, allowed, hint string) {
	p := Problem{Where: where, Key: key, Text: text, Allowed: allowed, Hint: hint}
	if !slices.Contains(l.problems, p) {
		l.problems = append(l.problems, p)
	}
}

// where returns where key, or the nearest key above it, was given.
func (l *loader) where(key string) string {
	for {
		if w, ok := l.origin[key]; ok {
			return w
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return ""
		}
		key = key[:i]
	}
}
