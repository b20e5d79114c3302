package daytonaapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// shutdownTime is how long Serve waits for requests that are being answered.
const shutdownTime = 5 * time.Second

// CheckListen reports whether a listener at addr may be served: see
// access.Rules.CheckListen.
func (s *Server) CheckListen(addr net.Addr) error { return s.rules.CheckListen("daytona_api", addr) }

// Serve serves l until ctx ends, and closes it. A nil error means an orderly
// end. The caller calls Close after it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := s.CheckListen(l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	hs := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.cancel() // ends streams and requests that are held
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if err := hs.Shutdown(stop); err != nil {
		_ = hs.Close() // what hangs is dropped
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
