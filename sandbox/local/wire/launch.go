package wire

// Launch is all that a monitor needs to build its sandbox and run it. It
// reaches the monitor through a descriptor, never on a command line. What init
// needs of it goes on to init with OpSetup.
type Launch struct {
	Version int `json:"version"`
	// Dir is the sandbox's state directory on the host; the monitor keeps
	// logs, the process journal, and its own record there.
	Dir      string `json:"dir"`
	Hostname string `json:"hostname"`
	IDs      IDs    `json:"ids"`
	// Mounts make the root, in order; the first has Target "/". init adds
	// /proc, /sys, /dev, /dev/shm, /dev/pts, /dev/mqueue, /tmp when not named, /run/berth.
	Mounts []Mount `json:"mounts"`
	// Env is the base environment of every command (PATH, LANG …); HOME,
	// USER, LOGNAME, SHELL are made per user from Users.
	Env   map[string]string `json:"env"`
	Users []User            `json:"users"`
	// User is the default of Command.User and of file operations.
	User   string `json:"user"`
	Limits Limits `json:"limits"`
	// Disk is how Limits.Disk is held; nil without such a limit.
	Disk      *Disk     `json:"disk,omitempty"`
	Intervals Intervals `json:"intervals"`
	LogBytes  int64     `json:"log_bytes"` // per stream; 0: 64 MiB
	// Network is the policy of the egress gate; nil: the sandbox has its
	// loopback alone.
	Network *Network `json:"network,omitempty"`
	// Helper is a file on the host that holds this program; it stands as
	// /usr/bin/sudo inside. Empty: the file that the monitor runs from.
	Helper string `json:"helper,omitempty"`
	// FUSE lets programs inside mount file systems of their own: they have
	// /dev/fuse, and this program as fusermount3.
	FUSE bool `json:"fuse,omitempty"`
	// KeepProcesses and KeepLogBytes bound finished processes and all logs.
	KeepProcesses int   `json:"keep_processes"`
	KeepLogBytes  int64 `json:"keep_log_bytes"`
}

// Disk limits what is written below Dir, where all uppers and works are.
type Disk struct {
	Kind string `json:"kind"`
	Dir  string `json:"dir"`
	// Image is a file that holds an ext4 file system, for DiskImage.
	Image string `json:"image,omitempty"`
	// Detail says, for DiskSoft, why there is nothing better.
	Detail string `json:"detail,omitempty"`
}

// The ways a disk limit is held.
const (
	DiskImage = "image" // a file system of its own, on a loop device
	DiskTmpfs = "tmpfs" // in memory, for sandboxes whose files do not outlive their stop
	DiskSoft  = "soft"  // looked at from time to time
)

// The ways ids are mapped.
const (
	// IDsRange: a berth running as root maps Count ids from Base, and shows
	// layers through id-mapped mounts.
	IDsRange = "range"
	// IDsSub: newuidmap and newgidmap map 0 to the caller, and 1… to its
	// /etc/subuid and /etc/subgid ranges.
	IDsSub = "sub"
	// IDsSingle: 0 is the caller, and nobody else exists; commands of other
	// users run in a nested user namespace, in which that user's id is 0 here.
	IDsSingle = "single"
)

// IDs says how user and group ids inside map to those outside.
type IDs struct {
	Mode     string `json:"mode"`
	Base     uint32 `json:"base,omitempty"`  // range mode
	Count    uint32 `json:"count,omitempty"` // range and sub mode: how many ids
	SubUID   uint32 `json:"sub_uid,omitempty"`
	SubGID   uint32 `json:"sub_gid,omitempty"`
	IDMapped bool   `json:"id_mapped,omitempty"` // range mode: the kernel can id-map mounts
}

// Mount is one piece of the root.
type Mount struct {
	Target string `json:"target"`
	// Type is overlay, bind, or tmpfs. A bind of a file makes the target as a file.
	Type string `json:"type"`
	// Lower lists an overlay's read-only layers, host paths, topmost first.
	Lower []string `json:"lower,omitempty"`
	// Upper and Work are host directories; both are made when absent.
	Upper  string `json:"upper,omitempty"`
	Work   string `json:"work,omitempty"`
	Source string `json:"source,omitempty"` // bind: host path
	// ReadOnly holds against root inside.
	ReadOnly bool `json:"read_only,omitempty"`
	// MapOwner, for a bind of a host folder: its owner outside appears as
	// this user inside. Empty: owners are not mapped, so that in range mode
	// root inside is a stranger to all files of the bind.
	MapOwner string `json:"map_owner,omitempty"`
	// Layer, for a bind: its files have ids as those of layers have.
	Layer bool `json:"layer,omitempty"`
	// Sub, for a bind, is a directory below Source, made when absent. Whoever
	// writes to Source does not lead it outside.
	Sub    string `json:"sub,omitempty"`
	NoExec bool   `json:"no_exec,omitempty"`
	Size   int64  `json:"size,omitempty"` // tmpfs, bytes; 0: half of memory
	Mode   uint32 `json:"mode,omitempty"` // tmpfs
}

// User inside.
type User struct {
	Name   string   `json:"name"`
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	Home   string   `json:"home"`
	Shell  string   `json:"shell"`
}

