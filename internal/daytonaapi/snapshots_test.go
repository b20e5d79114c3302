//go:build linux

package daytonaapi_test

import (
	"archive/tar"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/internal/daytonaapi"
)

// s3 is a client of the object storage, with the signature written down anew.
type s3 struct {
	t                                *testing.T
	access, secret, token, base, org string
}

func (a *api) s3() *s3 {
	a.t.Helper()
	o := a.do(http.StatusOK, "GET", "/api/object-storage/push-access", nil)
	return &s3{a.t, o["accessKey"].(string), o["secret"].(string), o["sessionToken"].(string), o["storageUrl"].(string) + "/" + o["bucket"].(string), o["organizationId"].(string)}
}

func sign(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// send makes a signed request; spoil may change it after that.
func (c *s3) send(method, key, query string, body []byte, spoil func(*http.Request)) (int, string) {
	c.t.Helper()
	u, err := url.Parse(c.base)
	if err != nil {
		c.t.Fatal(err)
	}
	path := u.Path
	if key != "" {
		path += "/" + key
	}
	target := "http://" + u.Host + path
	if query != "" {
		target += "?" + query
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, target, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	now := time.Now().UTC()
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	date, stamp := now.Format("20060102"), now.Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", stamp)
	req.Header.Set("X-Amz-Content-Sha256", hash)
	req.Header.Set("X-Amz-Security-Token", c.token)
	const names = "host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
	canonical := strings.Join([]string{method, path, query, "host:" + u.Host, "x-amz-content-sha256:" + hash, "x-amz-date:" + stamp, "x-amz-security-token:" + c.token, "", names, hash}, "\n")
	sum = sha256.Sum256([]byte(canonical))
	scope := date + "/us-east-1/s3/aws4_request"
	k := sign([]byte("AWS4"+c.secret), date)
	for _, part := range []string{"us-east-1", "s3", "aws4_request", "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hex.EncodeToString(sum[:])} {
		k = sign(k, part)
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+c.access+"/"+scope+", SignedHeaders="+names+", Signature="+hex.EncodeToString(k))
	if spoil != nil {
		spoil(req)
	}
	resp, err := http.DefaultTransport.RoundTrip(req) //nolint:forbidigo // a test's
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(out)
}

// archive is a tar of files.
func archive(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestStorage(t *testing.T) {
	a := newAPI(t)
	c := a.s3()
	key := c.org + "/0123abcd/context.tar"
	list := "list-type=2&max-keys=1&prefix=" + url.QueryEscape(c.org+"/0123abcd/")
	if status, text := c.send("GET", "", list, nil, nil); status != http.StatusOK || !strings.Contains(text, "<KeyCount>0</KeyCount>") {
		t.Errorf("an empty list: got %d %s", status, text)
	}
	if status, text := c.send("PUT", key, "", []byte("content"), nil); status != http.StatusOK {
		t.Errorf("put: got %d %s", status, text)
	}
	if status, text := c.send("GET", "", list, nil, nil); status != http.StatusOK || !strings.Contains(text, "<Key>"+key+"</Key>") {
		t.Errorf("the list: got %d %s", status, text)
	}
	if status, text := c.send("GET", key, "", nil, nil); status != http.StatusOK || text != "content" {
		t.Errorf("get: got %d %s", status, text)
	}
	// In parts, which come in any order.
	_, text := c.send("POST", c.org+"/parts/context.tar", "uploads=", nil, nil)
	_, id, _ := strings.Cut(text, "<UploadId>")
	id, _, _ = strings.Cut(id, "<")
	for _, n := range []int{2, 10, 1} {
		if status, text := c.send("PUT", c.org+"/parts/context.tar", fmt.Sprintf("partNumber=%d&uploadId=%s", n, id), fmt.Appendf(nil, "part %d;", n), nil); status != http.StatusOK {
			t.Errorf("part: got %d %s", status, text)
		}
	}
	if status, text := c.send("POST", c.org+"/parts/context.tar", "uploadId="+id, []byte("<x/>"), nil); status != http.StatusOK {
		t.Errorf("complete: got %d %s", status, text)
	}
	if _, text := c.send("GET", c.org+"/parts/context.tar", "", nil, nil); text != "part 1;part 2;part 10;" {
		t.Errorf("the parts came to %q", text)
	}
	for name, tt := range map[string]struct {
		key   string
		spoil func(*http.Request)
	}{
		"signature": {key, func(r *http.Request) {
			r.Header.Set("Authorization", r.Header.Get("Authorization")[:len(r.Header.Get("Authorization"))-1]+"x")
		}},
		"none":   {key, func(r *http.Request) { r.Header.Del("Authorization") }},
		"token":  {key, func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", c.token+"x") }},
		"date":   {key, func(r *http.Request) { r.Header.Set("X-Amz-Date", "20200101T000000Z") }},
		"path":   {key, func(r *http.Request) { r.URL.Path = strings.Replace(r.URL.Path, "0123", "4567", 1) }},
		"body":   {key, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("CONTENT")) }},
		"others": {"another/0123abcd/context.tar", nil},
		"escape": {c.org + "/../x/context.tar", nil},
		"name":   {c.org + "/0123abcd/other", nil},
	} {
		if status, text := c.send("PUT", tt.key, "", []byte("content"), tt.spoil); status != http.StatusForbidden {
			t.Errorf("a foreign %s: got %d %s", name, status, text)
		}
	}
	if _, text := c.send("GET", key, "", nil, nil); text != "content" {
		t.Errorf("what was refused changed it to %q", text)
	}
}

// state waits for a snapshot's state.
func (a *api) snapshotUntil(name, state string) object {
	a.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		o := a.do(http.StatusOK, "GET", "/api/snapshots/"+url.PathEscape(name), nil)
		if o["state"] == state {
			return o
		}
		if time.Now().After(end) {
			a.t.Fatalf("%s is not %s: %v", name, state, o)
		}
	}
}

const dockerfileText = `FROM snapshot:daytona-small
COPY app/run.sh /usr/local/bin/run
RUN echo built by $(id -un) | sudo tee /built
ENV GREETING=hello
CMD ["run"]
`

func TestBuild(t *testing.T) {
	a := newAPI(t)
	c := a.s3()
	if status, text := c.send("PUT", c.org+"/abc/context.tar", "", archive(t, map[string]string{"app/run.sh": "#!/bin/sh\necho $GREETING world\n"}), nil); status != http.StatusOK {
		t.Fatalf("got %d %s", status, text)
	}
	build := object{"dockerfileContent": dockerfileText, "contextHashes": []string{"abc"}}
	made := a.do(http.StatusOK, "POST", "/api/snapshots", object{"name": "team/app:1.0", "buildInfo": build})
	if made["general"] != false || made["name"] != "team/app:1.0" {
		t.Errorf("made %v", made)
	}
	link := a.do(http.StatusOK, "GET", "/api/snapshots/"+made["id"].(string)+"/build-logs-url", nil)["url"].(string)
	_, log := a.send(a.token, "GET", strings.TrimPrefix(link, a.http.URL)+"?follow=true", nil)
	if !strings.Contains(string(log), "built by daytona") || !strings.Contains(string(log), "no effect here: CMD") {
		t.Errorf("the log is %s", log)
	}
	a.snapshotUntil("team/app:1.0", "active")
	a.refused(http.StatusConflict, "POST", "/api/snapshots", object{"name": "team/app:1.0", "buildInfo": build}, "already exists")
	box := a.create(object{"snapshot": "team/app:1.0"})
	if got := a.run(box["id"].(string), "run; cat /built; id -un"); got != "hello world\nbuilt by daytona\ndaytona" {
		t.Errorf("got %q", got)
	}
	if box["snapshot"] != "team/app:1.0" {
		t.Errorf("its snapshot is %v", box["snapshot"])
	}
	// A sandbox of the same, built by itself.
	own := a.do(http.StatusOK, "POST", "/api/sandbox", object{"buildInfo": build})
	if own["state"] != "pending_build" { // what the SDKs read the log for
		t.Errorf("it is %v at first", own["state"])
	}
	own = a.until(own["id"].(string), "started")
	if got := a.run(own["id"].(string), "run"); got != "hello world" {
		t.Errorf("got %q", got)
	}
	if info := own["buildInfo"].(object); info["dockerfileContent"] != dockerfileText || !strings.HasPrefix(info["snapshotRef"].(string), "daytona-") {
		t.Errorf("its build is %v", info)
	}
	if list := a.do(http.StatusOK, "GET", "/api/snapshots?name=app", nil); list["total"] != 1. {
		t.Errorf("the list is %v", list)
	}
	a.refused(http.StatusBadRequest, "DELETE", "/api/snapshots/team%2Fapp:1.0", nil, "no snapshot's id")
	a.refused(http.StatusConflict, "DELETE", "/api/snapshots/"+made["id"].(string), nil, "in use")
	a.do(http.StatusOK, "DELETE", "/api/sandbox/"+box["id"].(string), nil)
	a.until(box["id"].(string), "gone")
	a.do(http.StatusOK, "DELETE", "/api/snapshots/"+made["id"].(string), nil)
	a.refused(http.StatusNotFound, "GET", "/api/snapshots/"+made["id"].(string), nil)
}

// What is kept of a request, in memory and for as long as nobody deletes it, is
// bounded; and an upload is read once, however often it is named.
func TestLargeRequestsAreRefused(t *testing.T) {
	a := newAPI(t)
	long := strings.Repeat("x", 300<<10)
	a.refused(http.StatusBadRequest, "POST", "/api/snapshots", object{"name": "a", "imageName": "debian:12", "entrypoint": []string{long}}, "262144")
	a.refused(http.StatusBadRequest, "POST", "/api/snapshots", object{"name": "a", "buildInfo": object{"dockerfileContent": "FROM snapshot:daytona-small\n#" + long}}, "262144")
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox", object{"name": "a", "target": long}, "262144")
	if list := a.do(http.StatusOK, "GET", "/api/sandbox", nil); len(list["items"].([]any)) != 0 {
		t.Errorf("there are %v", list)
	}

	c := a.s3()
	if status, text := c.send("PUT", c.org+"/abc/context.tar", "", archive(t, map[string]string{"f": long}), nil); status != http.StatusOK {
		t.Fatalf("got %d %s", status, text)
	}
	hashes := slices.Repeat([]string{"abc"}, 1_000_000) // 300 GB, read again each time
	a.refused(http.StatusBadRequest, "POST", "/api/snapshots", object{"name": "a", "buildInfo": object{"dockerfileContent": "FROM snapshot:daytona-small\nCOPY f /\n", "contextHashes": hashes}}, "262144")

	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: strings.Repeat("d/", 4000) + "f", Format: tar.FormatPAX}), w.Close()); err != nil {
		t.Fatal(err)
	}
	if status, text := c.send("PUT", c.org+"/long/context.tar", "", b.Bytes(), nil); status != http.StatusOK {
		t.Fatalf("got %d %s", status, text)
	}
	a.refused(http.StatusBadRequest, "POST", "/api/snapshots", object{"name": "a", "buildInfo": object{"dockerfileContent": "FROM snapshot:daytona-small", "contextHashes": []string{"long"}}}, "4096 bytes")
}

