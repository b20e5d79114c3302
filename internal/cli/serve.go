package cli

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"berth/internal/config"
	"berth/internal/preview"
	"berth/internal/secret"
	"berth/internal/server"
	"berth/internal/session"
	"berth/sandbox"
	"berth/tools"
)

type serveCommand struct {
	HTTP     string   `name:"http" help:"Listen here and serve /mcp, /sse, /healthz and /metrics, instead of stdio." placeholder:"HOST:PORT" key:"http"`
	Daytona  string   `name:"daytona-api" help:"Listen here and serve the Daytona API, instead of stdio or beside what else is served." placeholder:"HOST:PORT" key:"daytona_api"`
	Stdio    bool     `help:"Serve stdio even where the settings name an address."`
	Session  string   `help:"The session of calls that name none." placeholder:"ID" key:"session"`
	Toolsets string   `help:"default, all, or some of default,core,sandbox,files,buckets,snapshots,volumes,network." placeholder:"NAMES" key:"toolsets"`
	ReadOnly bool     `help:"Offer only tools that change nothing." key:"read_only"`
	Dir      []string `sep:"none" help:"Show a folder of this machine in every sandbox, HOST:PATH[:ro]; may be repeated." placeholder:"HOST:PATH" key:"limits.host_dirs"`
	Provider string   `help:"auto, local or daytona." placeholder:"NAME" key:"provider"`
	Insecure bool     `help:"Listen beyond this machine without asking for a token." key:"insecure"`
}

// gcPercent trades time for memory where many sessions make the heap large. A
// small heap would be collected at every megabyte of output that is handed out,
// so that ballast is added to it: memory that counts and is never touched.
const gcPercent = 40
const ballastSize = 4 << 20

func (c *serveCommand) Run(a *App) error {
	if a.getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
		ballast := make([]byte, ballastSize)
		defer runtime.KeepAlive(ballast)
	}
	if c.Stdio {
		if c.HTTP != "" {
			return usagef("serve: --stdio and --http exclude each other")
		}
		a.flags = append(a.flags, config.Flag{Name: "--stdio", Key: "http", Value: ""})
		if c.Daytona == "" {
			a.flags = append(a.flags, config.Flag{Name: "--stdio", Key: "daytona_api", Value: ""})
		}
	}
	a.flags = a.absoluteDirs(a.flags)
	cfg, err := a.load()
	if err != nil {
		return err
	}
	log := a.logger(cfg, false)
	for _, w := range cfg.Warnings {
		log.Warn("settings", slog.String("remark", w))
	}
	if os.Getpid() == 1 {
		log.Warn("berth is this container's first process and takes no note of other processes' ends: those of sandboxes would stay as zombies; start it under an init, with docker run --init or tini")
	}
	a.serving = true
	b, err := a.openWith(cfg, log)
	if err != nil {
		return err
	}
	defer b.close()
	options, err := a.serverOptions(cfg, log)
	if err != nil {
		return err
	}
	state, _ := stateDir(a, cfg) // where there is none, the first call that needs it says why
	ports, err := preview.New(preview.Options{Manager: b.Manager, Logger: log, State: state, Public: cfg.Ports.PublicURL})
	if err != nil {
		return err
	}
	defer ports.Close()
	long := cfg.Listens() // and so not a copy that a client starts to look at it
	defer a.showPorts(ports, long)()
	defer a.sweep(b, log, long)()
	var serving []service
	if cfg.HTTP != "" || !long || c.Stdio {
		s, err := a.newServer(b, options, ports)
		if err != nil {
			return err
		}
		if cfg.HTTP == "" {
			serving = append(serving, a.stdio(s))
		} else if serving, err = a.appendListener(serving, cfg.HTTP, func(l net.Listener) (service, error) { return a.serveHTTP(cfg, s, ports, l, log) }); err != nil {
			return err
		}
	}
	if cfg.DaytonaAPI != "" {
		serving, err = a.appendListener(serving, cfg.DaytonaAPI, func(l net.Listener) (service, error) { return a.serveDaytona(cfg, b, options, ports, l, log) })
		if err != nil {
			return err
		}
	}
	return together(a.ctx, serving)
}

// How often a running server sweeps, and when one on stdio begins: clients
// start short-lived copies to look at them, and starting does nothing.
const (
	sweepEvery = time.Minute
	sweepAfter = 10 * time.Second
)

// sweep enforces the intervals of stopped sandboxes until the returned
// function is called.
func (a *App) sweep(b *bench, log *slog.Logger, now bool) (stop func()) {
	ctx, cancel := context.WithCancel(a.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait := sweepAfter
		if now {
			wait = 0
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			if err := b.Sweep(ctx); err != nil && ctx.Err() == nil {
				log.Warn("sweep", slog.Any("err", err))
			}
			wait = sweepEvery
		}
	}()
	return func() { cancel(); <-done }
}

// showAfter is when a server on stdio begins to serve the ports that were
// exposed before it started: see sweepAfter.
const showAfter = time.Second

