package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
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
	return config.Load(config.Source{Flags: a.flags, Environ: a.Environ, File: a.commands.Config, Dir: a.Dir})
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
	m, err := sandbox.NewManager(p, sandbox.Options{
		Logger:   log,
		Defaults: c.Defaults.Spec(),
		Limits: sandbox.Limits{MaxSandboxes: c.Limits.MaxSandboxes, MaxProcesses: c.Limits.MaxProcesses, Resources: c.Limits.Resources(),
			AllowedImages: c.Limits.AllowedImages, AnyImage: !a.serving},
		EventDir:       a.eventDir(c),
		ProviderReason: reason,
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

// find turns what a person typed into a sandbox's key: a whole session id, or
// the only one that begins so; the local owner's before others'.
func (b *bench) find(ctx context.Context, typed string) (sandbox.Key, error) {
	if id, err := sandbox.ParseSessionID(typed); err == nil {
		key := sandbox.Key{Owner: sandbox.LocalOwner, Session: id}
		if i, err := b.provider.Lookup(ctx, key); err == nil {
			if info, err := i.Info(ctx); err == nil && info.Status != sandbox.StatusDestroyed {
				return key, nil
			}
		}
	}
	all, err := b.list(ctx, visibleOwner(""))
	if err != nil {
		return sandbox.Key{}, err
	}
	var exact, prefix []sandbox.Key
	for _, i := range all {
		switch {
		case string(i.Key.Session) == typed:
			exact = append(exact, i.Key)
		case typed != "" && strings.HasPrefix(string(i.Key.Session), typed):
			prefix = append(prefix, i.Key)
		}
	}
	found := exact
	if len(found) == 0 {
		found = prefix
	}
	switch len(found) {
	case 0:
		return sandbox.Key{}, fmt.Errorf("there is no sandbox %q; berth ls lists them", typed)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, k := range found {
		names = append(names, fmt.Sprintf("%s (owner %s)", k.Session, k.Owner))
	}
	return sandbox.Key{}, fmt.Errorf("%q could be any of %s", typed, strings.Join(names, ", "))
}
