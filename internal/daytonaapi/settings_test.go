//go:build linux

package daytonaapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
)

// run runs a shell command in a sandbox, as an SDK's user would, and returns
// what it printed.
func (a *api) run(id, command string) string {
	a.t.Helper()
	res, err := a.m.ExecuteCommand(a.t.Context(), sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)}, sandbox.RunRequest{Command: command})
	if err != nil {
		a.t.Fatalf("%s: %v", command, err)
	}
	if c := res.Process.ExitCode; c == nil || *c != 0 {
		a.t.Fatalf("%s: exit %v, %s %s", command, c, res.Stdout.Head, res.Stderr.Head)
	}
	return strings.TrimSpace(res.Stdout.Head)
}

func TestUser(t *testing.T) {
	a := newAPI(t)
	o := a.create(object{})
	if got := a.run(o["id"].(string), "id -un; pwd; echo $HOME $DAYTONA_SANDBOX_USER $DAYTONA_SANDBOX_SNAPSHOT"); got != "daytona\n/home/daytona\n/home/daytona daytona daytona-small" || o["user"] != "daytona" {
		t.Errorf("the user is %q, and told %v", got, o["user"])
	}
	if got := a.run(a.create(object{"user": "root"})["id"].(string), "id -un"); got != "root" {
		t.Errorf("asked for root: got %q", got)
	}
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox", object{"user": "somebody"}, "user", "daytona, root")
}

// TestSettings changes a sandbox that runs and one that is stopped, and starts
// neither.
func TestSettings(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{"labels": object{"a": "1", "b": "2"}, "name": "set"})["id"].(string)
	change := func(state string) {
		t.Helper()
		at := "/api/sandbox/" + id
		if got := a.do(http.StatusOK, "PUT", at+"/labels", object{"labels": object{"c": state}})["labels"].(object); len(got) != 1 || got["c"] != state {
			t.Errorf("labels are %v", got)
		}
		for path, want := range map[string]object{
			"/autostop/0": {"autoStopInterval": 0.}, "/autostop/42": {"autoStopInterval": 42.}, "/autoarchive/0": {"autoArchiveInterval": 43200.}, "/autoarchive/60": {"autoArchiveInterval": 60.},
			"/autodelete/90": {"autoDeleteInterval": 90.}, "/autodelete/-7": {"autoDeleteInterval": -1.}, "/public/true": {"public": true}, "/public/false": {"public": false},
		} {
			got := a.do(http.StatusCreated, "POST", at+path, nil)
			for k, v := range want {
				if got[k] != v {
					t.Errorf("%s: %s is %v, want %v", path, k, got[k], v)
				}
			}
		}
		a.do(http.StatusCreated, "POST", at+"/last-activity", nil)
		for _, path := range []string{"/autostop/-1", "/autostop/x", "/autoarchive/-1", "/autodelete/x", "/public/maybe"} {
			a.refused(http.StatusBadRequest, "POST", at+path, nil)
		}
		a.refused(http.StatusBadRequest, "PUT", at+"/labels", object{})
		if got := a.do(http.StatusOK, "GET", at, nil)["state"]; got != state {
			t.Errorf("it is %v after that, want %s", got, state)
		}
	}
	change("started")
	a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/stop", nil)
	a.until(id, "stopped")
	change("stopped")
}

