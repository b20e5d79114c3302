//go:build linux

package daytona_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/buckettest"
	"berth/internal/secret"
	"berth/mounts"
	"berth/mounts/bucketbin"
	"berth/sandbox"
	"berth/sandbox/daytona"
	"berth/sandbox/local/wire"
	"berth/sandbox/providertest"
)

// bucketd is the program as releases have it.
func bucketd(goarch string) ([]byte, error) {
	b, err := bucketbin.Bytes(goarch)
	if err == nil && b == nil {
		err = bucketbin.ErrNone
	}
	return b, err
}

// reaching has sandboxes reach this machine's loopback, where bucket services of
// tests listen.
func reaching(o *sandbox.Options) {
	p := sandbox.NetworkPolicy{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	o.Defaults.Network, o.Limits.Network = &p, p
}

// inside is a service's job as a sandbox reaches it.
func inside(j mounts.Job) mounts.Job {
	j.Service.Endpoint = strings.Replace(j.Service.Endpoint, "127.0.0.1", wire.NetHost.String(), 1)
	return j
}

func needBucketd(t *testing.T) {
	t.Helper()
	if _, err := bucketd("amd64"); err != nil {
		t.Skip("not shown: ", err)
	}
}

// TestMounts holds the provider against what is promised of buckets.
func TestMounts(t *testing.T) {
	needBucketd(t)
	srv := buckettest.S3(t)
	h := harness(t, func(t *testing.T) daytona.Options {
		o := newAccount(t, reaching).options()
		o.Bucketd = bucketd
		return o
	})
	h.Only = []string{"mounts"}
	delete(h.Cannot, providertest.Mounts)
	n := 0
	h.Bucket = func(t *testing.T, _ sandbox.Provider) providertest.Bucket {
		n++
		s := srv.Another(t, fmt.Sprintf("daytona-%d", n))
		return providertest.DirBucket(s.Dir, inside(s.Job))
	}
	providertest.Run(t, h)
}

// mounted is a session at Daytona that has srv's bucket at /data/b.
func mounted(t *testing.T, srv *buckettest.Server) (*sandbox.Manager, sandbox.Key) {
	t.Helper()
	a := newAccount(t, reaching)
	p := a.open(t, func(o *daytona.Options) { o.Bucketd = bucketd })
	j := inside(srv.Job)
	set, err := mounts.NewSet(map[string]mounts.Connection{"test": {Kind: mounts.S3, Bucket: j.Bucket, Endpoint: j.Service.Endpoint, Region: j.Service.Region,
		AccessKeyID: secret.New(j.Service.AccessKeyID), SecretAccessKey: secret.New(j.Service.SecretAccessKey)}}, mounts.SetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := sandbox.Options{Buckets: set}
	reaching(&o)
	manager, err := sandbox.NewManager(p, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = manager.Close() })
	key := sandbox.Key{Owner: "o", Session: "mounted"}
	if _, err := manager.ExecuteCommand(t.Context(), key, sandbox.RunRequest{Command: "true"}); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.MountBucket(t.Context(), key, sandbox.MountRequest{Path: "/data/b", Connection: "test"}); err != nil {
		t.Fatal(err)
	}
	return manager, key
}

// TestMountInside looks at what is inside of a sandbox with a mount: the keys are
// nowhere, and a bucketd that dies is told of and replaced.
func TestMountInside(t *testing.T) {
	needBucketd(t)
	srv := buckettest.S3(t)
	manager, key := mounted(t, srv)
	run := func(command string) string {
		t.Helper()
		r, err := manager.ExecuteCommand(t.Context(), key, sandbox.RunRequest{Command: command})
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return r.Stdout.Head + r.Stdout.Tail
	}
	run("echo kept >/data/b/file")
	// The words are put together inside, so that the search does not find itself.
	half := len(srv.Job.Service.SecretAccessKey) / 2
	search := fmt.Sprintf("k=%s; k=$k%s; grep -rlsa \"$k\" /home /tmp /var/tmp /run /etc /proc/[0-9]*/environ /proc/[0-9]*/cmdline; true", srv.Job.Service.SecretAccessKey[:half], srv.Job.Service.SecretAccessKey[half:])
	if out := run("sudo -n sh -c '" + search + "' | grep -v \"/proc/$$/\""); strings.TrimSpace(out) != "" {
		t.Errorf("the key is in %s", out)
	}
	if out := run("ls -A ~/.berth/orders"); out != "" {
		t.Errorf("orders are left: %q", out)
	}
	run("sudo -n pkill -KILL -f '^bucketd serve'; true")
	info, err := manager.GetSandbox(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Mounts) != 1 || info.Mounts[0].State != sandbox.MountError || !strings.Contains(info.Mounts[0].Reason, "has ended") {
		t.Errorf("after its death: %+v", info.Mounts)
	}
	if _, err := manager.StartSandbox(t.Context(), key, sandbox.Spec{}); err != nil {
		t.Fatal(err)
	}
	if out := run("cat /data/b/file"); out != "kept\n" {
		t.Errorf("after another mount: %q", out)
	}
}

// What is open in a mount gets into the bucket before the sandbox stops.
func TestStopSavesMounts(t *testing.T) {
	needBucketd(t)
	srv := buckettest.S3(t)
	manager, key := mounted(t, srv)
	if _, err := manager.SpawnProcess(t.Context(), key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Command: "exec 3>/data/b/open; echo written >&3; trap '' TERM; while :; do sleep 1; done"}}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if r, err := manager.ExecuteCommand(t.Context(), key, sandbox.RunRequest{Command: "cat /data/b/open"}); err != nil {
			t.Fatal(err)
		} else if r.Stdout.Head == "written\n" {
			break
		}
	}
	if _, err := manager.StopSandbox(t.Context(), key, false); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(srv.Dir, "open"))
	if err != nil || string(b) != "written\n" {
		t.Errorf("the bucket has %q, %v", b, err)
	}
}
