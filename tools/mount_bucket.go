package tools

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/secret"
	"berth/mounts"
	"berth/sandbox"
)

// mountTarget is what a mount shows.
type mountTarget struct {
	Connection string `json:"connection" doc:"The operator's." schema:"bytes=64"`
	Bucket     string `json:"bucket" schema:"bytes=255"`
	Prefix     string `json:"prefix" schema:"bytes=1024"`
	ReadOnly   bool   `json:"read_only"`
}

// namedMount is a mountTarget and where it is seen.
type namedMount struct {
	path string
	mountTarget
}

func (m namedMount) String() string {
	return m.path + ": " + m.Connection + " " + m.Bucket + "/" + m.Prefix
}

// mountList is written as an object by path, in whose order it is mounted.
type mountList []namedMount

// UnmarshalJSON keeps the order.
func (l *mountList) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("not an object")
	}
	*l = mountList{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		m := namedMount{}
		m.path, _ = t.(string)
		if err := d.Decode(&m.mountTarget); err != nil {
			return err
		}
		*l = append(*l, m)
	}
	return nil
}

// mounts is nil only when nothing was given.
func (l mountList) mounts() []sandbox.Mount {
	if l == nil {
		return nil
	}
	list := []sandbox.Mount{}
	for _, m := range l {
		list = append(list, sandbox.Mount{Path: m.path, Connection: m.Connection, Bucket: m.Bucket, Prefix: m.Prefix, ReadOnly: m.ReadOnly})
	}
	return list
}

// inlineCredentials are a connection of the caller's own.
type inlineCredentials struct {
	Kind              string      `json:"kind" schema:"required;enum=s3|gcs|azure"`
	Endpoint          string      `json:"endpoint" schema:"bytes=1024"`
	Region            string      `json:"region" schema:"bytes=64"`
	Anonymous         bool        `json:"anonymous"`
	AccessKeyID       secret.Text `json:"access_key_id"`
	SecretAccessKey   secret.Text `json:"secret_access_key"`
	SessionToken      secret.Text `json:"session_token"`
	ServiceAccountKey secret.Text `json:"service_account_key"`
	Account           string      `json:"account" schema:"bytes=64"`
	AccountKey        secret.Text `json:"account_key"`
	SASToken          secret.Text `json:"sas_token"`
	ConnectionString  secret.Text `json:"connection_string"`
}

func (c *inlineCredentials) connection() *mounts.Connection {
	if c == nil {
		return nil
	}
	return &mounts.Connection{Kind: mounts.Kind(c.Kind), Endpoint: c.Endpoint, Region: c.Region, Anonymous: c.Anonymous,
		AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken, ServiceAccountKey: c.ServiceAccountKey,
		Account: c.Account, AccountKey: c.AccountKey, SASToken: c.SASToken, ConnectionString: c.ConnectionString}
}

type mountBucketArguments struct {
	Path string `json:"path" doc:"Absolute, such as /data; empty or missing." schema:"required;bytes=4096"`
	mountTarget
	sessionArgument
}

type mountInlineArguments struct {
	mountBucketArguments
	Credentials *inlineCredentials `json:"credentials" doc:"Instead of connection; kept in memory only."`
}

func (a mountBucketArguments) request() sandbox.MountRequest {
	return sandbox.MountRequest{Path: a.Path, Connection: a.Connection, Bucket: a.Bucket, Prefix: a.Prefix, ReadOnly: a.ReadOnly}
}

// mountRow is a mount in answers.
type mountRow struct {
	Path       string `json:"path"`
	Connection string `json:"connection"`
	Bucket     string `json:"bucket"`
	Prefix     string `json:"prefix,omitempty"`
	ReadOnly   bool   `json:"read_only"`
	State      string `json:"state"`
	Reason     string `json:"reason,omitempty"`
	// By tells who wants it: spec, or mount_bucket.
	By string `json:"by"`
}

func mountOf(m sandbox.MountInfo) mountRow {
	by := "mount_bucket"
	if m.OfSpec {
		by = "spec"
	}
	return mountRow{Path: m.Path, Connection: m.Connection, Bucket: m.Bucket, Prefix: m.Prefix, ReadOnly: m.ReadOnly, State: string(m.State), Reason: m.Reason, By: by}
}

// connectionRow is what a session may mount.
type connectionRow struct {
	Connection string   `json:"connection"`
	Kind       string   `json:"kind,omitempty"`
	Bucket     string   `json:"bucket,omitempty"`
	Prefix     string   `json:"prefix,omitempty"`
	ReadOnly   bool     `json:"read_only,omitempty"`
	Allowed    []string `json:"allowed,omitempty"`
	Unusable   string   `json:"unusable,omitempty"`
}

func connectionsOf(list []mounts.Offer) []connectionRow {
	var out []connectionRow
	for _, o := range list {
		out = append(out, connectionRow{Connection: o.Name, Kind: string(o.Kind), Bucket: o.Bucket, Prefix: o.Prefix, ReadOnly: o.ReadOnly, Allowed: o.Allowed, Unusable: o.Broken})
	}
	return out
}

type mountAnswer struct {
	SessionID string `json:"session_id"`
	mountRow
	Entries string `json:"entries,omitempty"` // at the top: "3", "more than 1000"
	Note    string `json:"note,omitempty"`
	Notice  string `json:"notice,omitempty"`
}

// posix is what programs should know of a mounted bucket, in one line.
const posix = "files are objects: what is written is in the bucket when close or fsync returns; renaming a directory copies it; no hard links, no locks that other machines see"

func (b buckets) enums() map[string][]string {
	return map[string][]string{"connection": b.connections}
}

func mountBucket(b buckets) tool {
	t := tool{
		name: "mount_bucket", toolset: "buckets",
		description: "Shows a bucket (S3, R2, MinIO, GCS, Azure), or the part of it below prefix, as a directory, now and after each start of the sandbox. What is left out is the operator's default; get_sandbox lists connections.",
		idempotent:  true, openWorld: true, reach: mayCreate, enums: b.enums(),
		unavailable: map[string]string{"credentials": "the operator does not allow credentials in calls"},
	}
	do := func(c *call, r sandbox.MountRequest) (*mcp.CallToolResult, error) {
		res, err := c.manager.MountBucket(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		out := mountAnswer{SessionID: string(c.key.Session), mountRow: mountOf(res.Mount), Note: posix, Notice: c.noticeText(res.Notice)}
		if was := res.Replaced; was != nil {
			out.Note = "it replaced the mount of " + was.Bucket + "/" + was.Prefix + " (connection " + was.Connection + ") at this path, whose bucket keeps what it has; " + posix
		}
		if n := res.Mount.Entries; n >= 0 {
			out.Entries = strconv.Itoa(n)
			if res.Mount.More {
				out.Entries = "more than " + out.Entries
			}
		}
		return recordAnswer(out)
	}
	t.args, t.handle = handler(func(c *call, a *mountBucketArguments) (*mcp.CallToolResult, error) { return do(c, a.request()) })
	if b.inline {
		t.unavailable = nil
		t.args, t.handle = handler(func(c *call, a *mountInlineArguments) (*mcp.CallToolResult, error) {
			r := a.request()
			r.Credentials = a.Credentials.connection()
			return do(c, r)
		})
	}
	return t
}
