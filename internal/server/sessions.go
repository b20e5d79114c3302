package server

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"berth/internal/session"
	"berth/sandbox"
)

// maxSessions bounds the protocol sessions with state here. The one idle for
// longest makes room; its id stays good.
const maxSessions = 20_000

// remember adds a session. The caller holds mu.
func (s *Server) remember(p *peer) {
	if len(s.sessions) >= maxSessions {
		now := time.Now()
		var oldest *peer
		since := now
		for _, q := range s.sessions {
			if t := q.idleSince(now); t.Before(since) {
				oldest, since = q, t
			}
		}
		if oldest != nil {
			s.drop(oldest)
		}
	}
	s.sessions[p.id] = p
	if err := s.mcp.RegisterSession(context.Background(), p); err != nil {
		s.o.Logger.Warn("protocol session gets no broadcasts", slog.Any("err", err))
	}
}

// drop removes a session's state. The caller holds mu.
func (s *Server) drop(p *peer) {
	delete(s.sessions, p.id)
	s.mcp.UnregisterSession(context.Background(), p.id)
}

// forget ends what runs under an id that is not good any more.
func (s *Server) forget(id string, owner sandbox.Owner) {
	s.mu.Lock()
	p := s.sessions[id]
	if p != nil {
		s.drop(p)
	}
	s.mu.Unlock()
	if p != nil {
		p.end()
	}
	s.ended(owner, id)
}

// ended tells whoever wants to know that a connection is over.
func (s *Server) ended(owner sandbox.Owner, id string) {
	if s.o.Ended != nil {
		s.o.Ended(session.Caller{Owner: owner, Connection: id})
	}
}

// stream counts an event stream, unless there are too many.
func (s *Server) stream() (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= s.o.MaxStreams || s.streamCtx.Err() != nil {
		return nil, false
	}
	s.streams++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.streams--
		s.mu.Unlock()
	}), true
}

// startSweeper drops idle sessions until the streams end. The caller holds mu.
func (s *Server) startSweeper() {
	done := make(chan struct{})
	s.sweeper = done
	go func() {
		defer close(done)
		s.ids.sweep(time.Now())
		tick := time.NewTicker(min(s.o.SessionIdle/2+time.Second, time.Minute))
		defer tick.Stop()
		hourly := time.Now()
		for {
			select {
			case <-s.streamCtx.Done():
				return
			case now := <-tick.C:
				s.sweep(now)
				if now.Sub(hourly) >= time.Hour {
					hourly = now
					s.ids.sweep(now)
				}
			}
		}
	}()
}

// sweep drops the state of sessions that have been idle for too long.
func (s *Server) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.sessions {
		if now.Sub(p.idleSince(now)) > s.o.SessionIdle {
			s.drop(p)
		}
	}
}

// keepAlive comments on a stream that is quiet for long, until stopped; the
// first comment turns a plain answer into an event stream.
func keepAlive(e *events, every time.Duration) (stop func()) {
	var mu sync.Mutex
	stopped := false
	var t *time.Timer
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(every, func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped && e.comment() == nil {
			t.Reset(every)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		t.Stop()
	}
}

// whenGone calls f if the client leaves before the returned function is called.
func whenGone(r *http.Request, f func()) (stop func()) {
	off := context.AfterFunc(r.Context(), f)
	return func() { off() }
}
