//go:build linux

package isolate

import (
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

type handed struct {
	kind string
	fd   int
}

// cgroups are those of one sandbox. In a hierarchy of version 1 each command
// writes itself into its cgroup, which is free for oneself. In version 2 that
// would cost milliseconds, so there init and commands are born in theirs:
// NAME/init and NAME/run, of which the second has the limits.
type cgroups struct {
	name   string
	owner  int // root inside as seen outside, where that is not the caller; else -1
	limits wire.Limits
	setup  *guest.Setup

	have   map[string]string // controller -> how
	at     map[string]place  // controller -> where its limit is set
	reason string            // why others are not had
	dirs   []string          // to be removed, in this order
	files  []handed          // for init; the builder takes them over
	born   int               // the directory that init is to be born in, opened; -1: none
	run    string            // the directory of commands in version 2; empty: none

	cpu   string // files to read, empty when there are none
	cpuV2 bool
	mem   string
	pids  string
}

const (
	enforced    = "enforced"
	soft        = "soft"
	notEnforced = "not enforced"
)

// newCgroups begins to make what can be made of the limits: the cgroups that
// init is to be born in. It never fails: report tells what holds, and the caller of
// Start decides whether that is enough.
func newCgroups(name string, owner int, limits wire.Limits, setup *guest.Setup) *cgroups {
	return &cgroups{name: name, owner: owner, limits: limits, setup: setup, born: -1, have: map[string]string{}, at: map[string]place{}, reason: "no cgroup hierarchy is mounted"}
}

// each makes the cgroups of the hierarchies of one version.
func (c *cgroups) each(all []hierarchy, v2 bool) {
	for _, h := range all {
		if h.v2 != v2 {
			continue
		}
		var wanted []string
		for _, w := range h.controllers {
			if c.have[w] == "" && (w != "cpu" || c.limits.CPUMilli > 0) {
				wanted = append(wanted, w)
			}
		}
		if len(wanted) == 0 {
			continue
		}
		var err error
		if v2 {
			err = c.makeV2(&h, wanted)
		} else {
			for _, place := range h.places() {
				if err = c.makeV1(place, wanted); err == nil {
					break
				}
			}
		}
		if err != nil {
			c.reason = "cgroups cannot be made here (" + cause(err) + "): run berth as root, or with a delegated cgroup (systemd-run --user --scope -p Delegate=yes)"
		}
	}
}

// report tells in setup what holds, once all is made.
func (c *cgroups) report() {
	limits, setup := c.limits, c.setup
	held := func(limit int64, controller string) wire.Held {
		switch {
		case limit <= 0:
			return wire.Held{State: notEnforced, Detail: "no limit was asked for"}
		case c.have[controller] != "":
			return wire.Held{State: enforced, Detail: c.have[controller]}
		}
		return wire.Held{State: notEnforced, Detail: c.reason}
	}
	setup.Memory, setup.PIDs, setup.CPU = held(limits.Memory, "memory"), held(limits.PIDs, "pids"), held(limits.CPUMilli, "cpu")
	if limits.PIDs > 0 && c.have["pids"] == "" {
		setup.NProc = limits.PIDs
		setup.PIDs = wire.Held{State: enforced, Detail: "RLIMIT_NPROC, for each user; " + c.reason}
	}
	if limits.CPUMilli > 0 && c.have["cpu"] == "" {
		if cpus := someCPUs(c.name, limits.CPUMilli); cpus != nil {
			setup.CPUs = cpus
			setup.CPU = wire.Held{State: soft, Detail: "commands begin on " + strconv.Itoa(cpus.Count()) + " of the processors, which they may change; " + c.reason}
		}
	}
	if limits.Memory > 0 && c.have["memory"] == "" {
		setup.PerProcess = limits.Memory
		setup.Memory = wire.Held{State: soft, Detail: "RLIMIT_DATA, for each process, and all together looked at every few seconds; " + c.reason}
	}
}

// someCPUs chooses as many of the processors that the caller may use as come
// next above a limit; other sandboxes have others. Nil: all of them.
func someCPUs(name string, milli int64) *unix.CPUSet {
	var all, some unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil {
		return nil
	}
	n := int((milli + 999) / 1000)
	if n >= all.Count() {
		return nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	const most = len(all) * 64
	for i := int(h.Sum32() % uint32(all.Count())); some.Count() < n; {
		// The i-th of those that can be used.
		k := 0
		for cpu := range most {
			if !all.IsSet(cpu) {
				continue
			}
			if k == i%all.Count() {
				some.Set(cpu)
				break
			}
			k++
		}
		i++
	}
	return &some
}

func cause(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// mkdir makes place/berth/NAME; enable, unless nil, prepares place/berth, and
// tells whether it could.
func (c *cgroups) mkdir(place string, enable func(parent string) bool) (dir string, err error) {
	parent := filepath.Join(place, parentName)
	dir = filepath.Join(parent, c.name)
	for try := 0; ; try++ {
		if err := os.Mkdir(parent, 0o755); err != nil && !os.IsExist(err) {
			return "", err
		}
		ready := enable == nil || enable(parent)
		err := os.Mkdir(dir, 0o755)
		if os.IsNotExist(err) && try < 100 {
			continue // another sandbox, the last one, has just removed the parent
		}
		if err != nil && !os.IsExist(err) {
			return "", err
		}
		if !ready {
			_ = unix.Rmdir(dir)
			return "", errNoController
		}
		return dir, nil
	}
}

var errNoController = errors.New("no controller can be enabled")

// makeV1 makes the cgroup of one hierarchy of version 1, below place.
func (c *cgroups) makeV1(place string, wanted []string) error {
	dir, err := c.mkdir(place, nil)
	if err != nil {
		return err
	}
	who := guest.FileTasks
	if slices.Contains(wanted, "memory") {
		who = guest.FileMember
		c.setup.Probe = c.setup.Probe || slices.Contains(wanted, "pids") && c.limits.PIDs > 0
	}
	g := &group{c: c, dir: dir}
	if err := g.make(wanted, func() error { return g.open(who, "tasks", unix.O_WRONLY) }); err != nil {
		_ = unix.Rmdir(dir)
		return err
	}
	c.accept(g, wanted, "cgroup v1", dir)
	return nil
}

// makeV2 makes the cgroups of the hierarchy of version 2.
func (c *cgroups) makeV2(h *hierarchy, wanted []string) (err error) {
	place, on := h.place(wanted)
	if len(on) == 0 {
		return errNoController
	}
	dir, err := c.mkdir(place, func(parent string) bool {
		on = enable(parent, on)
		return len(on) > 0
	})
	if err != nil {
		return err
	}
	initDir, run := filepath.Join(dir, "init"), filepath.Join(dir, "run")
	g := &group{c: c, dir: run, v2: true}
	defer func() {
		if err != nil {
			for _, d := range []string{run, initDir, dir} {
				_ = unix.Rmdir(d)
			}
		}
	}()
	if on = enable(dir, on); len(on) == 0 {
		return errNoController
	}
	for _, d := range []string{initDir, run} {
		if err := os.Mkdir(d, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	if c.owner >= 0 {
		// Init moves what it starts from its own cgroup into the other, for which
		// the kernel wants it to be able to write these.
		for _, d := range []string{dir, initDir, run} {
			if err := os.Chown(filepath.Join(d, "cgroup.procs"), c.owner, c.owner); err != nil {
				return err
			}
		}
	}
	if err := g.make(on, func() error { return g.open(guest.FileRun, "", unix.O_PATH|unix.O_DIRECTORY) }); err != nil {
		return err
	}
	born, err := unix.Open(initDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		g.close()
		return err
	}
	c.born, c.run = born, run
	c.cpu, c.cpuV2 = filepath.Join(run, "cpu.stat"), true
	c.accept(g, on, "cgroup v2", run, initDir, dir)
	return nil
}

// unborn is called when nobody can be born in a cgroup here: then commands
// join theirs, and init stays where the monitor is.
func (c *cgroups) unborn() {
	for i := range c.files {
		if c.files[i].kind != guest.FileRun {
			continue
		}
		fd, err := unix.Open(filepath.Join(c.run, "cgroup.procs"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			for k := range c.have {
				delete(c.have, k)
			}
			c.reason = "cgroups cannot be joined here (" + cause(err) + ")"
			continue
		}
		_ = unix.Close(c.files[i].fd)
		c.files[i] = handed{guest.FileMember, fd}
		c.setup.Probe = c.limits.PIDs > 0 && c.have["pids"] != ""
	}
	c.atBirth()
}

// atBirth closes what is needed until init is there.
func (c *cgroups) atBirth() {
	if c.born >= 0 {
		_ = unix.Close(c.born)
		c.born = -1
	}
}

// hand gives the files away.
func (c *cgroups) hand() []handed {
	files := c.files
	c.files = nil
	return files
}

func (c *cgroups) accept(g *group, on []string, how string, dirs ...string) {
	for _, w := range on {
		c.have[w], c.at[w] = how, place{g.dir, g.v2}
	}
	c.dirs = append(c.dirs, dirs...)
	c.files = append(c.files, g.files...)
}

// group is a cgroup with limits that is being made.
type group struct {
	c     *cgroups
	dir   string
	v2    bool
	files []handed
}

// make opens what commands join it by, and sets the limits.
func (g *group) make(on []string, join func() error) error {
	err := join()
	for _, w := range on {
		if err == nil {
			err = g.limit(w)
		}
	}
	if err != nil {
		g.close()
	}
	return err
}

func (g *group) close() {
	for _, f := range g.files {
		_ = unix.Close(f.fd)
	}
	g.files = nil
}

func (g *group) open(kind, file string, flags int) error {
	fd, err := unix.Open(filepath.Join(g.dir, file), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	g.files = append(g.files, handed{kind, fd})
	return nil
}

func (g *group) limit(controller string) error {
	c, dir, limits := g.c, g.dir, g.c.limits
	num := func(v int64) string { return strconv.FormatInt(v, 10) }
	set := func(file, value string) error { return os.WriteFile(filepath.Join(dir, file), []byte(value), 0) }
	switch controller {
	case "pids":
		c.pids = filepath.Join(dir, "pids.current")
		if limits.PIDs > 0 {
			if err := set("pids.max", num(limits.PIDs)); err != nil {
				return err
			}
		}
		_ = g.open(guest.FilePIDs, "pids.events", unix.O_RDONLY) // absent on old kernels
	case "cpuacct":
		c.cpu = filepath.Join(dir, "cpuacct.usage")
	case "cpu":
		if limits.CPUMilli > 0 {
			return place{dir, g.v2}.cpu(limits.CPUMilli)
		}
	case "memory":
		if g.v2 {
			c.mem = filepath.Join(dir, "memory.current")
			if limits.Memory > 0 {
				if err := (place{dir, true}).memory(limits.Memory); err != nil {
					return err
				}
			}
			return g.open(guest.FileOOM, "memory.events", unix.O_RDONLY)
		}
		c.mem = filepath.Join(dir, "memory.usage_in_bytes")
		if limits.Memory > 0 {
			if err := (place{dir, false}).memory(limits.Memory); err != nil {
				return err
			}
		}
		return g.open(guest.FileOOM, "memory.oom_control", unix.O_RDONLY)
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
	for _, h := range found() {
		for _, place := range h.places() {
			for _, name := range names {
				if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
					continue
				}
				dir := filepath.Join(place, parentName, name)
				for _, d := range []string{filepath.Join(dir, "run"), filepath.Join(dir, "init"), dir} {
					if unix.Access(d, unix.F_OK) != nil {
						continue
					}
					killCgroup(d)
					errs = append(errs, removeCgroup(d))
				}
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
