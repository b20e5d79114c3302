// Package mounts knows buckets that are shown as directories: the operator's
// connections, what a sandbox asks for, and the job that the program bucketd
// is given for one mount.
//
// It links no cloud library: only bucketd speaks to the services.
package mounts

import "time"

// Kind is a kind of bucket service.
type Kind string

// The kinds. R2, MinIO and others that speak S3 are S3 with an Endpoint.
const (
	S3    Kind = "s3"
	GCS   Kind = "gcs"
	Azure Kind = "azure"
)

// Job is what bucketd is told about one mount: where the bucket is, with which
// keys, and how it is shown. It is secret as a whole. It is handed over as one
// JSON text, on a descriptor or in a private file that bucketd deletes once it
// has read it, never as an argument or in the environment.
type Job struct {
	Service Service `json:"service"`
	// Bucket is the bucket's name; for Azure the container's.
	Bucket string `json:"bucket"`
	// Prefix confines the mount to keys that begin with it; empty, or it ends
	// with '/'. Nothing outside of it can be named through the mount.
	Prefix   string `json:"prefix,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
	View     View   `json:"view"`
	// Mountpoint is where bucketd itself mounts, when it is not handed a
	// descriptor of /dev/fuse that is mounted already.
	Mountpoint string `json:"mountpoint,omitempty"`
	// Staging is a private directory for data on its way into the bucket;
	// empty: an unnamed file in the system's directory for temporary files.
	Staging string `json:"staging,omitempty"`
	// Log is a file that "bucketd mount" lets the daemon log into; empty: it
	// does not log. What is served for another program logs to standard error.
	Log string `json:"log,omitempty"`
}

// Service is where a bucket is, and who asks.
type Service struct {
	Kind Kind `json:"kind"`
	// Endpoint is the service's URL ("https://host[:port]"); empty: the
	// kind's own. With one, S3 is asked with the bucket in the path.
	Endpoint string `json:"endpoint,omitempty"`
	// Region of S3; "auto" where the service has none.
	Region string `json:"region,omitempty"`
	// Anonymous asks without a signature, for public buckets.
	Anonymous bool `json:"anonymous,omitempty"`
	// Ambient takes the identity that the machine has (instance roles,
	// workload identity, the vendor's own variables and files). Never the
	// default.
	Ambient bool `json:"ambient,omitempty"`
	// PublicOnly refuses, whatever the endpoint's name leads to, all addresses
	// but those of the internet: an agent has chosen the endpoint, and bucketd
	// runs where it would reach more than the sandbox may.
	PublicOnly bool `json:"public_only,omitempty"`

	// Keys of S3.
	AccessKeyID     string `json:"access_key_id,omitempty"`
	SecretAccessKey string `json:"secret_access_key,omitempty"`
	SessionToken    string `json:"session_token,omitempty"`

	// ServiceAccountKey of GCS: the JSON text of the key.
	ServiceAccountKey string `json:"service_account_key,omitempty"`

	// Azure: the account and one of its key, a shared access signature, or a
	// connection string that says all of it.
	Account          string `json:"account,omitempty"`
	AccountKey       string `json:"account_key,omitempty"`
	SASToken         string `json:"sas_token,omitempty"`
	ConnectionString string `json:"connection_string,omitempty"`
}

// View is how a mount looks and what it may use. Zero values are the defaults
// that the comments name.
type View struct {
	// UID and GID own everything that does not say otherwise in its metadata.
	// They are numbers inside the mount's user namespace.
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// FileMode and DirMode are the permission bits of what has none of its
	// own; 0: 0644 and 0755.
	FileMode uint32 `json:"file_mode,omitempty"`
	DirMode  uint32 `json:"dir_mode,omitempty"`
	// AllowOther lets users other than the mounting one in.
	AllowOther bool `json:"allow_other,omitempty"`
	// AttrTimeout is for how long names and attributes may be out of date; 0:
	// 5 s. Nanoseconds on the wire.
	AttrTimeout time.Duration `json:"attr_timeout,omitempty"`
	// ImplicitDirs makes no objects for directories: one that mkdir made is
	// gone with the mount unless something was put into it.
	ImplicitDirs bool `json:"implicit_dirs,omitempty"`
	// CacheBytes bounds the blocks kept in memory; 0: 11 MiB.
	CacheBytes int64 `json:"cache_bytes,omitempty"`
	// StagingBytes bounds what waits on disk to be uploaded; 0: no bound but
	// the disk's.
	StagingBytes int64 `json:"staging_bytes,omitempty"`
}

// FaultKind says what is wrong with a mount, so that a caller can tell a
// person what to do.
type FaultKind string

// The kinds of faults. Fault.Message is for people and holds no secret.
const (
	FaultJob         FaultKind = "job"         // the job itself makes no sense
	FaultResolve     FaultKind = "resolve"     // the endpoint's name is not known
	FaultUnreachable FaultKind = "unreachable" // nobody answers there
	FaultEndpoint    FaultKind = "endpoint"    // who answers is no such service
	FaultCredentials FaultKind = "credentials" // the keys are wrong, or expired
	FaultRegion      FaultKind = "region"      // the bucket is in another region
	FaultNoBucket    FaultKind = "no_bucket"   // there is no such bucket
	FaultListDenied  FaultKind = "list_denied" // the keys may not list it
	FaultReadDenied  FaultKind = "read_denied" // the keys may not read from it
	FaultWriteDenied FaultKind = "write_denied"
	FaultClock       FaultKind = "clock" // this machine's clock is off
	FaultMount       FaultKind = "mount" // the kernel refused to mount
	FaultOther       FaultKind = "other"
)

// Report is a line of JSON that bucketd writes, first when it has checked the
// bucket, then when the mount answers. One with a Fault is the last.
type Report struct {
	// Checked: the bucket is there and may be used as the job says.
	Checked bool `json:"checked,omitempty"`
	// Ready: the mount answers.
	Ready bool `json:"ready,omitempty"`
	// Entries counts names at the top of the mount, at most 1,000 and More
	// when there are more; set with Ready.
	Entries int    `json:"entries,omitempty"`
	More    bool   `json:"more,omitempty"`
	Fault   *Fault `json:"fault,omitempty"`
	// Lost names files, at most 100, with data that was written to them, was not
	// acknowledged, and could not be brought into the bucket before the mount
	// ended. A report with it is the last, and is written only then.
	Lost []string `json:"lost,omitempty"`
}

// Fault is why there is no mount. It is an error.
type Fault struct {
	Kind    FaultKind `json:"kind"`
	Message string    `json:"message"`
}

// Error is the message.
func (f *Fault) Error() string { return f.Message }
