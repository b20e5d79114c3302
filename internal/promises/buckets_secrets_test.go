//go:build linux

package promises_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"berth/internal/buckettest"
	"berth/internal/driver"
)

// 36: no key is anywhere that anybody could look, after mounts that work, that are
// refused, that fail and that die; the server logs all it can.
func TestPromise36NoKeyAnywhere(t *testing.T) {
	notAtDaytona(t, "what serves a bucket is inside of the sandbox, with its keys; TestMountInside of sandbox/daytona looks for them")
	buckets(t)
	t.Parallel()
	srv := buckettest.S3(t)
	s := ownSite(t)
	log := filepath.Join(t.TempDir(), "log")
	config := filepath.Join(t.TempDir(), "berth.yaml")
	endpoint := srv.Job.Service.Endpoint
	keys := map[string]string{
		"the key":             string(srv.Job.Service.SecretAccessKey),
		"a wrong key":         "wrong-secret-Vq8",
		"an unknown key":      "unknown-secret-Vq9",
		"an inline key":       "inline-secret-Vq1",
		"a Google key":        "google-secret-Vq2",
		"an Azure key":        "YXp1cmUtc2VjcmV0LVZxMw==",
		"an Azure signature":  "azure-signature-Vq4",
		"a session's token":   "session-token-Vq5",
		"a connection string": "Y29ubmVjdGlvbi1zZWNyZXQtVnE2",
	}
	text := fmt.Sprintf(`
log: {level: debug, format: json}
limits: {inline_credentials: true}
connections:
  good: {kind: s3, endpoint: %[1]q, region: us-east-1, access_key_id: %[2]q, secret_access_key: "${GOOD}", bucket: bucket}
  wrong: {kind: s3, endpoint: %[1]q, region: us-east-1, access_key_id: %[2]q, secret_access_key: %[3]q, bucket: bucket}
  unknown: {kind: s3, endpoint: %[1]q, region: us-east-1, access_key_id: nobody, secret_access_key: %[4]q, bucket: bucket}
  token: {kind: s3, endpoint: %[1]q, region: us-east-1, access_key_id: %[2]q, secret_access_key: "${GOOD}", session_token: %[5]q, bucket: bucket}
  gone: {kind: s3, endpoint: "http://127.0.0.1:9", region: us-east-1, access_key_id: %[2]q, secret_access_key: "${GOOD}", bucket: bucket}
  google: {kind: gcs, endpoint: %[1]q, service_account_key: %[6]q, bucket: bucket}
  azure: {kind: azure, endpoint: %[7]q, account: account, account_key: %[8]q, bucket: bucket}
  signature: {kind: azure, endpoint: %[7]q, account: account, sas_token: "sv=2024&sig=%[9]s", bucket: bucket}
  string: {kind: azure, connection_string: "AccountName=account;AccountKey=%[10]s;BlobEndpoint=%[7]s", bucket: bucket}
`, endpoint, string(srv.Job.Service.AccessKeyID), keys["a wrong key"], keys["an unknown key"], keys["a session's token"],
		`{"type":"service_account","client_email":"x@y","token_uri":"`+endpoint+`","private_key":"`+keys["a Google key"]+`"}`,
		endpoint+"/account", keys["an Azure key"], keys["an Azure signature"], keys["a connection string"])
	must(t, os.WriteFile(config, []byte(text), 0o600))
	s.Args = append(s.Args, "--config", config)
	s.Env = append(s.Env, "GOOD="+keys["the key"])
	out, err := os.Create(log)
	must(t, err)
	t.Cleanup(func() { _ = out.Close() })
	s.Stderr = out
	server := s.listen(t)
	b := connect(t, server, driver.HTTP)

	var seen strings.Builder // all that a client is told
	note := func(a *driver.Answer) { fmt.Fprintf(&seen, "%s\n%+v\n", a.Text, a.Result) }
	note(b.start(args{"mounts": args{"/good": args{"connection": "good"}}}, "created"))
	b.sh("echo results > /good/out")
	for _, c := range []string{"wrong", "unknown", "token", "gone", "google", "azure", "signature", "string"} {
		seen.WriteString(b.refused("mount_bucket", args{"path": "/" + c, "connection": c}) + "\n")
	}
	for _, inline := range []args{
		{"access_key_id": "x", "secret_access_key": keys["an inline key"], "endpoint": endpoint, "bucket": "bucket"},
		{"access_key_id": "x", "secret_access_key": keys["an inline key"], "no_such_field": keys["an inline key"]},
	} {
		seen.WriteString(b.refused("mount_bucket", args{"path": "/inline", "connection": "s3", "bucket": "bucket", "credentials": inline}) + "\n")
	}
	// bucketd dies, and another takes its place.
	pids := s.bucketds(b)
	if len(pids) != 1 {
		t.Fatalf("bucketd: %v", pids)
	}
	processes := append(pids, pid(t, s.monitor(b)))
	fmt.Fprintf(&seen, "%v\n", b.sandbox())
	note(b.call("list_sandboxes", nil))
	note(b.call("list_processes", nil))

	look := func(where string, data []byte) {
		for what, key := range keys {
			if bytes.Contains(data, []byte(key)) {
				t.Errorf("%s has %s", where, what)
			}
		}
	}
	look("an answer", []byte(seen.String()))
	for _, path := range []string{"/metrics", "/healthz"} {
		resp, err := http.Get(server.URL + path)
		must(t, err)
		data, err := io.ReadAll(resp.Body)
		must(t, err)
		_ = resp.Body.Close()
		look(path, data)
	}
	events, err := cli(s.State, "events", b.id)
	must(t, err)
	look("berth events", []byte(events))
	doctor, _ := cli(s.State, "doctor", "--json") // it may find faults here
	look("berth doctor", []byte(doctor))
	logged, err := os.ReadFile(log)
	must(t, err)
	if !bytes.Contains(logged, []byte(`"level":"DEBUG"`)) {
		t.Error("the server logs nothing at level debug")
	}
	look("the log", logged)

	must(t, filepath.WalkDir(s.State, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // it has gone
		}
		if data, err := os.ReadFile(name); err == nil {
			look(name, data)
		}
		return nil
	}))
	// Not the server, which was given it in its environment.
	for _, pid := range processes {
		dir := fmt.Sprintf("/proc/%d/", pid)
		for _, file := range []string{"cmdline", "environ"} {
			if data, err := os.ReadFile(dir + file); err == nil {
				look(dir+file, data)
			}
		}
		lookAtDescriptors(t, dir+"fd", look)
	}
	for _, pid := range pids {
		if limit, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)); err != nil || !strings.Contains(strings.Join(strings.Fields(string(limit)), " "), "Max core file size 0 0") {
			t.Errorf("bucketd may leave a core dump: %s, %v", limit, err)
		}
		// Who may not be dumped belongs to root, and opens its memory to nobody else.
		info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", pid))
		must(t, err)
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
			t.Errorf("bucketd's /proc belongs to %d: it can be dumped", owner)
		}
	}

	inside := b.sh("sudo sh -c 'cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/mountinfo; for d in /etc /home /run /tmp /var/tmp /var/log /root /workspace; do grep -rhsa -e -Vq -e secret-7Zq $d; done; ls -l /proc/[0-9]*/fd; true' 2>/dev/null | tr '\\0' '\\n' | grep -v 'grep -rhsa'; true")
	look("the inside", []byte(inside))
	for what, hidden := range map[string]string{"the endpoint": endpoint, "the key's name": string(srv.Job.Service.AccessKeyID)} {
		if strings.Contains(inside, hidden) {
			t.Errorf("%s is seen inside", what)
		}
	}
	// Nor when bucketd has crashed.
	must(t, syscall.Kill(pids[0], syscall.SIGKILL))
	b.want("for i in $(seq 300); do cat /good/out 2>/dev/null && exit; sleep 0.1; done; exit 1", "results")
	must(t, filepath.WalkDir(s.State, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if data, err := os.ReadFile(name); err == nil {
				look(name, data)
			}
		}
		return nil
	}))
}

// lookAtDescriptors reads what files a process has open, also those that have no
// name any more.
func lookAtDescriptors(t *testing.T, dir string, look func(string, []byte)) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // an ordinary user does not see those of who may not be dumped
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		name := filepath.Join(dir, e.Name())
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() || info.Size() > 64<<20 {
			continue
		}
		if data, err := os.ReadFile(name); err == nil {
			look(name, data)
		}
	}
}
