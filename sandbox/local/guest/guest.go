//go:build linux

// Package guest is init, PID 1 of a sandbox: it completes the root, starts and
// signals commands, opens files with a user's rights, and answers the sudo
// program inside. It speaks to its monitor over descriptor 3.
//
// Beside it run programs that may do what they like inside. They can neither
// signal nor trace it; it waits for none of them, and it reads nothing that
// they write except over the sudo socket, and file names.
package guest

import (
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/disk"
	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// OpFiles brings descriptors to init before OpSetup: Files -> nothing.
const OpFiles = "files"

// Files says what the descriptors of an OpFiles frame are.
type Files struct {
	Kinds []string `json:"kinds"`
}

// The kinds of descriptors. Tasks and Member are files that take "0" from
// whoever joins a cgroup: a command with its shim, or the command alone. Where
// memory counts the shim stays out, since it runs in init's memory: killed for
// its size it would take init along.
const (
	FileMount  = "mount"
	FileTasks  = "tasks"
	FileMember = "member"
	FileRun    = "run"  // the directory of a cgroup that commands are born in
	FilePIDs   = "pids" // pids.events
	FileOOM    = "oom"  // memory.events or memory.oom_control
	FileFUSE   = "fuse"
	FileSudo   = "sudo"
)

// Setup is the body of OpSetup.
type Setup struct {
	Launch wire.Launch `json:"launch"`
	// Held is what the cgroups hold.
	Memory wire.Held `json:"memory"`
	PIDs   wire.Held `json:"pids"`
	CPU    wire.Held `json:"cpu"`
	Disk   wire.Held `json:"disk"`
	// NProc and PerProcess replace cgroups: a bound on the processes of each
	// user, and on the memory of each process. 0: none.
	NProc      int64 `json:"nproc,omitempty"`
	PerProcess int64 `json:"per_process,omitempty"`
	// CPUs that commands begin on; nil: all.
	CPUs *unix.CPUSet `json:"cpus,omitempty"`
	// Probe says that a limit on processes shows only to what is forked after
	// the command has joined a cgroup.
	Probe bool `json:"probe,omitempty"`
	// Sudo and FUSE are host files to bind, when they do not come as descriptors.
	Sudo string `json:"sudo,omitempty"`
	FUSE string `json:"fuse,omitempty"`
}

const idleTime = 500 * time.Millisecond

// Main is init's main function; it returns when the monitor is gone.
func Main() {
	harden()
	debug.SetGCPercent(20) // a heap of 0.8 MiB at least, before it is collected
	debug.SetMemoryLimit(16 << 20)
	conn, err := wire.Socket(3, 0)
	if err != nil {
		return
	}
	g := newGuest(conn)
	if err := g.setup(); err != nil {
		return
	}
	// What setting up, or a burst of commands, took goes back to the system when
	// it is over, and not before the first command.
	idle := time.AfterFunc(idleTime, debug.FreeOSMemory)
	for {
		f, err := conn.Recv()
		idle.Reset(idleTime)
		if err != nil {
			return // and the kernel ends all that is inside
		}
		go g.serve(f)
	}
}

func newGuest(conn *wire.Conn) *guest {
	return &guest{
		fuse: fuse{device: -1},
		conn: conn, pid: os.Getpid(), trees: map[string]*tree{}, shims: map[int]*shim{}, nested: map[[2]uint32]int{}, writes: map[uint64]*write{}, layers: -1, owners: allowance{used: threadTime},
	}
}

// harden makes init deaf to what is inside, and unreadable.
func harden() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)
	name := [16]byte{'b', 'e', 'r', 't', 'h', '-', 'i', 'n', 'i', 't'}
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name)), 0, 0, 0)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.Umask(0o022)
	// The kernel drops what is sent to a PID 1 from inside when it has no
	// handler, and Go's runtime has one for nearly everything; so off with
	// them, those for faults too: sent by hand they look alike.
	var none [4]uint64
	for sig := uintptr(1); sig <= 64; sig++ {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	}
}

type guest struct {
	conn    *wire.Conn
	free    *free // not init, but a part of a resident; nil in init
	pid     int   // our own
	launch  wire.Launch
	nproc   int64
	perProc int64
	cpus    *unix.CPUSet
	tasks   []int
	member  []int
	run     int // -1: none
	pidsMax int
	layers  int // the directory of the files of the sandbox, outside; -1: not open
	probe   bool
	share   bool // shims run in our memory
	oom     int
	pts     int
	self    int      // /proc/self/fd
	null    *os.File // the sandbox's own /dev/null
	lastCap int
	drops   []uintptr // what is to leave a command's bounding set
	nofile  uint64
	gate    []*os.File // sockets of the egress gate, until they are handed out
	sudoDir string     // to stand first on the PATH

	fuse     fuse
	owners   allowance // for looking for the owners of connections
	children *raw.Reaper

	mu       sync.Mutex
	trees    map[string]*tree
	crowding bool // crowdLook will be called
	shims    map[int]*shim
	helpers  map[int]chan unix.WaitStatus // programs of ours, in a resident
	halting  bool
	nested   map[[2]uint32]int // user namespaces of single mode, by the user's and group's id in them
	writes   map[uint64]*write
	token    uint64
	sudoBusy int
	frozen   bool
	stayed   map[int]uint64 // processes that were stopped before a freeze, by pid: when they began

	// hold is read-locked by whatever starts a process or changes a file, and
	// locked while the sandbox is frozen.
	hold sync.RWMutex
}

