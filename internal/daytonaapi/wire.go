package daytonaapi

// createRequest is the body of POST /sandbox. Pointers tell what was given.
type createRequest struct {
	Name             string            `json:"name"`
	Snapshot         string            `json:"snapshot"`
	BuildInfo        *buildInfo        `json:"buildInfo"`
	User             string            `json:"user"`
	Env              map[string]string `json:"env"`
	Labels           map[string]string `json:"labels"`
	Public           *bool             `json:"public"`
	NetworkBlockAll  *bool             `json:"networkBlockAll"`
	NetworkAllowList *string           `json:"networkAllowList"`
	DomainAllowList  *string           `json:"domainAllowList"`
	Target           string            `json:"target"`
	CPU              float64           `json:"cpu"`              // cores
	Memory           float64           `json:"memory"`           // GiB
	Disk             float64           `json:"disk"`             // GiB
	AutoStop         *int              `json:"autoStopInterval"` // minutes, as are these
	AutoArchive      *int              `json:"autoArchiveInterval"`
	AutoDelete       *int              `json:"autoDeleteInterval"`
	Volumes          []volumeMount     `json:"volumes"`
}

// createBody is all of the body.
type createBody struct {
	createRequest
	unsupportedCreate
}

// unsupportedCreate are fields that this server cannot hold.
type unsupportedCreate struct {
	GPU           float64             `json:"gpu"`
	GPUType       []string            `json:"gpuType"`
	Spot          bool                `json:"spot"`
	AutoPause     int                 `json:"autoPauseInterval"`
	TTL           int                 `json:"ttlMinutes"`
	Secrets       []map[string]string `json:"secrets"`
	LinkedSandbox string              `json:"linkedSandbox"`
	OutboundProxy string              `json:"outboundProxyUrl"`
	Otel          string              `json:"otelEndpointOverride"`
}

// buildInfo says what a snapshot or sandbox is built of.
type buildInfo struct {
	Dockerfile    string   `json:"dockerfileContent"`
	ContextHashes []string `json:"contextHashes,omitempty"`
	CreatedAt     string   `json:"createdAt,omitempty"`
	UpdatedAt     string   `json:"updatedAt,omitempty"`
	SnapshotRef   string   `json:"snapshotRef,omitempty"`
}

type volumeMount struct {
	VolumeID  string `json:"volumeId"`
	MountPath string `json:"mountPath"`
	Subpath   string `json:"subpath,omitempty"`
}

// listItem is a sandbox in a list.
type listItem struct {
	ID              string            `json:"id"`
	OrganizationID  string            `json:"organizationId"`
	Name            string            `json:"name"`
	Snapshot        string            `json:"snapshot,omitempty"`
	User            string            `json:"user"`
	Labels          map[string]string `json:"labels"`
	Public          bool              `json:"public"`
	NetworkBlockAll bool              `json:"networkBlockAll"`
	NetworkAllow    string            `json:"networkAllowList,omitempty"`
	DomainAllow     string            `json:"domainAllowList,omitempty"`
	Target          string            `json:"target"`
	CPU             float64           `json:"cpu"`
	GPU             float64           `json:"gpu"`
	Memory          float64           `json:"memory"`
	Disk            float64           `json:"disk"`
	State           string            `json:"state"`
	DesiredState    string            `json:"desiredState"`
	ErrorReason     string            `json:"errorReason,omitempty"`
	Recoverable     bool              `json:"recoverable"`
	BackupState     string            `json:"backupState"`
	AutoStop        int               `json:"autoStopInterval"`
	AutoArchive     int               `json:"autoArchiveInterval"`
	AutoDelete      int               `json:"autoDeleteInterval"`
	SandboxClass    string            `json:"sandboxClass"`
	CreatedAt       string            `json:"createdAt"`
	UpdatedAt       string            `json:"updatedAt"`
	LastActivityAt  string            `json:"lastActivityAt"`
	ToolboxProxyURL string            `json:"toolboxProxyUrl"`
}

// sandboxBody is a sandbox with all that is known of it.
type sandboxBody struct {
	listItem
	Env       map[string]string `json:"env"`
	Volumes   []volumeMount     `json:"volumes"`
	BuildInfo *buildInfo        `json:"buildInfo,omitempty"`
}

type listBody struct {
	Items      []listItem `json:"items"`
	NextCursor *string    `json:"nextCursor"`
}

// pageBody is a page of a list by numbers.
type pageBody[T any] struct {
	Items      []T `json:"items"`
	Total      int `json:"total"`
	Page       int `json:"page"`
	TotalPages int `json:"totalPages"`
}

type urlBody struct {
	URL string `json:"url"`
}
