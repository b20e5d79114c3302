//go:build linux

package daytonaapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"

	"berth/sandbox"
)

func TestAuthentication(t *testing.T) {
	a := newAPI(t)
	for _, token := range []string{"", "wrong", a.token + "x"} {
		status, out := a.send(token, "GET", "/api/sandbox", nil)
		if status != http.StatusUnauthorized || !strings.Contains(string(out), `"statusCode":401`) {
			t.Errorf("with token %q: got %d %s", token, status, out)
		}
		if status, _ := a.send(token, "GET", "/toolbox/x/version", nil); status != http.StatusUnauthorized {
			t.Errorf("toolbox with token %q: got %d", token, status)
		}
	}
	if status, _ := a.send("", "GET", "/api/config", nil); status != http.StatusOK {
		t.Errorf("the configuration without a token: got %d", status)
	}
	key := a.do(http.StatusOK, "GET", "/api/api-keys/current", nil)
	if key["name"] != string(a.owner) || strings.Contains(key["value"].(string), "token") {
		t.Errorf("the current key is %v", key)
	}
	a.refused(http.StatusNotFound, "GET", "/api/nothing", nil)
	a.refused(http.StatusNotImplemented, "POST", "/api/secret", nil, "secrets")
}

// A client of the event stream learns in its handshake that there is none.
func TestEventStreamIsRefused(t *testing.T) {
	a := newAPI(t)
	a.refused(http.StatusNotFound, "GET", "/api/socket.io/?EIO=4&transport=polling", nil, "event stream")
	ws, resp, err := websocket.Dial(t.Context(), a.http.URL+"/api/socket.io/?EIO=4&transport=websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("the handshake: got status %d", resp.StatusCode)
	}
	read := func(prefix string) object {
		t.Helper()
		_, b, err := ws.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		text, ok := strings.CutPrefix(string(b), prefix)
		var o object
		if err := json.Unmarshal([]byte(text), &o); !ok || err != nil {
			t.Fatalf("got %s, want %s and an object", b, prefix)
		}
		return o
	}
	if o := read("0"); o["sid"] == "" || o["pingInterval"] == nil {
		t.Errorf("the transport opens with %v", o)
	}
	if err := ws.Write(t.Context(), websocket.MessageText, []byte(`40{"token":"`+a.token+`"}`)); err != nil {
		t.Fatal(err)
	}
	if o := read("44"); !strings.Contains(fmt.Sprint(o["message"]), "no event stream") {
		t.Errorf("joining is answered with %v", o)
	}
}

func TestForeignPages(t *testing.T) {
	a := newAPI(t)
	for name, change := range map[string]func(*http.Request){
		"origin": func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"host":   func(r *http.Request) { r.Host = "evil.example" },
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", a.http.URL+"/api/config", nil)
		if err != nil {
			t.Fatal(err)
		}
		change(req)
		resp, err := a.http.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("a foreign %s: got %d, want 403", name, resp.StatusCode)
		}
	}
}

// TestLife goes through the states of one sandbox.
func TestLife(t *testing.T) {
	a := newAPI(t)
	made := a.create(object{"name": "job", "labels": object{"code-toolbox-language": "python", "team": "x"}, "env": object{"A": "1"}, "unknownField": true})
	id := made["id"].(string)
	for field, want := range map[string]any{"name": "job", "public": false, "desiredState": "started", "autoStopInterval": 15., "autoArchiveInterval": 10080., "autoDeleteInterval": -1.,
		"toolboxProxyUrl": a.http.URL + "/toolbox", "networkBlockAll": false, "gpu": 0.} {
		if got := made[field]; got != want {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
	if env := made["env"].(object); len(env) != 1 || env["A"] != "1" {
		t.Errorf("env is %v", env)
	}
	a.refused(http.StatusConflict, "POST", "/api/sandbox", object{"name": "job"}, "already exists")
	if got := a.do(http.StatusOK, "GET", "/api/sandbox/job", nil); got["id"] != id {
		t.Errorf("by name: got %v", got["id"])
	}
	if got := a.do(http.StatusOK, "POST", "/api/sandbox/job/start", nil); got["state"] != "started" {
		t.Errorf("starting a started one: got %v", got["state"])
	}
	if got := a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/stop", nil); got["state"] != "stopping" || got["desiredState"] != "stopped" {
		t.Errorf("stop answers %v, %v", got["state"], got["desiredState"])
	}
	a.until(id, "stopped")
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox/"+id+"/stop", nil, "not started")
	a.refused(http.StatusBadRequest, "GET", "/toolbox/"+id+"/version", nil, "Is the Sandbox started?")
	if got := a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/archive", nil); got["state"] != "archiving" {
		t.Errorf("archive answers %v", got["state"])
	}
	a.until(id, "archived")
	a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/start", nil)
	a.until(id, "started")
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox/"+id+"/archive", nil, "not stopped")
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox/"+id+"/recover", nil, "not in a recoverable")
	if got := a.do(http.StatusOK, "DELETE", "/api/sandbox/"+id, nil); got["state"] != "destroying" {
		t.Errorf("delete answers %v", got["state"])
	}
	// The name is free at once.
	a.refused(http.StatusNotFound, "GET", "/api/sandbox/job", nil)
	again := a.create(object{"name": "job"})
	a.until(id, "gone")
	a.refused(http.StatusNotFound, "DELETE", "/api/sandbox/"+id, nil, "not found")
	if again["id"] == id {
		t.Error("a new sandbox has the id of the former")
	}
}

