//go:build unix

package sandbox_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/secret"
	"berth/mounts"
	"berth/sandbox"
	"berth/sandbox/providertest"
)

func connection(key string) mounts.Connection {
	return mounts.Connection{Kind: mounts.S3, AccessKeyID: secret.New("id"), SecretAccessKey: secret.New(key)}
}

// bucketSet has the connections main and, without a bucket of its own, more.
func bucketSet(t *testing.T, o mounts.SetOptions) *mounts.Set {
	t.Helper()
	main := connection("main-key")
	main.Bucket = "main-bucket"
	s, err := mounts.NewSet(map[string]mounts.Connection{"main": main, "more": connection("more-key")}, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newBuckets(t *testing.T, o mounts.SetOptions, defaults sandbox.Spec) (*sandbox.Manager, *providertest.Fake, string) {
	t.Helper()
	m, f := newFake(t, sandbox.Options{Buckets: bucketSet(t, o), Defaults: defaults})
	dir, err := f.MakeBucket("main-bucket", "main-key")
	if err != nil {
		t.Fatal(err)
	}
	return m, f, dir
}

// next is a Manager of the server that comes next, with other settings.
func next(t *testing.T, m *sandbox.Manager, f *providertest.Fake, set *mounts.Set) *sandbox.Manager {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	n, err := sandbox.NewManager(f.Reopen(), sandbox.Options{Buckets: set})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func states(info sandbox.Info) string {
	var list []string
	for _, mt := range info.Mounts {
		list = append(list, mt.Path+" "+string(mt.State))
	}
	return strings.Join(list, ", ")
}

func wantField(t *testing.T, what string, err error, field string) {
	t.Helper()
	var fe *sandbox.FieldError
	if !errors.As(err, &fe) || fe.Field != field {
		t.Errorf("%s: got %v, want a fault of %s", what, err, field)
	}
}

func TestMountBucketStartsTheSandbox(t *testing.T) {
	m, _, dir := newBuckets(t, mounts.SetOptions{}, sandbox.Spec{})
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("there"), 0o644); err != nil {
		t.Fatal(err)
	}
	res, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: "/data/", Connection: "main"})
	if err != nil {
		t.Fatal(err)
	}
	if !res.Notice.Created || res.Mount.Path != "/data" || res.Mount.Bucket != "main-bucket" || res.Mount.Entries != 1 || states(res.Info) != "/data mounted" {
		t.Errorf("got %+v", res)
	}
	// The default directory stays home.
	if got := sh(t, m, "pwd"); strings.TrimSpace(got.Stdout.Head) != res.Info.Home {
		t.Errorf("commands start in %q, want %q", got.Stdout.Head, res.Info.Home)
	}
	if _, err := m.StopSandbox(ctxOf(t), key, false); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "true")
	info, err := m.GetSandbox(ctxOf(t), key)
	if err != nil || states(*info) != "/data mounted" {
		t.Errorf("after stop and start: %s, %v", states(*info), err)
	}
	un, err := m.UnmountBucket(ctxOf(t), key, "/data")
	if err != nil || states(un.Info) != "" || un.Mount.Bucket != "main-bucket" {
		t.Errorf("UnmountBucket: %+v, %v", un, err)
	}
	_, err = m.UnmountBucket(ctxOf(t), key, "/data")
	wantField(t, "UnmountBucket again", err, "path")
	if _, err := m.UnmountBucket(ctxOf(t), sandbox.Key{Owner: "o", Session: "never"}, "/data"); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("UnmountBucket of no sandbox: %v", err)
	}
}

func TestMountBucketReplaces(t *testing.T) {
	m, _, _ := newBuckets(t, mounts.SetOptions{}, sandbox.Spec{})
	for _, tt := range []struct {
		prefix string
		was    *sandbox.Mount
	}{
		{"", nil},
		{"", nil}, // the same again is no other
		{"in/", &sandbox.Mount{Path: "/data", Connection: "main", Bucket: "main-bucket"}},
	} {
		res, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: "/data", Connection: "main", Prefix: tt.prefix})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.was, res.Replaced); diff != "" || states(res.Info) != "/data mounted" {
			t.Errorf("with prefix %q: %s; replaced (-want +got):\n%s", tt.prefix, states(res.Info), diff)
		}
	}
}