// showPorts serves exposed ports until the returned function is called.
func (a *App) showPorts(ports *preview.Server, now bool) (stop func()) {
	ctx, cancel := context.WithCancel(a.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait := showAfter
		if now {
			wait = 100 * time.Millisecond // until the listener is there, which may be the port to use
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			ports.Run(ctx)
		}
	}()
	return func() { cancel(); <-done }
}

func (a *App) serverOptions(cfg *config.Config, log *slog.Logger) (server.Options, error) {
	o := server.Options{
		Logger:         log,
		Version:        a.Version,
		Insecure:       cfg.Insecure,
		AllowedHosts:   cfg.AllowedHosts,
		AllowedOrigins: cfg.AllowedOrigins,
		TrustedProxies: cfg.TrustedProxies,
		WatchParent:    cfg.HTTP == "",
	}
	if !cfg.Listens() {
		return o, nil // stdio needs no tokens and no key, and leaves no trace
	}
	state, err := stateDir(a, cfg)
	if err != nil {
		return o, err
	}
	if o.Key, err = signingKey(state); err != nil {
		return o, err
	}
	o.EndedDir = filepath.Join(state, "ended")
	for name, t := range cfg.Auth.Tokens {
		token := server.Token{Name: name, Token: t}
		if sum, ok := strings.CutPrefix(t.Reveal(), "sha256:"); ok {
			token = server.Token{Name: name, SHA256: sum}
		}
		o.Tokens = append(o.Tokens, token)
	}
	if len(o.Tokens) == 0 && cfg.Auth.Generate && !cfg.Insecure {
		t, fresh, err := generatedToken(state)
		if err != nil {
			return o, err
		}
		if fresh {
			// The one time that it is shown; afterwards only the file has it.
			fmt.Fprintf(a.Stderr, "berth: made a token for clients: %s\nberth: it is kept in %s and not shown again\n",
				t.Reveal(), filepath.Join(state, tokenFile))
		}
		o.Tokens = []server.Token{{Name: config.TokenOwner, Token: t}}
	}
	slices.SortFunc(o.Tokens, func(x, y server.Token) int { return cmp.Compare(x.Name, y.Name) })
	return o, nil
}

// newServer joins Manager, tools and transports.
func (a *App) newServer(b *bench, o server.Options, ports *preview.Server) (*server.Server, error) {
	o.Previews = ports
	o.Health = func(ctx context.Context) error {
		_, err := b.provider.List(ctx, sandbox.LocalOwner)
		return err
	}
	book := session.NewBook(sandbox.SessionID(b.config.Session))
	o.Ended = book.Forget
	t := tools.Options{
		Toolsets:       toolsets(b.config.Toolsets),
		ReadOnly:       b.config.ReadOnly,
		DefaultSession: b.config.Session,
		Book:           book,
		Previews:       ports,
		Logger:         o.Logger,
	}
	// What a sandbox would be; where none can be made the first call says why.
	info, err := b.provider.Describe(a.ctx, b.config.Defaults.Spec().WithDefaults(sandbox.Spec{}))
	if err != nil {
		o.Logger.Warn("no sandbox can be made here", slog.Any("err", err))
	}
	m := server.NewMCP("berth", a.Version, server.MCPOptions{Logger: o.Logger, Title: "berth", Instructions: tools.Instructions(info, t)})
	if err := tools.Register(m, b.Manager, t); err != nil {
		return nil, err
	}
	return server.New(m, o)
}

// toolsets spells the default set out.
func toolsets(names []string) []string {
	var list []string
	for _, n := range names {
		if n == "default" {
			list = append(list, tools.DefaultToolsets()...)
			continue
		}
		list = append(list, n)
	}
	return list
}

// absoluteDirs makes the host side of --dir absolute: it counts from the
// working directory, as people expect of a command line.
func (a *App) absoluteDirs(flags []config.Flag) []config.Flag {
	for i, f := range flags {
		if f.Key != "limits.host_dirs" {
			continue
		}
		d, err := config.ParseHostDir(f.Value)
		if err != nil || filepath.IsAbs(d.Host) {
			continue // the settings say what is wrong with it
		}
		if home, ok := strings.CutPrefix(d.Host, "~/"); ok {
			d.Host = filepath.Join(a.getenv("HOME"), home)
		} else {
			d.Host = filepath.Join(a.Dir, d.Host)
		}
		flags[i].Value = d.Host + ":" + d.Path
		if d.ReadOnly {
			flags[i].Value += ":ro"
		}
	}
	return flags
}

// eventDir is where the event logs are; empty where there is no state.
func (a *App) eventDir(c *config.Config) string {
	dir, err := stateDir(a, c)
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "events")
}

const tokenFile = "token"

// generatedToken returns the token kept in the state directory, and whether it
// was made just now.
func generatedToken(state string) (secret.Text, bool, error) {
	b, fresh, err := keep(filepath.Join(state, tokenFile))
	return secret.New(b), fresh, err
}

// signingKey returns the key of protocol session ids. All servers of one state
// directory share it.
func signingKey(state string) ([]byte, error) {
	b, _, err := keep(filepath.Join(state, "signing.key"))
	return []byte(b), err
}
