// Package cloud opens buckets of S3 and what speaks like it, Google Cloud Storage
// and Azure Blob Storage, each through its vendor's library or plain requests,
// and says in words why one cannot be used. Only bucketd links it.
package cloud

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"berth/mounts"
	"berth/mounts/objects"
)

// Open returns the bucket that a job names. It asks nobody yet, except for an
// ambient identity; Check does.
func Open(ctx context.Context, j mounts.Job) (objects.Bucket, error) {
	if err := valid(j); err != nil {
		return nil, err
	}
	rt := &watched{next: transport(j.Service.PublicOnly)}
	switch j.Service.Kind {
	case mounts.S3:
		return openS3(ctx, j, rt)
	case mounts.GCS:
		return openGCS(ctx, j, rt)
	default:
		return openAzure(ctx, j, rt)
	}
}

// valid refuses what makes no sense. Its errors hold no secret.
func valid(j mounts.Job) error {
	s := j.Service
	var faults []string
	fault := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	fault(s.Kind == mounts.S3 || s.Kind == mounts.GCS || s.Kind == mounts.Azure, "service.kind is %q; allowed are s3, gcs and azure", s.Kind)
	fault(j.Bucket != "", "bucket is missing")
	fault(!strings.ContainsAny(j.Bucket, "/?#"), "bucket %q is no bucket's name", j.Bucket)
	fault(j.Prefix == "" || strings.HasSuffix(j.Prefix, "/"), "prefix %q does not end with /", j.Prefix)
	for p := range strings.SplitSeq(strings.TrimSuffix(j.Prefix, "/"), "/") {
		fault(j.Prefix == "" || p != "" && p != "." && p != ".." && !strings.ContainsRune(p, 0), "prefix %q has a part that no directory can be named after", j.Prefix)
	}
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		fault(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && u.RawQuery == "", "service.endpoint is no http or https URL of a service")
	}
	switch {
	case s.Anonymous || s.Ambient:
		fault(!(s.Anonymous && s.Ambient), "service.anonymous and service.ambient exclude each other")
		fault(s.Kind != mounts.Azure || s.Account != "" || s.Endpoint != "", "service.account is missing")
	case s.Kind == mounts.S3:
		fault(s.AccessKeyID != "" && s.SecretAccessKey != "", "service.access_key_id and service.secret_access_key are needed, or service.anonymous")
	case s.Kind == mounts.GCS:
		fault(s.ServiceAccountKey != "", "service.service_account_key is needed, or service.anonymous")
	case s.Kind == mounts.Azure && s.ConnectionString == "":
		fault(s.Account != "" || s.Endpoint != "", "service.account is missing")
		fault((s.AccountKey == "") != (s.SASToken == ""), "one of service.account_key and service.sas_token is needed, or service.connection_string, or service.anonymous")
	}
	if len(faults) == 0 {
		return nil
	}
	return &JobError{strings.Join(faults, "; ")}
}

// JobError says what is wrong with a job before anybody was asked.
type JobError struct{ text string }

func (e *JobError) Error() string { return e.text }
