//go:build unix

package cloud_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"berth/internal/buckettest"
	"berth/mounts"
	"berth/mounts/cloud"
	"berth/mounts/objects"
)

// checkCase is a job that cannot be done, and what a person is told.
type checkCase struct {
	name string
	job  func(*mounts.Job)
	kind mounts.FaultKind // empty: it can be done
	text string           // a part of the message
}

func runChecks(t *testing.T, job mounts.Job, cases []checkCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			j := job
			c.job(&j)
			_, fault := cloud.Check(t.Context(), j)
			checkFault(t, j, fault, c.kind, c.text)
		})
	}
}

func checkFault(t *testing.T, j mounts.Job, got *mounts.Fault, kind mounts.FaultKind, text string) {
	t.Helper()
	if kind == "" {
		if got != nil {
			t.Fatalf("the check says %s: %s", got.Kind, got.Message)
		}
		return
	}
	if got == nil {
		t.Fatalf("the check finds nothing, want %s", kind)
	}
	if got.Kind != kind || !strings.Contains(got.Message, text) {
		t.Errorf("the check says %s: %s; want %s with %q", got.Kind, got.Message, kind, text)
	}
	for _, secret := range []string{j.Service.SecretAccessKey, j.Service.AccountKey, j.Service.SASToken, j.Service.SessionToken} {
		if secret != "" && strings.Contains(got.Message, secret) {
			t.Errorf("a key is in the message: %s", got.Message)
		}
	}
}

// elsewhere is a server that is no bucket service.
func elsewhere(t *testing.T) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, "<html><body>It works!</body></html>")
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// places are endpoints that lead to no service, whichever the kind.
func places(t *testing.T) []checkCase {
	closed := httptest.NewServer(nil)
	closed.Close()
	html := elsewhere(t)
	endpoint := func(s string) func(*mounts.Job) { return func(j *mounts.Job) { j.Service.Endpoint = s } }
	return []checkCase{
		{"nobody_there", endpoint(closed.URL), mounts.FaultUnreachable, "nobody answers"},
		{"unknown_name", endpoint("http://none.invalid"), mounts.FaultResolve, "none.invalid"},
		{"no_tls", func(j *mounts.Job) { j.Service.Endpoint = strings.Replace(html, "http:", "https:", 1) }, mounts.FaultEndpoint, "http instead of https"},
		{"no_such_service", endpoint(html), mounts.FaultEndpoint, "does not look like"},
	}
}

func TestCheckS3(t *testing.T) {
	srv := buckettest.S3(t)
	runChecks(t, srv.Job, append(places(t), []checkCase{
		{"fine", func(*mounts.Job) {}, "", ""},
		{"below_a_prefix", func(j *mounts.Job) { j.Prefix = "none/" }, "", ""},
		{"unknown_key", func(j *mounts.Job) { j.Service.AccessKeyID = "nobody" }, mounts.FaultCredentials, "access_key_id"},
		{"wrong_secret", func(j *mounts.Job) { j.Service.SecretAccessKey = "wrong-secret" }, mounts.FaultCredentials, "secret key"},
		{"wrong_region", func(j *mounts.Job) { j.Service.Region = "eu-west-1" }, mounts.FaultRegion, "us-east-1"},
		{"region_auto", func(j *mounts.Job) { j.Service.Region = "auto" }, "", ""},
		{"no_bucket", func(j *mounts.Job) { j.Bucket = "none-such" }, mounts.FaultNoBucket, `"none-such"`},
		{"no_rights", limited, mounts.FaultListDenied, "may not list"},
		{"nobodys", func(j *mounts.Job) {
			j.Service.AccessKeyID, j.Service.SecretAccessKey, j.Service.Anonymous = "", "", true
		}, mounts.FaultCredentials, "is not open to everybody"},
		{"bucket_in_endpoint", func(j *mounts.Job) { j.Service.Endpoint += "/" + j.Bucket }, mounts.FaultEndpoint, "leave the bucket's name out"},
	}...))
	if keys := srv.Keys(t); len(keys) > 0 {
		t.Errorf("the checks leave %v behind", keys)
	}
}