func (g *guest) setup() error {
	var fds = map[string][]int{}
	for {
		f, err := g.conn.Recv()
		if err != nil {
			return err
		}
		switch f.Op {
		case OpFiles:
			var files Files
			if err := decode(f, &files); err != nil || len(files.Kinds) != len(f.Files) {
				return errors.New("malformed files")
			}
			for i, file := range f.Files {
				fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 10)
				_ = file.Close()
				if err != nil {
					return err
				}
				fds[files.Kinds[i]] = append(fds[files.Kinds[i]], fd)
			}
		case wire.OpSetup:
			var s Setup
			if err := decode(f, &s); err != nil {
				return err
			}
			ready, err := g.enter(&s, fds)
			if err != nil {
				return errors.Join(err, g.conn.Send(wire.Header{ID: f.ID, Error: rootfs.Explain("set up the sandbox", err)}, nil, nil))
			}
			if g.children, err = raw.NewReaper(); err != nil {
				return errors.Join(err, g.conn.Send(wire.Header{ID: f.ID, Error: rootfs.Explain("wait for processes", err)}, nil, nil))
			}
			go g.reap()
			err = g.conn.Send(wire.Header{ID: f.ID}, ready, nil, g.gate...)
			for _, file := range g.gate {
				_ = file.Close()
			}
			g.gate = nil
			return err
		default:
			return errors.New("unexpected " + f.Op)
		}
	}
}

func one(fds map[string][]int, kind string) int {
	if len(fds[kind]) == 0 {
		return -1
	}
	return fds[kind][0]
}

func (g *guest) enter(s *Setup, fds map[string][]int) (*wire.Ready, error) {
	g.launch, g.nproc, g.perProc = s.Launch, s.NProc, s.PerProcess
	g.tasks, g.member, g.oom = fds[FileTasks], fds[FileMember], one(fds, FileOOM)
	g.run, g.pidsMax = one(fds, FileRun), one(fds, FilePIDs)
	g.probe = s.Probe || s.NProc > 0
	g.cpus = s.CPUs
	single := s.Launch.IDs.Mode == wire.IDsSingle
	mounts := fds[FileMount]
	if s.Launch.IDs.Mode != wire.IDsRange {
		maps := &rootfs.Maps{Layers: -1, UserXattr: true}
		if d := s.Launch.Disk; d != nil && d.Kind == wire.DiskTmpfs {
			if err := rootfs.Scarce(d.Dir, s.Launch.Limits.Disk); err != nil {
				return nil, err
			}
		}
		var err error
		if d := s.Launch.Disk; d != nil && d.Kind == wire.DiskSoft {
			if g.layers, err = unix.Open(d.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return nil, rootfs.Explain("open "+d.Dir, err)
			}
		}
		if mounts, err = rootfs.Build(s.Launch.Mounts, maps); err != nil {
			return nil, err
		}
		for kind, file := range map[string]string{FileSudo: s.Sudo, FileFUSE: s.FUSE} {
			if file == "" {
				continue
			}
			if fd, err := rootfs.CloneFile(file, kind == FileSudo); err == nil {
				fds[kind] = []int{fd}
			}
		}
	}
	if len(mounts) != len(s.Launch.Mounts) {
		return nil, errors.New("mounts are missing")
	}
	if err := loopback(); err != nil {
		return nil, rootfs.Explain("bring up the loopback interface", err)
	}
	network := wire.Held{State: "enforced", Detail: "loopback of the sandbox only; nothing outside can be reached"}
	if s.Launch.Network != nil {
		network = g.openGate()
	}
	if s.Launch.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Launch.Hostname)); err != nil {
			return nil, rootfs.Explain("set the host name", err)
		}
	}
	extra := rootfs.Extra{FUSE: -1, Sudo: one(fds, FileSudo), TTY: !single}
	g.fuse.device = one(fds, FileFUSE)
	if s.Launch.FUSE && g.fuse.device >= 0 {
		extra.FUSE, extra.Fusermount = g.fuse.device, true
	}
	pts, err := rootfs.Enter(s.Launch.Mounts, mounts, &extra)
	if err != nil {
		return nil, err
	}
	g.sudoDir = extra.SudoDir
	rootfs.Close(mounts)
	rootfs.Close(fds[FileSudo])
	g.pts = pts
	if g.self, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if g.null, err = os.Open("/dev/null"); err != nil {
		return nil, err
	}
	g.lastCap = lastCap()
	for _, i := range beyond(g.lastCap) {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, i, 0, 0, 0); err != nil || has != 0 {
			g.drops = append(g.drops, i)
		}
	}
	// Set to 1 it makes the memory of whoever changes ids one that the new user
	// may trace.
	dumpable, err := os.ReadFile("/proc/sys/fs/suid_dumpable")
	g.share = err == nil && strings.TrimSpace(string(dumpable)) != "1"
	g.nofile = 65536
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		g.nofile = min(g.nofile, lim.Max)
	}
	if err := g.listenSudo(); err != nil {
		return nil, err
	}
	ready := &wire.Ready{Memory: s.Memory, PIDs: s.PIDs, CPU: s.CPU, Disk: s.Disk}
	ready.Tree = wire.Held{State: "enforced", Detail: "a subreaper for each process"}
	ready.Network = network
	ready.Seccomp = wire.Held{State: "enforced", Detail: "Docker's default list"}
	return ready, nil
}

