//go:build linux

package promises_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/buckettest"
	"berth/internal/driver"
	"berth/mounts/objects"
)

// buckets skips where no buckets can be mounted: an ordinary user needs a
// /dev/fuse that all may open.
func buckets(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil && os.Getenv(buckettest.RequireVariable) != "" {
		t.Fatalf("buckets need /dev/fuse: %v", err)
	}
	if err != nil {
		t.Skipf("buckets need /dev/fuse: %v", err)
	}
	_ = f.Close()
}

// s3Variables are the settings of a server's bucket as a person writes them.
func s3Variables(srv *buckettest.Server) []string {
	j := srv.Job.Service
	return []string{"S3_BUCKET=" + srv.Job.Bucket, "S3_REGION=" + j.Region, "S3_ENDPOINT=" + reached(j.Endpoint), "S3_ACCESS_KEY_ID=" + string(j.AccessKeyID), "S3_SECRET_ACCESS_KEY=" + string(j.SecretAccessKey)}
}

// s3Site is a site whose connection s3 leads to a real S3 service with one empty
// bucket, and a client of it. The test runs beside others.
func s3Site(t *testing.T) (*buckettest.Server, *site, *box) {
	t.Helper()
	buckets(t)
	t.Parallel()
	srv := buckettest.S3(t)
	s := ownSite(t).servingBuckets()
	s.Env = append(s.Env, s3Variables(srv)...)
	return srv, s, s.dial(t, driver.Stdio)
}

// appears waits until a session sees what another has written: names may be out
// of date for 5 s, the attribute time-out's default.
func (b *box) appears(path string) {
	b.t.Helper()
	b.want("for i in $(seq 100); do test -e "+path+" && break; sleep 0.1; done; test -e "+path, "")
}

// object is what the service itself has under a key.
func object(t *testing.T, srv *buckettest.Server, key string) string {
	t.Helper()
	b := srv.Bucket(t)
	o, err := b.Head(context.Background(), key)
	must(t, err)
	r, err := b.Read(context.Background(), key, o.Version, 0, o.Size)
	must(t, err)
	defer r.Close()
	data, err := io.ReadAll(r)
	must(t, err)
	return string(data)
}

// mountOf is the row of get_sandbox about the mount at a path.
func mountOf(b *box, path string) args {
	b.t.Helper()
	list, _ := b.sandbox()["mounts"].([]any)
	for _, m := range list {
		if row := m.(args); row["path"] == path {
			return row
		}
	}
	return nil
}

func TestPromise26S3Bucket(t *testing.T) {
	srv, _, b := s3Site(t)

	b.call("mount_bucket", args{"path": "/data"})
	if m := mountOf(b, "/data"); m["state"] != "mounted" || m["by"] != "mount_bucket" {
		t.Errorf("get_sandbox: %v", m)
	}
	b.want("id -un; echo hello > /data/a.txt && mkdir /data/d && echo deep > /data/d/b && ls -A /data && cat /data/d/b", user+"\na.txt\nd\ndeep")
	if got := object(t, srv, "a.txt"); got != "hello\n" {
		t.Errorf("the bucket has %q", got)
	}
	if got := object(t, srv, "d/b"); got != "deep\n" {
		t.Errorf("the bucket has %q", got)
	}
	b.want("sudo cat /data/a.txt", "hello")

	again := b.call("mount_bucket", args{"path": "/data", "read_only": true})
	contains(t, again.Text, "replaced the mount of bucket/ (connection s3)")
	for _, name := range []string{"new", "a.txt"} {
		contains(t, b.refused("write_file", args{"path": "/data/" + name, "content": "x"}), "read-only file system")
	}

	b.call("unmount_bucket", args{"path": "/data"})
	b.want("ls -d /data 2>/dev/null || echo gone", "gone") // it was made for the mount
	if m := mountOf(b, "/data"); m != nil {
		t.Errorf("get_sandbox after unmount_bucket: %v", m)
	}
}

