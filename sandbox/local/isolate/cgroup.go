//go:build linux

package isolate

import (
	"bufio"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/guest"
	"berth/sandbox/local/wire"
)

// parentName is the cgroup that holds all sandboxes', in each hierarchy.
const parentName = "berth"

// CgroupName is the name of the cgroups of the sandbox with state directory
// dir, below "berth" in each hierarchy.
func CgroupName(dir string) string {
	dir = filepath.Clean(dir)
	h := fnv.New64a()
	_, _ = h.Write([]byte(dir))
	base := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, filepath.Base(dir))
	return base[:min(len(base), 48)] + "-" + strconv.FormatUint(h.Sum64(), 36)
}

// hierarchy is one mounted tree of cgroups, and where this process is in it.
type hierarchy struct {
	root        string // where it is mounted
	own         string // this process's cgroup there, as a path on the host
	v2          bool
	controllers []string
}

// hierarchies reads what this process sees.
func hierarchies() []hierarchy {
	own := map[string]string{} // by controller; "" is v2
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for c := range strings.SplitSeq(f[1], ",") {
				own[c] = f[2]
			}
		}
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []hierarchy
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		m, fs := strings.Fields(before), strings.Fields(after)
		if !found || len(m) < 6 || len(fs) < 3 || fs[0] != "cgroup" && fs[0] != "cgroup2" {
			continue
		}
		// Where the mount shows a part of the tree only, paths start there.
		h := hierarchy{root: m[4], own: m[4], v2: fs[0] == "cgroup2"}
		place := func(p string) string {
			if p = strings.TrimPrefix(p, strings.TrimSuffix(m[3], "/")); strings.Contains(p, "..") {
				return h.root
			}
			return filepath.Join(h.root, p)
		}
		if h.v2 {
			b, err := os.ReadFile(filepath.Join(h.root, "cgroup.controllers"))
			if err != nil {
				continue
			}
			for _, o := range strings.Fields(string(b)) {
				if o == "memory" || o == "pids" || o == "cpu" {
					h.controllers = append(h.controllers, o)
				}
			}
			h.own = place(own[""])
		} else {
			for o := range strings.SplitSeq(fs[2], ",") {
				switch o {
				case "memory", "pids", "cpu", "cpuacct":
					h.controllers = append(h.controllers, o)
					h.own = place(own[o])
				}
			}
		}
		if len(h.controllers) > 0 {
			out = append(out, h)
		}
	}
	return out
}

// places lists where the sandboxes' cgroups may be: below this process's own,
// or the nearest one above that can hold some.
func (h *hierarchy) places() []string {
	var out []string
	for dir := h.own; ; dir = filepath.Dir(dir) {
		out = append(out, dir)
		if dir == h.root || len(dir) <= len(h.root) {
			return out
		}
	}
}

type handed struct {
	kind string
	fd   int
}

// cgroups are those of one sandbox.
type cgroups struct {
	dirs  []string
	files []handed // for init; the builder takes them over
	cpu   string   // files to read, empty when there are none
	cpuV2 bool
	mem   string
	pids  string
}

const (
	enforced    = "enforced"
	soft        = "soft"
	notEnforced = "not enforced"
)

