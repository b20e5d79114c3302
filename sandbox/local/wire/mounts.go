package wire

// Ops of buckets that are seen as directories: from berth to the monitor, which
// starts a program (bucketd) for each and asks init for the mount.
const (
	// OpMount: MountOrder, as data the job for bucketd (JSON, but for its View),
	// and one descriptor, of bucketd -> Mounted. Data and descriptor are
	// missing when Refused is set.
	OpMount   = "mount"
	OpUnmount = "unmount" // Unmount ->
	OpMounts  = "mounts"  // -> Mounts
)

// Ops between the monitor and init, in the order in which a bucket needs them.
const (
	OpPlace      = "place"       // Place -> Placed; nothing can be written at the path from then on
	OpFUSEMount  = "fuse_mount"  // FUSEMount -> + one descriptor, of /dev/fuse
	OpFUSEDetach = "fuse_detach" // FUSEDetach ->
)

// MountOrder orders a bucket at Path. One of the same Print there is left as it is.
type MountOrder struct {
	Path  string `json:"path"`
	Print string `json:"print"` // of the job, with its keys
	// Source is shown in the sandbox's table of mounts.
	Source   string `json:"source,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
	// Wanted: it is kept that the sandbox is to have it; if it fails nothing
	// can be written at the path, and OpMounts tells the reason.
	Wanted bool `json:"wanted,omitempty"`
	// Refused says why there is no job; what is mounted goes.
	Refused string `json:"refused,omitempty"`
}

// Mounted answers OpMount. With Fault there is no mount.
type Mounted struct {
	Entries int    `json:"entries"`
	More    bool   `json:"more,omitempty"`
	Fault   *Fault `json:"fault,omitempty"`
}

// Fault is mounts.Fault.
type Fault struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// Unmount takes a bucket away when all of it is written. Of a path that has
// none it does nothing.
type Unmount struct {
	Path string `json:"path"`
}

// Mounts lists the buckets that the monitor has been told of.
type Mounts struct {
	Mounts []MountState `json:"mounts"`
}

// MountState is how one of them stands.
type MountState struct {
	Path    string `json:"path"`
	Print   string `json:"print"`
	Mounted bool   `json:"mounted"`
	Reason  string `json:"reason,omitempty"`
	Entries int    `json:"entries"`
	More    bool   `json:"more,omitempty"`
}

// Place makes the directory for a bucket.
type Place struct {
	Path string `json:"path"`
}

// Placed are the ids that the sandbox's user has where the mount counts them.
type Placed struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// FUSEMount mounts on a place that was made; a former mount there goes.
type FUSEMount struct {
	Path     string `json:"path"`
	Source   string `json:"source"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// FUSEDetach unmounts a bucket. It fails with CodeMountpoint when it is in use,
// unless Force: then it goes for those who come, and for those who are in it
// when they leave. Keep leaves the place as it is, without the mount.
type FUSEDetach struct {
	Path  string `json:"path"`
	Force bool   `json:"force,omitempty"`
	Keep  bool   `json:"keep,omitempty"`
}
