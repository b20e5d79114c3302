package sandbox

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NetworkPolicy says what a sandbox may reach. The zero value is "public": the
// internet, and nothing of the host, of link-local and metadata addresses, or
// of private ranges. With a list, or BlockAll, only what is listed is reached;
// BlockAll together with lists is "nothing, but for these".
type NetworkPolicy struct {
	BlockAll bool
	// AllowCIDRs are reached. A prefix as wide as the internet does not open
	// special ranges, one within such a range does: 10.0.0.0/8, 127.0.0.1/32
	// (the host's loopback, seen inside as 10.0.2.2).
	AllowCIDRs []netip.Prefix
	// AllowDomains are reached by name: "example.com", or "*.example.com" for
	// all names below it. Other names are not resolved then.
	AllowDomains []string
	// Asked is what the session asked for, where an operator who allows less has
	// made this of it: it comes back with one who allows it again. A provider
	// keeps it, and lets nothing through for it. Nil: the policy is what was asked.
	Asked *NetworkPolicy
}

// Bounds of a NetworkPolicy.
const (
	MaxAllowCIDRs   = 256
	MaxAllowDomains = 256
)

// Networker is an Instance that can change what its sandbox reaches, at once,
// running or not. Connections that the new policy forbids are cut before
// SetNetwork returns. ErrNotFound when the sandbox is destroyed.
type Networker interface {
	SetNetwork(ctx context.Context, p NetworkPolicy) error
}

// Refusal is a connection that the policy did not let out, or several alike.
type Refusal struct {
	Host     string // name or address
	Port     int    // 0 for a name that was not resolved
	Protocol string // tcp, udp, dns
	Rule     string // why
	Allow    string // the argument that would let it out; empty: none would
	Count    int64
	First    time.Time
	// Process that asked; empty when that could not be found.
	Process ProcessID
}

// Destination is the address, or the name, with the port where there is one.
func (r Refusal) Destination() string {
	if r.Port == 0 {
		return r.Host
	}
	return net.JoinHostPort(r.Host, strconv.Itoa(r.Port))
}

// String says it in words, as one line.
func (r Refusal) String() string {
	s := "refused " + r.Destination()
	switch r.Protocol {
	case "dns":
		s = "the name " + r.Host + " was refused"
	case "udp":
		s += " (udp)"
	}
	if r.Count > 1 {
		s += fmt.Sprintf(" %d times", r.Count)
	}
	if r.Process == "" {
		s += " while this ran"
	}
	s += ": " + r.Rule
	if r.Allow != "" {
		s += "; allowed by " + r.Allow
	}
	return s
}

// Refusals says in words what was refused to a process, shortly.
func (i ProcessInfo) Refusals() []string {
	var out []string
	for n, r := range i.Refused {
		if n == 3 {
			out = append(out, fmt.Sprintf("network: %d more kinds of connections were refused", len(i.Refused)-n))
			break
		}
		out = append(out, "network: "+r.String())
	}
	return out
}

// Limited tells that only what is listed is reached.
func (p NetworkPolicy) Limited() bool {
	return p.BlockAll || len(p.AllowCIDRs) > 0 || len(p.AllowDomains) > 0
}

func (p NetworkPolicy) clone() *NetworkPolicy {
	p.AllowCIDRs, p.AllowDomains = slices.Clone(p.AllowCIDRs), slices.Clone(p.AllowDomains)
	return &p
}

// Equal tells whether both say the same.
func (p NetworkPolicy) Equal(o NetworkPolicy) bool {
	return p.BlockAll == o.BlockAll && slices.Equal(p.AllowCIDRs, o.AllowCIDRs) && slices.Equal(p.AllowDomains, o.AllowDomains) &&
		(p.Asked == nil) == (o.Asked == nil) && (p.Asked == nil || p.Asked.Equal(*o.Asked))
}