func TestNetworkSettings(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{"networkBlockAll": true, "networkAllowList": "1.2.3.4/32"})["id"].(string)
	at := "/api/sandbox/" + id
	want := func(o object, block bool, allow, domains string) {
		t.Helper()
		got := fmt.Sprint(o["networkBlockAll"], o["networkAllowList"], o["domainAllowList"])
		none := func(s string) any {
			if s == "" {
				return nil
			}
			return s
		}
		if w := fmt.Sprint(block, none(allow), none(domains)); got != w {
			t.Errorf("got %s, want %s", got, w)
		}
	}
	want(a.do(http.StatusOK, "GET", at, nil), true, "", "")
	set := func(body object) object { return a.do(http.StatusOK, "POST", at+"/network-settings", body) }
	want(set(object{"networkAllowList": "1.2.3.4/32, 5.6.0.0/16"}), false, "1.2.3.4/32,5.6.0.0/16", "")
	want(set(object{"domainAllowList": "example.com,*.example.org"}), false, "1.2.3.4/32,5.6.0.0/16", "example.com,*.example.org")
	want(set(object{"networkAllowList": ""}), false, "", "example.com,*.example.org")
	want(set(object{"networkBlockAll": true, "networkAllowList": "9.9.9.9/32"}), true, "", "")
	want(set(object{"networkBlockAll": false}), false, "", "")
	a.refused(http.StatusBadRequest, "POST", at+"/network-settings", object{}, "must be given")
	a.refused(http.StatusBadRequest, "POST", at+"/network-settings", object{"networkAllowList": "::1/128"}, "networkAllowList")
}

// fetch gets a URL of a preview; a name below localhost is this machine's.
func fetch(t *testing.T, address string, header map[string]string) (int, string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	host := u.Host
	u.Host = "127.0.0.1:" + u.Port()
	req, err := http.NewRequestWithContext(t.Context(), "GET", u.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := (&http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestPreviews(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{})["id"].(string)
	at := "/api/sandbox/" + id
	key := sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)}
	port := 20000 + int(owners.Add(1))
	if _, err := a.m.SpawnProcess(t.Context(), key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{
		Command: fmt.Sprintf("mkdir www; cd www; echo shown > f; exec python3 -m http.server %d", port)}}); err != nil {
		t.Fatal(err)
	}
	ports := fmt.Sprintf("%s/ports/%d", at, port)
	link := a.do(http.StatusOK, "GET", ports+"/preview-url", nil)
	address, token := link["url"].(string), link["token"].(string)
	if link["sandboxId"] != id || token == "" {
		t.Errorf("the link is %v", link)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if status, text := fetch(t, address+"/f", map[string]string{"X-Daytona-Preview-Token": token}); status == http.StatusOK && text == "shown\n" {
			break
		} else if time.Now().After(end) {
			t.Fatalf("with the token: got %d %s", status, text)
		}
	}
	if status, _ := fetch(t, address+"/f", nil); status != http.StatusUnauthorized {
		t.Errorf("without a token: got %d", status)
	}
	if status, text := fetch(t, address+"/f?DAYTONA_SANDBOX_AUTH_KEY="+token, nil); status != http.StatusOK || text != "shown\n" {
		t.Errorf("with the token in the query: got %d %s", status, text)
	}
	signed := a.do(http.StatusOK, "GET", ports+"/signed-preview-url?expiresInSeconds=600", nil)
	if status, text := fetch(t, signed["url"].(string)+"/f", nil); status != http.StatusOK || text != "shown\n" {
		t.Errorf("signed: got %d %s", status, text)
	}
	a.stop()
	a.serve() // a restart of the server ends none
	if _, err := a.ports.Open(t.Context(), mustPort(t, a, key, port)); err != nil {
		t.Fatal(err)
	}
	if status, _ := fetch(t, signed["url"].(string)+"/f", nil); status != http.StatusOK {
		t.Errorf("signed, after a restart: got %d", status)
	}
	a.do(http.StatusCreated, "POST", ports+"/signed-preview-url/"+signed["token"].(string)+"/expire", nil)
	if status, _ := fetch(t, signed["url"].(string)+"/f", nil); status != http.StatusNotFound {
		t.Errorf("expired: got %d", status)
	}
	a.refused(http.StatusNotFound, "POST", ports+"/signed-preview-url/"+signed["token"].(string)+"/expire", nil)
	a.do(http.StatusCreated, "POST", at+"/public/true", nil)
	if status, _ := fetch(t, address+"/f", nil); status != http.StatusOK {
		t.Errorf("public: got %d", status)
	}
	// A stopped one is not started by asking.
	a.do(http.StatusOK, "POST", at+"/stop", nil)
	a.until(id, "stopped")
	a.do(http.StatusOK, "GET", at+"/ports/9000/preview-url", nil)
	a.until(id, "stopped")
	for _, port := range []string{"0", "65536", "x"} {
		a.refused(http.StatusBadRequest, "GET", at+"/ports/"+port+"/preview-url", nil, "no port")
	}
	a.refused(http.StatusBadRequest, "GET", ports+"/signed-preview-url?expiresInSeconds=86401", nil, "expiresInSeconds")
}