// What may have changed a sandbox is in its event log, by whichever door it came,
// without what is secret.
func TestEventsAreRecorded(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{"name": "seen", "env": object{"PASSWORD": "hunter2"}})["id"].(string)
	a.do(http.StatusCreated, "POST", "/api/sandbox/seen/autostop/7", nil)
	a.do(http.StatusOK, "PUT", "/api/sandbox/"+id+"/labels", object{"labels": object{"a": "b"}})
	a.do(http.StatusOK, "GET", "/api/sandbox/"+id, nil)
	a.refused(http.StatusBadRequest, "POST", "/api/sandbox/"+id+"/archive", nil, "not stopped")
	a.send(a.token+"-other", "DELETE", "/api/sandbox/"+id, nil)
	events, err := a.m.Events(t.Context(), sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)})
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, e := range events {
		fmt.Fprintln(&got, e.Tool, e.Args, e.Outcome, e.Error)
	}
	want := `daytona POST /api/sandbox map[name:seen snapshot:daytona-small] ok 
daytona POST /api/sandbox/{s}/autostop/{minutes} map[minutes:7] ok 
daytona PUT /api/sandbox/{s}/labels map[] ok 
daytona POST /api/sandbox/{s}/archive map[] error Sandbox is not stopped: it is started
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestEphemeral(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{"autoDeleteInterval": 0})["id"].(string)
	if got := a.do(http.StatusOK, "POST", "/api/sandbox/"+id+"/stop", nil); got["state"] != "destroying" {
		t.Errorf("stop answers %v", got["state"])
	}
	a.until(id, "gone")
}

// TestMCPShares: a sandbox of the one side is there on the other, under its id.
func TestMCPShares(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{"name": "from-here", "env": object{"A": "1"}})["id"].(string)
	res, err := a.m.ExecuteCommand(t.Context(), sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)}, sandbox.RunRequest{Command: "echo $A $DAYTONA_SANDBOX_ID"})
	if err != nil || strings.TrimSpace(res.Stdout.Head) != "1 "+id {
		t.Fatalf("got %+v, %v", res, err)
	}
	if _, err := a.m.StartSandbox(t.Context(), sandbox.Key{Owner: a.owner, Session: "from-mcp"}, sandbox.Spec{Name: "a name"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"from-mcp", url.PathEscape("a name")} {
		if got := a.do(http.StatusOK, "GET", "/api/sandbox/"+name, nil); got["id"] != "from-mcp" || got["state"] != "started" || got["user"] != "agent" {
			t.Errorf("%s: got %v", name, got)
		}
	}
	// Another owner sees neither.
	for _, name := range []string{id, "from-here", "from-mcp"} {
		if status, out := a.send(a.token+"-other", "GET", "/api/sandbox/"+name, nil); status != http.StatusNotFound {
			t.Errorf("%s for another owner: got %d %s", name, status, out)
		}
		if status, out := a.send(a.token+"-other", "GET", "/toolbox/"+name+"/version", nil); status != http.StatusNotFound {
			t.Errorf("toolbox of %s for another owner: got %d %s", name, status, out)
		}
	}
}

func TestToolboxPaths(t *testing.T) {
	a := newAPI(t)
	id := a.create(object{"name": "box"})["id"].(string)
	for path, want := range map[string]object{
		"/toolbox/" + id + "/files/info?path=%2Fa":            {"path": "/files/info", "query": "path=%2Fa"},
		"/toolbox/box/process//x":                             {"path": "/process//x"},
		"/toolbox/" + id:                                      {"path": "/"},
		"/toolbox/" + id + "/process/session/a%2Fb":           {"path": "/process/session/a/b", "raw": "/process/session/a%2Fb"},
		"/api/toolbox/" + id + "/toolbox/process/execute?x=1": {"path": "/process/execute", "query": "x=1"},
	} {
		got := a.do(http.StatusOK, "GET", path, nil)
		if got["session"] != id || got["owner"] != string(a.owner) || got["auth"] != "" {
			t.Errorf("%s: got %v", path, got)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s is %v, want %v", path, k, got[k], v)
			}
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	a := newAPI(t)
	for name, tt := range map[string]struct {
		body  any
		texts []string
	}{
		"not JSON":        {"{", []string{"no JSON"}},
		"wrong type":      {object{"autoStopInterval": "soon"}, []string{"autoStopInterval", "number"}},
		"both":            {object{"snapshot": "s", "buildInfo": object{"dockerfileContent": "FROM x"}}, []string{"snapshot", "buildInfo"}},
		"empty build":     {object{"buildInfo": object{"dockerfileContent": " "}}, []string{"dockerfileContent"}},
		"resources":       {object{"cpu": 2}, []string{"resources come from the snapshot", "from an image"}},
		"several":         {object{"autoStopInterval": -1, "gpu": 1, "ttlMinutes": 5}, []string{"autoStopInterval", "gpu", "ttlMinutes"}},
		"no such":         {object{"snapshot": "never-made"}, []string{"never-made"}},
		"address":         {object{"networkAllowList": "10.0.0.1"}, []string{"networkAllowList"}},
		"too many":        {object{"networkAllowList": strings.Repeat("10.0.0.0/8,", 11)}, []string{"networkAllowList", "at most 10"}},
		"domain":          {object{"domainAllowList": "not a name"}, []string{"domainAllowList"}},
		"variable":        {object{"env": object{"A-B": "1"}}, []string{"A-B"}},
		"name of an URL":  {object{"name": "https://x"}, []string{"name"}},
		"name of control": {object{"name": "a\tb"}, []string{"name"}},
		"long name":       {object{"name": strings.Repeat("n", 64)}, []string{"name", "63"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			b := *a
			b.t = t
			b.refused(http.StatusBadRequest, "POST", "/api/sandbox", tt.body, tt.texts...)
		})
	}
	if list := a.do(http.StatusOK, "GET", "/api/sandbox", nil); len(list["items"].([]any)) != 0 {
		t.Errorf("something was made: %v", list)
	}
}

// TestRacingNames: of requests for one name at a time one wins.
func TestRacingNames(t *testing.T) {
	a := newAPI(t)
	var wg sync.WaitGroup
	got := make(chan int, 8)
	for range cap(got) {
		wg.Go(func() {
			status, _ := a.send(a.token, "POST", "/api/sandbox", object{"name": "twin"})
			got <- status
		})
	}
	wg.Wait()
	close(got)
	made := 0
	for status := range got {
		switch status {
		case http.StatusOK:
			made++
		case http.StatusConflict:
		default:
			t.Errorf("got status %d", status)
		}
	}
	if list := a.do(http.StatusOK, "GET", "/api/sandbox", nil)["items"].([]any); made != 1 || len(list) != 1 {
		t.Errorf("%d requests were told of a new sandbox, and there are %d", made, len(list))
	}
}

func TestList(t *testing.T) {
	a := newAPI(t)
	var want []string
	for i := range 3 {
		name := fmt.Sprintf("box-%d", i)
		a.create(object{"name": name, "labels": object{"n": fmt.Sprint(i), "all": "yes"}})
		want = append(want, name)
	}
	names := func(query string) []string {
		t.Helper()
		var list []string
		for cursor := ""; ; {
			page := a.do(http.StatusOK, "GET", "/api/sandbox?"+query+"&cursor="+url.QueryEscape(cursor), nil)
			for _, i := range page["items"].([]any) {
				o := i.(object)
				list = append(list, o["name"].(string))
				if _, has := o["env"]; has {
					t.Error("a list shows variables")
				}
			}
			if page["nextCursor"] == nil {
				return list
			}
			cursor = page["nextCursor"].(string)
		}
	}
	labels := func(o object) string {
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return "labels=" + url.QueryEscape(string(b))
	}
	// In use, all of them are used last now: pages hold still all the same.
	for _, query := range []string{"limit=1", "limit=2", "limit=1&order=asc", "limit=1&sort=name", "sort=createdAt", "states=started", labels(object{"all": "yes"}), "name=BOX"} {
		got := names(query)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", query, got, want)
		}
	}
	for query, want := range map[string][]string{
		"sort=name&order=asc": {"box-0", "box-1", "box-2"}, "sort=createdAt": {"box-2", "box-1", "box-0"},
		labels(object{"n": "1", "all": "yes"}): {"box-1"}, labels(object{"n": "9"}): nil, "name=box-2": {"box-2"}, "states=stopped": nil,
		"createdAtAfter=2999-01-01T00:00:00Z": nil, "isPublic=true": nil,
	} {
		if got := names(query); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", query, got, want)
		}
	}
	for _, query := range []string{"labels=x", "cursor=x", "limit=0", "limit=201", "sort=size", "minCpu=x", "createdAtAfter=x"} {
		a.refused(http.StatusBadRequest, "GET", "/api/sandbox?"+query, nil, strings.SplitN(query, "=", 2)[0])
	}
	page := a.do(http.StatusOK, "GET", "/api/sandbox/paginated?page=2&limit=2", nil)
	if page["total"] != 3. || page["totalPages"] != 2. || len(page["items"].([]any)) != 1 {
		t.Errorf("the second page is %v", page)
	}
}
