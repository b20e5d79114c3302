//go:build linux

package daytonaapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/access"
	"berth/internal/daytonaapi"
	"berth/internal/localtest"
	"berth/internal/preview"
	"berth/internal/secret"
	"berth/sandbox"
	"berth/sandbox/local"
)

// patience is how long a test waits for what must happen.
const patience = 2 * time.Minute

// provider is one for all tests, whose owners differ.
var provider *local.Provider

func TestMain(m *testing.M) {
	os.Exit(localtest.Run(m, func(p *local.Provider, _ string) { provider = p }))
}

var owners atomic.Int64

// api is a server of the Daytona API, and a client of its first owner.
type api struct {
	t     *testing.T
	m     *sandbox.Manager
	s     *daytonaapi.Server
	ports *preview.Server
	http  *httptest.Server
	owner sandbox.Owner
	token string
	state string
	o     sandbox.Options
}

// newAPI serves until the test ends.
func newAPI(t *testing.T) *api {
	t.Helper()
	n := owners.Add(1)
	a := &api{t: t, owner: sandbox.Owner(fmt.Sprintf("owner-%d", n)), token: fmt.Sprintf("token-of-owner-%08d", n), state: t.TempDir()}
	a.serve()
	t.Cleanup(func() {
		a.stop()
		localtest.DestroyAll(t, provider, a.owner)
		localtest.DestroyAll(t, provider, a.other())
	})
	return a
}

func (a *api) other() sandbox.Owner { return a.owner + "-other" }

// serve begins to serve, also once more after stop.
func (a *api) serve() {
	a.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{a.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	a.o.Logger = log
	a.o.EventDir = filepath.Join(a.state, "events")
	var err error
	if a.m, err = sandbox.NewManager(provider, a.o); err != nil {
		a.t.Fatal(err)
	}
	if a.ports, err = preview.New(preview.Options{Manager: a.m, State: a.state, Logger: log}); err != nil {
		a.t.Fatal(err)
	}
	a.s, err = daytonaapi.New(daytonaapi.Options{Manager: a.m, State: a.state, Logger: log, Version: "test", Toolbox: echo{}, Previews: a.ports,
		Access: access.Options{Tokens: []access.Token{{Name: string(a.owner), Token: secret.New(a.token)}, {Name: string(a.other()), Token: secret.New(a.token + "-other")}}}})
	if err != nil {
		a.t.Fatal(err)
	}
	a.http = httptest.NewServer(a.s)
}

func (a *api) stop() {
	a.t.Helper()
	if a.http == nil {
		return
	}
	a.http.CloseClientConnections()
	a.http.Close()
	if err := a.s.Close(); err != nil {
		a.t.Error(err)
	}
	if err := a.ports.Close(); err != nil {
		a.t.Error(err)
	}
	if err := a.m.Close(); err != nil {
		a.t.Error(err)
	}
	a.http = nil
}

// echo stands in for the toolbox, which has tests of its own.
type echo struct{}

func (echo) Serve(w http.ResponseWriter, r *http.Request, key sandbox.Key) {
	_ = json.NewEncoder(w).Encode(map[string]string{"path": r.URL.Path, "raw": r.URL.EscapedPath(), "query": r.URL.RawQuery, "session": string(key.Session), "owner": string(key.Owner), "auth": r.Header.Get("Authorization")})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// object is a JSON object.
type object = map[string]any

// send makes a request as token's bearer and returns the status and the body.
func (a *api) send(token, method, path string, body any) (int, []byte) {
	a.t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			a.t.Fatal(err)
		}
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.http.URL+path, in)
	if err != nil {
		a.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := a.http.Client().Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, out
}

// do expects a status and returns the body as an object; nil when it is empty.
func (a *api) do(status int, method, path string, body any) object {
	a.t.Helper()
	got, out := a.send(a.token, method, path, body)
	if got != status {
		a.t.Fatalf("%s %s: got status %d, want %d: %s", method, path, got, status, out)
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return nil
	}
	var o object
	if err := json.Unmarshal(out, &o); err != nil {
		a.t.Fatalf("%s %s: %v in %s", method, path, err, out)
	}
	return o
}

// refused expects an error in the API's envelope, and its text to hold all of texts.
func (a *api) refused(status int, method, path string, body any, texts ...string) {
	a.t.Helper()
	o := a.do(status, method, path, body)
	message, _ := o["message"].(string)
	if o["statusCode"] != float64(status) || o["error"] != http.StatusText(status) || message == "" || o["timestamp"] == "" || o["path"] == "" {
		a.t.Errorf("%s %s: got %v, which is not the error envelope", method, path, o)
	}
	for _, text := range texts {
		if !strings.Contains(message, text) {
			a.t.Errorf("%s %s: got %q, which lacks %q", method, path, message, text)
		}
	}
}

// create makes a sandbox that runs.
func (a *api) create(body object) object {
	a.t.Helper()
	o := a.do(http.StatusOK, "POST", "/api/sandbox", body)
	return a.until(o["id"].(string), "started")
}

// until waits for a state.
func (a *api) until(id, state string) object {
	a.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		status, out := a.send(a.token, "GET", "/api/sandbox/"+id, nil)
		if status == http.StatusNotFound && state == "gone" {
			return nil
		}
		var o object
		if err := json.Unmarshal(out, &o); err != nil {
			a.t.Fatalf("GET of %s: %v in %s", id, err, out)
		}
		if o["state"] == state {
			return o
		}
		if time.Now().After(end) {
			a.t.Fatalf("%s is not %s: %s", id, state, out)
		}
	}
}