// bucketds are the programs that serve the session's buckets: children of its
// monitor.
func (s *site) bucketds(b *box) []int {
	b.t.Helper()
	monitor := fmt.Sprint(s.monitor(b)["monitor_pid"])
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	must(b.t, err)
	var pids []int
	for _, name := range found {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		head, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) < 2 || f[1] != monitor || f[0] == "Z" || !strings.Contains(head, "(bucketd") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		must(b.t, err)
		pids = append(pids, pid)
	}
	return pids
}

// mounted waits until the mount at a path answers.
func (b *box) mounted(path string) {
	b.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		m := mountOf(b, path)
		if m["state"] == "mounted" {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("%s is not mounted: %v", path, m)
		}
	}
}

func TestPromise28SeveralMounts(t *testing.T) {
	srv, _, b := s3Site(t)

	b.start(args{"mounts": args{"/bad": args{"connection": "s3", "bucket": "none-such"}, "/a": args{"connection": "s3", "prefix": "a/"}, "/ro": args{"connection": "s3", "read_only": true}}}, "created")
	bad := mountOf(b, "/bad")
	if bad["state"] != "error" || !strings.Contains(fmt.Sprint(bad["reason"]), "none-such") {
		t.Errorf("the failing mount: %v", bad)
	}
	// The first that is mounted is where commands start; the failing one takes
	// nothing that would be lost.
	b.want("pwd; echo x > f; until cat /ro/a/f 2>/dev/null; do sleep 0.2; done; (echo x > /ro/g) 2>/dev/null || echo refused; (echo x > /bad/g) 2>/dev/null || echo refused", "/a\nx\nrefused\nrefused")
	if got := object(t, srv, "a/f"); got != "x\n" {
		t.Errorf("the bucket has %q", got)
	}
	// Nothing outside of the prefix can be named.
	_, err := srv.Bucket(t).Put(context.Background(), "b/outside", strings.NewReader("x"), 1, objects.Options{})
	must(t, err)
	b.want("ls -A /a; ls /a/../b/outside 2>/dev/null || echo none", "f\nnone")
}

func TestPromise30MountAnyTime(t *testing.T) {
	_, _, b := s3Site(t)

	b.sh("mkdir -p ~/full ~/empty && echo mine > ~/full/f")
	contains(t, b.refused("mount_bucket", args{"path": home + "/full"}), "not empty")
	contains(t, b.refused("mount_bucket", args{"path": "/etc"}), "path")
	contains(t, b.refused("mount_bucket", args{"path": "relative"}), "path")
	contains(t, b.refused("mount_bucket", args{"path": "/x", "bucket": "none-such"}), "none-such")
	contains(t, b.refused("mount_bucket", args{"path": "/x", "connection": "none"}), "connection")
	b.want("cat ~/full/f; ls -d /x 2>/dev/null || echo none", "mine\nnone")

	b.call("mount_bucket", args{"path": home + "/empty"})
	contains(t, b.refused("mount_bucket", args{"path": home + "/empty/in"}), home+"/empty")
	p := b.call("spawn_process", args{"command": "sleep 600", "cwd": home + "/empty"})
	contains(t, b.refused("unmount_bucket", args{"path": home + "/empty"}), "sleep")
	b.call("kill_process", args{"process_id": p.Result.ProcessID})
	b.call("unmount_bucket", args{"path": home + "/empty"})
	b.want("ls -A ~/empty; pwd", home)
}