// newCgroups makes what can be made of the limits, and tells in setup what holds. It
// never fails: the caller of Start decides whether that is enough.
func newCgroups(name string, limits wire.Limits, setup *guest.Setup) *cgroups {
	c := &cgroups{}
	have := map[string]string{} // controller -> how
	reason := "no cgroup hierarchy is mounted"
	for _, h := range hierarchies() {
		var wanted []string
		for _, w := range h.controllers {
			if have[w] == "" {
				wanted = append(wanted, w)
			}
		}
		if len(wanted) == 0 {
			continue
		}
		var err error
		for _, place := range h.places() {
			if err = c.make(&h, place, name, wanted, limits, have, setup); err == nil {
				break
			}
		}
		if err != nil {
			reason = "cgroups cannot be made here (" + cause(err) + "): run berth as root, or with a delegated cgroup (systemd-run --user --scope -p Delegate=yes)"
		}
	}
	held := func(limit int64, controller string) wire.Held {
		switch {
		case limit <= 0:
			return wire.Held{State: notEnforced, Detail: "no limit was asked for"}
		case have[controller] != "":
			return wire.Held{State: enforced, Detail: have[controller]}
		}
		return wire.Held{State: notEnforced, Detail: reason}
	}
	setup.Memory, setup.PIDs, setup.CPU = held(limits.Memory, "memory"), held(limits.PIDs, "pids"), held(limits.CPUMilli, "cpu")
	if limits.PIDs > 0 && have["pids"] == "" {
		setup.NProc = limits.PIDs
		setup.PIDs = wire.Held{State: enforced, Detail: "RLIMIT_NPROC, for each user; " + reason}
	}
	if limits.Memory > 0 && have["memory"] == "" {
		setup.PerProcess = limits.Memory
		setup.Memory = wire.Held{State: soft, Detail: "RLIMIT_DATA, for each process; " + reason}
	}
	return c
}

func cause(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// make makes the cgroup of one hierarchy below place.
func (c *cgroups) make(h *hierarchy, place, name string, wanted []string, limits wire.Limits, have map[string]string, setup *guest.Setup) (err error) {
	parent := filepath.Join(place, parentName)
	dir := filepath.Join(parent, name)
	if h.v2 {
		if wanted = enable(place, wanted); len(wanted) == 0 {
			return errors.New("no controller can be enabled")
		}
	}
	for try := 0; ; try++ {
		if err := os.Mkdir(parent, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		on := wanted
		if h.v2 {
			on = enable(parent, wanted)
		}
		err := os.Mkdir(dir, 0o755)
		if os.IsNotExist(err) && try < 100 {
			continue // another sandbox, the last one, has just removed the parent
		}
		if err != nil && !os.IsExist(err) {
			return err
		}
		if wanted = on; len(wanted) == 0 {
			_ = unix.Rmdir(dir)
			return errors.New("no controller can be enabled")
		}
		break
	}
	var fds []handed
	defer func() {
		if err != nil {
			for _, f := range fds {
				_ = unix.Close(f.fd)
			}
			_ = unix.Rmdir(dir)
		}
	}()
	open := func(kind, file string, flags int) error {
		fd, err := unix.Open(filepath.Join(dir, file), flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: file, Err: err}
		}
		fds = append(fds, handed{kind, fd})
		return nil
	}
	how := "cgroup v1"
	join := "tasks"
	if h.v2 {
		how, join = "cgroup v2", "cgroup.procs"
	}
	who := guest.FileTasks
	if slices.Contains(wanted, "memory") {
		who = guest.FileMember
		setup.Probe = setup.Probe || slices.Contains(wanted, "pids") && limits.PIDs > 0
	}
	if err := open(who, join, unix.O_WRONLY); err != nil {
		return err
	}
	for _, w := range wanted {
		if err := c.limit(h, dir, w, limits, open); err != nil {
			return err
		}
	}
	for _, w := range wanted {
		have[w] = how
	}
	c.dirs = append(c.dirs, dir)
	c.files = append(c.files, fds...)
	return nil
}

// enable turns controllers on for dir's children and tells which are.
func enable(dir string, wanted []string) []string {
	file := filepath.Join(dir, "cgroup.subtree_control")
	for _, w := range wanted {
		_ = os.WriteFile(file, []byte("+"+w), 0)
	}
	b, _ := os.ReadFile(file)
	var out []string
	on := strings.Fields(string(b))
	for _, w := range wanted {
		for _, o := range on {
			if o == w {
				out = append(out, w)
			}
		}
	}
	return out
}

func (c *cgroups) limit(h *hierarchy, dir, controller string, limits wire.Limits, open func(kind, file string, flags int) error) error {
	num := func(v int64) string { return strconv.FormatInt(v, 10) }
	set := func(file, value string) error { return os.WriteFile(filepath.Join(dir, file), []byte(value), 0) }
	const period = 100_000
	switch controller {
	case "pids":
		c.pids = filepath.Join(dir, "pids.current")
		if limits.PIDs > 0 {
			return set("pids.max", num(limits.PIDs))
		}
	case "cpuacct":
		c.cpu = filepath.Join(dir, "cpuacct.usage")
	case "cpu":
		quota := num(max(limits.CPUMilli*period/1000, 1000))
		if h.v2 {
			c.cpu, c.cpuV2 = filepath.Join(dir, "cpu.stat"), true
		}
		switch {
		case limits.CPUMilli <= 0:
		case h.v2:
			return set("cpu.max", quota+" "+num(period))
		default:
			if err := set("cpu.cfs_period_us", num(period)); err != nil {
				return err
			}
			return set("cpu.cfs_quota_us", quota)
		}
	case "memory":
		if h.v2 {
			c.mem = filepath.Join(dir, "memory.current")
			if limits.Memory > 0 {
				_ = set("memory.swap.max", "0") // absent without swap
				if err := set("memory.max", num(limits.Memory)); err != nil {
					return err
				}
			}
			return open(guest.FileOOM, "memory.events", unix.O_RDONLY)
		}
		c.mem = filepath.Join(dir, "memory.usage_in_bytes")
		if limits.Memory > 0 {
			if err := set("memory.limit_in_bytes", num(limits.Memory)); err != nil {
				return err
			}
			_ = set("memory.memsw.limit_in_bytes", num(limits.Memory)) // absent without swap accounting
		}
		return open(guest.FileOOM, "memory.oom_control", unix.O_RDONLY)
	}
	return nil
}

func readNumber(file, key string) int64 {
	if file == "" {
		return -1
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	text := strings.TrimSpace(string(b))
	if key != "" {
		found := false
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+" "); ok {
				text, found = v, true
			}
		}
		if !found {
			return -1
		}
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return -1
	}
	return v
}

