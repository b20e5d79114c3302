//go:build linux

package promises_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"berth/internal/buckettest"
	"berth/internal/driver"
	"berth/mounts/objects"
)

// withVariables is a client of a site with settings as a person writes them. The
// test runs beside others.
func withVariables(t *testing.T, env ...string) *box {
	t.Helper()
	s := newSite(t).servingBuckets()
	s.Env = append(s.Env, env...)
	return s.dial(t, driver.Stdio)
}

// bothWays writes through a mount and into the bucket, and reads each on the
// other side.
func bothWays(t *testing.T, b *box, srv *buckettest.Server, path, prefix string) {
	t.Helper()
	_, err := srv.Bucket(t).Put(context.Background(), prefix+"in/theirs", strings.NewReader("from the bucket\n"), 16, objects.Options{})
	must(t, err)
	b.appears(path + "/in/theirs")
	b.want("cat "+path+"/in/theirs; echo from the sandbox > "+path+"/ours && mkdir "+path+"/d && mv "+path+"/ours "+path+"/d/ours && ls "+path+" "+path+"/d", "from the bucket\n"+path+":\nd\nin\n\n"+path+"/d:\nours")
	if got := object(t, srv, prefix+"d/ours"); got != "from the sandbox\n" {
		t.Errorf("the bucket has %q", got)
	}
}

func TestPromise27GCSBucket(t *testing.T) {
	buckets(t)
	t.Parallel()
	srv := buckettest.GCS(t)
	b := withVariables(t, "GCS_BUCKET="+srv.Job.Bucket, "GCS_ENDPOINT="+reached(srv.Job.Service.Endpoint))
	b.call("mount_bucket", args{"path": "/data", "connection": "gcs"})
	bothWays(t, b, srv, "/data", "")
	b.start(args{"mounts": args{"/data": args{"connection": "gcs"}}}, "connected")
}

// 33 and 35: the key is JSON text, which gets a token; a path, half a key and one
// that Google does not know are each told, and shown nowhere.
func TestPromise35GCSKey(t *testing.T) {
	buckets(t)
	t.Parallel()
	srv := buckettest.GCS(t)
	key, p := srv.Keyed(t)
	other, _ := srv.Keyed(t) // of nobody that the service knows
	b := withVariables(t, "GCS_BUCKET="+srv.Job.Bucket, "GCS_ENDPOINT="+reached(p.Job.Service.Endpoint), "GCS_SERVICE_ACCOUNT_KEY="+reached(key))
	b.call("mount_bucket", args{"path": "/data"})
	bothWays(t, b, srv, "/data", "")
	for _, c := range []struct {
		name, key, text string
	}{
		{"path", "/home/me/key-Zr8.json", "path of a file"},
		{"half", key[:200], "no whole JSON"},
		{"another", other, "does not accept"},
		{"none", "", "not open to everybody"},
	} {
		b := withVariables(t, "GCS_BUCKET="+srv.Job.Bucket, "GCS_ENDPOINT="+reached(p.Job.Service.Endpoint), "GCS_SERVICE_ACCOUNT_KEY="+reached(c.key))
		answer := b.refused("mount_bucket", args{"path": "/data", "connection": "gcs"})
		contains(t, answer, c.text)
		if c.key != "" && (strings.Contains(answer, "Zr8") || strings.Contains(answer, "PRIVATE KEY")) {
			t.Errorf("%s: the key is shown: %s", c.name, answer)
		}
	}
}

// 65 to 67: an image without any program for mounting buckets, and of no
// distribution at all, is enough, also with the network closed; so is a snapshot of
// it. There is nothing that a prepared image would save.
func TestPromise67SnapshotsAndMounts(t *testing.T) {
	buckets(t)
	t.Parallel()
	srv := buckettest.S3(t)
	s := withExamples(t).servingBuckets()
	s.Env = append(s.Env, s3Variables(srv)...)
	b := s.dial(t, driver.Stdio)
	closed := func(more args) args {
		a := onlyBuckets(args{"mounts": args{"/data": args{"connection": "s3"}}})
		for k, v := range more {
			a[k] = v
		}
		return a
	}
	b.start(closed(args{"image": "daytonaio/sandbox"}), "created")
	b.want("id -un; command -v s3fs gcsfuse mount.fuse3; cat /etc/os-release 2>/dev/null; echo baked > ~/baked; echo one > /data/one; cat /data/one", "daytona\none")
	if got := object(t, srv, "one"); got != "one\n" {
		t.Errorf("the bucket has %q", got)
	}
	name := "mounts-" + b.id
	b.call("create_snapshot", args{"name": name})
	other := b.other()
	other.start(closed(args{"snapshot": name}), "created")
	other.want("cat ~/baked /data/one; echo two > /data/two; ls -A /data", "baked\none\none\ntwo")
	// The bucket is no part of the snapshot.
	bare := b.other()
	bare.start(args{"snapshot": name}, "created")
	bare.want("cat ~/baked; cat /data/one 2>/dev/null || echo none", "baked\nnone")
}

