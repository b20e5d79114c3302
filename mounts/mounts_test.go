package mounts_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/secret"
	"berth/mounts"
)

const key = `{"type": "service_account", "client_email": "a@b", "private_key": "sEcReT-pem"}`

func s3() mounts.Connection {
	return mounts.Connection{Kind: mounts.S3, AccessKeyID: secret.New("AKIA-sEcReT"), SecretAccessKey: secret.New("sEcReT-key")}
}

// fields lists what an error complains of.
func fields(err error) string {
	var list []string
	for _, p := range mounts.ProblemsOf(err) {
		list = append(list, p.Field)
	}
	return strings.Join(list, " ")
}

func TestCheckPath(t *testing.T) {
	for _, p := range []string{"/data", "/data/", "/a/b-c_d.e/f", "/.hidden", "/a/..b"} {
		if err := mounts.CheckPath("path", p); err != nil {
			t.Errorf("CheckPath(%q): %v", p, err)
		}
	}
	for _, p := range []string{"", "/", "//", "data", "/a//b", "/a/./b", "/a/../b", "/..", "/.", "/a b", "/a\nb", "/a;b", "/ä", "/a/$x", "/" + strings.Repeat("x", 5000)} {
		if err := mounts.CheckPath("path", p); fields(err) != "path" {
			t.Errorf("CheckPath(%.40q): got %v, want a problem of path", p, err)
		}
	}
}

