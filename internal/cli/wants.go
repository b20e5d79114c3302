package cli

import (
	"net/netip"
	"strings"

	"berth/sandbox"
)

// wants are the flags of run for what a sandbox has and reaches.
type wants struct {
	CPU     float64  `name:"cpu" help:"At most this many processors, such as 0.5." placeholder:"N"`
	Memory  float64  `help:"At most this much memory, in GiB." placeholder:"GIB"`
	Disk    float64  `help:"At most this much of new and changed files, in GiB." placeholder:"GIB"`
	Volume  []string `sep:"none" help:"Attach a volume, NAME:PATH[:ro]; made at first use, and kept." placeholder:"NAME:PATH"`
	Network string   `help:"What it reaches: public, or none." placeholder:"public|none"`
	Allow   []string `help:"Reach nothing but this: an address, a range or a name, such as *.example.com." placeholder:"RANGE|NAME"`
}

// add puts them into a spec.
func (w *wants) add(s *sandbox.Spec) error {
	for _, n := range []struct {
		flag  string
		value float64
	}{{"cpu", w.CPU}, {"memory", w.Memory}, {"disk", w.Disk}} {
		if n.value < 0 {
			return usagef("run: --%s: it is less than 0; leave it out to ask for no limit", n.flag)
		}
	}
	s.Resources = sandbox.Resources{CPU: w.CPU, Memory: sandbox.FromGiB(w.Memory), Disk: sandbox.FromGiB(w.Disk)}
	for _, v := range w.Volume {
		name, path, ok := strings.Cut(v, ":")
		path, readOnly := strings.CutSuffix(path, ":ro")
		if !ok || name == "" || !strings.HasPrefix(path, "/") {
			return usagef("run: --volume: %q does not fit; allowed: NAME:PATH or NAME:PATH:ro, with an absolute path inside", v)
		}
		s.Volumes = append(s.Volumes, sandbox.VolumeMount{Volume: name, Path: path, ReadOnly: readOnly})
	}
	if w.Network == "" && len(w.Allow) == 0 {
		return nil
	}
	switch {
	case w.Network != "" && w.Network != "public" && w.Network != "none":
		return usagef("run: --network: %q is not known; allowed: public, none", w.Network)
	case w.Network == "public" && len(w.Allow) > 0:
		return usagef("run: --allow closes the network but for what it names; leave out --network public")
	}
	p := &sandbox.NetworkPolicy{BlockAll: w.Network == "none" || len(w.Allow) > 0}
	for _, a := range w.Allow {
		if _, err := netip.ParseAddr(a); err != nil && !strings.Contains(a, "/") {
			p.AllowDomains = append(p.AllowDomains, strings.TrimSuffix(strings.ToLower(a), "."))
			continue
		}
		ranges, err := sandbox.ParseCIDRs("--allow", []string{a})
		if err != nil {
			return usagef("run: %v", err)
		}
		p.AllowCIDRs = append(p.AllowCIDRs, ranges...)
	}
	s.Network = p
	return nil
}