// Limits on all commands together; 0 = none. Ready tells how well each holds.
type Limits struct {
	PIDs   int64 `json:"pids,omitempty"`
	Memory int64 `json:"memory,omitempty"` // bytes
	// CPUMilli is thousandths of a core.
	CPUMilli int64 `json:"cpu_milli,omitempty"`
	Disk     int64 `json:"disk,omitempty"` // bytes written over the root
	// Must names the limits that were asked for: where one is not enforced,
	// nothing is started.
	Must []string `json:"must,omitempty"`
}

// LimitChange is the body of OpLimit; what is 0 stays.
type LimitChange struct {
	Memory   int64 `json:"memory,omitempty"` // bytes
	CPUMilli int64 `json:"cpu_milli,omitempty"`
}

// The names of limits, as those know them who set them.
const (
	LimitPIDs   = "limits.max_pids"
	LimitMemory = "resources.memory_gib"
	LimitCPU    = "resources.cpu"
	LimitDisk   = "resources.disk_gib"
)

// Held says how one limit is held: "enforced", "soft" or "not enforced".
type Held struct {
	State  string `json:"state"`
	Detail string `json:"detail"` // "cgroup v1", "RLIMIT_NPROC", why not
}

// Ready is init's and then the monitor's answer once commands can run. The
// monitor writes it, or a failed start's Error, to its ready descriptor as one
// frame.
type Ready struct {
	Memory    Held   `json:"memory"`
	PIDs      Held   `json:"pids"`
	CPU       Held   `json:"cpu"`
	Disk      Held   `json:"disk"`
	Tree      Held   `json:"tree"` // process trees
	Seccomp   Held   `json:"seccomp"`
	Network   Held   `json:"network"`    // the egress gate
	InitPID   int    `json:"init_pid"`   // outside
	InitStart uint64 `json:"init_start"` // start time in clock ticks, /proc/PID/stat
}

// Record is the monitor's own file, monitor.json in Launch.Dir: who is alive.
type Record struct {
	Version      int    `json:"version"`
	Boot         string `json:"boot"`
	MonitorPID   int    `json:"monitor_pid"`
	MonitorStart uint64 `json:"monitor_start"`
	Ready        Ready  `json:"ready"`
	Started      int64  `json:"started"`
	// Stopping is set when it begins to end: nothing is started any more.
	Stopping int64 `json:"stopping,omitempty"`
	// Stopped is set when the monitor ends in order; Reason says why
	// ("idle for 15 minutes", "asked to").
	Stopped int64  `json:"stopped,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// The descriptors that a monitor is started with, in order from 3: the Launch
// as JSON (read to its end), the listening unix socket, and the unix socket that
// takes the Ready frame. Its arguments are "monitor" and the session id.
const (
	FDLaunch = 3
	FDListen = 4
	FDReady  = 5
)

// StartProcess asks init for a process. Its descriptors are stdin, stdout and
// stderr, in blocking mode; stdout and stderr alone with NullStdin; none with a
// terminal.
type StartProcess struct {
	ID string `json:"id"`
	// NullStdin makes stdin the sandbox's own /dev/null; the host's would
	// let its users be watched from inside.
	NullStdin bool              `json:"null_stdin,omitempty"`
	Shell     string            `json:"shell,omitempty"`
	Argv      []string          `json:"argv,omitempty"`
	Cwd       string            `json:"cwd"`
	Env       map[string]string `json:"env,omitempty"`
	Unset     []string          `json:"unset,omitempty"`
	User      string            `json:"user"`
	Cols      uint16            `json:"cols,omitempty"`
	Rows      uint16            `json:"rows,omitempty"`
}

// Started answers StartProcess.
type Started struct {
	PID int `json:"pid"` // inside
}

// Exited tells how a process's main program ended.
type Exited struct {
	ID     string `json:"id"`
	Code   int    `json:"code"`   // -1 when Signal is set
	Signal int    `json:"signal"` // 0: none
	CPUNS  int64  `json:"cpu_ns"`
	// Leftovers are what is left of its tree, as "pid command", at most 20.
	Leftovers []string `json:"leftovers,omitempty"`
	// OOM tells that the memory limit killed a process of the sandbox since
	// this one started.
	OOM bool `json:"oom,omitempty"`
	// PIDs tells that the process limit has refused a fork since, and Full that
	// the file system of the root is full.
	PIDs bool `json:"pids,omitempty"`
	Full bool `json:"full,omitempty"`
}

// Signal to a process's whole tree.
type Signal struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
}

// Signalled counts the processes reached.
type Signalled struct {
	Count int `json:"count"`
}

// Tree describes the live processes of a tree.
type Tree struct {
	Count     int      `json:"count"`
	CPUNS     int64    `json:"cpu_ns"`
	Memory    int64    `json:"memory"`
	Processes []string `json:"processes"` // "pid command", at most 20
}

// DiskUse is what the sandbox's files take.
type DiskUse struct {
	Bytes int64 `json:"bytes"`
}

// Halt ends everything inside.
type Halt struct {
	GraceMS int64 `json:"grace_ms"`
}
