package sandbox

import (
	"context"
	"io"
	"io/fs"
	"net"
	"time"
)

// Provider makes sandboxes. Implementations are safe for concurrent use, also
// by several berth processes over the same store. They do not apply policy:
// owners, limits, time-outs, revival and output bounds are the Manager's.
// providertest holds every promise made in these comments against them.
type Provider interface {
	// Name is the provider's constant name, such as "local".
	Name() string
	// Create makes the key's sandbox and returns it running. It fails with
	// ErrExists when a sandbox of that key exists (a tombstone is none), also
	// when another process is just making it; nothing is left behind by a
	// failed Create. Exactly one of several racing calls succeeds. What
	// spec.Resources asks for is enforced, as the guarantees cpu_limit, memory_limit
	// and disk_limit tell, or Create fails and names the keys ("resources.cpu");
	// unless the operator let the provider do what it can.
	Create(ctx context.Context, key Key, spec Spec) (Instance, error)
	// Lookup finds the key's sandbox without starting it. ErrNotFound means
	// that it was surely never there or is long forgotten; any other error means that it
	// is not known. A destroyed one is found with StatusDestroyed while its
	// tombstone is kept.
	Lookup(ctx context.Context, key Key) (Instance, error)
	// List returns all sandboxes of owner (of all owners when empty), without
	// destroyed ones, ordered by creation, then key. It starts nothing. One
	// that cannot be read is listed with StatusError and a Reason.
	List(ctx context.Context, owner Owner) ([]Info, error)
	// Describe tells what a new sandbox of this spec would be: Info with
	// StatusPending, without a key.
	Describe(ctx context.Context, spec Spec) (Info, error)
	// Close lets go of connections and waits for goroutines. It stops and
	// destroys no sandbox.
	Close() error
}

// Instance is a handle on one sandbox. It holds no lock and need not be closed;
// several handles of one sandbox may exist, in several processes.
type Instance interface {
	// Info reads the present state.
	Info(ctx context.Context) (Info, error)
	// Start brings a stopped or archived sandbox to running, and does nothing
	// when it runs. Concurrent starts, from any process, start it once.
	// ErrNotFound when it is destroyed. A fault of the host (full disk, no
	// memory) leaves it stopped; only damage to the sandbox itself makes
	// StatusError.
	Start(ctx context.Context) error
	// Stop ends all processes (TERM, then KILL after 2 s) and leaves files,
	// logs and exit records; an ephemeral sandbox is destroyed. Stopping a
	// stopped one does nothing.
	Stop(ctx context.Context) error
	// Destroy deletes everything but a tombstone. It can be repeated;
	// destroying nothing is no error. A failure leaves it destroyable.
	Destroy(ctx context.Context) error
	// Spawn starts a process. ErrNotRunning when the sandbox is not running
	// and the command was surely not started; ErrMaybeStarted when the
	// connection broke so that it may have started. Spawning an ID again
	// returns the process already started under it.
	Spawn(ctx context.Context, c Command) (Process, error)
	// Process finds a process, running or kept, also in a stopped sandbox;
	// ErrNoProcess when there is none.
	Process(ctx context.Context, id ProcessID) (Process, error)
	// Processes lists running and kept processes, oldest first, also of a
	// stopped sandbox.
	Processes(ctx context.Context) ([]ProcessInfo, error)
	// Files reaches the files of a running sandbox, as its user.
	Files() Files
}

// Files reads and writes files inside a sandbox, with the rights of the
// sandbox's user. Paths are absolute and resolved inside. Links are followed
// as the sandbox sees them; they lead nowhere outside. Every method fails with ErrNotRunning when the sandbox is not
// running, and with fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, ErrIsDir,
// ErrNotDir, ErrNotRegular, ErrReadOnly as fits.
type Files interface {
	// Stat follows links.
	Stat(ctx context.Context, path string) (FileInfo, error)
	// Open opens a regular file; ErrNotRegular for devices, FIFOs and
	// sockets, ErrIsDir for a directory. It never blocks on them.
	Open(ctx context.Context, path string) (io.ReadCloser, FileInfo, error)
	// Write makes the file hold exactly what r gives, at once or not at all;
	// with Append it adds at the end. Missing parents are made; a link is
	// written through; mode and owner of an existing file are kept unless
	// Mode is given.
	Write(ctx context.Context, path string, r io.Reader, o WriteOptions) (WriteResult, error)
	// ReadDir lists a directory by name; ErrLimit when it has more entries
	// than the provider can tell, at least 10,000.
	ReadDir(ctx context.Context, path string) ([]FileInfo, error)
	// Mkdir makes a directory with the permission bits of mode, and missing
	// parents with 0755. One that is there, also by way of a link, stays as it
	// is; ErrNotDir when something else has that name.
	Mkdir(ctx context.Context, path string, mode fs.FileMode) error
	// Symlink makes path a link that holds exactly target, in place of a file
	// or link of that name, at once; ErrIsDir when a directory has it. Missing
	// parents are made. Where target leads, if anywhere, does not matter.
	Symlink(ctx context.Context, target, path string) error
}

