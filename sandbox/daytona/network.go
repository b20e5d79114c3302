package daytona

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// The platform's bounds of what a sandbox may reach.
const maxRanges = 10

// settingsOf says a policy in the platform's words. There block-all wins over a
// list, so a list is told alone: it shuts out everything else.
func settingsOf(p sandbox.NetworkPolicy) (block bool, list string, err error) {
	var errs []error
	bad := func(field, problem, allowed, hint string) {
		errs = append(errs, &sandbox.FieldError{Field: field, Problem: problem, Allowed: allowed, Hint: hint})
	}
	if len(p.AllowDomains) > 0 {
		bad("network_allow_domains", "Daytona does not hold a sandbox to names on every server", "network_allow_list, with address ranges", "list the addresses that the names lead to, and that of the resolver")
	}
	if len(p.AllowCIDRs) > maxRanges {
		bad("network_allow_list", fmt.Sprintf("there are %d ranges", len(p.AllowCIDRs)), fmt.Sprintf("at most %d at Daytona", maxRanges), "join neighbouring ranges")
	}
	var ranges []string
	for _, c := range p.AllowCIDRs {
		if c.Addr().Is6() {
			bad("network_allow_list", c.String()+" is an IPv6 range", "IPv4 ranges at Daytona", "")
			continue
		}
		ranges = append(ranges, c.String())
	}
	return p.BlockAll && len(ranges) == 0, strings.Join(ranges, ","), errors.Join(errs...)
}

// platformPolicy is what the platform says that a sandbox may reach.
func platformPolicy(sb *api.Sandbox) sandbox.NetworkPolicy {
	p := sandbox.NetworkPolicy{BlockAll: sb.NetworkBlockAll}
	for text := range strings.SplitSeq(sb.NetworkAllowList, ",") {
		if c, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			p.AllowCIDRs = append(p.AllowCIDRs, c)
		}
	}
	for name := range strings.SplitSeq(sb.DomainAllowList, ",") {
		if name = strings.TrimSpace(name); name != "" {
			p.AllowDomains = append(p.AllowDomains, name)
		}
	}
	return p
}

func networkGuarantee(n *sandbox.NetworkPolicy) sandbox.Guarantee {
	g := sandbox.Guarantee{Name: "network", State: sandbox.Enforced, Detail: "by the platform: "}
	if n == nil || !n.Limited() {
		g.Detail += "what it lets everybody reach; what it keeps from sandboxes is its own choice"
		return g
	}
	g.Detail += n.String()
	return g
}

// SetNetwork changes what the sandbox reaches. The platform can change a running
// one only: for another the change is kept, and told to it at the next start.
func (i *Instance) SetNetwork(ctx context.Context, policy sandbox.NetworkPolicy) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	settings, err := networkSettings(policy)
	if err != nil {
		return err
	}
	sb, err := i.look(ctx)
	if err != nil {
		return err
	}
	late := true
	if statusOf(sb) == sandbox.StatusRunning {
		switch err := at.SetNetwork(ctx, sb.ID, settings); {
		case err == nil:
			late = false
		case errors.Is(err, api.ErrNotFound):
			return sandbox.ErrNotFound
		default:
			if sb, lerr := i.look(ctx); lerr != nil || statusOf(sb) == sandbox.StatusRunning {
				return i.p.fail("change the network", err)
			}
		}
		i.p.note(sb.ID)
	}
	spec := i.p.infoOf(i.key, sb).Spec
	spec.Network = &policy
	if err := i.keep(ctx, sb, spec, late); err != nil {
		return err
	}
	if late {
		return nil
	}
	return i.closed(ctx, sb, policy)
}

func networkSettings(policy sandbox.NetworkPolicy) (api.NetworkSettings, error) {
	block, list, err := settingsOf(policy)
	if err != nil {
		return api.NetworkSettings{}, err
	}
	s := api.NetworkSettings{BlockAll: &block}
	if !block { // with block-all a list would have no effect
		s.AllowList = &list
	}
	if list != "" {
		s.BlockAll = nil // a list says that by itself
	}
	return s, nil
}

// settle makes what a sandbox that was just started may reach what it should be:
// a change that came while it did not run is told now, and nothing runs in it
// before the platform holds it to the policy, which it does a little after the
// start.
func (i *Instance) settle(ctx context.Context, sb *api.Sandbox) error {
	r, kept := readRecord(sb)
	policy := platformPolicy(sb)
	if kept && r.Network != nil {
		policy = r.Network.policy()
	}
	if kept && r.Network != nil && r.Network.Late {
		at, err := i.p.at()
		if err != nil {
			return err
		}
		settings, err := networkSettings(policy)
		if err != nil {
			return err
		}
		if err := at.SetNetwork(ctx, sb.ID, settings); err != nil {
			return i.p.fail("set the network", err)
		}
		spec := i.p.infoOf(i.key, sb).Spec
		spec.Network = &policy
		if err := i.keep(ctx, sb, spec, false); err != nil {
			return err
		}
	}
	return i.closed(ctx, sb, policy)
}

// closed waits until a sandbox with a limited network does not reach what lies
// outside of its list.
func (i *Instance) closed(ctx context.Context, sb *api.Sandbox, policy sandbox.NetworkPolicy) error {
	to := i.p.o.Probe
	if !policy.Limited() {
		return nil
	}
	for _, c := range policy.AllowCIDRs {
		if c.Contains(to.Addr()) {
			return nil // it may reach that, and so shows nothing
		}
	}
	ctx, cancel := context.WithTimeout(ctx, i.p.o.Times.Probe)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, i.p.o.Times.Look) {
		open, err := i.p.boxOf(sb).reaches(ctx, to)
		if err == nil && !open {
			return nil
		}
		found := fmt.Sprintf("Daytona still lets it reach %s", to)
		if err != nil {
			found = fmt.Sprintf("whether it holds cannot be told (%v)", err)
		}
		if pause(ctx, wait) != nil {
			return &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf(
				"the network of the sandbox is limited to %q, and %s; nothing was run in it; make the same call again, or stop_sandbox", policy.String(), found)}
		}
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
