package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"syscall"

	"berth/internal/access"
	"berth/internal/config"
	"berth/internal/daytonaapi"
	"berth/internal/daytonaapi/toolbox"
	"berth/internal/preview"
	"berth/internal/server"
)

// service is one way to be called, until ctx ends. It cleans up after itself,
// also when it is never run because run gets a context that has ended.
type service func(ctx context.Context) error

// together runs services until one of them ends, and ends the others then.
func together(ctx context.Context, list []service) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(list))
	for _, s := range list {
		go func() { ended <- s(ctx) }()
	}
	var errs []error
	for range list {
		errs = append(errs, <-ended)
		cancel()
	}
	return errors.Join(errs...)
}

// appendListener adds a service of its own listener. When it cannot be made,
// those before are ended.
func (a *App) appendListener(list []service, address string, serve func(net.Listener) (service, error)) ([]service, error) {
	l, err := (&net.ListenConfig{}).Listen(a.ctx, "tcp", address)
	if err != nil {
		err = cannotListen(address, err)
	} else {
		var s service
		if s, err = serve(l); err == nil {
			return append(list, s), nil
		}
		err = errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(a.ctx)
	cancel()
	return nil, errors.Join(err, together(ctx, list))
}

// cannotListen says why nothing can listen at address, and what to do.
func cannotListen(address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: another program, perhaps another berth serve, listens there; stop it, or choose another port", address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cannot listen on %s: permission denied, since ports below 1024 are root's; choose another port", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot listen on %s: this machine has no such address; choose one of its own, such as 127.0.0.1,", address)
	}
	return fmt.Errorf("cannot listen on %s: %w", address, err)
}

// stdio serves the client that started berth.
func (a *App) stdio(s *server.Server) service {
	if a.terminal(a.Stdin) {
		fmt.Fprintln(a.Stderr, "berth: waiting for an MCP client on stdin; berth client-config prints how to set one up, Ctrl-C ends")
	}
	widen(a.Stdout)
	return func(ctx context.Context) error { return s.ServeStdio(ctx, unblocked(a.Stdin), a.Stdout) }
}

// auth says, for the log, who may call.
func auth(cfg *config.Config) slog.Attr {
	if len(cfg.Auth.Tokens) == 0 && !cfg.Auth.Generate {
		return slog.String("auth", "none: whoever reaches this address may call")
	}
	return slog.String("auth", "token")
}

// serveHTTP serves MCP at l.
func (a *App) serveHTTP(cfg *config.Config, s *server.Server, ports *preview.Server, l net.Listener, log *slog.Logger) (service, error) {
	state, err := stateDir(a, cfg)
	if err != nil {
		return nil, err
	}
	forget, err := announce(state, l.Addr().String())
	if err != nil {
		return nil, err
	}
	ports.Share(l.Addr())
	log.Info("serving", slog.String("url", "http://"+l.Addr().String()+"/mcp"), slog.String("sse", "http://"+l.Addr().String()+"/sse"),
		auth(cfg), slog.String("version", a.Version))
	return func(ctx context.Context) error {
		defer forget()
		return s.ServeHTTP(ctx, l)
	}, nil
}

// serveDaytona serves the Daytona API at l.
func (a *App) serveDaytona(cfg *config.Config, b *bench, o server.Options, ports *preview.Server, l net.Listener, log *slog.Logger) (service, error) {
	state, err := stateDir(a, cfg)
	if err != nil {
		return nil, err
	}
	if cfg.HTTP == "" {
		ports.Share(l.Addr())
	}
	tb := toolbox.New(toolbox.Options{Manager: b.Manager, Logger: log})
	s, err := daytonaapi.New(daytonaapi.Options{
		Manager: b.Manager, Logger: log, Version: a.Version, State: filepath.Join(state, "daytona"), Toolbox: tb, Previews: ports,
		Access: access.Options{Tokens: o.Tokens, Insecure: o.Insecure, AllowedHosts: o.AllowedHosts, AllowedOrigins: o.AllowedOrigins, TrustedProxies: o.TrustedProxies},
	})
	if err != nil {
		tb.Close()
		return nil, err
	}
	log.Info("serving the Daytona API", slog.String("url", "http://"+l.Addr().String()+"/api"), auth(cfg), slog.String("version", a.Version))
	return func(ctx context.Context) error {
		err := errors.Join(s.Serve(ctx, l), s.Close())
		tb.Close()
		return err
	}, nil
}