// loopback brings lo up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// serve answers one request.
func (g *guest) serve(f *wire.Frame) {
	defer func() {
		for _, file := range f.Files {
			_ = file.Close()
		}
	}()
	var (
		body  any
		files []*os.File
		err   error
		after func()
	)
	switch f.Op {
	case wire.OpFreeze:
		if g.free != nil {
			err = &wire.Error{Code: wire.CodeUnsupported, Text: "a foreign sandbox cannot be stopped for a moment"}
			break
		}
		err = g.freeze()
	case wire.OpThaw:
		g.thaw()
	case wire.OpStart:
		var r wire.StartProcess
		if err = decode(f, &r); err == nil {
			body, files, after, err = g.start(&r, f.Files)
		}
	case wire.OpSignal:
		var r wire.Signal
		if err = decode(f, &r); err == nil {
			body, err = g.signal(&r)
		}
	case wire.OpTree:
		var r wire.ProcessRef
		if err = decode(f, &r); err == nil {
			body, err = g.describe(r.ID)
		}
	case wire.OpDisk:
		if g.layers < 0 {
			err = invalid("disk: nothing is limited by looking at it")
		} else {
			body = wire.DiskUse{Bytes: disk.Written(g.layers)}
		}
	case wire.OpHalt:
		var r wire.Halt
		if err = decode(f, &r); err == nil {
			g.halt(time.Duration(r.GraceMS) * time.Millisecond)
		}
	case wire.OpStat, wire.OpOpen, wire.OpReadDir:
		var r wire.Path
		if err = decode(f, &r); err == nil {
			body, files, err = g.look(f.Op, &r)
		}
	case wire.OpCreate:
		var r wire.Create
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			body, files, err = g.create(&r, f.Files)
			g.hold.RUnlock()
		}
	case wire.OpCommit:
		var r wire.Commit
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			body, err = g.commit(&r)
			g.hold.RUnlock()
		}
	case wire.OpMkdir:
		var r wire.Mkdir
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			err = g.mkdir(&r)
			g.hold.RUnlock()
		}
	case wire.OpPlace:
		var r wire.Place
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			body, err = g.place(&r)
			g.hold.RUnlock()
		}
	case wire.OpFUSEMount:
		var r wire.FUSEMount
		if err = decode(f, &r); err == nil {
			files, err = g.bucket(&r)
		}
	case wire.OpFUSEDetach:
		var r wire.FUSEDetach
		if err = decode(f, &r); err == nil {
			err = g.detach(&r)
		}
	case wire.OpNetSocket:
		var r wire.GateSocket
		if err = decode(f, &r); err == nil {
			files, err = g.netSocket(&r)
		}
	case wire.OpNetOwner:
		var r wire.NetOwner
		if err = decode(f, &r); err == nil {
			body, err = wire.ProcessRef{ID: g.netOwner(&r)}, nil
		}
	case wire.OpSymlink:
		var r wire.Symlink
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			err = g.symlink(&r)
			g.hold.RUnlock()
		}
	case wire.OpRemove:
		var r wire.Remove
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			err = g.remove(&r)
			g.hold.RUnlock()
		}
	case wire.OpRename:
		var r wire.Rename
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			err = g.rename(&r)
			g.hold.RUnlock()
		}
	case wire.OpPermit:
		var r wire.Permit
		if err = decode(f, &r); err == nil {
			g.hold.RLock()
			err = g.permit(&r)
			g.hold.RUnlock()
		}
	case wire.OpDial:
		var r wire.Dial
		if err = decode(f, &r); err == nil {
			files, err = dial(&r)
		}
	default:
		err = &wire.Error{Code: wire.CodeUnsupported, Text: "init does not know " + f.Op}
	}
	h := wire.Header{ID: f.ID}
	if err != nil {
		h.Error, body = wireError(err), nil
	}
	_ = g.conn.Send(h, body, nil, files...)
	for _, file := range files {
		_ = file.Close()
	}
	if after != nil {
		after()
	}
}

func (g *guest) event(op string, body any) {
	_ = g.conn.Send(wire.Header{Op: op}, body, nil)
}
