//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/boxbin"
	"berth/sandbox/local/isolate"
	"berth/sandbox/local/wire"
	"golang.org/x/sys/unix"
)

// CheckState is how a Check came out.
type CheckState string

// The states. Degraded works with less than there could be; without what is
// missing no sandbox can be made, if Required.
const (
	OK       CheckState = "ok"
	Degraded CheckState = "degraded"
	Missing  CheckState = "missing"
)

// Check is one line of what holds on this machine.
type Check struct {
	Name   string // snake_case
	State  CheckState
	Detail string // what was found
	Remedy string // what to do, when not OK
	// Required tells that no sandbox can be made while it is missing.
	Required bool
	// Fix does what root can do about it, and says in a sentence what it
	// changed, which may be something even when it fails; nil when there is
	// nothing to do. It may be called by root only.
	Fix func() (changed string, err error)
}

// Diagnose finds out what berth can do here. It tries things rather than guess:
// the last check makes, uses and destroys a real sandbox. Checks come in display
// order; options that are faulty are a check of their own.
func Diagnose(ctx context.Context, o Options) []Check {
	p, err := New(o)
	if err != nil {
		return []Check{{Name: "options", State: Missing, Detail: err.Error(), Remedy: "correct the configuration", Required: true}}
	}
	defer p.Close()
	checks := []Check{kernelCheck(), userNamespaces(), p.idsCheck()}
	checks = append(checks, p.stateChecks()...)
	checks = append(checks, cgroupCheck(), diskCheck(), deviceCheck(), netfilterCheck(), boxCheck())
	checks = append(checks, p.programChecks()...)
	return append(checks, p.tryOne(ctx)...)
}

func kernelCheck() Check {
	var u unix.Utsname
	_ = unix.Uname(&u)
	c := Check{Name: "kernel", State: OK, Detail: unix.ByteSliceToString(u.Release[:]), Required: true}
	major, minor := kernelVersion()
	switch at := major*1000 + minor; {
	case at < 5011:
		c.State, c.Remedy = Missing, "sandboxes need Linux 5.11 or later (overlay in a user namespace)"
	case at < 5019:
		c.State, c.Remedy = Degraded, "Linux 5.19 or later can id-map overlay layers, so that each sandbox gets user ids of its own"
	}
	return c
}

// appArmorProfile lets this one program make user namespaces.
const appArmorProfile = `# Lets berth make user namespaces for its sandboxes.
abi <abi/4.0>,
include <tunables/global>
profile berth %q flags=(unconfined) {
  userns,
}
`

// userNamespaces makes one.
func userNamespaces() Check {
	c := Check{Name: "user_namespaces", State: OK, Detail: "can be made", Required: true}
	err := tryUserNamespace()
	if err == nil {
		return c
	}
	c.State, c.Detail = Missing, "cannot be made: "+err.Error()
	switch {
	case thisMachine.sysctl("user.max_user_namespaces") == "0":
		c.Remedy = "they are switched off: sysctl -w user.max_user_namespaces=15000"
		c.Fix = func() (string, error) { return thisMachine.setSysctl("user.max_user_namespaces", "15000") }
	case thisMachine.sysctl("kernel.unprivileged_userns_clone") == "0" && os.Geteuid() != 0:
		c.Remedy = "ordinary users may not make them here: sysctl -w kernel.unprivileged_userns_clone=1"
		c.Fix = func() (string, error) { return thisMachine.setSysctl("kernel.unprivileged_userns_clone", "1") }
	case thisMachine.sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		exe, _ := os.Executable()
		c.Remedy = "AppArmor keeps unknown programs from making them; save this as /etc/apparmor.d/berth and run `apparmor_parser -r /etc/apparmor.d/berth`:\n" + fmt.Sprintf(appArmorProfile, exe)
		c.Fix = func() (string, error) { return thisMachine.installProfile(exe) }
	case container() != "":
		c.Remedy = containerRemedy
	default:
		c.Remedy = "the kernel or a security module refuses them; run berth as root, or ask the machine's administrator for user namespaces"
	}
	return c
}

const containerRemedy = "in a container start it with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined` (no added capability is needed), and with the state directory on a volume: `-v berth:/var/lib/berth`"

func tryUserNamespace() error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}}
	return cmd.Run()
}

// container names the kind of container that berth itself runs in.
func container() string {
	for _, f := range [][2]string{{"/.dockerenv", "docker"}, {"/run/.containerenv", "podman"}} {
		if _, err := os.Stat(f[0]); err == nil {
			return f[1]
		}
	}
	if b, err := os.ReadFile("/proc/1/environ"); err == nil && strings.Contains(string(b), "container=") {
		return "a container"
	}
	return ""
}