func TestMountBucketRefuses(t *testing.T) {
	m, f, _ := newBuckets(t, mounts.SetOptions{}, sandbox.Spec{})
	for _, tt := range []struct {
		name  string
		r     sandbox.MountRequest
		field string
	}{
		{"no_path", sandbox.MountRequest{Connection: "main"}, "path"},
		{"escape", sandbox.MountRequest{Path: "/data/../etc", Connection: "main"}, "path"},
		{"system", sandbox.MountRequest{Path: "/usr", Connection: "main"}, "path"},
		{"proc", sandbox.MountRequest{Path: "/proc/x", Connection: "main"}, "path"},
		{"which", sandbox.MountRequest{Path: "/data"}, "connection"},
		{"unknown", sandbox.MountRequest{Path: "/data", Connection: "nope"}, "connection"},
		{"no_bucket", sandbox.MountRequest{Path: "/data", Connection: "more"}, "bucket"},
		{"bucket", sandbox.MountRequest{Path: "/data", Connection: "more", Bucket: "a/b"}, "bucket"},
		{"prefix", sandbox.MountRequest{Path: "/data", Connection: "main", Prefix: "../x"}, "prefix"},
		{"credentials", sandbox.MountRequest{Path: "/data", Bucket: "main-bucket", Credentials: &mounts.Connection{Kind: mounts.S3}}, "credentials"},
		{"both", sandbox.MountRequest{Path: "/data", Connection: "main", Credentials: &mounts.Connection{Kind: mounts.S3}}, "credentials"},
	} {
		_, err := m.MountBucket(ctxOf(t), key, tt.r)
		wantField(t, tt.name, err, tt.field)
	}
	if list, err := f.List(ctxOf(t), ""); err != nil || len(list) != 0 {
		t.Errorf("a refused mount has made a sandbox: %v, %v", list, err)
	}

	if _, err := m.StartSandbox(ctxOf(t), key, sandbox.Spec{Volumes: []sandbox.VolumeMount{{Volume: "v", Path: "/vol"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: "/data/a", Connection: "main"}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/data", "/data/a/b", "/vol", "/vol/x"} {
		_, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: p, Connection: "main"})
		wantField(t, "mount at "+p, err, "path")
	}
	_, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: "/other", Connection: "more", Bucket: "missing-bucket"})
	var user *sandbox.UserError
	if !errors.As(err, &user) || !strings.Contains(err.Error(), "missing-bucket") || strings.Count(err.Error(), "check the ") != 1 {
		t.Errorf("mount of no bucket: %v", err)
	}
	info, err := m.GetSandbox(ctxOf(t), key)
	if err != nil || states(*info) != "/data/a mounted" {
		t.Errorf("after refusals: %s, %v", states(*info), err)
	}
}

func TestSpecMounts(t *testing.T) {
	m, _, _ := newBuckets(t, mounts.SetOptions{}, sandbox.Spec{})
	pending, err := m.GetSandbox(ctxOf(t), key)
	if err != nil || states(*pending) != "" {
		t.Fatalf("%s, %v", states(*pending), err)
	}
	spec := sandbox.Spec{Mounts: []sandbox.Mount{{Path: "/broken", Connection: "more", Bucket: "missing-bucket"}, {Path: "/good", Connection: "main"}}}
	res, err := m.StartSandbox(ctxOf(t), key, spec)
	if err != nil {
		t.Fatal(err)
	}
	if res.Outcome != sandbox.Created || states(res.Info) != "/broken error, /good mounted" || len(res.Notice.Warnings) != 1 || !strings.Contains(res.Notice.Warnings[0], "/broken") {
		t.Errorf("got %s, %s, %q", res.Outcome, states(res.Info), res.Notice.Warnings)
	}
	if got := sandbox.DefaultDirectory(res.Info); got != "/good" {
		t.Errorf("the default directory is %s", got)
	}
	// Told once, and tried again when asked.
	if got := sh(t, m, "true"); len(got.Notice.Warnings) != 0 {
		t.Errorf("a later command warns: %q", got.Notice.Warnings)
	}
	if res, err = m.Reconnect(ctxOf(t), key); err != nil || len(res.Notice.Warnings) != 1 {
		t.Errorf("Reconnect: %v, %v", res, err)
	}
	// What is not asked for any more goes.
	if res, err = m.StartSandbox(ctxOf(t), key, sandbox.Spec{Mounts: []sandbox.Mount{{Path: "/new", Connection: "main", Prefix: "p"}}}); err != nil {
		t.Fatal(err)
	}
	if states(res.Info) != "/new mounted" || len(res.Notice.Drift) != 0 {
		t.Errorf("got %s, drift %q", states(res.Info), res.Notice.Drift)
	}
	if res, err = m.StartSandbox(ctxOf(t), key, sandbox.Spec{}); err != nil || states(res.Info) != "/new mounted" {
		t.Errorf("without mounts: %s, %v", states(res.Info), err)
	}
	for name, list := range map[string][]sandbox.Mount{
		"mounts":           {{Path: "/a", Connection: "main"}, {Path: "/a/b", Connection: "main"}},
		"mounts./a.bucket": {{Path: "/a", Connection: "more"}},
		"mounts./b.prefix": {{Path: "/b", Connection: "main", Prefix: ".."}},
	} {
		_, err := m.StartSandbox(ctxOf(t), sandbox.Key{Owner: "o", Session: "other"}, sandbox.Spec{Mounts: list})
		wantField(t, name, err, name)
	}
}

