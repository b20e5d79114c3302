package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/session"
	"berth/sandbox"
)

// graceTime is how long calls run on undisturbed after stdin is closed.
const graceTime = 200 * time.Millisecond

// eofTime is how long handlers may take to hand their work over and answer
// once stdin is closed. The process must be gone within a second.
const eofTime = 600 * time.Millisecond

// ServeStdio serves one client on in and out, one JSON-RPC message a line,
// until in ends, out breaks, ctx ends, or (with WatchParent) the parent dies.
// Running calls are then handed over, never cancelled, and their answers
// written if that can still be. It returns nil unless out broke. Nothing but
// messages is written to out. A read of in that blocks is left behind, since
// it cannot be interrupted; the process is expected to exit.
func (s *Server) ServeStdio(ctx context.Context, in io.Reader, out io.Writer) error {
	id, bound := s.ids.make(kindStdio, sandbox.LocalOwner)
	p := newPeer(id, &s.lastID)
	w := &lineWriter{w: out, broken: make(chan struct{})}
	d := newDuplex(s, p, w.write)
	who := session.Caller{Owner: sandbox.LocalOwner, Connection: id, DefaultSession: bound, Transport: "stdio"}
	if err := s.mcp.RegisterSession(s.callCtx, p); err != nil {
		return fmt.Errorf("stdio session: %w", err)
	}
	defer s.mcp.UnregisterSession(context.WithoutCancel(s.callCtx), id)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.o.WatchParent {
		go watchParent(ctx, cancel)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- readLines(in, func(line []byte, large bool) {
			switch {
			case ctx.Err() != nil: // nothing begins after the end
			case large:
				_ = d.write(rpcError(nil, mcp.INVALID_REQUEST, "the message is larger than 10 MiB; send large content in parts")) // the loop below notices failures
			default:
				d.receive(who, line, func() {})
			}
		})
	}()
	go func() {
		for broadcasts := p.broadcastChannel(); ; {
			select {
			case n := <-broadcasts:
				_ = d.write(n) // the loop below notices failures
			case <-ctx.Done():
				return
			}
		}
	}()
	select {
	case err := <-ended:
		if err != nil {
			s.o.Logger.Warn("stdin failed", slog.Any("err", err))
		}
		// What takes no time is still answered in full: a pipe may have sent
		// its last request just now.
		select {
		case <-s.calls.close():
		case <-time.After(graceTime):
		case <-ctx.Done():
		}
	case <-w.broken:
	case <-ctx.Done():
	}
	cancel()
	d.close()
	stop, end := context.WithTimeout(context.WithoutCancel(ctx), eofTime)
	defer end()
	if err := s.Shutdown(stop); err != nil {
		s.o.Logger.Warn("calls were left behind", slog.Any("err", err))
	}
	return w.failure()
}

// readLines calls f with every line, without its end and the spaces around.
// Empty lines are skipped; of a line over the limit f learns only that.
func readLines(in io.Reader, f func(line []byte, large bool)) error {
	r := bufio.NewReaderSize(in, 64<<10)
	for {
		var line []byte
		large := false
		var err error
		for {
			var part []byte
			part, err = r.ReadSlice('\n')
			if large = large || len(line)+len(part) > MessageLimit+1; large {
				line = nil
			} else {
				line = append(line, part...)
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				break
			}
		}
		// A last line without its end is a message, too.
		if line = bytes.TrimSpace(line); large || len(line) > 0 {
			f(line, large)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// watchParent calls f when the parent process has died: the process then gets
// another parent. There is no event for it that works everywhere.
func watchParent(ctx context.Context, f func()) {
	parent := os.Getppid()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if os.Getppid() != parent {
				f()
				return
			}
		}
	}
}

// lineWriter writes whole lines. The first failure breaks it for good.
type lineWriter struct {
	mu     sync.Mutex
	w      io.Writer
	err    error
	broken chan struct{}
}

func (l *lineWriter) write(b []byte) error {
	if len(b) > MessageLimit {
		return errTooLarge
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return errDisconnected
	}
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		l.err = err
		close(l.broken)
		return errDisconnected
	}
	return nil
}

// failure returns why the output broke, if it did. It does not wait for a
// write that is stuck.
func (l *lineWriter) failure() error {
	select {
	case <-l.broken:
		l.mu.Lock()
		defer l.mu.Unlock()
		return fmt.Errorf("write to the client: %w", l.err)
	default:
		return nil
	}
}