func mustPort(t *testing.T, a *api, key sandbox.Key, number int) sandbox.Port {
	t.Helper()
	info, err := a.m.GetSandbox(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range info.Ports {
		if int(p.Number) == number {
			return p
		}
	}
	t.Fatalf("port %d is not exposed", number)
	return sandbox.Port{}
}

func TestVolumes(t *testing.T) {
	a := newAPI(t)
	v := a.do(http.StatusOK, "POST", "/api/volumes", object{"name": "Shared Data"})
	id := v["id"].(string)
	if v["state"] != "ready" || v["name"] != "Shared Data" {
		t.Errorf("the new volume is %v", v)
	}
	a.refused(http.StatusBadRequest, "POST", "/api/volumes", object{"name": "Shared Data"}, "already exists")
	a.refused(http.StatusBadRequest, "POST", "/api/volumes", object{}, "name")
	if got := a.do(http.StatusOK, "GET", "/api/volumes/by-name/Shared%20Data", nil); got["id"] != id {
		t.Errorf("by name: %v", got)
	}
	one := a.create(object{"volumes": []object{{"volumeId": id, "mountPath": "/data", "subpath": "a/b"}}})
	if got := fmt.Sprint(one["volumes"]); got != fmt.Sprint([]any{object{"volumeId": id, "mountPath": "/data", "subpath": "a/b"}}) {
		t.Errorf("its volumes are %s", got)
	}
	a.run(one["id"].(string), "echo kept > /data/f")
	two := a.create(object{"volumes": []object{{"volumeId": "Shared Data", "mountPath": "/mnt/all"}}})
	if got := a.run(two["id"].(string), "cat /mnt/all/a/b/f"); got != "kept" {
		t.Errorf("got %q", got)
	}
	a.refused(http.StatusConflict, "DELETE", "/api/volumes/"+id, nil, "in use", "try again in a moment")
	for _, o := range []object{one, two} {
		a.do(http.StatusOK, "DELETE", "/api/sandbox/"+o["id"].(string), nil)
		a.until(o["id"].(string), "gone")
	}
	a.do(http.StatusOK, "DELETE", "/api/volumes/"+id, nil)
	a.refused(http.StatusNotFound, "GET", "/api/volumes/"+id, nil)
	a.refused(http.StatusNotFound, "POST", "/api/sandbox", object{"volumes": []object{{"volumeId": id, "mountPath": "/data"}}}, "not found")
	a.do(http.StatusOK, "POST", "/api/volumes", object{"name": "v"})
	for _, m := range []object{{"mountPath": "/"}, {"mountPath": "data"}, {"mountPath": "/etc/x"}, {"mountPath": "/a//b"}, {"mountPath": "/a/../b"}, {"mountPath": "/a", "subpath": "../x"}, {"mountPath": "/a", "subpath": "/x"}} {
		m["volumeId"] = "v"
		a.refused(http.StatusBadRequest, "POST", "/api/sandbox", object{"volumes": []object{m}}, "volumes.")
	}
}

func TestFork(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{"name": "first", "labels": object{"l": "1"}})["id"].(string)
	a.run(id, "echo precious > f")
	fork := a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/fork", object{"name": "second"})
	to := fork["id"].(string)
	if fork["name"] != "second" || fork["state"] != "started" || fork["labels"].(object)["l"] != "1" {
		t.Errorf("the fork is %v", fork)
	}
	if got := a.run(to, "cat f; id -un; echo $DAYTONA_SANDBOX_ID"); got != "precious\ndaytona\n"+to {
		t.Errorf("got %q", got)
	}
	if got := a.do(http.StatusOK, "GET", "/api/sandbox/"+to+"/parent", nil); got["id"] != id {
		t.Errorf("its parent is %v", got["id"])
	}
	a.refused(http.StatusConflict, "POST", "/api/sandbox/"+id+"/fork", object{"name": "second"}, "already exists")
	a.refused(http.StatusNotFound, "GET", "/api/sandbox/"+id+"/parent", nil)
}

