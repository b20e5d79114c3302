//go:build linux

package local

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"berth/sandbox"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
	"golang.org/x/sys/unix"
)

// searchPath is where commands are looked for inside; ~ is the user's home,
// which the helper fills in.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// baseEnv is the environment that every command begins with; home is that of
// the sandbox's ordinary user.
func baseEnv(home string) map[string]string {
	return map[string]string{
		"PATH":                          home + "/.local/bin:" + searchPath,
		"LC_CTYPE":                      "C.UTF-8", // not LANG, for which every program would open a dozen files more
		"TERM":                          "xterm-256color",
		"DEBIAN_FRONTEND":               "noninteractive",
		"PIP_BREAK_SYSTEM_PACKAGES":     "1",
		"PIP_DISABLE_PIP_VERSION_CHECK": "1",
		"PIP_ROOT_USER_ACTION":          "ignore",
		"NPM_CONFIG_UPDATE_NOTIFIER":    "false",
		"NPM_CONFIG_FUND":               "false",
		// Where a policy refuses a registry, trying again for a minute only makes
		// the answer late.
		"NPM_CONFIG_FETCH_RETRY_MINTIMEOUT": "1000",
		"NPM_CONFIG_FETCH_RETRY_MAXTIMEOUT": "5000",
		"PIP_RETRIES":                       "2",
		"PYTHONUNBUFFERED":                  "1",
	}
}

func users(account string) []wire.User {
	shell := loginShell()
	return []wire.User{
		{Name: account, UID: agentID, GID: agentID, Home: homeOf(account), Shell: shell},
		{Name: "root", UID: 0, GID: 0, Home: "/root", Shell: shell},
	}
}

// kindFor tells which layers a sandbox with these ids, and of that account as a
// spec has it, needs.
func (p *Provider) kindFor(ids wire.IDs, account string) baseKind {
	return baseKind{
		account:  accountOf(account),
		skeleton: ids.Mode != wire.IDsRange || !ids.IDMapped,
		single:   ids.Mode == wire.IDsSingle,
		shift:    layerShift(ids),
		as:       layersAs(ids),
		extra:    p.opts.ExtraPaths,
	}
}

func layersAs(ids wire.IDs) tree.As {
	as := treeAs(ids)
	as.Shift = tree.IDShift{}
	return as
}

// newIDs chooses the ids of a sandbox that is made or started. Earlier ones are
// kept where they can be: files on disk may belong to them.
func (p *Provider) newIDs(s *store, id string, had wire.IDs) (wire.IDs, error) {
	mode, _ := p.idMode()
	if had.Mode == wire.IDsSingle && os.Geteuid() != 0 {
		return had, nil // works for every user
	}
	if had.Mode == wire.IDsSub && mode.Mode == wire.IDsSingle {
		mode, _ = idMode() // its files have ids that one alone cannot show
	}
	if had.Mode != "" && had.Mode != mode.Mode {
		return had, refuse("this sandbox was made with user ids in %q mode, and berth can now only do %q; run berth as the same user, with the same /etc/subuid and uidmap tools, as when it was made", had.Mode, mode.Mode)
	}
	switch mode.Mode {
	case wire.IDsSub:
		if had.Mode != "" && (had.SubUID != mode.SubUID || had.SubGID != mode.SubGID) {
			return had, refuse("this sandbox's files belong to the ids from %d on, and /etc/subuid now gives %d; restore that line", had.SubUID, mode.SubUID)
		}
		return mode, nil
	case wire.IDsSingle:
		return mode, nil
	}
	mode.IDMapped = idMapped(s.dir, "/usr")
	if had.Mode != "" && had.IDMapped != mode.IDMapped {
		return had, refuse("this sandbox was made where file systems could be id-mapped (%t), and here they can (%t); start it where it was made", had.IDMapped, mode.IDMapped)
	}
	if !mode.IDMapped {
		// Layers on disk belong to the range, and are shared: so is it.
		mode.Base = firstSlot * rangeSize
		return mode, nil
	}
	var err error
	mode.Base, err = s.claimRange(id, had.Base)
	return mode, err
}

// idMode is the best mode for new sandboxes of this configuration. An ordinary
// user's own folders can be written inside only where everybody is that user.
func (p *Provider) idMode() (wire.IDs, string) {
	ids, why := idMode()
	if ids.Mode == wire.IDsSub && len(p.opts.HostDirs) > 0 {
		return wire.IDs{Mode: wire.IDsSingle}, "host folders are shown, and only root can show them under another owner"
	}
	return ids, why
}

// compose says to the monitor what to build.
func (p *Provider) compose(s *store, id string, r *record, mounts []wire.Mount) *wire.Launch {
	l := &wire.Launch{
		Version:       wire.Version,
		Dir:           s.sandboxDir(id),
		Hostname:      hostname,
		IDs:           r.IDs,
		Mounts:        mounts,
		Env:           baseEnv(homeOf(accountOf(r.Spec.Account))),
		Users:         users(accountOf(r.Spec.Account)),
		User:          userOf(r.Spec),
		Network:       p.network(r.Spec),
		Limits:        p.limits(r.Spec),
		Disk:          r.disk(s.sandboxDir(id)),
		Intervals:     intervals(r.Spec),
		LogBytes:      p.opts.LogBytes,
		FUSE:          !p.opts.NoFUSE,
		KeepProcesses: p.opts.KeepProcesses,
		KeepLogBytes:  p.opts.KeepLogBytes,
	}
	if r.Root != nil {
		for _, e := range r.Root.Env {
			setEnv(l.Env, e)
		}
	}
	if im := r.Image; im != nil {
		l.Env, l.Users, l.User = imageEnv(&im.Image), im.users(), im.Account.Name
	}
	return l
}