// String says the policy in words.
func (p NetworkPolicy) String() string {
	var list []string
	for _, c := range p.AllowCIDRs {
		list = append(list, c.String())
	}
	list = append(list, p.AllowDomains...)
	switch {
	case len(list) > 0:
		return "only " + strings.Join(list, ", ")
	case p.BlockAll:
		return "blocked: nothing but the sandbox's own loopback"
	}
	return "public: the internet; not the host, metadata addresses or private ranges"
}

// ParseCIDRs reads prefixes, or single addresses, from texts that may each hold
// several, divided by commas. Its error joins a *FieldError of the given field
// for each that is none.
func ParseCIDRs(field string, texts []string) ([]netip.Prefix, error) {
	var f faults
	var out []netip.Prefix
	for _, text := range texts {
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			p, err := netip.ParsePrefix(part)
			if a, aerr := netip.ParseAddr(part); aerr == nil && a.Zone() == "" {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			switch {
			case err != nil:
				f.add(field, fmt.Sprintf("%.60q is not an address range", part), "CIDRs such as 203.0.113.0/24 or 2001:db8::/32", "names go into network_allow_domains")
			case p.Addr().Is4In6():
				f.add(field, fmt.Sprintf("%.60q is an IPv4 address in IPv6 form", part), "CIDRs such as 203.0.113.0/24 or 2001:db8::/32", "write it as IPv4")
			case p != p.Masked():
				f.add(field, fmt.Sprintf("%s has bits beyond its length", p), "", "did you mean "+p.Masked().String()+"?")
			default:
				out = append(out, p)
			}
		}
	}
	return out, f.err()
}

func (f *faults) network(p *NetworkPolicy) {
	if p == nil {
		return
	}
	if n := len(p.AllowCIDRs); n > MaxAllowCIDRs {
		f.add("network_allow_list", fmt.Sprintf("there are %d", n), "at most 256", "")
	}
	if n := len(p.AllowDomains); n > MaxAllowDomains {
		f.add("network_allow_domains", fmt.Sprintf("there are %d", n), "at most 256", "")
	}
	for _, d := range p.AllowDomains {
		if !domainName(strings.TrimPrefix(d, "*.")) {
			f.add("network_allow_domains", fmt.Sprintf("%.80q is not a name", d), "names in lower case such as example.com, or *.example.com", "addresses go into network_allow_list")
		}
	}
}

