package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"berth/internal/config"
	"berth/sandbox"
)

// terminal reports whether f, a reader or writer, is a terminal.
func (a *App) terminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && file != nil && term.IsTerminal(int(file.Fd()))
}

// getenv reads the environment that the App was given.
func (a *App) getenv(name string) string {
	v, _ := a.lookupEnv(name)
	return v
}

func (a *App) lookupEnv(name string) (value string, set bool) {
	for _, e := range slices.Backward(a.Environ) {
		if n, v, ok := strings.Cut(e, "="); ok && n == name {
			return v, true
		}
	}
	return "", false
}

// load reads the settings.
func (a *App) load() (*config.Config, error) {
	c, err := config.Load(config.Source{Flags: a.flags, Environ: a.Environ, File: a.commands.Config, Dir: a.Dir})
	if err == nil {
		c.Warnings = append(c.Warnings, beyond(c, machineMemory(), runtime.NumCPU())...)
	}
	return c, err
}

// beyond tells which limits are more than a machine of so many bytes and
// processors has, so that they hold nothing back.
func beyond(c *config.Config, memory uint64, processors int) []string {
	var list []string
	add := func(key string, got, has float64, unit string) {
		if has > 0 && got > has {
			list = append(list, fmt.Sprintf("%s: %v is more than the %.4g %s of this machine, so that it holds nothing back", key, got, has, unit))
		}
	}
	gib := float64(memory) / (1 << 30)
	add("defaults.resources.memory_gib", c.Defaults.Resources.MemoryGiB, gib, "GiB")
	add("limits.max_memory_gib", c.Limits.MaxMemoryGiB, gib, "GiB")
	add("defaults.resources.cpu", c.Defaults.Resources.CPU, float64(processors), "cores")
	add("limits.max_cpu", c.Limits.MaxCPU, float64(processors), "cores")
	return list
}

// settings reads the settings for a command for people, and says what is odd
// about them; serve logs that.
func (a *App) settings() (*config.Config, error) {
	c, err := a.load()
	if err == nil {
		a.remark(c.Warnings)
	}
	return c, err
}