func userOf(s specRecord) string {
	return cmp.Or(s.User, accountOf(s.Account))
}

func intervals(s specRecord) wire.Intervals {
	return wire.Intervals{AutoStopMS: s.autoStop().Milliseconds(), DeleteOnStop: s.deletedOnStop()}
}

// mounts composes the default root.
func (p *Provider) mounts(layers string, b base, ids wire.IDs) []wire.Mount {
	list := []wire.Mount{overlay(layers, "/", b.layer("/"))}
	for _, d := range overDirs() {
		list = append(list, overlay(layers, d, b.layer(d), d))
	}
	for _, d := range p.opts.ExtraPaths {
		d = filepath.Clean(d)
		// Under no id map: its owners are nobody inside, so that root there can
		// read what everyone can, and no more.
		list = append(list, wire.Mount{Target: d, Type: "bind", Source: d, ReadOnly: true})
	}
	return list
}

// overlay is a piece of the root that can be written; layers is where its
// upper directory is.
func overlay(layers, target string, lower ...string) wire.Mount {
	name := strings.ReplaceAll(strings.Trim(target, "/"), "/", "-")
	if name == "" {
		name = "root"
	}
	return wire.Mount{Target: target, Type: "overlay", Lower: lower,
		Upper: filepath.Join(layers, name, "upper"), Work: filepath.Join(layers, name, "work")}
}

// hostDirs shows the operator's folders, whose owner is user inside.
func (p *Provider) hostDirs(ids wire.IDs, user string) []wire.Mount {
	var list []wire.Mount
	for _, h := range p.opts.HostDirs {
		source, err := filepath.EvalSymlinks(h.Host)
		if err != nil {
			source = h.Host // the helper's error names it
		}
		m := wire.Mount{Target: filepath.Clean(h.Path), Type: "bind", Source: source, ReadOnly: h.ReadOnly}
		if ids.Mode == wire.IDsSingle || ids.IDMapped {
			m.MapOwner = user // else it shows its owner as the kernel can
		}
		list = append(list, m)
	}
	return list
}

// overDirs are the host's directories that are shown with a writable layer.
var overDirs = hostsDirs // tests that count sets of layers show less

func hostsDirs() []string {
	list := []string{"/usr"}
	for _, d := range systemDirs {
		if fi, err := os.Lstat("/" + d); err == nil && fi.IsDir() {
			list = append(list, "/"+d)
		}
	}
	for _, d := range packageDirs {
		if fi, err := os.Stat(d); err == nil && fi.IsDir() {
			list = append(list, d)
		}
	}
	return list
}

// usableMemory is how much memory berth and its sandboxes may use together:
// the machine's, or less where a container's limit says so.
func usableMemory() int64 {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0
	}
	total := int64(si.Totalram) * int64(si.Unit)
	for _, f := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 && n < total {
			total = n
		}
	}
	return total
}

// runtimes finds the interpreters that a sandbox will see.
func (p *Provider) runtimes() map[sandbox.Language]string {
	out := map[sandbox.Language]string{}
	for lang, names := range map[sandbox.Language][]string{
		sandbox.Python: {"python3", "python"}, sandbox.JavaScript: {"node", "nodejs"}, sandbox.Bash: {"bash"},
	} {
		for _, n := range names {
			if path := p.findInside(n); path != "" {
				out[lang] = path
				break
			}
		}
	}
	if node, ok := out[sandbox.JavaScript]; ok {
		out[sandbox.TypeScript] = node
	}
	return out
}

// findInside looks for a program as a sandbox will: a link that leads to a
// place which is not shown counts as missing.
func (p *Provider) findInside(name string) string {
	for _, dir := range strings.Split(searchPath, ":") {
		path := filepath.Join(dir, name)
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			continue
		}
		fi, err := os.Stat(real)
		if err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
			continue
		}
		for _, shown := range append([]string{"/usr", "/bin", "/sbin"}, p.opts.ExtraPaths...) {
			if strings.HasPrefix(real, shown+"/") {
				return path
			}
		}
	}
	return ""
}

// prepare makes sure that the layers and ids which r needs are there, and
// returns what the monitor is to build.
func (p *Provider) prepare(ctx context.Context, s *store, id string, r *record) (*wire.Launch, error) {
	ids, err := p.newIDs(s, id, r.IDs)
	if err != nil {
		return nil, err
	}
	r.IDs = ids
	if r.Spec.Disk > 0 && r.DiskKind == "" {
		r.DiskKind, _ = chooseDisk(r.Spec, ids)
	}
	var mounts, hosts []wire.Mount
	if r.Image != nil {
		layers, err := p.imageLayers(ctx, s, r)
		if err != nil {
			return nil, err
		}
		mounts = []wire.Mount{overlay(r.uppers(s.layersPath(id)), "/", layers...)}
		hosts = p.hostDirs(ids, r.Image.Account.Name)
	} else {
		b, err := s.base(ctx, p.kindFor(ids, r.Spec.Account), p.opts.step)
		if err != nil {
			return nil, err
		}
		r.Base = b.name
		if r.MadeOn.Fingerprint == "" {
			r.MadeOn = b.name
		}
		mounts = p.mounts(r.uppers(s.layersPath(id)), b, ids)
		hosts = p.hostDirs(ids, accountOf(r.Spec.Account))
	}
	if r.Build == "" { // what is built depends on nobody's folders, and changes none
		mounts = append(mounts, hosts...)
	}
	attached, err := p.attach(ctx, s, r, mounts)
	if err != nil {
		return nil, err
	}
	mounts = append(mounts, attached...)
	standOn(mounts, s.sealedPaths(r.Sealed))
	l := p.compose(s, id, r, mounts)
	if l.Helper, err = s.helper(); err != nil {
		return nil, err
	}
	return l, nil
}
