package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/config"
	"berth/mounts"
	"berth/sandbox"
)

func TestConnections(t *testing.T) {
	file := write(t, `
connections:
  data:
    kind: s3
    endpoint: https://minio.example.com/
    access_key_id: ${KEY_ID}
    secret_access_key: ${KEY}
    bucket: my-bucket
  public:
    kind: gcs
    anonymous: true
limits:
  buckets:
    - connection: data
      bucket: my-*
      prefix: reports
      read_only: true
    - connection: s3
  inline_credentials: true
defaults:
  mounts:
    /z:
      connection: data
      prefix: reports/2024
    /a:
      connection: s3
`)
	c, err := config.Load(config.Source{File: file, Dir: t.TempDir(), Environ: []string{"KEY_ID=id", "KEY=sEcReT", "S3_BUCKET=other", "S3_ACCESS_KEY_ID=x", "S3_SECRET_ACCESS_KEY=sEcReT"}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"data", "public", "s3"}, c.Buckets.Names()); d != "" {
		t.Errorf("connections (-want +got):\n%s", d)
	}
	want := []mounts.Offer{{Name: "data", Kind: mounts.S3, Bucket: "my-bucket", Allowed: []string{"my-*/reports/ (read-only)"}}, {Name: "s3", Kind: mounts.S3, Bucket: "other", Allowed: []string{"*"}}}
	if d := cmp.Diff(want, c.Buckets.Offers()); d != "" {
		t.Errorf("offers (-want +got):\n%s", d)
	}
	if !c.Buckets.InlineAllowed() {
		t.Error("inline credentials are not allowed")
	}
	spec := c.Defaults.Spec()
	if d := cmp.Diff([]sandbox.Mount{{Path: "/z", Connection: "data", Prefix: "reports/2024"}, {Path: "/a", Connection: "s3"}}, spec.Mounts); d != "" {
		t.Errorf("default mounts (-want +got):\n%s", d)
	}
	done, err := c.Buckets.Complete(mounts.Target{Connection: "data", Prefix: "reports/2024"}, nil)
	if err != nil || !done.ReadOnly || done.Bucket != "my-bucket" {
		t.Errorf("got %+v, %v", done, err)
	}
}

// What only the server's environment has is no fault of other commands.
func TestConnectionsOfAbsentVariables(t *testing.T) {
	file := write(t, "defaults: {mounts: {/a: {connection: s3}, /b: {}}}\nlimits: {buckets: [{connection: s3}]}\n")
	if _, err := config.Load(config.Source{File: file}); err != nil {
		t.Error(err)
	}
	c, err := config.Load(config.Source{Dir: t.TempDir(), Environ: []string{"GCS_BUCKET=b-u-cket", "GCS_SERVICE_ACCOUNT_KEY=/home/me/sEcReT.json"}})
	if err != nil {
		t.Fatal(err)
	}
	offers := c.Buckets.Offers()
	if len(offers) != 1 || !strings.Contains(offers[0].Broken, "GCS_SERVICE_ACCOUNT_KEY: it is the path of a file") || !strings.Contains(strings.Join(c.Warnings, "\n"), "GCS_SERVICE_ACCOUNT_KEY") {
		t.Errorf("got %+v, warnings %q", offers, c.Warnings)
	}
	if strings.Contains(offers[0].Broken+strings.Join(c.Warnings, ""), "sEcReT") {
		t.Error("the value is shown")
	}
}

// A connection that names a variable which is not set is for those who have it.
func TestConnectionsOfUnsetVariables(t *testing.T) {
	const text = "connections: {own: {kind: s3, region: eu-central-1, access_key_id: '${BERTH_TEST_UNSET_ID}', secret_access_key: '${BERTH_TEST_UNSET_KEY}'}, s3: {kind: s3, region: '${BERTH_TEST_UNSET_ID}'}}\n" +
		"defaults: {mounts: {/a: {connection: own, bucket: b-ucket}}}\nlimits: {buckets: [{connection: own}, {connection: s3}]}\n"
	c, err := config.Load(config.Source{File: write(t, text), Environ: []string{"S3_BUCKET=b-ucket"}})
	if err != nil {
		t.Fatal(err)
	}
	offers := c.Buckets.Offers()
	if len(offers) != 2 || !strings.Contains(offers[0].Broken, "access_key_id: ${BERTH_TEST_UNSET_ID}: the environment variable BERTH_TEST_UNSET_ID is not set") ||
		!strings.Contains(offers[0].Broken, "secret_access_key: ") || !strings.Contains(offers[1].Broken, "region: ") {
		t.Errorf("got %+v", offers)
	}
	if all := strings.Join(c.Warnings, "\n"); !strings.Contains(all, "the connection own cannot be used: ") {
		t.Errorf("warnings %q", all)
	}
	_, err = c.Buckets.Complete(mounts.Target{Connection: "own", Bucket: "b-ucket"}, nil)
	if err == nil || !strings.Contains(err.Error(), "BERTH_TEST_UNSET_KEY is not set") {
		t.Errorf("Complete: %v", err)
	}
	if _, err := config.Load(config.Source{File: write(t, "connections: {own: {kind: s4, access_key: '${BERTH_TEST_UNSET_ID}'}}\n")}); err == nil || !strings.Contains(err.Error(), "unknown key") {
		t.Errorf("another fault: %v", err)
	}
}