// logger makes the log, always on stderr: stdout belongs to the transport, or
// to a command's output. The commands for people say little of their own.
func (a *App) logger(c *config.Config, quiet bool) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		panic(err) // the config was checked
	}
	if quiet && level == slog.LevelInfo {
		level = slog.LevelWarn
	}
	text := c.Log.Format == "text" || c.Log.Format == "auto" && a.terminal(a.Stderr)
	if !text {
		return slog.New(slog.NewJSONHandler(a.Stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(a.Stderr, &tint.Options{
		Level: level, TimeFormat: "15:04:05.000", NoColor: !a.colour(a.Stderr),
	}))
}

// width is how many characters a line of w's terminal takes; 0 when it is none.
func (a *App) width(w io.Writer) int {
	if file, ok := w.(*os.File); ok && a.terminal(w) {
		if n, _, err := term.GetSize(int(file.Fd())); err == nil {
			return n
		}
	}
	return 0
}

// colour reports whether w is a terminal whose user has not refused colour.
func (a *App) colour(w io.Writer) bool {
	return a.terminal(w) && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
}

// paint wraps text in a terminal's style, such as "1;32", where w shows any.
func (a *App) paint(w io.Writer, style, text string) string {
	if !a.colour(w) || text == "" || style == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// bench is what a command for people works on.
type bench struct {
	*sandbox.Manager
	provider sandbox.Provider
	config   *config.Config
}

// open loads the settings and opens the provider and a Manager. The caller
// closes the bench.
func (a *App) open() (*bench, error) {
	c, err := a.settings()
	if err != nil {
		return nil, err
	}
	return a.openWith(c, a.logger(c, true))
}

func (a *App) openWith(c *config.Config, log *slog.Logger) (*bench, error) {
	open := a.provider
	if a.Provider != nil {
		open = a.Provider
	}
	p, reason, err := open(c, log)
	if err != nil {
		return nil, err
	}
	var compiler sandbox.Compiler
	if a.Compiler != nil {
		compiler = a.Compiler(log)
	}
	m, err := sandbox.NewManager(p, sandbox.Options{
		Logger:   log,
		Defaults: c.Defaults.Spec(),
		Limits: sandbox.Limits{MaxSandboxes: c.Limits.MaxSandboxes, MaxProcesses: c.Limits.MaxProcesses, Resources: c.Limits.Resources(),
			AllowedImages: c.Limits.AllowedImages, AnyImage: !a.serving, Network: c.Limits.Network()},
		Buckets:        c.Buckets,
		EventDir:       a.eventDir(c),
		ProviderReason: reason,
		Compiler:       compiler,
	})
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return &bench{Manager: m, provider: p, config: c}, nil
}

func (b *bench) close() {
	_ = b.Close() // it has no more to say; nothing is stopped or lost
	_ = b.provider.Close()
}

// all is the owner to list sandboxes of: everybody's for root, which is who
// administers the machine; otherwise the local owner's.
func visibleOwner(asked string) sandbox.Owner {
	switch {
	case asked == "all":
		return ""
	case asked != "":
		return sandbox.Owner(asked)
	case os.Geteuid() == 0:
		return ""
	}
	return sandbox.LocalOwner
}

// list returns every sandbox of owner; all owners' when it is empty.
func (b *bench) list(ctx context.Context, owner sandbox.Owner) ([]sandbox.Info, error) {
	return b.provider.List(ctx, owner)
}

// ownerFlag is whose sandbox a command means.
type ownerFlag struct {
	Owner string `help:"Whose sandbox: local (stdio, HTTP without tokens, this command line), default (BERTH_TOKEN), or a token's name." placeholder:"NAME"`
}

// find turns what a person typed into a sandbox's key: a whole session id, or
// the only one that begins so. Without an owner it looks at those that ls shows,
// and takes no id that somebody else has too: what was meant cannot be told.
func (b *bench) find(ctx context.Context, typed, owner string) (sandbox.Key, error) {
	seen := visibleOwner(owner)
	all, err := b.list(ctx, "")
	if err != nil {
		return sandbox.Key{}, err
	}
	var owners []string // of the whole id, anybody's
	var exact, prefix []sandbox.Key
	named := ""
	for _, i := range all {
		mine := seen == "" || i.Key.Owner == seen
		switch {
		case string(i.Key.Session) == typed:
			owners = append(owners, string(i.Key.Owner))
			if mine {
				exact = append(exact, i.Key)
			}
		case typed != "" && mine && strings.HasPrefix(string(i.Key.Session), typed):
			prefix = append(prefix, i.Key)
		case typed != "" && mine && i.Name == typed:
			named = string(i.Key.Session)
		}
	}
	slices.Sort(owners)
	if (owner == "" || owner == "all") && len(owners) > 1 {
		return sandbox.Key{}, ambiguous(typed, owners)
	}
	found := exact
	if len(found) == 0 {
		found = prefix
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && len(owners) > 0:
		return sandbox.Key{}, fmt.Errorf("%s has no sandbox %q; it exists for %s; give --owner", seen, typed, strings.Join(owners, " and "))
	case len(found) == 0 && named != "":
		return sandbox.Key{}, fmt.Errorf("%q is the name of a sandbox, not its id; give the id, as berth ls shows it under SESSION: %s", typed, named)
	case len(found) == 0 && owner != "" && owner != "all":
		return sandbox.Key{}, fmt.Errorf("%s has no sandbox %q; berth ls --owner all lists everybody's", owner, typed)
	case len(found) == 0:
		return sandbox.Key{}, fmt.Errorf("there is no sandbox %q; berth ls lists them", typed)
	}
	owners = owners[:0]
	one := true
	names := make([]string, len(found))
	for i, k := range found {
		one = one && k.Session == found[0].Session
		owners = append(owners, string(k.Owner))
		names[i] = fmt.Sprintf("%s (owner %s)", k.Session, k.Owner)
	}
	if one {
		return sandbox.Key{}, ambiguous(string(found[0].Session), owners)
	}
	return sandbox.Key{}, fmt.Errorf("%q could be any of %s", typed, strings.Join(names, ", "))
}

// theOwner is whose a thing is that is known by a name of its owner's, a
// snapshot or a volume: the owner asked for, or the only one that has it.
// owners are those that do. When nobody has it, it is the local owner's to miss.
func theOwner(kind, name, asked string, owners []string) (sandbox.Owner, error) {
	seen := visibleOwner(asked)
	slices.Sort(owners)
	switch {
	case len(owners) == 0 && seen == "":
		return sandbox.LocalOwner, nil
	case (asked == "" || asked == "all") && len(owners) > 1:
		return "", ambiguous(name, owners)
	case len(owners) == 0 || slices.Contains(owners, string(seen)):
		return seen, nil
	case seen != "":
		return "", fmt.Errorf("%s has no %s %q; it exists for %s; give --owner", seen, kind, name, strings.Join(owners, " and "))
	}
	return sandbox.Owner(owners[0]), nil
}

func ambiguous(id string, owners []string) error {
	last := len(owners) - 1
	return fmt.Errorf("%s is ambiguous: it exists for %s and %s; give --owner", id, strings.Join(owners[:last], ", "), owners[last])
}