func (p *Provider) idsCheck() Check {
	ids, why := p.idMode()
	c := Check{Name: "user_ids", State: OK, Detail: userIDs(ids, "").Detail}
	if ids.Mode != wire.IDsSingle {
		return c
	}
	c.State, c.Detail = Degraded, join(c.Detail, why)
	c.Remedy = "chown and packages that need users of their own work less well; install uidmap, and give yourself ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME` (as root)"
	return c
}

func (p *Provider) stateChecks() []Check {
	c := Check{Name: "state_directory", State: OK, Detail: p.opts.Dir, Required: true}
	s, err := p.store()
	if err != nil {
		c.State, c.Detail, c.Remedy = Missing, err.Error(), "see there"
		return []Check{c}
	}
	space := Check{Name: "disk_space", State: OK, Required: true}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err == nil {
		space.Detail = size(int64(st.Bavail)*int64(st.Bsize)) + " free"
		if int64(st.Bavail)*int64(st.Bsize) < 1<<30 {
			space.State, space.Remedy = Degraded, "sandboxes write to the file system of "+s.dir+"; free some space"
		}
	}
	if err := s.checkSpace(); err != nil {
		space.State, space.Remedy = Missing, err.Error()
	}
	list := []Check{c, space}
	if os.Geteuid() == 0 {
		m := Check{Name: "id_mapped_mounts", State: OK, Detail: "each sandbox has user ids of its own"}
		if !idMapped(s.dir, "/usr") {
			m.State, m.Detail = Degraded, "the kernel or a file system cannot show files under other owners; all sandboxes share one range of ids, and the owners of /usr show as nobody"
			m.Remedy = "Linux 5.19 or later, with the state directory and /usr on ext4, xfs or btrfs"
		}
		list = append(list, m)
	}
	return list
}

func cgroupCheck() Check {
	c := Check{Name: "cgroups", State: OK}
	var st unix.Statfs_t
	_, v1 := os.Stat("/sys/fs/cgroup/memory")
	_, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	_, hybrid := os.Stat("/sys/fs/cgroup/unified/cgroup.controllers")
	switch {
	case v2 == nil:
		c.Detail = "v2"
	case v1 == nil && hybrid == nil:
		c.Detail = "hybrid, limits by v1"
	case v1 == nil:
		c.Detail = "v1"
	default:
		c.State, c.Detail, c.Remedy = Degraded, "none are mounted", "mount /sys/fs/cgroup; without it limits hold for single processes only"
		return c
	}
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Flags&unix.ST_RDONLY != 0 {
		c.State, c.Detail, c.Remedy = Degraded, c.Detail+", read-only here", "set limits on the outer container"
	} else if how := isolate.Delegated(); os.Geteuid() != 0 && how != "" {
		c.Detail += ", " + how
	} else if os.Geteuid() != 0 {
		c.State, c.Detail = Degraded, c.Detail+", not ours to write"
		c.Remedy = "memory and cpu limits hold only where cgroups are delegated (a systemd user session, `systemd-run --user --scope -p Delegate=yes`) or berth runs as root"
	}
	return c
}

// diskCheck tells how a disk limit would be held.
func diskCheck() Check {
	c := Check{Name: "disk_limits", State: OK, Detail: "by a file system of its own for each sandbox that has one"}
	ids, _ := idMode()
	if kind, why := chooseDisk(specRecord{}, ids); kind != wire.DiskImage {
		c.State, c.Detail = Degraded, "in memory for small ephemeral sandboxes; others by looking, where best_effort is set: "+why
		c.Remedy = "run berth as root, with /dev/loop-control (modprobe loop) and mkfs.ext4 (package e2fsprogs)"
	}
	return c
}

func deviceCheck() Check {
	c := Check{Name: "dev_fuse", State: OK, Detail: "can be opened"}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
		return c
	}
	c.State, c.Detail = Degraded, fmt.Sprint(reason(err))
	if errors.Is(err, fs.ErrNotExist) {
		c.Remedy = "buckets need it later: `modprobe fuse`, in a container `--device /dev/fuse`"
		if container() == "" {
			c.Fix = func() (string, error) { return thisMachine.loadModule("fuse") }
		}
		return c
	}
	c.Remedy = "buckets need it later: chmod 0666 /dev/fuse"
	c.Fix = thisMachine.openFUSE
	return c
}

