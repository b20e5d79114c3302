package api

import "time"

// Sandbox is a sandbox as the platform tells it. Fields that an older or newer
// server leaves out are zero.
type Sandbox struct {
	ID               string            `json:"id"`
	OrganizationID   string            `json:"organizationId"`
	Name             string            `json:"name"`
	Snapshot         string            `json:"snapshot"`
	User             string            `json:"user"`
	Env              map[string]string `json:"env"`
	Labels           map[string]string `json:"labels"`
	Public           bool              `json:"public"`
	NetworkBlockAll  bool              `json:"networkBlockAll"`
	NetworkAllowList string            `json:"networkAllowList"`
	DomainAllowList  string            `json:"domainAllowList"`
	Target           string            `json:"target"`
	CPU              float64           `json:"cpu"`    // cores
	GPU              float64           `json:"gpu"`    // pieces
	Memory           float64           `json:"memory"` // GiB
	Disk             float64           `json:"disk"`   // GiB
	State            State             `json:"state"`
	DesiredState     State             `json:"desiredState"`
	ErrorReason      string            `json:"errorReason"`
	Recoverable      bool              `json:"recoverable"`
	// Intervals in minutes: AutoStop 0 never, AutoDelete negative never and 0
	// at the stop.
	AutoStop     *int      `json:"autoStopInterval"`
	AutoArchive  *int      `json:"autoArchiveInterval"`
	AutoDelete   *int      `json:"autoDeleteInterval"`
	Volumes      []Mount   `json:"volumes"`
	Build        *Build    `json:"buildInfo"`
	Created      time.Time `json:"createdAt"`
	Updated      time.Time `json:"updatedAt"`
	LastActivity time.Time `json:"lastActivityAt"`
	// ToolboxURL is where toolboxes are; the sandbox's id is put after it.
	ToolboxURL string `json:"toolboxProxyUrl"`

	// Seen is when the server told this, by its own clock; zero: not known.
	Seen time.Time `json:"-"`
}

// State of a sandbox. Others than these may come.
type State string

// The states that are acted on by name.
const (
	Creating         State = "creating"
	Restoring        State = "restoring"
	Destroyed        State = "destroyed"
	Destroying       State = "destroying"
	Started          State = "started"
	Stopped          State = "stopped"
	Starting         State = "starting"
	Stopping         State = "stopping"
	Errored          State = "error"
	BuildFailed      State = "build_failed"
	PendingBuild     State = "pending_build"
	BuildingSnapshot State = "building_snapshot"
	Unknown          State = "unknown"
	PullingSnapshot  State = "pulling_snapshot"
	Archived         State = "archived"
	Archiving        State = "archiving"
	Resizing         State = "resizing"
	Snapshotting     State = "snapshotting"
	Forking          State = "forking"
	Pausing          State = "pausing"
	Paused           State = "paused"
	Resuming         State = "resuming"
)

// Mount attaches a volume.
type Mount struct {
	Volume  string `json:"volumeId"` // or its name
	Path    string `json:"mountPath"`
	Subpath string `json:"subpath,omitempty"`
}

// Build says what an image is made of.
type Build struct {
	Dockerfile string   `json:"dockerfileContent"`
	Context    []string `json:"contextHashes,omitempty"`
}