func TestConnections(t *testing.T) {
	with := func(change func(*mounts.Connection)) mounts.Connection {
		c := s3()
		change(&c)
		return c
	}
	azure := func(change func(*mounts.Connection)) mounts.Connection {
		c := mounts.Connection{Kind: mounts.Azure, Account: "account", AccountKey: secret.New("c0VjUmVU")}
		change(&c)
		return c
	}
	gcs := func(key string) mounts.Connection {
		return mounts.Connection{Kind: mounts.GCS, ServiceAccountKey: secret.New(key)}
	}
	for _, tt := range []struct {
		name string
		c    mounts.Connection
		want string // fields of the problems
	}{
		{"s3", s3(), ""},
		{"public", mounts.Connection{Kind: mounts.S3, Bucket: "open-data"}, ""},
		{"r2", with(func(c *mounts.Connection) {
			c.Endpoint, c.Region = "https://id.r2.cloudflarestorage.com/", "auto"
		}), ""},
		{"token", with(func(c *mounts.Connection) { c.SessionToken = secret.New("t") }), ""},
		{"token_alone", mounts.Connection{Kind: mounts.S3, SessionToken: secret.New("t")}, "session_token"},
		{"half", mounts.Connection{Kind: mounts.S3, AccessKeyID: secret.New("a")}, "secret_access_key"},
		{"other_half", mounts.Connection{Kind: mounts.S3, SecretAccessKey: secret.New("a")}, "access_key_id"},
		{"endpoint_without_keys", mounts.Connection{Kind: mounts.S3, Endpoint: "http://127.0.0.1:9000"}, "access_key_id"},
		{"anonymous_endpoint", mounts.Connection{Kind: mounts.S3, Endpoint: "http://127.0.0.1:9000", Anonymous: true}, ""},
		{"anonymous_with_keys", with(func(c *mounts.Connection) { c.Anonymous = true }), "anonymous"},
		{"ambient", mounts.Connection{Kind: mounts.S3, Ambient: true}, ""},
		{"ambient_with_keys", with(func(c *mounts.Connection) { c.Ambient = true }), "ambient"},
		{"white_space", with(func(c *mounts.Connection) { c.SecretAccessKey = secret.New("sEcReT\n") }), "access_key_id"},
		{"kind", mounts.Connection{}, "kind"},
		{"unknown_kind", mounts.Connection{Kind: "r2"}, "kind"},
		{"ftp", with(func(c *mounts.Connection) { c.Endpoint = "ftp://x" }), "endpoint"},
		{"no_host", with(func(c *mounts.Connection) { c.Endpoint = "https://" }), "endpoint"},
		{"password", with(func(c *mounts.Connection) { c.Endpoint = "https://u:sEcReT@x" }), "endpoint"},
		{"query", with(func(c *mounts.Connection) { c.Endpoint = "https://x?y" }), "endpoint"},
		{"control", with(func(c *mounts.Connection) { c.Endpoint = "https://x/\n" }), "endpoint"},
		{"region", with(func(c *mounts.Connection) { c.Region = "eu central" }), "region"},
		{"bucket", with(func(c *mounts.Connection) { c.Bucket = "Upper" }), "bucket"},
		{"bucket_address", with(func(c *mounts.Connection) { c.Bucket = "10.0.0.1" }), "bucket"},
		{"bucket_url", with(func(c *mounts.Connection) { c.Bucket = "s3://bucket" }), "bucket"},
		{"bucket_short", with(func(c *mounts.Connection) { c.Bucket = "ab" }), "bucket"},
		{"bucket_underscore", with(func(c *mounts.Connection) { c.Bucket = "a_b" }), "bucket"},
		{"prefix", with(func(c *mounts.Connection) { c.Bucket, c.Prefix = "bucket", "/a/b/" }), ""},
		{"prefix_without_bucket", with(func(c *mounts.Connection) { c.Prefix = "a" }), "prefix"},
		{"prefix_empty", with(func(c *mounts.Connection) { c.Bucket, c.Prefix = "bucket", "//" }), "prefix"},
		{"prefix_up", with(func(c *mounts.Connection) { c.Bucket, c.Prefix = "bucket", "a/../b" }), "prefix"},
		{"prefix_control", with(func(c *mounts.Connection) { c.Bucket, c.Prefix = "bucket", "a\x01" }), "prefix"},
		{"prefix_double", with(func(c *mounts.Connection) { c.Bucket, c.Prefix = "bucket", "a//b" }), "prefix"},
		{"foreign", with(func(c *mounts.Connection) { c.Account = "x" }), "account"},
		{"gcs", gcs(key), ""},
		{"gcs_public", mounts.Connection{Kind: mounts.GCS, Bucket: "under_score"}, ""},
		{"gcs_path", gcs("/home/me/sEcReT.json"), "service_account_key"},
		{"gcs_broken", gcs(`{"sEcReT`), "service_account_key"},
		{"gcs_type", gcs(`{"type":"external_account"}`), "service_account_key"},
		{"gcs_parts", gcs(`{"type":"service_account"}`), "service_account_key"},
		{"azure", azure(func(*mounts.Connection) {}), ""},
		{"azure_sas", azure(func(c *mounts.Connection) { c.AccountKey, c.SASToken = secret.Text{}, secret.New("?sv=1&sig=sEcReT") }), ""},
		{"azure_bad_sas", azure(func(c *mounts.Connection) { c.AccountKey, c.SASToken = secret.Text{}, secret.New("sEcReT") }), "sas_token"},
		{"azure_two", azure(func(c *mounts.Connection) { c.SASToken = secret.New("sig=") }), "sas_token"},
		{"azure_none", mounts.Connection{Kind: mounts.Azure, Account: "account"}, "account_key"},
		{"azure_nobody", mounts.Connection{Kind: mounts.Azure}, "account_key account"},
		{"azure_public", mounts.Connection{Kind: mounts.Azure, Account: "account", Anonymous: true}, ""},
		{"azure_string", mounts.Connection{Kind: mounts.Azure, ConnectionString: secret.New("AccountName=a;AccountKey=sEcReT")}, ""},
		{"azure_bad_string", mounts.Connection{Kind: mounts.Azure, ConnectionString: secret.New("sEcReT")}, "connection_string"},
		{"azure_string_and_account", mounts.Connection{Kind: mounts.Azure, Account: "account", ConnectionString: secret.New("AccountName=a")}, "account"},
		{"azure_key", azure(func(c *mounts.Connection) { c.AccountKey = secret.New("sEcReT!") }), "account_key"},
		{"azure_account", azure(func(c *mounts.Connection) { c.Account = "Upper" }), "account"},
		{"azure_container", azure(func(c *mounts.Connection) { c.Bucket = "a--b" }), "bucket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := tt.c.Check()
			if got := fields(err); got != tt.want {
				t.Errorf("got problems of %q, want %q: %v", got, tt.want, err)
			}
			if err == nil {
				err = fmt.Errorf("%v %+v %#v", c, c, c)
				if strings.HasSuffix(c.Endpoint, "/") || c.Prefix != "" && !strings.HasSuffix(c.Prefix, "/") || strings.HasPrefix(c.SASToken.Reveal(), "?") {
					t.Errorf("not in its one form: %+v", c)
				}
			}
			if strings.Contains(err.Error(), "sEcReT") {
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
}

func TestComplete(t *testing.T) {
	data, logs := s3(), s3()
	data.Bucket, data.Prefix = "data-bucket", "team/a"
	logs.ReadOnly = true
	set := func(o mounts.SetOptions) *mounts.Set {
		s, err := mounts.NewSet(map[string]mounts.Connection{"data": data, "logs": logs}, o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	inline := s3()
	bad := mounts.Connection{Kind: mounts.S3, Ambient: true}
	rules := []mounts.Rule{{Connection: "data", Bucket: "data-*", Prefix: "team"}, {Connection: "data", Bucket: "open-*", ReadOnly: true}}
	for _, tt := range []struct {
		name    string
		o       mounts.SetOptions
		in      mounts.Target
		inline  *mounts.Connection
		want    mounts.Target
		problem string
	}{
		{name: "defaults", in: mounts.Target{Connection: "data"}, want: mounts.Target{Connection: "data", Bucket: "data-bucket", Prefix: "team/a/"}},
		{name: "own_prefix", in: mounts.Target{Connection: "data", Prefix: "/x"}, want: mounts.Target{Connection: "data", Bucket: "data-bucket", Prefix: "x/"}},
		{name: "own_bucket", in: mounts.Target{Connection: "data", Bucket: "other"}, want: mounts.Target{Connection: "data", Bucket: "other"}},
		{name: "read_only", in: mounts.Target{Connection: "logs", Bucket: "other"}, want: mounts.Target{Connection: "logs", Bucket: "other", ReadOnly: true}},
		{name: "no_bucket", in: mounts.Target{Connection: "logs"}, problem: "bucket"},
		{name: "which", in: mounts.Target{Bucket: "other"}, problem: "connection"},
		{name: "unknown", in: mounts.Target{Connection: "nope", Bucket: "other"}, problem: "connection"},
		{name: "bad_names", in: mounts.Target{Connection: "data", Bucket: "A", Prefix: ".."}, problem: "bucket prefix"},
		{name: "broken", o: mounts.SetOptions{Broken: map[string]error{"gcs": errors.New("why")}}, in: mounts.Target{Connection: "gcs", Bucket: "other"}, problem: "connection"},
		{name: "permitted", o: mounts.SetOptions{Rules: rules}, in: mounts.Target{Connection: "data"}, want: mounts.Target{Connection: "data", Bucket: "data-bucket", Prefix: "team/a/"}},
		{name: "neighbour", o: mounts.SetOptions{Rules: rules}, in: mounts.Target{Connection: "data", Prefix: "teams"}, problem: "bucket"},
		{name: "above", o: mounts.SetOptions{Rules: rules}, in: mounts.Target{Connection: "data", Bucket: "data-x"}, problem: "bucket"},
		{name: "only_reading", o: mounts.SetOptions{Rules: rules}, in: mounts.Target{Connection: "data", Bucket: "open-x"}, want: mounts.Target{Connection: "data", Bucket: "open-x", ReadOnly: true}},
		{name: "not_permitted", o: mounts.SetOptions{Rules: rules}, in: mounts.Target{Connection: "logs", Bucket: "data-x", Prefix: "team"}, problem: "connection"},
		{name: "nothing", o: mounts.SetOptions{Rules: []mounts.Rule{}}, in: mounts.Target{Connection: "data"}, problem: "connection"},
		{name: "inline", o: mounts.SetOptions{Inline: true}, in: mounts.Target{Bucket: "other"}, inline: &inline, want: mounts.Target{Connection: "inline", Bucket: "other"}},
		{name: "inline_refused", in: mounts.Target{Bucket: "other"}, inline: &inline, problem: "credentials"},
		{name: "inline_ambient", o: mounts.SetOptions{Inline: true}, in: mounts.Target{Bucket: "other"}, inline: &bad, problem: "credentials.ambient"},
		{name: "inline_bound", o: mounts.SetOptions{Inline: true, Rules: rules}, in: mounts.Target{Bucket: "other"}, inline: &inline, problem: "connection"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := set(tt.o)
			got, err := s.Complete(tt.in, tt.inline)
			if fields(err) != tt.problem {
				t.Fatalf("Complete: got problems of %q, want %q: %v", fields(err), tt.problem, err)
			}
			if err != nil {
				return
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("Complete: (-want +got)\n%s", d)
			}
			j, err := s.Job(got, tt.inline)
			if err != nil {
				t.Fatalf("Job: %v", err)
			}
			if j.Bucket != got.Bucket || j.Prefix != got.Prefix || j.ReadOnly != got.ReadOnly || j.Service.SecretAccessKey != "sEcReT-key" || j.Service.PublicOnly != (tt.inline != nil) {
				t.Errorf("Job: got %+v", j)
			}
			if again, err := s.Complete(got, tt.inline); err != nil || again != got {
				t.Errorf("Complete again: got %+v, %v", again, err)
			}
		})
	}
}

func TestJobOfStricterOperator(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    mounts.SetOptions
		want string
	}{
		{"only_reading", mounts.SetOptions{Rules: []mounts.Rule{{Connection: "*", ReadOnly: true}}}, "read_only"},
		{"nothing", mounts.SetOptions{Rules: []mounts.Rule{}}, "connection"},
	} {
		s, err := mounts.NewSet(map[string]mounts.Connection{"data": s3()}, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Job(mounts.Target{Connection: "data", Bucket: "bucket"}, nil); fields(err) != tt.want {
			t.Errorf("%s: got %v, want a problem of %s", tt.name, err, tt.want)
		}
	}
}

func TestNewSetNamesFaults(t *testing.T) {
	_, err := mounts.NewSet(map[string]mounts.Connection{"Bad Name": s3(), "inline": s3(), "x": {Kind: mounts.S3, Endpoint: "nope"}},
		mounts.SetOptions{Rules: []mounts.Rule{{Connection: "y", Prefix: "//"}, {Connection: "x"}}})
	want := "connections.Bad Name connections.inline connections.x.endpoint limits.buckets[0].connection limits.buckets[0].prefix"
	if got := fields(err); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOffers(t *testing.T) {
	c := s3()
	c.Bucket = "mine"
	s, err := mounts.NewSet(map[string]mounts.Connection{"a": c, "b": s3()}, mounts.SetOptions{Rules: []mounts.Rule{{Connection: "a", Bucket: "x", Prefix: "p", ReadOnly: true}},
		Broken: map[string]error{"gcs": errors.New("why")}})
	if err != nil {
		t.Fatal(err)
	}
	want := []mounts.Offer{{Name: "a", Kind: mounts.S3, Bucket: "mine", Allowed: []string{"x/p/ (read-only)"}}, {Name: "gcs", Broken: "why"}}
	if d := cmp.Diff(want, s.Offers()); d != "" {
		t.Errorf("Offers: (-want +got)\n%s", d)
	}
	var none *mounts.Set
	if none.Names() != nil || none.Offers() != nil || none.InlineAllowed() {
		t.Error("a nil Set offers something")
	}
	if _, err := none.Complete(mounts.Target{}, nil); fields(err) != "connection" {
		t.Errorf("Complete of none: %v", err)
	}
}

func TestFingerprint(t *testing.T) {
	base := mounts.Job{Service: mounts.Service{Kind: mounts.S3, SecretAccessKey: "sEcReT"}, Bucket: "b"}
	same := base
	same.Mountpoint, same.Staging = "/x", "/y"
	if base.Fingerprint() != same.Fingerprint() || len(base.Fingerprint()) != 64 {
		t.Errorf("places count: %s, %s", base.Fingerprint(), same.Fingerprint())
	}
	for name, change := range map[string]func(*mounts.Job){
		"key":       func(j *mounts.Job) { j.Service.SecretAccessKey = "other" },
		"token":     func(j *mounts.Job) { j.Service.SessionToken = "other" },
		"read_only": func(j *mounts.Job) { j.ReadOnly = true },
		"prefix":    func(j *mounts.Job) { j.Prefix = "p/" },
	} {
		j := base
		change(&j)
		if j.Fingerprint() == base.Fingerprint() {
			t.Errorf("%s does not count", name)
		}
	}
}

func TestEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name   string
		env    map[string]string
		found  string
		broken string // the fields of the problems
	}{
		{"none", map[string]string{"AZURE_TENANT_ID": "x"}, "", ""},
		{"s3", map[string]string{"S3_BUCKET": "bucket", "S3_REGION": "auto", "S3_ACCESS_KEY_ID": "a", "S3_SECRET_ACCESS_KEY": "b", "S3_ENDPOINT": "http://127.0.0.1:9000/"}, "s3", ""},
		{"s3_half", map[string]string{"S3_ACCESS_KEY_ID": "a"}, "", "S3_SECRET_ACCESS_KEY"},
		{"s3_endpoint", map[string]string{"S3_BUCKET": "bucket", "S3_ENDPOINT": "http://127.0.0.1:9000"}, "", "S3_ACCESS_KEY_ID"},
		{"gcs", map[string]string{"GCS_BUCKET": "bucket", "GCS_SERVICE_ACCOUNT_KEY": key}, "gcs", ""},
		{"gcs_path", map[string]string{"GCS_BUCKET": "bucket", "GCS_SERVICE_ACCOUNT_KEY": "./key.json"}, "", "GCS_SERVICE_ACCOUNT_KEY"},
		{"azure", map[string]string{"AZURE_STORAGE_ACCOUNT": "account", "AZURE_STORAGE_KEY": "c0VjUmVU", "AZURE_STORAGE_CONTAINER": "box"}, "azure", ""},
		{"azure_string", map[string]string{"AZURE_STORAGE_ACCOUNT": "account", "AZURE_STORAGE_CONNECTION_STRING": "AccountName=account;AccountKey=c0VjUmVU"}, "azure", ""},
		{"azure_bad", map[string]string{"AZURE_STORAGE_ACCOUNT": "account", "AZURE_STORAGE_KEY": "?", "AZURE_CONTAINER": "A"}, "", "AZURE_STORAGE_CONTAINER AZURE_STORAGE_KEY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, broken := mounts.Environment(func(name string) (secret.Text, bool) {
				v, ok := tt.env[name]
				return secret.New(v), ok
			})
			got := ""
			for name := range found {
				got = name
			}
			if got != tt.found {
				t.Errorf("got connection %q, want %q (%v)", got, tt.found, broken)
			}
			var why error
			for _, why = range broken {
			}
			if fields(why) != tt.broken {
				t.Errorf("got problems of %q, want %q", fields(why), tt.broken)
			}
		})
	}
}