// netfilterCheck asks the kernel for its nf_tables; it answers who may not
// change them, too.
func netfilterCheck() Check {
	c := Check{Name: "nf_tables", State: OK, Detail: "in the kernel"}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err == nil {
		_ = unix.Close(fd)
		_, loaded := os.Stat("/sys/module/nf_tables")
		_, builtin := os.Stat("/proc/sys/net/netfilter")
		if loaded == nil || builtin == nil {
			return c
		}
		err = errors.New("not loaded")
	}
	c.State, c.Detail = Degraded, fmt.Sprint(reason(err))
	c.Remedy = "without it sandboxes have no network: `modprobe -a nf_tables nft_tproxy`"
	if container() == "" {
		c.Fix = func() (string, error) {
			said, err := thisMachine.loadModule("nf_tables")
			if err != nil {
				return said, err
			}
			return thisMachine.loadModule("nft_tproxy")
		}
	}
	return c
}

func boxCheck() Check {
	if box := boxbin.Open(runtime.GOARCH); box != nil {
		return Check{Name: "helper_program", State: OK, Detail: "embedded, " + strconv.FormatInt(box.Size()>>10, 10) + " KiB"}
	}
	return Check{Name: "helper_program", State: Degraded, Detail: "not embedded; berth starts itself in its place, which costs time and memory in each sandbox, and leaves those of images without the C library that it was linked with without sudo",
		Remedy: "build with `make build`, or run `go generate ./sandbox/local/boxbin` before go build"}
}

func (p *Provider) programChecks() []Check {
	var list []Check
	for _, prog := range []struct{ name, pkg, without string }{
		{"python3", "python3", "run_code cannot run python"},
		{"node", "nodejs", "run_code cannot run javascript and typescript"},
		{"bash", "bash", "commands run with sh"},
		{"git", "git", "sandboxes have no git"},
	} {
		c := Check{Name: "program_" + prog.name, State: OK, Detail: p.findInside(prog.name)}
		if c.Detail == "" {
			c.State, c.Detail, c.Remedy = Degraded, "not found where sandboxes look (/usr and extra_paths): "+prog.without, "install the package "+prog.pkg+" on this machine"
		}
		list = append(list, c)
	}
	return list
}

// tryOne makes a sandbox beside the real ones, runs a command in it, and
// reports what its walls and limits are made of.
func (p *Provider) tryOne(ctx context.Context) []Check {
	c := Check{Name: "sandbox", State: OK, Required: true}
	fail := func(err error) []Check {
		c.State, c.Detail = Missing, err.Error()
		c.Remedy = "see the lines above"
		if container() != "" {
			c.Remedy = containerRemedy
		}
		return []Check{c}
	}
	key := sandbox.Key{Owner: "berth doctor", Session: sandbox.NewSessionID()}
	begin := time.Now()
	ephemeral := true
	made, err := p.Create(ctx, key, sandbox.Spec{Ephemeral: &ephemeral})
	if err != nil {
		return fail(err)
	}
	in := made.(*Instance)
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if err := in.Destroy(clean); err == nil {
			_ = os.Remove(in.s.tombstonePath(in.id))
		}
	}()
	proc, err := in.Spawn(ctx, sandbox.Command{ID: sandbox.NewProcessID(), Shell: "true", Display: "true", Cwd: homeOf(sandbox.DefaultAccount), User: sandbox.DefaultAccount, Timeout: 10 * time.Second})
	if err == nil {
		err = proc.Wait(ctx, sandbox.Cursor{}, true)
	}
	if err != nil {
		return fail(err)
	}
	ran, err := proc.Info(ctx)
	if err != nil {
		return fail(err)
	}
	if ran.ExitCode == nil || *ran.ExitCode != 0 {
		return fail(fmt.Errorf("`true` ended with %+v", ran))
	}
	c.Detail = fmt.Sprintf("made and used in %d ms", time.Since(begin).Milliseconds())
	list := []Check{c}
	info, err := in.Info(ctx)
	if err != nil {
		return fail(err)
	}
	for _, g := range info.Guarantees {
		h := Check{Name: "holds_" + g.Name, State: OK, Detail: string(g.State) + ": " + g.Detail}
		if g.State != sandbox.Enforced && strings.HasSuffix(g.Name, "_limit") && g.Name != "disk_limit" && g.Detail != "no limit is set" {
			h.State, h.Remedy = Degraded, "run berth as root, or where cgroups are delegated to it"
		}
		list = append(list, h)
	}
	return list
}
