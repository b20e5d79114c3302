package daytonaapi

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"berth/sandbox"
)

// set applies spec to a sandbox that is there, running or not, and answers with
// it. It waits for a change under way no more than the platform does.
func (s *Server) set(c *call, key sandbox.Key, spec sandbox.Spec) (any, error) {
	if err := s.made(c.ctx(), key); err != nil {
		return nil, err
	}
	if _, err := s.m.UpdateSandbox(c.ctx(), key, spec); err != nil {
		return nil, err
	}
	return s.show(c, key)
}

// made refuses a sandbox that the Manager does not have: one that is not made
// yet, or could not be.
func (s *Server) made(ctx context.Context, key sandbox.Key) error {
	v, err := s.see(ctx, key)
	if err != nil {
		return err
	}
	state, _ := v.state()
	switch {
	case v.rec.Phase == phasePending:
		return refuse(http.StatusConflict, "Sandbox state change in progress: it is %s", state)
	case v.rec.Phase != phaseDone:
		return refuse(http.StatusBadRequest, "Sandbox is in %s state: %s", state, v.rec.Reason)
	}
	return nil
}

func (s *Server) setLabels(c *call, key sandbox.Key) (any, error) {
	var body struct {
		Labels map[string]string `json:"labels"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if body.Labels == nil {
		return nil, refuse(http.StatusBadRequest, "labels must be an object of texts")
	}
	spec := sandbox.Spec{Labels: maps.Clone(body.Labels)}
	switch l := sandbox.Language(body.Labels[languageLabel]); l {
	case sandbox.Python, sandbox.JavaScript, sandbox.TypeScript:
		spec.Language = l
	}
	return s.set(c, key, spec)
}

func (s *Server) setPublic(c *call, key sandbox.Key) (any, error) {
	public, err := strconv.ParseBool(c.r.PathValue("public"))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%.20q must be true or false", c.r.PathValue("public"))
	}
	return s.set(c, key, sandbox.Spec{Public: &public})
}

// interval reads the minutes of the path.
func interval(c *call, least int) (int, error) {
	n, err := strconv.Atoi(c.r.PathValue("minutes"))
	if err != nil || n < least {
		allowed := "0 or more"
		if least < 0 {
			allowed = "0 or more, or negative for never"
		}
		return 0, refuse(http.StatusBadRequest, "%.20q is no number of minutes; allowed: %s", c.r.PathValue("minutes"), allowed)
	}
	return n, nil
}

func (s *Server) setAutoStop(c *call, key sandbox.Key) (any, error) {
	n, err := interval(c, 0)
	if err != nil {
		return nil, err
	}
	d := min(time.Duration(min(n, int(sandbox.MaxInterval/time.Minute)))*time.Minute, sandbox.MaxInterval)
	return s.set(c, key, sandbox.Spec{AutoStop: &d})
}

func (s *Server) setAutoArchive(c *call, key sandbox.Key) (any, error) {
	n, err := interval(c, 0)
	if err != nil {
		return nil, err
	}
	d := time.Duration(min(n, maxAutoArchive)) * time.Minute
	return s.set(c, key, sandbox.Spec{AutoArchive: &d})
}

func (s *Server) setAutoDelete(c *call, key sandbox.Key) (any, error) {
	n, err := interval(c, -1<<62)
	if err != nil {
		return nil, err
	}
	d := sandbox.Never
	if n >= 0 {
		d = time.Duration(min(n, int(sandbox.MaxInterval/time.Minute))) * time.Minute
	}
	return s.set(c, key, sandbox.Spec{AutoDelete: &d})
}

// resizeSandbox gives a running sandbox other limits, where the provider can do
// that to what runs. The size of its disk stays what it is.
func (s *Server) resizeSandbox(c *call, key sandbox.Key) (any, error) {
	var body struct {
		CPU    float64 `json:"cpu"`    // cores
		Memory float64 `json:"memory"` // GiB
		Disk   float64 `json:"disk"`   // GiB
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	to := sandbox.Resources{CPU: body.CPU, Memory: sandbox.FromGiB(body.Memory), Disk: sandbox.FromGiB(body.Disk)}
	if to == (sandbox.Resources{}) {
		return nil, refuse(http.StatusBadRequest, "one of cpu, memory and disk must be given, and more than 0")
	}
	if err := s.made(c.ctx(), key); err != nil {
		return nil, err
	}
	if _, err := s.m.ResizeSandbox(c.ctx(), key, to); err != nil {
		return nil, err
	}
	return s.show(c, key)
}

func (s *Server) touch(c *call, key sandbox.Key) (any, error) {
	if err := s.made(c.ctx(), key); err != nil {
		return nil, err
	}
	if err := s.m.TouchSandbox(c.ctx(), key); err != nil && !errors.Is(err, sandbox.ErrNotRunning) {
		return nil, err
	}
	return nil, nil
}

// setNetwork changes what a sandbox reaches, by the platform's rules: blocking
// everything clears the list, a list ends blocking, and "" clears a list.
func (s *Server) setNetwork(c *call, key sandbox.Key) (any, error) {
	var body struct {
		BlockAll *bool   `json:"networkBlockAll"`
		Allow    *string `json:"networkAllowList"`
		Domains  *string `json:"domainAllowList"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if body.BlockAll == nil && body.Allow == nil && body.Domains == nil {
		return nil, refuse(http.StatusBadRequest, "one of networkBlockAll, networkAllowList and domainAllowList must be given")
	}
	if err := s.made(c.ctx(), key); err != nil {
		return nil, err
	}
	info, err := s.m.GetSandbox(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	var p sandbox.NetworkPolicy
	if info.Spec.Network != nil {
		p = *info.Spec.Network
	}
	if b := body.BlockAll; b != nil {
		p = sandbox.NetworkPolicy{BlockAll: *b}
	}
	if body.Allow != nil && (body.BlockAll == nil || !*body.BlockAll) {
		list, err := allowList(*body.Allow)
		if err != nil {
			return nil, err
		}
		p.AllowCIDRs = append([]netip.Prefix(nil), list...)
		p.BlockAll = p.BlockAll && len(list) == 0
	}
	if body.Domains != nil && (body.BlockAll == nil || !*body.BlockAll) {
		if p.AllowDomains, err = domainList(*body.Domains); err != nil {
			return nil, err
		}
		p.BlockAll = p.BlockAll && len(p.AllowDomains) == 0
	}
	if _, err := s.m.SetNetwork(c.ctx(), key, p); err != nil {
		return nil, err
	}
	return s.show(c, key)
}
