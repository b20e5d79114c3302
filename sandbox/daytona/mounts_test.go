//go:build linux

package daytona_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

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

// TestMountInside looks at what is inside of a sandbox with a mount: the keys are
// nowhere, and a bucketd that dies is told of and replaced.
func TestMountInside(t *testing.T) {
	needBucketd(t)
	srv := buckettest.S3(t)
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
	defer manager.Close()
	key := sandbox.Key{Owner: "o", Session: "mounted"}
	run := func(command string) string {
		t.Helper()
		r, err := manager.ExecuteCommand(t.Context(), key, sandbox.RunRequest{Command: command})
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return r.Stdout.Head + r.Stdout.Tail
	}
	run("true")
	if _, err := manager.MountBucket(t.Context(), key, sandbox.MountRequest{Path: "/data/b", Connection: "test"}); err != nil {
		t.Fatal(err)
	}
	run("echo kept >/data/b/file")
	// The words are put together inside, so that the search does not find itself.
	half := len(j.Service.SecretAccessKey) / 2
	search := fmt.Sprintf("k=%s; k=$k%s; grep -rlsa \"$k\" /home /tmp /var/tmp /run /etc /proc/[0-9]*/environ /proc/[0-9]*/cmdline; true", j.Service.SecretAccessKey[:half], j.Service.SecretAccessKey[half:])
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