func (c *cgroups) usage() wire.Usage {
	u := wire.Usage{Memory: readNumber(c.mem, ""), Processes: int(readNumber(c.pids, ""))}
	if c.cpuV2 {
		if u.CPUNS = readNumber(c.cpu, "usage_usec"); u.CPUNS > 0 {
			u.CPUNS *= 1000
		}
	} else {
		u.CPUNS = readNumber(c.cpu, "")
	}
	return u
}

// remove removes the cgroups, whose processes are gone or about to be.
func (c *cgroups) remove() error {
	var errs []error
	for _, dir := range c.dirs {
		errs = append(errs, removeCgroup(dir))
	}
	return errors.Join(errs...)
}

func removeCgroup(dir string) error {
	var err error
	for wait := time.Millisecond; wait < 5*time.Second; wait *= 2 {
		// The last processes leave a little after they have ended.
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			_ = unix.Rmdir(filepath.Dir(dir)) // when it was the last one
			return nil
		}
		if err != unix.EBUSY {
			break
		}
		time.Sleep(wait)
	}
	return &os.PathError{Op: "rmdir", Path: dir, Err: err}
}

// RemoveStale removes the cgroups of those names (see CgroupName), left by
// monitors that were killed. Processes still in them are killed.
func RemoveStale(names []string) error {
	var errs []error
	for _, h := range hierarchies() {
		for _, place := range h.places() {
			for _, name := range names {
				if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
					continue
				}
				dir := filepath.Join(place, parentName, name)
				if unix.Access(dir, unix.F_OK) != nil {
					continue
				}
				killCgroup(dir)
				errs = append(errs, removeCgroup(dir))
			}
		}
	}
	return errors.Join(errs...)
}

func killCgroup(dir string) {
	for range 100 {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || len(b) == 0 {
			return
		}
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		time.Sleep(time.Millisecond)
	}
}