// selfKnown is an Azure server for those who know it by another address than it does:
// it fetches by itself what it is to copy, and cannot from there.
func selfKnown(t *testing.T, endpoint string) string {
	t.Helper()
	at, err := url.Parse(endpoint)
	must(t, err)
	const source = "X-Ms-Copy-Source"
	srv := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		if from, err := url.Parse(r.Out.Header.Get(source)); err == nil && from.Host != "" {
			from.Host = at.Host
			r.Out.Header.Set(source, from.String())
		}
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = at.Scheme, at.Host, at.Host
	}})
	t.Cleanup(srv.Close)
	return srv.URL + at.Path
}

// 76: Azure by account key, by a signature and by a connection string; the prefix
// confines and read-only holds, also for root inside.
func TestPromise76Azure(t *testing.T) {
	buckets(t)
	t.Parallel()
	srv := buckettest.Azure(t)
	j := srv.Job.Service
	for name, env := range map[string][]string{
		"key":    {"AZURE_STORAGE_ACCOUNT=" + j.Account, "AZURE_STORAGE_KEY=" + j.AccountKey, "AZURE_STORAGE_ENDPOINT=" + reached(j.Endpoint)},
		"sas":    {"AZURE_STORAGE_ACCOUNT=" + j.Account, "AZURE_STORAGE_SAS_TOKEN=" + srv.SAS(t, "racwdl", time.Now().Add(time.Hour)), "AZURE_STORAGE_ENDPOINT=" + reached(selfKnown(t, j.Endpoint))},
		"string": {fmt.Sprintf("AZURE_STORAGE_CONNECTION_STRING=AccountName=%s;AccountKey=%s;BlobEndpoint=%s", j.Account, j.AccountKey, reached(j.Endpoint))},
	} {
		b := withVariables(t, append(env, "AZURE_STORAGE_CONTAINER="+srv.Job.Bucket)...)
		b.call("mount_bucket", args{"path": "/data", "connection": "azure", "prefix": name})
		bothWays(t, b, srv, "/data", name+"/")
		b.call("mount_bucket", args{"path": "/ro", "connection": "azure", "prefix": name, "read_only": true})
		b.want("cat /ro/d/ours; (sudo sh -c 'echo x > /ro/x') 2>/dev/null || echo refused; (sudo rm /ro/d/ours) 2>/dev/null || echo refused; ls -A /ro; ls /ro/../"+name+" 2>/dev/null || echo none",
			"from the sandbox\nrefused\nrefused\nd\nin\nnone")
	}
}

// 76: a session token goes along, signed; one that has expired is told.
func TestPromise76SessionToken(t *testing.T) {
	buckets(t)
	t.Parallel()
	const token = "session-token-Wq3"
	srv := buckettest.S3(t)
	p := srv.Proxied(t)
	p.Session(token)
	through := *srv
	through.Job = p.Job
	env := s3Variables(&through)
	b := withVariables(t, append(env, "S3_SESSION_TOKEN="+token)...)
	b.call("mount_bucket", args{"path": "/data"})
	bothWays(t, b, srv, "/data", "")
	expired := withVariables(t, append(env, "S3_SESSION_TOKEN=session-token-old")...)
	answer := expired.refused("mount_bucket", args{"path": "/data"})
	contains(t, answer, "expired")
	if strings.Contains(answer, "session-token-old") {
		t.Errorf("the token is shown: %s", answer)
	}
}

// The server is killed while a file is on its way into the bucket. The program
// inside notices nothing, and what it saved is there.
func TestServerKilledInAnUpload(t *testing.T) {
	buckets(t)
	t.Parallel()
	for _, phase := range []string{"create", "part", "complete"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			killedInUpload(t, phase)
		})
	}
}

func killedInUpload(t *testing.T, phase string) {
	srv := buckettest.S3(t)
	p := srv.Proxied(t)
	through := *srv
	through.Job = p.Job
	s := newSite(t).servingBuckets()
	s.Env = append(s.Env, s3Variables(&through)...)
	b := s.dial(t, driver.Stdio)
	b.call("mount_bucket", args{"path": "/data"})
	sum := b.sh("head -c 40000000 /dev/urandom > /tmp/big && sha256sum < /tmp/big")
	reached := make(chan struct{}, 100)
	p.Break(func(r *http.Request) buckettest.Fault {
		if buckettest.Phase(r) != phase {
			return buckettest.Fault{}
		}
		select {
		case reached <- struct{}{}:
		default:
		}
		return buckettest.Fault{Delay: 2 * time.Second}
	})
	started := b.call("spawn_process", args{"command": "cp /tmp/big /data/big && echo saved"})
	select {
	case <-reached:
	case <-time.After(60 * time.Second):
		t.Fatalf("no %s after a minute", phase)
	}
	b.Kill()
	p.Heal()
	c := b.as(s.dial(t, driver.Stdio))
	r := c.call("read_output", args{"process_id": started.Result.ProcessID, "wait_for": "exit", "wait_seconds": 45})
	contains(t, r.Text, "saved")
	c.want("sha256sum < /data/big", sum)
	o, err := srv.Bucket(t).Head(t.Context(), "big")
	must(t, err)
	if o.Size != 40_000_000 {
		t.Errorf("%s: the bucket has %d bytes", phase, o.Size)
	}
}

