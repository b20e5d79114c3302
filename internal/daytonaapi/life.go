package daytonaapi

import (
	"context"
	"errors"
	"net/http"

	"berth/sandbox"
)

// startSandbox starts a stopped or archived sandbox. As on the platform, the
// request is held until it runs, for a while.
func (s *Server) startSandbox(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	state, _ := v.state()
	move := "starting"
	switch state {
	case "started":
		return v.body(c.base), nil
	case "stopped":
	case "archived", "archiving":
		move = "restoring"
	case "error", "build_failed":
		return nil, refuse(http.StatusBadRequest, "Sandbox is in %s state: %s", state, v.item("").ErrorReason)
	default:
		return nil, refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", state)
	}
	w, err := s.begin(key, move, "started", s.waking(key))
	if err == nil {
		err = w.hold(c.ctx())
	}
	if err != nil {
		return nil, err
	}
	return s.show(c, key)
}

// waking starts a sandbox that is there.
func (s *Server) waking(key sandbox.Key) func(context.Context) error {
	return func(ctx context.Context) error {
		return patiently(ctx, func(ctx context.Context) error {
			_, err := s.m.WakeSandbox(ctx, key)
			return err
		})
	}
}

// stopSandbox begins to stop a sandbox; an ephemeral one is deleted by that.
// Stopping by force and in order is one here: processes get SIGTERM, and
// SIGKILL two seconds later.
func (s *Server) stopSandbox(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	switch state, _ := v.state(); state {
	case "started":
	case "stopped", "archived", "error", "build_failed":
		return nil, refuse(http.StatusBadRequest, "Sandbox is not started: it is %s", state)
	default:
		return nil, refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", state)
	}
	state, desired := "stopping", "stopped"
	if v.deletedOnStop() {
		state, desired = "destroying", "destroyed"
	}
	return s.shown(c, v, state, desired, s.stopping(key, false))
}

// stopping stops, and archives if asked.
func (s *Server) stopping(key sandbox.Key, archive bool) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			info, err := s.m.StopSandbox(ctx, key, archive)
			if err != nil || !info.Status.Transitional() {
				return err
			}
		}
	}
}

// archiveSandbox begins to pack a stopped sandbox.
func (s *Server) archiveSandbox(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	state, _ := v.state()
	switch {
	case v.work != nil || v.info.Status.Transitional():
		return nil, refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", state)
	case state != "stopped":
		return nil, refuse(http.StatusBadRequest, "Sandbox is not stopped: it is %s", state)
	case v.deletedOnStop():
		return nil, refuse(http.StatusBadRequest, "Ephemeral sandboxes cannot be archived")
	}
	return s.shown(c, v, "archiving", "archived", s.stopping(key, true))
}

// recoverSandbox tries to bring a sandbox out of its error.
func (s *Server) recoverSandbox(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	item := v.item("")
	switch {
	case v.work != nil:
		return nil, refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", item.State)
	case item.State != "error" || !item.Recoverable:
		return nil, refuse(http.StatusBadRequest, "Sandbox is not in a recoverable error state: it is %s", item.State)
	}
	do := s.waking(key)
	if c.r.URL.Query().Get("skipStart") == "true" {
		do = func(ctx context.Context) error {
			if err := s.waking(key)(ctx); err != nil {
				return err
			}
			return s.stopping(key, false)(ctx)
		}
	}
	w, err := s.begin(key, "starting", "started", do)
	if err == nil {
		err = w.hold(c.ctx())
	}
	if err != nil {
		return nil, err
	}
	return s.show(c, key)
}

// deleteSandbox begins to delete a sandbox. Its name is free at once.
func (s *Server) deleteSandbox(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	switch state, desired := v.state(); {
	case desired == "destroyed" && v.work != nil:
		return v.body(c.base), nil
	case v.work != nil && (state == "pending_build" || state == "building_snapshot"):
		v.work.cancel()
		select {
		case <-v.work.done:
		case <-c.ctx().Done():
			return nil, c.ctx().Err()
		}
	case v.work != nil:
		return nil, refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", state)
	}
	return s.shown(c, v, "destroying", "destroyed", func(ctx context.Context) error {
		err := patiently(ctx, func(ctx context.Context) error {
			_, err := s.m.DestroySandbox(ctx, key)
			return err
		})
		if err != nil {
			return err
		}
		return s.records.sandboxes.drop(string(key.Session))
	})
}

// shown begins a change and answers with the sandbox as it is from then on,
// though the change may be over by now.
func (s *Server) shown(c *call, v view, state, desired string, do func(context.Context) error) (any, error) {
	if _, err := s.begin(v.key, state, desired, do); err != nil {
		return nil, err
	}
	v.work = &work{state: state, desired: desired}
	return v.body(c.base), nil
}

// getHealth tells that the server answers.
func (s *Server) getHealth(*call) (any, error) {
	return map[string]string{"status": "ok", "version": s.o.Version}, nil
}

// getReady tells whether sandboxes can be had.
func (s *Server) getReady(c *call) (any, error) {
	if _, err := s.m.ListSandboxes(c.ctx(), sandbox.LocalOwner, sandbox.ListRequest{Limit: 1}); err != nil {
		return nil, errors.Join(refuse(http.StatusServiceUnavailable, "the provider cannot be reached"), err)
	}
	return map[string]string{"status": "ok"}, nil
}