// FileInfo describes a file inside.
type FileInfo struct {
	Path    string // resolved, absolute
	Mode    fs.FileMode
	Size    int64
	ModTime time.Time
	// Owner and Group are numbers, or names; empty when not known.
	Owner, Group string
}

// Permissions to be given to a file; what is nil or empty stays as it is. Owner
// and Group are names of the sandbox's own, or numbers.
type Permissions struct {
	Mode         *fs.FileMode
	Owner, Group string
}

// WriteOptions of Files.Write.
type WriteOptions struct {
	Append bool
	// Mode sets the permission bits; nil keeps those of an existing file and
	// gives 0644 to a new one.
	Mode *fs.FileMode
}

// WriteResult of Files.Write.
type WriteResult struct {
	Path    string // resolved
	Bytes   int64
	Created bool
}

// Abilities a Provider or an Instance may have beside its interface. Only the
// Manager asserts them; a missing one gives ErrUnsupported.
type (
	// Updater applies what of spec can be changed while the sandbox exists
	// (name, labels, language, env, intervals, timeout, working directory,
	// user) and keeps it. An Instance ability.
	Updater interface {
		Update(ctx context.Context, spec Spec) error
	}
	// Resizer gives a running sandbox other limits; a zero field leaves one as
	// it is. ErrNotRunning when it does not run; a FieldError or UserError, and
	// nothing changed, where one cannot be changed. An Instance ability.
	Resizer interface {
		Resize(ctx context.Context, to Resources) error
	}
	// Archiver packs a stopped sandbox's files, verifies the archive, and
	// only then frees their space. Archiving an archived one does nothing.
	// An Instance ability.
	Archiver interface {
		Archive(ctx context.Context) error
	}
	// Recoverer tries to bring a sandbox out of StatusError, files intact.
	// An Instance ability.
	Recoverer interface {
		Recover(ctx context.Context) error
	}
	// Retirer takes a sandbox in StatusError out of the way of its key, so
	// that a fresh one can be made; kept says where the old one is and for how long, or is
	// empty when it was deleted. An Instance ability.
	Retirer interface {
		Retire(ctx context.Context, reason string) (kept string, err error)
	}
	// PortDialer connects to a port that something listens on inside, at
	// 127.0.0.1 or else ::1. syscall.ECONNREFUSED when nothing does,
	// ErrNotRunning when the sandbox does not run; it starts nothing. An
	// Instance ability.
	PortDialer interface {
		DialPort(ctx context.Context, port uint16) (net.Conn, error)
	}
	// PortKeeper keeps with the sandbox that p.Number is exposed, until it is
	// destroyed. It fills in Label and Token, which stay the same whenever the
	// port is kept again; p.Listen 0 keeps the former one. ErrLimit beyond
	// MaxPorts. An Instance ability.
	PortKeeper interface {
		KeepPort(ctx context.Context, p Port) (Port, error)
	}
	// PortLinker tells where a port is reached by way of the provider's own
	// addresses, in place of PortDialer and PortKeeper. public nil is as the
	// sandbox's spec says. An Instance ability.
	PortLinker interface {
		LinkPort(ctx context.Context, number uint16, public *bool) (PortLink, error)
	}
	// OwnUsers is of a provider that does not know before which users a sandbox
	// has, also where it is made of neither an image nor a snapshot: it refuses
	// one that is not there. A Provider ability.
	OwnUsers interface {
		OwnUsers()
	}
	// PortFinder finds the sandbox of an exposed port; ErrNotFound when there
	// is none. A Provider ability.
	PortFinder interface {
		FindPort(ctx context.Context, label string) (Instance, Port, error)
	}
	// PortLister lists the labels of all exposed ports. A Provider ability.
	PortLister interface {
		PortLabels(ctx context.Context) ([]string, error)
	}
	// VolumeLister lists an owner's volumes by name; of an empty owner, what it
	// can tell of all owners'. A Provider ability.
	VolumeLister interface {
		Volumes(ctx context.Context, owner Owner) ([]Volume, error)
	}
	// VolumeDeleter deletes an owner's volume. ErrNotFound when there is none;
	// a UserError of ErrLimit that names the sandboxes which have it attached.
	// A Provider ability.
	VolumeDeleter interface {
		DeleteVolume(ctx context.Context, owner Owner, name string) error
	}
	// FileRemover removes a file or a link (not what it leads to), and if
	// directories, an empty directory: ErrNotEmpty when it is not, ErrIsDir
	// without directories. An ability of Files.
	FileRemover interface {
		Remove(ctx context.Context, path string, directories bool) error
	}
	// FileRenamer gives a file, link or directory another name, at once.
	// fs.ErrExist when something has it, syscall.EXDEV when only copying could
	// do it, fs.ErrNotExist also when the new name's directory is missing. An
	// ability of Files.
	FileRenamer interface {
		Rename(ctx context.Context, from, to string) error
	}
	// FilePermitter changes mode and owner of what path leads to. An unknown
	// name is a *FieldError. An ability of Files.
	FilePermitter interface {
		Permit(ctx context.Context, path string, p Permissions) error
	}
	// ProcessForgetter drops what is kept of an ended process: its record and
	// its output. ErrNoProcess when there is none, syscall.EBUSY while it
	// runs, ErrNotRunning when the sandbox does not run. An Instance ability.
	ProcessForgetter interface {
		ForgetProcess(ctx context.Context, id ProcessID) error
	}
	// Glancer reads the present state for less, for whoever is on the way to a
	// command: Usage, IdleDeadline and Refused may be missing. An Instance ability.
	Glancer interface {
		Glance(ctx context.Context) (Info, error)
	}
	// Toucher notes that a running sandbox is in use. An Instance ability.
	Toucher interface {
		Touch(ctx context.Context) error
	}
	// Forker makes another sandbox, with key and spec, of the files that this
	// one, running or stopped, has at one moment, and returns it running. This
	// one goes on undisturbed: its processes, their output and its files are as
	// they were. No process is alive in the new one. It fails as Provider.Create
	// does, with ErrExists when there is a sandbox of that key; nothing is left
	// behind then. An Instance ability.
	Forker interface {
		Fork(ctx context.Context, key Key, spec Spec) (Instance, error)
	}
	// Snapshotter keeps the files that this sandbox, running or stopped, has at
	// one moment, under a name of its owner; it goes on undisturbed. ErrExists
	// when the owner has a snapshot of that name. Spec.Snapshot makes sandboxes
	// of it. An Instance ability.
	Snapshotter interface {
		Snapshot(ctx context.Context, name string) (SnapshotInfo, error)
	}
	// SnapshotKeeper knows the snapshots of owner. DeleteSnapshot fails with
	// ErrNotFound when there is none of that name, and with a *UserError that
	// names the sandboxes made of it while there are any. A Provider ability.
	SnapshotKeeper interface {
		Snapshots(ctx context.Context, owner Owner) ([]SnapshotInfo, error)
		DeleteSnapshot(ctx context.Context, owner Owner, name string) error
	}
	// SnapshotExporter writes a snapshot as an image, an OCI layout, to a file
	// of the server's machine: whole, or not at all. ErrNotFound when there is
	// none of that name; a *UserError of ErrUnsupported when it is none that an
	// image can be made of. A Provider ability.
	SnapshotExporter interface {
		ExportSnapshot(ctx context.Context, owner Owner, name string, o ExportOptions) (SnapshotExport, error)
	}
	// SnapshotImporter makes a snapshot of the image in a file or directory of
	// the server's machine (an absolute path): an OCI layout, also in a tar
	// file, or a docker save file. Every digest in it is verified. ErrExists
	// when the owner has a snapshot of that name. A Provider ability.
	SnapshotImporter interface {
		ImportSnapshot(ctx context.Context, owner Owner, name, from string) (SnapshotInfo, error)
	}
	// SnapshotBuilder makes a snapshot of b for owner, each of its steps in a
	// sandbox as spec has them (its resources, its network). It reports the
	// lines of the log (Progress.Log) in order. A *BuildError when a step
	// fails; ErrExists when the owner has another snapshot of that name, while one of a
	// build with the same Digest is returned as it is. Whatever happens, no
	// sandbox is left. A Provider ability.
	SnapshotBuilder interface {
		BuildSnapshot(ctx context.Context, owner Owner, name string, b Build, spec Spec) (SnapshotInfo, error)
	}
	// BuildLogKeeper returns the end of the log of the last build of a
	// snapshot, at most max bytes, also when it failed; ErrNotFound when none
	// is kept. A Provider ability.
	BuildLogKeeper interface {
		BuildLog(ctx context.Context, owner Owner, name string, max int64) (string, error)
	}
	// BuildPruner removes what builds keep to be faster again, unless it was
	// used within unused. dry tells what would go, and removes nothing. A
	// Provider ability.
	BuildPruner interface {
		PruneBuilds(ctx context.Context, unused time.Duration, dry bool) (PrunedBuilds, error)
	}
	// Sweeper enforces the intervals that nobody else does: archives and
	// deletes stopped sandboxes whose time has come, forgets old tombstones
	// and retired ones. A Provider ability.
	Sweeper interface {
		Sweep(ctx context.Context) error
	}
)
