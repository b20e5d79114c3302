//go:build unix

package buckettest

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/mounts"
	"berth/mounts/cloud"
	"berth/mounts/objects"
)

// Server is a bucket service with one empty bucket, "bucket".
type Server struct {
	*Process
	// Job opens the bucket; its view, prefix and so on are the test's to set.
	Job mounts.Job
	// Dir is where a server keeps its objects; of S3, a file an object;
	// empty: in memory.
	Dir string
}

// Keys that the servers know.
const (
	accessKey = "test-access"
	secretKey = "test-secret-7Zq"
	// LimitedKey and LimitedSecret are an account of the S3 server that may do
	// nothing but what a bucket's policy lets it.
	LimitedKey    = "limited-access"
	LimitedSecret = "limited-secret-4Kx"
	// AzureAccount and its key are Azurite's published ones.
	AzureAccount = "devstoreaccount1"
	azureKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// S3 starts versitygw.
func S3(t testing.TB) *Server {
	t.Helper()
	program, err := goProgram("versitygw", versitygw)
	if err != nil {
		unavailable(t, "versitygw is not there: %v", err)
	}
	dir, meta, addr := t.TempDir(), t.TempDir(), freePort(t)
	if err := os.Mkdir(filepath.Join(dir, "bucket"), 0o755); err != nil {
		t.Fatal(err)
	}
	users := t.TempDir()
	text := `{"accessAccounts":{"` + LimitedKey + `":{"access":"` + LimitedKey + `","secret":"` + LimitedSecret + `","role":"user"}}}`
	if err := os.WriteFile(filepath.Join(users, "users.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--access", accessKey, "--secret", secretKey, "--iam-dir", users, "--port", addr, "--quiet", "--keep-alive", "posix"}
	if !xattrs(dir) {
		args = append(args, "--sidecar", meta)
	}
	args = append(args, dir)
	p := start(t, "versitygw", addr, func() *exec.Cmd { return exec.CommandContext(context.Background(), program, args...) })
	return &Server{Process: p, Dir: filepath.Join(dir, "bucket"), Job: mounts.Job{Bucket: "bucket", Service: mounts.Service{
		Kind: mounts.S3, Endpoint: "http://" + addr, Region: "us-east-1", AccessKeyID: accessKey, SecretAccessKey: secretKey}}}
}

// Another is the same server with an empty bucket of that name.
func (s *Server) Another(t testing.TB, name string) *Server {
	t.Helper()
	o := *s
	o.Job.Bucket = name
	switch s.Job.Service.Kind {
	case mounts.S3:
		o.Dir = filepath.Join(filepath.Dir(s.Dir), name)
		if err := os.Mkdir(o.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
	case mounts.GCS:
		o.post(t, s.Job.Service.Endpoint+"/storage/v1/b?project=test", `{"name":"`+name+`"}`)
	default:
		if err := cloud.MakeContainer(context.Background(), o.Job); err != nil {
			t.Fatalf("make the container: %v", err)
		}
	}
	return &o
}

// Services are the servers of every kind, by name.
var Services = map[string]func(testing.TB) *Server{"s3": S3, "gcs": GCS, "azure": Azure}

// GCS starts fake-gcs-server.
func GCS(t testing.TB) *Server {
	t.Helper()
	program, err := goProgram("fake-gcs-server", fakeGCS)
	if err != nil {
		unavailable(t, "fake-gcs-server is not there: %v", err)
	}
	addr := freePort(t)
	host, port, _ := strings.Cut(addr, ":")
	// On disk it would drop objects whose names end with a slash.
	p := start(t, "fake-gcs-server", addr, func() *exec.Cmd {
		return exec.CommandContext(context.Background(), program, "-scheme", "http", "-host", host, "-port", port, "-backend", "memory", "-log-level", "error", "-public-host", addr)
	})
	s := &Server{Process: p, Job: mounts.Job{Bucket: "bucket", Service: mounts.Service{Kind: mounts.GCS, Endpoint: "http://" + addr, Anonymous: true}}}
	s.post(t, s.Job.Service.Endpoint+"/storage/v1/b?project=test", `{"name":"bucket"}`)
	return s
}

func (s *Server) post(t testing.TB, url, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		t.Fatalf("POST %s: %s", url, resp.Status)
	}
}

// Azure starts Azurite.
func Azure(t testing.TB) *Server {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		unavailable(t, "Azurite needs node: %v", err)
	}
	home, err := made("azurite-"+version(azurite), func(dir string) error {
		cmd := exec.CommandContext(context.Background(), "npm", "install", "--no-audit", "--no-fund", "--prefix", dir, azurite)
		return quiet(cmd)
	})
	if err != nil {
		unavailable(t, "Azurite is not there: %v", err)
	}
	dir, addr := t.TempDir(), freePort(t)
	host, port, _ := strings.Cut(addr, ":")
	p := start(t, "azurite", addr, func() *exec.Cmd {
		return exec.CommandContext(context.Background(), node, filepath.Join(home, "node_modules/azurite/dist/src/blob/main.js"), "--blobHost", host, "--blobPort", port, "--location", dir, "--silent", "--skipApiVersionCheck", "--disableTelemetry")
	})
	s := &Server{Process: p, Dir: dir, Job: mounts.Job{Bucket: "bucket", Service: mounts.Service{
		Kind: mounts.Azure, Endpoint: "http://" + addr + "/" + AzureAccount, Account: AzureAccount, AccountKey: azureKey}}}
	if err := cloud.MakeContainer(context.Background(), s.Job); err != nil {
		t.Fatalf("make the container: %v", err)
	}
	return s
}

// Bucket opens the server's bucket, beside what is tested.
func (s *Server) Bucket(t testing.TB) objects.Bucket {
	t.Helper()
	b, err := cloud.Open(context.Background(), s.Job)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Keys lists the bucket.
func (s *Server) Keys(t testing.TB) []string {
	t.Helper()
	b := s.Bucket(t)
	var keys []string
	token := ""
	for {
		p, err := b.List(context.Background(), "", true, token, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range p.Objects {
			keys = append(keys, o.Key)
		}
		if p.Next == "" {
			return keys
		}
		token = p.Next
	}
}