// With the network closed the bucket is served all the same: what serves it is
// outside. No key is inside, nor in what berth keeps or says.
func TestPromise36NothingInside(t *testing.T) {
	srv, s, b := s3Site(t)
	secret := string(srv.Job.Service.SecretAccessKey)

	b.start(onlyBuckets(args{"mounts": args{"/data": args{"connection": "s3"}}}), "created")
	b.sh("echo results > /data/out")
	if got := object(t, srv, "out"); got != "results\n" {
		t.Errorf("the bucket has %q", got)
	}
	inside := b.sh("sudo sh -c 'cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; cat /proc/self/mountinfo; grep -rs " + secret[:6] + " /etc /home /run /tmp /var/tmp /root; true' | tr '\\0' '\\n' | grep -v 'grep -rs'")
	for _, hidden := range []string{secret, srv.Job.Service.Endpoint, string(srv.Job.Service.AccessKeyID)} {
		if strings.Contains(inside, hidden) {
			t.Errorf("%s is seen inside", hidden)
		}
	}
	if atDaytona { // it is served from inside
		return
	}
	// Outside: no file of the state directory, and no process but the server,
	// which was given it in its environment.
	must(t, filepath.WalkDir(s.State, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // it has gone
		}
		if data, err := os.ReadFile(name); err == nil && bytes.Contains(data, []byte(secret)) {
			t.Errorf("%s has the key", name)
		}
		return nil
	}))
	pids := append(s.bucketds(b), pid(t, s.monitor(b)))
	if len(pids) != 2 {
		t.Fatalf("monitor and bucketd: %v", pids)
	}
	for _, pid := range pids {
		for _, file := range []string{"cmdline", "environ"} {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err == nil && bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s of %d has the key", file, pid)
			}
		}
	}
}

func pid(t *testing.T, monitor map[string]any) int {
	t.Helper()
	n, err := strconv.Atoi(fmt.Sprint(monitor["monitor_pid"]))
	must(t, err)
	return n
}

// Large data goes both ways, and sessions share it.
func TestPromise39Sessions(t *testing.T) {
	_, _, b := s3Site(t)
	other := b.other()

	b.call("mount_bucket", args{"path": "/data"})
	other.call("mount_bucket", args{"path": "/elsewhere", "read_only": true})
	sum := b.sh("head -c 40000000 /dev/urandom > /tmp/big && cp /tmp/big /data/big && sha256sum < /tmp/big")
	other.appears("/elsewhere/big")
	other.want("sha256sum < /elsewhere/big", sum)
	b.sh("mkdir /data/many; for i in $(seq 60); do echo $i > /data/many/$i; done; mv /data/many /data/all")
	other.appears("/elsewhere/all/60")
	other.want("cat /elsewhere/all/* | sort -n | tail -1; ls /elsewhere/all | wc -l", "60\n60")
}