func limited(j *mounts.Job) {
	j.Service.AccessKeyID, j.Service.SecretAccessKey = buckettest.LimitedKey, buckettest.LimitedSecret
}

// Each right that is missing is told by its name.
func TestCheckRightsS3(t *testing.T) {
	srv := buckettest.S3(t)
	if _, err := srv.Bucket(t).Put(t.Context(), "file", strings.NewReader("x"), 1, objects.Options{}); err != nil {
		t.Fatal(err)
	}
	s := srv.Job.Service
	client := s3.New(s3.Options{BaseEndpoint: &s.Endpoint, Region: s.Region, UsePathStyle: true, Credentials: credentials.NewStaticCredentialsProvider(s.AccessKeyID, s.SecretAccessKey, "")})
	for _, c := range []struct {
		name, actions string
		readOnly      bool
		kind          mounts.FaultKind
		text          string
	}{
		{name: "list_alone", actions: `"s3:ListBucket"`, kind: mounts.FaultReadDenied, text: "not read"},
		{name: "list_and_read", actions: `"s3:ListBucket","s3:GetObject"`, kind: mounts.FaultWriteDenied, text: "mount read-only"},
		{name: "read_only", actions: `"s3:ListBucket","s3:GetObject"`, readOnly: true},
		{name: "write_alone", actions: `"s3:PutObject"`, kind: mounts.FaultListDenied, text: "may not list"},
		{name: "all", actions: `"s3:ListBucket","s3:GetObject","s3:PutObject","s3:DeleteObject"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var list []string
			for a := range strings.SplitSeq(c.actions, ",") {
				resource := "arn:aws:s3:::bucket/*"
				if a == `"s3:ListBucket"` {
					resource = "arn:aws:s3:::bucket"
				}
				list = append(list, fmt.Sprintf(`{"Effect":"Allow","Principal":{"AWS":[%q]},"Action":[%s],"Resource":[%q]}`, buckettest.LimitedKey, a, resource))
			}
			policy := `{"Version":"2012-10-17","Statement":[` + strings.Join(list, ",") + `]}`
			if _, err := client.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: aws.String("bucket"), Policy: &policy}); err != nil {
				t.Fatal(err)
			}
			j := srv.Job
			limited(&j)
			j.ReadOnly = c.readOnly
			_, fault := cloud.Check(t.Context(), j)
			checkFault(t, j, fault, c.kind, c.text)
		})
	}
	if keys := srv.Keys(t); len(keys) != 1 {
		t.Errorf("the checks leave %v behind", keys)
	}
}

// What Amazon alone answers is put in the service's place.
func TestCheckAnswersOfAmazon(t *testing.T) {
	p := buckettest.S3(t).Proxied(t)
	for _, c := range []struct {
		code   string
		status int
		kind   mounts.FaultKind
		text   string
	}{
		{"ExpiredToken", 400, mounts.FaultCredentials, "expired"},
		{"InvalidToken", 400, mounts.FaultCredentials, "session token"},
		{"RequestTimeTooSkewed", 403, mounts.FaultClock, "clock"},
		{"PermanentRedirect", 301, mounts.FaultRegion, "region"},
		{"XAdminUserNotFound", 404, mounts.FaultCredentials, "access_key_id"},
		{"SomethingNew", 400, mounts.FaultOther, "it says: SomethingNew: no"},
		{"SlowDown", 503, mounts.FaultUnreachable, "try again"},
	} {
		t.Run(c.code, func(t *testing.T) {
			p.Break(buckettest.Always(buckettest.Fault{Status: c.status, Body: "<?xml version=\"1.0\"?><Error><Code>" + c.code + "</Code><Message>no</Message></Error>"}))
			defer p.Heal()
			_, fault := cloud.Check(t.Context(), p.Job)
			checkFault(t, p.Job, fault, c.kind, c.text)
		})
	}
	t.Run("paused", func(t *testing.T) {
		p.Break(buckettest.Always(buckettest.Fault{Hold: true}))
		defer p.Heal()
		begun := time.Now()
		_, fault := cloud.Check(t.Context(), p.Job)
		checkFault(t, p.Job, fault, mounts.FaultUnreachable, "nobody answers")
		t.Logf("told after %v", time.Since(begun))
	})
}

// A connection with ambient, on a machine that has no identity.
func TestCheckWithoutIdentity(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(name, "")
	}
	// A bundle of the machine's is no reason to give up.
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", bundle)
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	j := mounts.Job{Bucket: "bucket", Service: mounts.Service{Kind: mounts.S3, Endpoint: elsewhere(t), Region: "us-east-1", Ambient: true}}
	_, fault := cloud.Check(t.Context(), j)
	checkFault(t, j, fault, mounts.FaultCredentials, "this machine has no identity for s3")
}

// What the key's token service answers is no fault of the endpoint.
func TestCheckTokenService(t *testing.T) {
	for _, c := range []struct{ name, body, text string }{
		{"absent", "<html>\nnothing here", "(status 404)"},
		{"refused", `{"error":"invalid_grant","error_description":"a\nb"}`, "(invalid_grant)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusNotFound)
				_, _ = fmt.Fprint(w, c.body)
			}))
			defer srv.Close()
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			account, err := json.Marshal(map[string]string{"type": "service_account", "client_email": "a@b.invalid", "token_uri": srv.URL,
				"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
			if err != nil {
				t.Fatal(err)
			}
			j := mounts.Job{Bucket: "bucket", Service: mounts.Service{Kind: mounts.GCS, Endpoint: elsewhere(t), ServiceAccountKey: string(account)}}
			_, fault := cloud.Check(t.Context(), j)
			checkFault(t, j, fault, mounts.FaultCredentials, c.text)
			if fault != nil && strings.Contains(fault.Message, "\n") {
				t.Errorf("several lines: %q", fault.Message)
			}
		})
	}
}

func TestCheckGCS(t *testing.T) {
	runChecks(t, buckettest.GCS(t).Job, append(places(t), []checkCase{
		{"fine", func(*mounts.Job) {}, "", ""},
		{"no_bucket", func(j *mounts.Job) { j.Bucket = "none-such" }, mounts.FaultNoBucket, `"none-such"`},
	}...))
}

func TestCheckAzure(t *testing.T) {
	srv := buckettest.Azure(t)
	if _, err := srv.Bucket(t).Put(t.Context(), "file", strings.NewReader("x"), 1, objects.Options{}); err != nil {
		t.Fatal(err)
	}
	signed := func(rights string, until time.Duration) func(*mounts.Job) {
		return func(j *mounts.Job) {
			j.Service.AccountKey, j.Service.SASToken = "", srv.SAS(t, rights, time.Now().Add(until))
		}
	}
	readOnly := func(with func(*mounts.Job)) func(*mounts.Job) {
		return func(j *mounts.Job) {
			with(j)
			j.ReadOnly = true
		}
	}
	const all = "racwdl"
	runChecks(t, srv.Job, append(places(t), []checkCase{
		{"fine", func(*mounts.Job) {}, "", ""},
		{"wrong_key", func(j *mounts.Job) { j.Service.AccountKey = "d3Jvbmc=" }, mounts.FaultCredentials, "account key"},
		{"no_bucket", func(j *mounts.Job) { j.Bucket = "none-such" }, mounts.FaultNoBucket, `"none-such"`},
		{"connection_string", func(j *mounts.Job) {
			j.Service = mounts.Service{Kind: mounts.Azure, ConnectionString: fmt.Sprintf("AccountName=%s;AccountKey=%s;BlobEndpoint=%s", j.Service.Account, j.Service.AccountKey, j.Service.Endpoint)}
		}, "", ""},
		{"signature", signed(all, time.Hour), "", ""},
		{"signature_expired", signed(all, -time.Hour), mounts.FaultCredentials, "SAS token"},
		{"signature_without_list", signed("rcw", time.Hour), mounts.FaultListDenied, "may not list"},
		{"signature_without_read", signed("l", time.Hour), mounts.FaultReadDenied, "not read"},
		{"signature_without_write", signed("rl", time.Hour), mounts.FaultWriteDenied, "mount read-only"},
		{"signature_read_only", readOnly(signed("rl", time.Hour)), "", ""},
	}...))
	if keys := srv.Keys(t); len(keys) != 1 {
		t.Errorf("the checks leave %v behind", keys)
	}
}