func FuzzComplete(f *testing.F) {
	f.Add("/data", "bucket", "prefix/a")
	f.Add("/a/../b", "..", "/")
	s, err := mounts.NewSet(map[string]mounts.Connection{"s3": s3(), "gcs": {Kind: mounts.GCS}}, mounts.SetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path, bucket, prefix string) {
		_ = mounts.CheckPath("path", path)
		for _, c := range s.Names() {
			got, err := s.Complete(mounts.Target{Connection: c, Bucket: bucket, Prefix: prefix}, nil)
			if err != nil {
				continue
			}
			j, err := s.Job(got, nil)
			if err != nil {
				t.Fatalf("Job of what Complete took, %+v: %v", got, err)
			}
			if j.Prefix != "" && (!strings.HasSuffix(j.Prefix, "/") || strings.HasPrefix(j.Prefix, "/") || strings.Contains("/"+j.Prefix, "/../") || strings.Contains("/"+j.Prefix, "/./") || strings.Contains(j.Prefix, "//")) {
				t.Errorf("the prefix %q came through", j.Prefix)
			}
			if strings.ContainsAny(j.Bucket, "/\\:\x00") || j.Bucket == "" {
				t.Errorf("the bucket %q came through", j.Bucket)
			}
			b, err := json.Marshal(j)
			var back mounts.Job
			if err != nil || json.Unmarshal(b, &back) != nil || back != j {
				t.Errorf("%+v does not survive JSON", j)
			}
		}
	})
}