// Mounts come back after a stop, and when the program that serves them dies.
func TestPromise74MountsComeBack(t *testing.T) {
	srv, s, b := s3Site(t)

	b.start(args{"mounts": args{"/data": args{"connection": "s3"}}}, "created")
	b.call("mount_bucket", args{"path": "/more", "prefix": "more/"})
	b.sh("echo kept > /data/f; echo deep > /more/g")
	b.call("stop_sandbox", nil)
	if got := object(t, srv, "more/g"); got != "deep\n" {
		t.Errorf("the bucket has %q", got)
	}
	if rest := mountOf(b, "/data"); rest["state"] != "pending" {
		t.Errorf("after the stop: %v", rest)
	}
	b.want("cat /data/f /more/g", "kept\ndeep")

	if atDaytona {
		b.want("sudo pkill -c -KILL -f '^bucketd serve'", "2")
		for _, path := range []string{"/data", "/more"} {
			if m := mountOf(b, path); m["state"] != "error" || !strings.Contains(fmt.Sprint(m["reason"]), "has ended") {
				t.Errorf("after the death of its server: %v", m)
			}
		}
		b.start(nil, "connected")
	} else {
		killed := s.bucketds(b)
		if len(killed) != 2 {
			t.Fatalf("two mounts are served by %v", killed)
		}
		for _, pid := range killed {
			must(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r := b.call("execute_command", args{"command": "cat /data/f /more/g"})
		if exit(r) == 0 && strings.TrimSpace(r.Output()) == "kept\ndeep" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the mounts do not come back: %s", r.Text)
		}
	}
	b.mounted("/data")
	b.mounted("/more")
	b.want("echo again > /data/f && cat /data/f", "again")

	// Another server finds them as they are.
	must(t, b.Close())
	c := b.as(s.dial(t, driver.Stdio))
	c.want("cat /data/f /more/g", "again\ndeep")
	c.call("unmount_bucket", args{"path": "/more"})
	c.call("stop_sandbox", nil)
	c.want("cat /data/f; ls -d /more 2>/dev/null || echo gone", "again\ngone")
}

// A berth with other settings, such as a command in another directory, takes
// nothing away that programs are using; one whose operator forbids it does.
func TestBerthWithOtherSettings(t *testing.T) {
	srv, s, b := s3Site(t)
	b.start(args{"mounts": args{"/data": args{"connection": "s3"}}}, "created")
	b.sh("echo one >/data/f")
	b.call("spawn_process", args{"command": "exec 3>>/data/log; while echo tick >&3; do sleep 0.1; done; echo lost >~/lost"})
	mine := s.Env
	wrong := func(name, value string) []string {
		return append(slices.DeleteFunc(slices.Clone(mine), func(v string) bool { return strings.HasPrefix(v, name+"=") }), name+"="+value)
	}
	for what, env := range map[string][]string{
		"no connection": slices.DeleteFunc(slices.Clone(mine), func(v string) bool { return strings.HasPrefix(v, "S3_") }),
		"a broken one":  wrong("S3_REGION", "no region at all"),
		"a wrong key":   wrong("S3_SECRET_ACCESS_KEY", "wrong-secret"),
		"no bucket":     wrong("S3_BUCKET", srv.Job.Bucket),
	} {
		s.Env = env
		c := b.as(s.dial(t, driver.Stdio))
		if r := c.call("execute_command", args{"command": "cat /data/f; ls ~/lost"}); !strings.Contains(r.Text, "one\n") {
			t.Errorf("%s: %s", what, r.Text)
		}
		c.start(nil, "connected")
		c.mounted("/data")
		must(t, c.Close())
	}
	s.Env = mine
	s.configured("limits:\n  buckets:\n    - connection: s3\n      bucket: another\n")
	c := b.as(s.dial(t, driver.Stdio))
	c.call("execute_command", args{"command": "true"})
	if m := mountOf(c, "/data"); m["state"] != "error" {
		t.Errorf("the operator allows it no more: %v", m)
	}
}

// A program inside mounts as libfuse does, through fusermount3. One that answers
// nothing stops neither berth's own file operations nor the end of the sandbox.
func TestFusermountInside(t *testing.T) {
	buckets(t)
	t.Parallel()
	b := newSite(t).dial(t, driver.Stdio)
	b.sh("mkdir ~/m ~/n")
	b.call("write_file", args{"path": home + "/mute.py", "content": `
import array, os, socket, subprocess, sys, time
ours, theirs = socket.socketpair()
os.set_inheritable(theirs.fileno(), True)
subprocess.run(["fusermount3", "-o", "rw,fsname=mute", "--", sys.argv[1]], env=dict(os.environ, _FUSE_COMMFD=str(theirs.fileno())), close_fds=False, check=True)
_, anc, _, _ = ours.recvmsg(16, socket.CMSG_SPACE(4))
fd = array.array("i", anc[0][2])[0]
init = os.read(fd, 1 << 17)
print("asked", int.from_bytes(init[4:8], "little"), flush=True)
time.sleep(600)
`})
	p := b.call("spawn_process", args{"command": "exec python3 ~/mute.py ~/m", "wait_for": "pattern", "pattern": `asked \d+\n`, "wait_seconds": 30})
	contains(t, p.Text, "asked 26") // FUSE_INIT
	b.want("grep -c ' fuse.* mute ' /proc/self/mountinfo; fusermount3 -u ~/m && grep -c ' mute ' /proc/self/mountinfo || true", "1\n0")
	b.call("kill_process", args{"process_id": p.Result.ProcessID})

	b.call("spawn_process", args{"command": "exec python3 ~/mute.py ~/n", "wait_for": "pattern", "pattern": `asked \d+\n`, "wait_seconds": 30})
	b.call("spawn_process", args{"command": "exec ls ~/n"}) // it waits for ever
	if !atDaytona {                                         // there the call is answered when its time is up
		contains(t, b.refused("read_file", args{"path": home + "/n/f"}), home+"/n")
	}
	b.want("echo alive", "alive")
	b.call("stop_sandbox", nil)
	b.want("ls -A ~/n", "")
}