// A build that prints without end costs the server no more than it prints.
func TestLongBuildLog(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	end, kept := daytonaapi.FillBuildLog(strings.Repeat("a", 99), 100_000)
	runtime.ReadMemStats(&after)
	if made := after.TotalAlloc - before.TotalAlloc; end != 10_000_000 || kept < 2<<20 || kept > 4<<20 || made > 200<<20 {
		t.Errorf("10 MB: the end is at %d, %d bytes are kept, and %d were taken for it", end, kept, made)
	}
}

func TestBuildFails(t *testing.T) {
	a := newAPI(t)
	build := object{"dockerfileContent": "FROM snapshot:daytona-small\nRUN echo before; exit 3\n"}
	id := a.do(http.StatusOK, "POST", "/api/snapshots", object{"name": "bad", "buildInfo": build})["id"].(string)
	o := a.snapshotUntil("bad", "build_failed")
	if reason, _ := o["errorReason"].(string); !strings.Contains(reason, "exited with 3") {
		t.Errorf("the reason is %v", o["errorReason"])
	}
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox", object{"snapshot": "bad"}, "not active", "build_failed")
	box := a.do(http.StatusOK, "POST", "/api/sandbox", object{"name": "bad", "buildInfo": build})["id"].(string)
	if got := a.until(box, "build_failed"); !strings.Contains(fmt.Sprint(got["errorReason"]), "exited with 3") {
		t.Errorf("the sandbox is %v", got)
	}
	a.stop()
	a.serve() // that it failed is known after a restart
	a.snapshotUntil("bad", "build_failed")
	a.until("bad", "build_failed")
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox/bad/start", nil, "build_failed", "exited with 3")
	a.do(http.StatusOK, "DELETE", "/api/sandbox/"+box, nil)
	a.until(box, "gone")
	a.do(http.StatusOK, "DELETE", "/api/snapshots/"+id, nil)
	for _, b := range []object{{"dockerfileContent": "RUN true"}, {"dockerfileContent": "FROM x\nFROM y"}, {"dockerfileContent": "FROM x", "contextHashes": []string{"none"}}, {"dockerfileContent": "FROM x", "contextHashes": []string{"../x"}}} {
		a.refused(http.StatusBadRequest, "POST", "/api/snapshots", object{"name": "x", "buildInfo": b})
		a.refused(http.StatusBadRequest, "POST", "/api/sandbox", object{"name": "x", "buildInfo": b})
	}
	for _, r := range []object{{"name": "x"}, {"name": "x", "imageName": "debian"}, {"name": "x", "imageName": "debian:latest"}, {"name": "x", "imageName": "http://x/y:1"}, {"name": "a b", "imageName": "debian:12"},
		{"name": "daytona-small", "imageName": "debian:12"}, {"name": "x", "imageName": "debian:12", "buildInfo": build}} {
		a.refused(http.StatusBadRequest, "POST", "/api/snapshots", r)
	}
}