// A bucket of a file whose endpoint was ignored is not looked for elsewhere.
func TestConnectionsWithoutTheirEndpoint(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte("S3_BUCKET=b-ucket\nS3_ENDPOINT=http://127.0.0.1:9\nGCS_BUCKET=b-ucket\nGCS_ENDPOINT=http://127.0.0.1:9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(config.Source{Dir: dir, Environ: []string{"GCS_BUCKET=mine"}})
	if err != nil {
		t.Fatal(err)
	}
	offers := c.Buckets.Offers()
	if len(offers) != 2 || offers[0].Name != "gcs" || offers[0].Broken != "" || offers[0].Bucket != "mine" || !strings.Contains(offers[1].Broken, "S3_ENDPOINT in .env is ignored") {
		t.Errorf("got %+v", offers)
	}
}

func TestBucketVariables(t *testing.T) {
	c, err := config.Load(config.Source{Dir: t.TempDir(), Environ: []string{"S3_BUCKET=bucket", "BERTH_LIMITS_BUCKETS=s3:open-*/a/b:ro, *:bucket", "BERTH_DEFAULTS_MOUNTS=/data:s3,/more:s3:open-data/a/b/c:ro"}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]mounts.Rule{{Connection: "s3", Bucket: "open-*", Prefix: "a/b", ReadOnly: true}, {Connection: "*", Bucket: "bucket"}}, c.Limits.Buckets); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]config.Mount{{Path: "/data", Connection: "s3"}, {Path: "/more", Connection: "s3", Bucket: "open-data", Prefix: "a/b/c", ReadOnly: true}}, c.Defaults.Mounts); d != "" {
		t.Errorf("mounts (-want +got):\n%s", d)
	}
}

// A hostile repository does not lead the user's keys elsewhere.
func TestEndpointOfRepository(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte("S3_ENDPOINT=http://evil.example\nS3_BUCKET=theirs\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(config.Source{Dir: dir, Environ: []string{"S3_ACCESS_KEY_ID=id", "S3_SECRET_ACCESS_KEY=sEcReT"}})
	if err != nil {
		t.Fatal(err)
	}
	job, err := c.Buckets.Job(mounts.Target{Connection: "s3", Bucket: "theirs"}, nil)
	if err != nil || job.Service.Endpoint != "" {
		t.Errorf("got endpoint %q, %v; want none", job.Service.Endpoint, err)
	}
}

func TestBucketFaults(t *testing.T) {
	file := write(t, `
connections:
  data: {kind: s3, access_key_id: sEcReT}
  inline: {kind: gcs}
  typo: {kind: s4, acces_key_id: sEcReT}
limits:
  buckets: [{connection: nope}, {connection: data, prefix: a//b}]
defaults:
  mounts:
    /data: {connection: dat}
    data: {connection: data}
    /usr: {}
`)
	_, err := config.Load(config.Source{File: file})
	var ce *config.Error
	if !errors.As(err, &ce) {
		t.Fatalf("got %v", err)
	}
	for _, key := range []string{"connections.data.secret_access_key", "connections.inline", "connections.typo.kind", "connections.typo.acces_key_id", "limits.buckets[0].connection",
		"limits.buckets[1].prefix", "defaults.mounts./data.connection", "defaults.mounts: ", "line 3"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("no word of %s in\n%v", key, err)
		}
	}
	if strings.Contains(err.Error(), "sEcReT") {
		t.Errorf("a secret is shown:\n%v", err)
	}
}