// NewSandbox is what a sandbox is created of. With neither Snapshot nor Build it
// is the organization's default snapshot; CPU, Memory and Disk need a Build.
type NewSandbox struct {
	Name             string            `json:"name,omitempty"`
	Snapshot         string            `json:"snapshot,omitempty"`
	Build            *Build            `json:"buildInfo,omitempty"`
	User             string            `json:"user,omitempty"`
	Env              map[string]string `json:"env,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Public           bool              `json:"public,omitempty"`
	NetworkBlockAll  bool              `json:"networkBlockAll,omitempty"`
	NetworkAllowList string            `json:"networkAllowList,omitempty"`
	DomainAllowList  string            `json:"domainAllowList,omitempty"`
	Target           string            `json:"target,omitempty"`
	CPU              int               `json:"cpu,omitempty"`
	Memory           int               `json:"memory,omitempty"` // GiB
	Disk             int               `json:"disk,omitempty"`   // GiB
	AutoStop         *int              `json:"autoStopInterval,omitempty"`
	AutoArchive      *int              `json:"autoArchiveInterval,omitempty"`
	AutoDelete       *int              `json:"autoDeleteInterval,omitempty"`
	Volumes          []Mount           `json:"volumes,omitempty"`
}

// NetworkSettings changes what a sandbox reaches; nil fields are left out. Where
// both are given, block-all wins and clears the list.
type NetworkSettings struct {
	BlockAll  *bool   `json:"networkBlockAll,omitempty"`
	AllowList *string `json:"networkAllowList,omitempty"`
	Domains   *string `json:"domainAllowList,omitempty"`
}

// Preview is where a port is reached.
type Preview struct {
	URL   string `json:"url"`
	Token string `json:"token"`
}

// Snapshot is what sandboxes are made of.
type Snapshot struct {
	ID       string        `json:"id"`
	General  bool          `json:"general"` // everybody's
	Name     string        `json:"name"`
	Image    string        `json:"imageName"`
	State    SnapshotState `json:"state"`
	Size     *float64      `json:"size"` // GB
	CPU      float64       `json:"cpu"`
	Memory   float64       `json:"mem"`  // GiB
	Disk     float64       `json:"disk"` // GiB
	Reason   string        `json:"errorReason"`
	Created  time.Time     `json:"createdAt"`
	Build    *Build        `json:"buildInfo"`
	Ref      string        `json:"ref"`
	SourceID string        `json:"sourceSandboxId"`
}

// SnapshotState is where a snapshot is in its life. Others may come.
type SnapshotState string

// The states that are acted on by name.
const (
	SnapshotActive   SnapshotState = "active"
	SnapshotInactive SnapshotState = "inactive"
	SnapshotError    SnapshotState = "error"
	SnapshotFailed   SnapshotState = "build_failed"
	SnapshotRemoving SnapshotState = "removing"
	SnapshotPending  SnapshotState = "pending"
)

// NewSnapshot is what a snapshot is made of: exactly one of Image and Build.
type NewSnapshot struct {
	Name   string `json:"name"`
	Image  string `json:"imageName,omitempty"`
	Build  *Build `json:"buildInfo,omitempty"`
	CPU    int    `json:"cpu,omitempty"`
	Memory int    `json:"memory,omitempty"` // GiB
	Disk   int    `json:"disk,omitempty"`   // GiB
	Region string `json:"regionId,omitempty"`
}

// Volume is a directory that outlives sandboxes.
type Volume struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	State   string    `json:"state"` // pending_create, creating, ready, pending_delete, deleting, deleted, error
	Created time.Time `json:"createdAt"`
	Reason  string    `json:"errorReason"`
}

// PushAccess lets its holder put build contexts into the platform's store, an
// S3 service, for an hour.
type PushAccess struct {
	AccessKey      string `json:"accessKey"`
	Secret         string `json:"secret"`
	SessionToken   string `json:"sessionToken"`
	URL            string `json:"storageUrl"`
	OrganizationID string `json:"organizationId"`
	Bucket         string `json:"bucket"`
	Region         string `json:"region"`
}

// Config is what the server tells of itself.
type Config struct {
	Version         string `json:"version"`
	DefaultSnapshot string `json:"defaultSnapshot"`
	ToolboxURL      string `json:"proxyToolboxUrl"`
	Maintenance     bool   `json:"maintananceMode"` // as it is spelled there
}

// CurrentKey is the credential in use, as the server knows it.
type CurrentKey struct {
	Name        string   `json:"name"`
	Permissions []string `json:"permissions"`
}
