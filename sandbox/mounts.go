package sandbox

import (
	"context"

	"berth/mounts"
)

// MaxMounts bounds the buckets that one sandbox shows.
const MaxMounts = 16

// Mount is a bucket, or part of one, that a sandbox shows as a directory. It
// holds no keys: those are the connection's, and are looked up whenever the
// mount is made.
type Mount struct {
	Path string // inside; absolute and clean
	// Connection is the operator's name for the credentials. InlineConnection:
	// they came with the call, and are kept nowhere but in memory.
	Connection string
	Bucket     string
	// Prefix confines it to keys that begin so; empty, or it ends with '/'.
	Prefix   string
	ReadOnly bool
}

// InlineConnection stands for credentials that came with mount_bucket. No
// connection of the operator's has this name.
const InlineConnection = "inline"

// MountState is how a mount that is wanted stands.
type MountState string

// The states. MountPending is also that of every mount of a sandbox that does
// not run.
const (
	MountPending MountState = "pending"
	Mounted      MountState = "mounted"
	MountError   MountState = "error"
)

// MountInfo is a mount that a sandbox is to have, and how it stands.
type MountInfo struct {
	Mount
	// OfSpec tells that it is one of Spec.Mounts; else mount_bucket added it.
	OfSpec bool
	State  MountState
	// Reason tells why the state is MountError, or what happened to a mounted
	// one that a user should know ("served anew after a crash: files that were
	// open then give ENOTCONN"); else empty. It holds no secret.
	Reason string
	// Entries counts what was at the top of it when it was mounted, at most
	// 1,000, and More when there is more; -1: not known.
	Entries int
	More    bool
}

// MountOrder is a Mount with what makes it. A provider keeps Mount and Refused,
// and never Job.
type MountOrder struct {
	Mount
	// Refused, when it is not empty, says why there is no Job any more: the
	// operator allows it no more, say. What is mounted is
	// unmounted then, and the mount, if it was wanted, stays so, with
	// MountError and this Reason.
	Refused string
	// Job is complete but for what only the provider knows: Mountpoint,
	// Staging, and the owner in View (UID, GID, AllowOther), which is the
	// sandbox's user.
	Job mounts.Job
}

// Abilities of providers whose sandboxes show buckets as directories.
type (
	// Mounter shows buckets as directories of its running sandbox. Info.Mounts
	// lists the mounts that the sandbox is to have: Spec.Mounts in their order,
	// then those that Mount added, in theirs. They are kept with the sandbox,
	// and forks have them. Whoever starts a sandbox calls Mount for each of them:
	// a provider has no keys, and mounts nothing by itself, except anew what a
	// fault has ended while the sandbox ran. Calls for one sandbox, from any process, take
	// effect one after the other. What is mounted inside by anybody else is
	// never touched. An Instance ability.
	Mounter interface {
		// Mount makes o's bucket the directory o.Path, missing parents made,
		// owned by the sandbox's user, and returns when a stat through it has
		// succeeded and it is kept that the sandbox is to have it. The same
		// order again does nothing when the mount answers. One of ours at that path of another order
		// (another bucket, mode or key) is unmounted first, but only when o's
		// bucket can be used; o.Job then takes its place.
		//
		// It fails with ErrNotRunning; with ErrMountpoint, as a *UserError that
		// names the reason, when the directory is not empty, is no directory, or
		// has something mounted on it that is not ours, or when the mount that is
		// to be replaced is in use; with a *mounts.Fault (errors.As) when the
		// bucket cannot be used; with ErrUnsupported, as a *UserError with the
		// remedy, where this machine cannot mount. Then nothing is mounted at
		// o.Path. In the place of one of Spec.Mounts, o.Mount takes its place there. A mount that Info.Mounts did not list before is not kept; of one
		// that it did, State and Reason tell of the failure until the next call.
		//
		// Nothing of o.Job but what o.Mount says outlives the run of the sandbox,
		// or is readable inside of it where the provider can help it; it is on no
		// command line, in no environment, log or error.
		Mount(ctx context.Context, o MountOrder) (MountInfo, error)
		// Unmount writes what is open and not yet in the bucket, takes the mount
		// at path away, with the directory if Mount made it and it is empty, and
		// forgets it, also as one of Spec.Mounts. Of a sandbox that
		// does not run, and of a mount that is not mounted, it is only forgotten.
		// ErrNotFound when Info.Mounts lists none there; ErrMountpoint, as a
		// *UserError that names who, when it is in use: then all stays as it is.
		Unmount(ctx context.Context, path string) error
	}
	// MountChecker tells whether the provider's sandboxes can show buckets:
	// nil, or a *UserError of ErrUnsupported with the remedy. Its sandboxes are
	// Mounters. A Provider ability.
	MountChecker interface {
		CheckMounts(ctx context.Context) error
	}
)