func domainName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// specialRanges are no part of the internet; only the operator opens them.
var specialRanges = func() (list []netip.Prefix) {
	for _, s := range []string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
		"192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3", "::/96", "64:ff9b:1::/48", "2001::/32", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"} {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}()

// networkWithin names what p asks beyond most, the operator's: with BlockAll no
// more than its lists, else the internet and its lists.
func (f *faults) networkWithin(p *NetworkPolicy, most NetworkPolicy) {
	if p == nil {
		return
	}
	const hint = "ask for less; the operator sets this ceiling, limits.network_* in the config"
	if most.BlockAll && !p.Limited() {
		f.add("network_block_all", "the whole internet is more than a sandbox may reach here", "true, with lists within: "+most.String(), hint)
	}
	for _, c := range p.AllowCIDRs {
		special := slices.ContainsFunc(specialRanges, func(s netip.Prefix) bool { return s.Bits() <= c.Bits() && s.Contains(c.Addr()) })
		if (!special && !most.BlockAll) || slices.ContainsFunc(most.AllowCIDRs, func(o netip.Prefix) bool { return o.Bits() <= c.Bits() && o.Contains(c.Addr()) }) {
			continue
		}
		if special {
			allowed := most.String()
			if !most.BlockAll && len(most.AllowCIDRs) == 0 {
				allowed = "the internet"
			}
			f.add("network_allow_list", c.String()+" is the host's, link-local or private: more than a sandbox may reach here", allowed, hint)
		} else {
			f.add("network_allow_list", c.String()+" is more than a sandbox may reach here", most.String(), hint)
		}
	}
	if !most.BlockAll {
		return
	}
	for _, d := range p.AllowDomains {
		if !slices.ContainsFunc(most.AllowDomains, func(o string) bool {
			return o == d || strings.HasPrefix(o, "*.") && strings.HasSuffix(d, o[1:])
		}) {
			f.add("network_allow_domains", d+" is more than a sandbox may reach here", most.String(), hint)
		}
	}
}

// networkOf is the policy of a new sandbox that asks for p.
func networkOf(p *NetworkPolicy, most NetworkPolicy) *NetworkPolicy {
	if p != nil {
		return p
	}
	if most.BlockAll {
		return most.clone()
	}
	return &NetworkPolicy{}
}

// within leaves of p what most, the operator's, allows. It tells whether
// anything was taken away.
func (p NetworkPolicy) within(most NetworkPolicy) (NetworkPolicy, bool) {
	fits := func(p NetworkPolicy) bool {
		var f faults
		f.networkWithin(&p, most)
		return len(f) == 0
	}
	if fits(p) {
		return p, false
	}
	if !p.Limited() {
		return *most.clone(), true
	}
	out := NetworkPolicy{}
	for _, c := range p.AllowCIDRs {
		if fits(NetworkPolicy{BlockAll: true, AllowCIDRs: []netip.Prefix{c}}) {
			out.AllowCIDRs = append(out.AllowCIDRs, c)
		}
	}
	for _, d := range p.AllowDomains {
		if fits(NetworkPolicy{BlockAll: true, AllowDomains: []string{d}}) {
			out.AllowDomains = append(out.AllowDomains, d)
		}
	}
	out.BlockAll = p.BlockAll || !out.Limited()
	return out, true
}

// narrow holds a sandbox that was made before to what the operator allows now, of
// what its session asked for: another operator's settings may have made less of it.
func (m *Manager) narrow(ctx context.Context, inst Instance, info *Info, notice *Notice) error {
	var has NetworkPolicy
	if info.Spec.Network != nil {
		has = *info.Spec.Network
	}
	asked := has
	if has.Asked != nil {
		asked = *has.Asked
	}
	p, less := asked.within(m.options.Limits.Network)
	if less {
		p.Asked = &asked
	}
	n, ok := inst.(Networker)
	same := p.Equal(has)
	if same && (!ok || len(p.AllowCIDRs) == 0) {
		return nil // else the same list may open less now: of the machine's own addresses
	}
	if !ok {
		return &UserError{Text: "the sandbox reaches more than the operator allows now, and the provider " + m.provider.Name() + " cannot change that; destroy_sandbox makes way for another", Err: ErrUnsupported}
	}
	if err := n.SetNetwork(ctx, p); err != nil {
		return fmt.Errorf("narrow the network to what the operator allows: %w", err)
	}
	if same {
		return nil
	}
	info.Spec.Network = &p
	if less {
		notice.Warnings = append(notice.Warnings, "the operator allows less network than this sandbox asked for; now: "+p.String())
	} else {
		notice.Warnings = append(notice.Warnings, "the network is what was asked for again, which the operator allows: "+p.String())
	}
	return nil
}

// SetNetwork changes what the session's sandbox may reach, within the
// operator's ceiling, and returns its state after that. It starts and makes
// nothing.
func (m *Manager) SetNetwork(ctx context.Context, key Key, p NetworkPolicy) (*Info, error) {
	ctx = withDeadline(ctx)
	if err := m.allowed(Spec{Network: &p}); err != nil {
		return nil, err
	}
	inst, err := m.peek(ctx, key)
	if err != nil {
		return nil, sayNoSession(err, key)
	}
	n, ok := inst.(Networker)
	if !ok {
		return nil, &UserError{Text: "the provider " + m.provider.Name() + " cannot change a sandbox's network", Err: ErrUnsupported}
	}
	if err := n.SetNetwork(ctx, p); err != nil {
		return nil, sayNoSession(err, key)
	}
	info, err := inst.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the sandbox: %w", err)
	}
	m.mu.Lock()
	if b := m.boxes[key]; b != nil {
		m.boxes[key] = &box{inst: b.inst, info: info, outcome: b.outcome, seen: b.seen}
	}
	m.mu.Unlock()
	return &info, nil
}
