package daytonaapi

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"time"

	"github.com/google/uuid"

	"berth/sandbox"
)

// forkSandbox makes another sandbox of one's files and settings.
func (s *Server) forkSandbox(c *call, key sandbox.Key) (any, error) {
	var body struct {
		Name string `json:"name"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if err := errors.Join(checkName("name", body.Name), sandbox.Spec{Name: body.Name}.Validate()); err != nil {
		return nil, err
	}
	v, err := s.still(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	rec := v.rec
	rec.ID, rec.Owner, rec.Created, rec.Parent, rec.Name = sandbox.SessionID(uuid.NewString()), c.owner, time.Now().UTC(), string(key.Session), body.Name
	if rec.Name == "" {
		rec.Name = string(rec.ID)
	}
	free, err := s.claim(c.ctx(), rec.Owner, rec.Name)
	if err != nil {
		return nil, err
	}
	defer free()
	// The record comes when the fork is there: it is asked for again, or not.
	w, err := s.begin(key, "forking", "started", func(ctx context.Context) error {
		_, err := s.m.ForkSandbox(ctx, key, sandbox.ForkRequest{NewSession: rec.ID})
		if errors.Is(err, sandbox.ErrStarting) { // it goes on by itself
			err = s.appears(ctx, rec.key())
		}
		if err != nil {
			return err
		}
		if err := s.records.sandboxes.put(string(rec.ID), rec); err != nil {
			return err
		}
		env := maps.Clone(v.info.Spec.Env)
		if env == nil {
			env = map[string]string{}
		}
		env["DAYTONA_SANDBOX_ID"] = string(rec.ID)
		_, err = s.m.UpdateSandbox(ctx, rec.key(), sandbox.Spec{Name: rec.Name, Env: env})
		return err
	})
	if err == nil {
		err = w.hold(c.ctx())
	}
	if err != nil {
		return nil, err
	}
	return s.show(c, rec.key())
}

// appears waits until a sandbox runs that is being made.
func (s *Server) appears(ctx context.Context, key sandbox.Key) error {
	for {
		info, err := s.m.GetSandbox(ctx, key)
		if err != nil || info.Status == sandbox.StatusRunning {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// still finds a sandbox that is running or stopped, and stays it.
func (s *Server) still(ctx context.Context, key sandbox.Key) (view, error) {
	v, err := s.see(ctx, key)
	if err != nil {
		return v, err
	}
	switch state, _ := v.state(); {
	case v.work != nil || v.info.Status.Transitional():
		return v, refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", state)
	case state != "started" && state != "stopped":
		return v, refuse(http.StatusBadRequest, "Sandbox must be started or stopped: it is %s", state)
	}
	return v, nil
}

// relations: which sandbox was forked from which.

func (s *Server) listForks(c *call, key sandbox.Key) (any, error) {
	bodies := []sandboxBody{}
	for _, r := range s.records.sandboxes.all(func(r sandboxRecord) bool { return r.Owner == c.owner && r.Parent == string(key.Session) }) {
		if v, err := s.see(c.ctx(), r.key()); err == nil {
			bodies = append(bodies, v.body(c.base))
		}
	}
	return bodies, nil
}

func (s *Server) getParent(c *call, key sandbox.Key) (any, error) {
	list, err := s.ancestors(c, key)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, refuse(http.StatusNotFound, "the sandbox was not forked from another that is there")
	}
	return list[0], nil
}

func (s *Server) listAncestors(c *call, key sandbox.Key) (any, error) { return s.ancestors(c, key) }

func (s *Server) ancestors(c *call, key sandbox.Key) ([]sandboxBody, error) {
	list := []sandboxBody{}
	for {
		v, err := s.see(c.ctx(), key)
		if err != nil {
			return nil, err
		}
		if v.rec.Parent == "" {
			return list, nil
		}
		key.Session = sandbox.SessionID(v.rec.Parent)
		if v, err = s.see(c.ctx(), key); err != nil {
			return list, nil //nolint:nilerr // it was deleted, and with it what is known before it
		}
		list = append(list, v.body(c.base))
	}
}

// snapshotSandbox begins to keep a sandbox's files as a snapshot.
func (s *Server) snapshotSandbox(c *call, key sandbox.Key) (any, error) {
	var body struct {
		Name   string `json:"name"`
		Memory bool   `json:"includeMemory"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	r := snapshotRequest{Name: body.Name, ImageName: "x:1"} // of which only the name is checked
	if err := r.check(); err != nil {
		return nil, err
	}
	if body.Memory {
		return nil, refuse(http.StatusBadRequest, "includeMemory is for virtual machines; this sandbox is a container")
	}
	v, err := s.still(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	rec := snapshotRecord{Owner: c.owner, Name: body.Name, Created: time.Now().UTC(), Source: string(key.Session), Phase: phasePending}
	if err := s.keepSnapshot(c.ctx(), &rec); err != nil {
		return nil, err
	}
	_, desired := v.state()
	shown, err := s.shown(c, v, "snapshotting", desired, func(ctx context.Context) error {
		if err := s.makeSnapshot(rec); err != nil {
			return err
		}
		if j := s.job(rec.ID); j != nil {
			select {
			case <-j.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if r, ok := s.records.snapshots.get(rec.ID); ok && r.Phase == phaseFailed {
			return refuse(http.StatusBadRequest, "the snapshot %s could not be made: %s", r.Name, r.Reason)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, s.records.snapshots.drop(rec.ID))
	}
	return shown, nil
}