// A running sandbox gets other limits where cgroups hold them; where they do not,
// and for the disk, the answer says why, and nothing is changed.
func TestResize(t *testing.T) {
	a := newAPI(t)
	o := a.create(object{})
	id := o["id"].(string)
	path := "/api/sandbox/" + id + "/resize"
	for body, want := range map[string]string{`{}`: "cpu, memory and disk", `{"memory": -1}`: "memory", `{"cpu": 100000}`: "cpu", `{"disk": 5}`: "disk", `{"memory": "x"}`: "memory"} {
		a.refused(http.StatusBadRequest, "POST", path, body, want)
	}
	held := map[string]sandbox.Enforcement{}
	info, err := a.m.GetSandbox(t.Context(), sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range info.Guarantees {
		held[g.Name] = g.State
	}
	a.refused(http.StatusUnprocessableEntity, "POST", path, object{"cpu": 1}, "cpu", "without one")
	if held["memory_limit"] != sandbox.Enforced {
		a.refused(http.StatusUnprocessableEntity, "POST", path, object{"memory": 1}, "memory", "cgroup")
	} else {
		key := sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)}
		if o := a.do(http.StatusOK, "POST", path, object{"memory": 0.25}); o["memory"] != 0.25 || o["state"] != "started" {
			t.Errorf("resize answers %v", o)
		}
		const hog = "head -c 400000000 /dev/zero | tail | wc -c" // tail keeps what is no line
		r, err := a.m.ExecuteCommand(t.Context(), key, sandbox.RunRequest{Command: hog})
		if err != nil || !strings.Contains(fmt.Sprintf("%+v", r), "memory limit 256 MiB") {
			t.Errorf("beyond the limit: %+v, %v", r, err)
		}
		a.do(http.StatusOK, "POST", path, object{"memory": 1})
		if r, err := a.m.ExecuteCommand(t.Context(), key, sandbox.RunRequest{Command: hog}); err != nil || strings.TrimSpace(r.Stdout.Head+r.Stdout.Tail) != "400000000" {
			t.Errorf("within the new limit: %+v, %v", r, err)
		}
	}
	a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/stop", nil)
	a.until(id, "stopped")
	a.refused(http.StatusBadRequest, "POST", path, object{"memory": 1}, "not running")
	if held["memory_limit"] == sandbox.Enforced {
		if o := a.do(http.StatusOK, "GET", "/api/sandbox/"+id, nil); o["memory"] != 1.0 {
			t.Errorf("after the stop: memory %v", o["memory"])
		}
	}
}

// What the operator gives every sandbox is told also while one is being made.
func TestSizesOfTheOperator(t *testing.T) {
	a := newAPI(t)
	a.stop()
	a.o.Defaults.Resources = sandbox.Resources{CPU: 0.5}
	a.o.Limits.Resources = sandbox.Resources{Memory: 1 << 30}
	a.serve()
	status, out := a.send(a.token, "POST", "/api/sandbox", object{})
	if strings.Contains(string(out), "limit cannot be held on this machine") {
		t.Skip("no cgroups can be made as this user: a sandbox with limits is refused")
	}
	var o object
	if err := json.Unmarshal(out, &o); err != nil || status != http.StatusOK {
		t.Fatalf("POST: %d %s", status, out)
	}
	if o["cpu"] != 0.5 || o["memory"] != 1.0 || o["disk"] != 0.0 {
		t.Errorf("a new sandbox has cpu %v, memory %v, disk %v", o["cpu"], o["memory"], o["disk"])
	}
}
