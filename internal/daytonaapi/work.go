package daytonaapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"berth/sandbox"
)

// holdMost is for how long a request is held that waits for its sandbox; the
// work goes on after it.
const holdMost = 30 * time.Second

// work is one change of a sandbox under way. There is one at a time; it
// outlives the request that asked for it.
type work struct {
	state   string // of the sandbox meanwhile, as the API has it
	desired string
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // set before done is closed
}

// begin has do change the key's sandbox. Another work in progress is a
// conflict, as the platform has it.
func (s *Server) begin(key sandbox.Key, state, desired string, do func(ctx context.Context) error) (*work, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errClosing
	case s.works[key] != nil:
		return nil, refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", s.works[key].state)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	w := &work{state: state, desired: desired, cancel: cancel, done: make(chan struct{})}
	s.works[key] = w
	delete(s.failed, key)
	s.wg.Go(func() {
		defer cancel()
		err := do(ctx)
		var why string
		if err != nil && ctx.Err() == nil {
			why = s.say(s.ctx, err)
			s.log.InfoContext(s.ctx, "change of a sandbox failed", slog.String("sandbox", string(key.Session)), slog.String("state", state), slog.String("why", why))
		}
		s.mu.Lock()
		delete(s.works, key)
		if why != "" {
			s.failed[key] = why
		}
		s.mu.Unlock()
		w.err = err
		close(w.done)
	})
	return w, nil
}

// hold waits for w, as long as a request is held for it, and returns its error;
// nil when it goes on.
func (w *work) hold(ctx context.Context) error {
	t := time.NewTimer(holdMost)
	defer t.Stop()
	select {
	case <-w.done:
		return w.err
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// advance tells how far the work on a sandbox is.
func (s *Server) advance(key sandbox.Key, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.works[key]; w != nil {
		w.state = state
	}
}

// underWay is the work on a sandbox; nil when there is none. why tells why the
// last one failed, if it did.
func (s *Server) underWay(key sandbox.Key) (w *work, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w = s.works[key]; w != nil {
		w = &work{state: w.state, desired: w.desired, cancel: w.cancel, done: w.done} // as it is now
	}
	return w, s.failed[key]
}

// patiently repeats what the Manager answers in time with "still starting".
func patiently(ctx context.Context, do func(ctx context.Context) error) error {
	for {
		err := do(ctx)
		if !errors.Is(err, sandbox.ErrStarting) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
