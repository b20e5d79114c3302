//go:build linux

package local

import (
	"context"
	"net"
	"os"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// engine runs monitors and speaks to them. There is one, made of package
// client; tests put failing ones in its place.
type engine interface {
	// launch starts the monitor of l and returns when commands can run. After
	// an error nothing of it is left.
	launch(ctx context.Context, l *wire.Launch, session string) error
	// monitor reads the record of dir's last monitor, and whether that one
	// lives. fs.ErrNotExist when there never was one.
	monitor(dir string) (rec wire.Record, alive bool, err error)
	// connect returns a connection to dir's monitor, shared by all callers;
	// sandbox.ErrNotRunning when none lives.
	connect(ctx context.Context, dir string) (connection, error)
	// kill ends dir's monitor and everything inside at once, and removes what
	// they have outside of dir. It may be repeated.
	kill(ctx context.Context, dir string) error
	// freeze has everything inside stand still.
	freeze(ctx context.Context, dir string) (still, error)
	// hold keeps the mounts of dir's running sandbox when it ends, since taking
	// them down takes as long as the disk needs for all that was written; nil
	// when that cannot be. It is given to settle.
	hold(dir string) *os.File
	// settle brings what was written below dirs to the disk, and marks them
	// with wire.SyncedName. It does not wait for that.
	settle(ctx context.Context, held *os.File, dirs ...string)
	// history lists the processes of a sandbox without a monitor.
	history(dir string) ([]sandbox.ProcessInfo, error)
	historyProcess(dir string, id sandbox.ProcessID) (sandbox.Process, error)
	close() error
}

// connection to a monitor.
type connection interface {
	Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error)
	Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error)
	Processes(ctx context.Context) ([]sandbox.ProcessInfo, error)
	Forget(ctx context.Context, id sandbox.ProcessID) error
	Usage(ctx context.Context) (wire.Usage, error)
	Configure(ctx context.Context, i wire.Intervals) error
	Limit(ctx context.Context, to wire.LimitChange) error
	// Network sets the policy, unless nil, and tells what was refused.
	Network(ctx context.Context, set *wire.Network) (wire.NetworkState, error)
	// Stop returns when everything inside has ended and the monitor too.
	Stop(ctx context.Context, reason string) error
	// MakeWay is Stop, unless something runs inside: then it does nothing and
	// answers busy. What is to be deleted on a stop is kept.
	MakeWay(ctx context.Context) (busy bool, err error)
	Files() sandbox.Files
	// Mount has a bucket mounted, served by program; Unmount takes it away.
	Mount(ctx context.Context, o wire.MountOrder, job []byte, program *os.File) (wire.Mounted, error)
	Unmount(ctx context.Context, path string) error
	Mounts(ctx context.Context) ([]wire.MountState, error)
	// Touch counts as activity.
	Touch(ctx context.Context) error
	DialPort(ctx context.Context, port uint16) (net.Conn, error)
}

// still is a sandbox in which nothing moves, until thaw: its error means that
// it did move meanwhile. The end of this process ends it too.
type still interface {
	thaw(ctx context.Context) error
}