// TestBuildGoesOn: a server that ends in the middle of a build has its successor
// finish it, and a build can be ended by deleting what it is for.
func TestBuildGoesOn(t *testing.T) {
	a := newAPI(t)
	build := object{"dockerfileContent": "FROM snapshot:daytona-small\nRUN sleep 2; echo done | sudo tee /done\n"}
	a.do(http.StatusOK, "POST", "/api/snapshots", object{"name": "slow", "buildInfo": build})
	box := a.do(http.StatusOK, "POST", "/api/sandbox", object{"name": "slow", "buildInfo": build})["id"].(string)
	a.stop()
	a.serve()
	a.snapshotUntil("slow", "active")
	a.until(box, "started")
	if got := a.run(box, "cat /done"); got != "done" {
		t.Errorf("got %q", got)
	}
	build["dockerfileContent"] = "FROM snapshot:daytona-small\nRUN sleep 1000\n"
	id := a.do(http.StatusOK, "POST", "/api/snapshots", object{"name": "endless", "buildInfo": build})["id"].(string)
	box = a.do(http.StatusOK, "POST", "/api/sandbox", object{"name": "endless", "buildInfo": build})["id"].(string)
	a.do(http.StatusOK, "DELETE", "/api/snapshots/"+id, nil)
	a.do(http.StatusOK, "DELETE", "/api/sandbox/"+box, nil)
	a.until(box, "gone")
	a.refused(http.StatusNotFound, "GET", "/api/snapshots/endless", nil)
}

func TestSnapshotOfSandbox(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{})["id"].(string)
	a.run(id, "echo precious > f")
	a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/snapshot", object{"name": "kept"})
	if got := a.snapshotUntil("kept", "active"); got["sourceSandboxId"] != id {
		t.Errorf("it is %v", got)
	}
	a.until(id, "started")
	of := a.create(object{"snapshot": "kept"})["id"].(string)
	if got := a.run(of, "cat f; id -un"); got != "precious\ndaytona" {
		t.Errorf("got %q", got)
	}
	a.refused(http.StatusConflict, "POST", "/api/sandbox/"+id+"/snapshot", object{"name": "kept"}, "already exists")
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox/"+id+"/snapshot", object{"name": "x", "includeMemory": true})
}