func TestDefaultMounts(t *testing.T) {
	m, _, _ := newBuckets(t, mounts.SetOptions{}, sandbox.Spec{Mounts: []sandbox.Mount{{Path: "/data", Connection: "main"}}})
	info, err := m.GetSandbox(ctxOf(t), key)
	if err != nil || states(*info) != "/data pending" || info.Mounts[0].Bucket != "main-bucket" {
		t.Errorf("got %+v, %v", info.Mounts, err)
	}
	if got := sh(t, m, "pwd -P"); !strings.HasSuffix(strings.TrimSpace(got.Stdout.Head), "bucket-main-bucket") {
		t.Errorf("commands start in %q, want the bucket", got.Stdout.Head)
	}
	if _, err := sandbox.NewManager(&providertest.Stub{}, sandbox.Options{Buckets: bucketSet(t, mounts.SetOptions{}), Defaults: sandbox.Spec{Mounts: []sandbox.Mount{{Path: "/data", Connection: "main", Prefix: ".."}}}}); err == nil {
		t.Error("faulty defaults are taken")
	}
}

func TestChangedConnections(t *testing.T) {
	m, f, _ := newBuckets(t, mounts.SetOptions{}, sandbox.Spec{})
	if _, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: "/data", Connection: "main"}); err != nil {
		t.Fatal(err)
	}
	// Keys that do not fit: what works stays.
	rotated := connection("rotated-key")
	rotated.Bucket = "main-bucket"
	set := func(c map[string]mounts.Connection, o mounts.SetOptions) *mounts.Set {
		s, err := mounts.NewSet(c, o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	m = next(t, m, f, set(map[string]mounts.Connection{"main": rotated}, mounts.SetOptions{}))
	res := sh(t, m, "true")
	if len(res.Notice.Warnings) != 1 || !strings.Contains(res.Notice.Warnings[0], "stays mounted as it was; as it is to be it cannot") || !strings.Contains(res.Notice.Warnings[0], "keys") {
		t.Errorf("got warnings %q", res.Notice.Warnings)
	}
	// The service takes them now.
	if _, err := f.MakeBucket("main-bucket", "rotated-key"); err != nil {
		t.Fatal(err)
	}
	if res, err := m.Reconnect(ctxOf(t), key); err != nil || states(res.Info) != "/data mounted" {
		t.Errorf("after the key was made known: %+v, %v", res, err)
	}
	// A server that does not know the connection leaves it alone, and cannot make it.
	m = next(t, m, f, set(nil, mounts.SetOptions{}))
	sh(t, m, "test -L ../../data")
	if _, err := m.StopSandbox(ctxOf(t), key, false); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "test ! -e ../../data/")
	info, err := m.GetSandbox(ctxOf(t), key)
	if err != nil || states(*info) != "/data error" || !strings.Contains(info.Mounts[0].Reason, "none is configured") {
		t.Errorf("got %+v, %v", info.Mounts, err)
	}
	// Only reading is allowed now.
	m = next(t, m, f, set(map[string]mounts.Connection{"main": rotated}, mounts.SetOptions{Rules: []mounts.Rule{{Connection: "*", ReadOnly: true}}}))
	sh(t, m, "true")
	if info, err = m.GetSandbox(ctxOf(t), key); err != nil || states(*info) != "/data error" || !strings.Contains(info.Mounts[0].Reason, "read_only") {
		t.Errorf("got %+v, %v", info.Mounts, err)
	}
	m = next(t, m, f, set(map[string]mounts.Connection{"main": rotated}, mounts.SetOptions{}))
	sh(t, m, "true")
	if info, err = m.GetSandbox(ctxOf(t), key); err != nil || states(*info) != "/data mounted" {
		t.Errorf("got %+v, %v", info.Mounts, err)
	}
}

func TestInlineCredentials(t *testing.T) {
	m, f, _ := newBuckets(t, mounts.SetOptions{Inline: true}, sandbox.Spec{})
	own := connection("main-key")
	if _, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: "/data", Bucket: "main-bucket", Credentials: &own}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.StopSandbox(ctxOf(t), key, false); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "test -L ../../data")
	// A fork has them, too.
	fork := sandbox.Key{Owner: "o", Session: "fork"}
	made, err := m.ForkSandbox(ctxOf(t), key, sandbox.ForkRequest{NewSession: "fork"})
	if err != nil || states(made.Info) != "/data mounted" {
		t.Errorf("the fork: %+v, %v", made, err)
	}
	if _, err := m.DestroySandbox(ctxOf(t), fork); err != nil {
		t.Fatal(err)
	}
	// The next server has not; what stands is left alone.
	m = next(t, m, f, bucketSet(t, mounts.SetOptions{Inline: true}))
	sh(t, m, "test -L ../../data")
	if _, err := m.StopSandbox(ctxOf(t), key, false); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "test ! -e ../../data")
	info, err := m.GetSandbox(ctxOf(t), key)
	if err != nil || states(*info) != "/data error" || !strings.Contains(info.Mounts[0].Reason, "mount_bucket") {
		t.Errorf("got %+v, %v", info.Mounts, err)
	}
	if _, err := m.MountBucket(ctxOf(t), key, sandbox.MountRequest{Path: "/data", Bucket: "main-bucket", Credentials: &own}); err != nil {
		t.Fatal(err)
	}
	// Not allowed any more: it goes, whoever has the keys.
	m = next(t, m, f, bucketSet(t, mounts.SetOptions{}))
	sh(t, m, "test ! -e ../../data")
}
