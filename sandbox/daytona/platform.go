package daytona

import (
	"context"
	"io"
	"iter"
	"time"

	"berth/sandbox/daytona/api"
)

// platform is what the provider asks of Daytona: all that would have to be made
// anew over another client of it.
type platform interface {
	lifecycle
	settings
	snapshots
	volumes
	ports

	Toolbox(toolboxURL, id string) *api.Toolbox
	ToolboxURL(ctx context.Context, id string) (string, error)
	Config(ctx context.Context) (api.Config, error)
	Key(ctx context.Context) (api.CurrentKey, error)
	URL() string
	Close()
}

type lifecycle interface {
	Create(ctx context.Context, n api.NewSandbox) (*api.Sandbox, error)
	Sandbox(ctx context.Context, idOrName string) (*api.Sandbox, error)
	Sandboxes(ctx context.Context, f api.Filter) iter.Seq2[*api.Sandbox, error]
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string) error
	Archive(ctx context.Context, id string) error
	Recover(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error
	Fork(ctx context.Context, id, name string) (*api.Sandbox, error)
}

type settings interface {
	Touch(ctx context.Context, id string) error
	SetLabels(ctx context.Context, id string, labels map[string]string) error
	SetPublic(ctx context.Context, id string, public bool) error
	SetAutoStop(ctx context.Context, id string, minutes int) error
	SetAutoArchive(ctx context.Context, id string, minutes int) error
	SetAutoDelete(ctx context.Context, id string, minutes int) error
	SetNetwork(ctx context.Context, id string, n api.NetworkSettings) error
}

type snapshots interface {
	Snapshots(ctx context.Context) ([]api.Snapshot, error)
	Snapshot(ctx context.Context, idOrName string) (*api.Snapshot, error)
	CreateSnapshot(ctx context.Context, n api.NewSnapshot) (*api.Snapshot, error)
	SnapshotOf(ctx context.Context, id, name string) error
	ActivateSnapshot(ctx context.Context, id string) error
	DeleteSnapshot(ctx context.Context, id string) error
	SnapshotLog(ctx context.Context, id string, follow bool) (io.ReadCloser, error)
	SandboxLog(ctx context.Context, id string, follow bool) (io.ReadCloser, error)
	PushAccess(ctx context.Context) (api.PushAccess, error)
	HasContext(ctx context.Context, a api.PushAccess, hash string) (bool, error)
	PutContext(ctx context.Context, a api.PushAccess, hash string, tar io.Reader, size int64) error
}

type volumes interface {
	Volumes(ctx context.Context) ([]api.Volume, error)
	VolumeByName(ctx context.Context, name string) (*api.Volume, error)
	CreateVolume(ctx context.Context, name string) (*api.Volume, error)
	DeleteVolume(ctx context.Context, id string) error
}

type ports interface {
	Preview(ctx context.Context, id string, port uint16) (api.Preview, error)
	SignedPreview(ctx context.Context, id string, port uint16, last time.Duration) (api.Preview, error)
}

var _ platform = (*api.Client)(nil)