// 29: programs that know nothing of buckets.
func TestPromise29Programs(t *testing.T) {
	srv, _, b := s3Site(t)
	b.call("mount_bucket", args{"path": "/data"})
	for _, c := range []struct {
		program, command, want string
	}{
		{"git", `git init -q -b main /tmp/r && cd /tmp/r && git config user.email a@b.c && git config user.name a && mkdir d && echo 1 > d/f && git add . && git commit -qm one && git clone -q /tmp/r /data/git && cd /data/git &&
			git config user.email a@b.c && git config user.name a && echo 2 >> d/f && git commit -qam two && git gc -q && git status --short && git fsck 2>&1 | grep -v -i checking; git log --format=%s`, "two\none"},
		{"sqlite3", `cd /data && sqlite3 t.db 'create table t(x); insert into t values(1),(2); update t set x=x+1;' && sqlite3 -readonly t.db 'select sum(x) from t; pragma integrity_check'`, "5\nok"},
		{"tar", `mkdir -p /tmp/in/a/b && seq 5000 > /tmp/in/a/b/n && ln -s n /tmp/in/a/b/l && chmod 750 /tmp/in/a/b/n && tar -C /tmp -czf /data/in.tgz in && mkdir /data/out && tar -C /data/out -xzf /data/in.tgz && cd /data/out/in/a/b && cmp n /tmp/in/a/b/n && readlink l && stat -c %a n`, "n\n750"},
		{"rsync", `mkdir -p /tmp/rs/x && seq 1000 > /tmp/rs/x/1 && seq 2000 > /tmp/rs/2 && rsync -a /tmp/rs/ /data/rs/ && seq 3000 > /tmp/rs/2 && rsync -a --delete /tmp/rs/ /data/rs/ && rsync -a /tmp/rs/ /data/rs/ -i && diff -r /tmp/rs /data/rs && echo same`, "same"},
		{"python3", `mkdir -p /tmp/py/p && seq 1000 > /tmp/py/p/1 && python3 -c '
import shutil, os, tempfile
shutil.copytree("/tmp/py", "/data/py"); shutil.move("/data/py/p", "/data/py/q"); shutil.copy2("/data/py/q/1", "/data/py/2")
with tempfile.NamedTemporaryFile("w", dir="/data/py", delete=False) as f: f.write("atomic")
os.replace(f.name, "/data/py/3"); shutil.make_archive("/data/py/z", "zip", "/data/py/q"); shutil.rmtree("/data/py/q")
print("names", sorted(os.listdir("/data/py")), open("/data/py/3").read(), os.path.getmtime("/data/py/2") == os.path.getmtime("/tmp/py/p/1"))'`, "names ['2', '3', 'z.zip'] atomic True"},
		{"npm", `mkdir -p /tmp/dep/bin /data/app && cd /tmp/dep && echo '{"name":"dep","version":"1.0.0","bin":{"dep":"bin/dep.js"}}' > package.json && printf '#!/usr/bin/env node\nconsole.log("dep runs")\n' > bin/dep.js && chmod 755 bin/dep.js && npm pack --silent --pack-destination /tmp >/dev/null &&
			cd /data/app && echo '{"name":"app","version":"1.0.0"}' > package.json && npm install --silent --no-audit --no-fund --offline /tmp/dep-1.0.0.tgz && npx --offline dep`, "dep runs"},
	} {
		t.Run(c.program, func(t *testing.T) {
			if _, err := exec.LookPath(c.program); err != nil {
				t.Skipf("this machine has no %s", c.program)
			}
			r := b.call("execute_command", args{"command": c.command, "timeout_seconds": 240, "cwd": "/tmp"})
			got := strings.TrimSpace(r.Output())
			if exit(r) != 0 || got != c.want {
				t.Errorf("%s exits with %d and prints %q, want %q: %s", c.program, exit(r), got, c.want, r.Text)
			}
		})
	}
	if keys := srv.Keys(t); len(keys) == 0 {
		t.Error("the bucket is empty")
	}
}
