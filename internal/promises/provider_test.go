//go:build linux

package promises_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/driver"
)

// The promises are held on this machine, or, with BERTH_TEST_PROVIDER=daytona, at
// Daytona: a second berth, which serves that API over sandboxes of this machine, is
// in the place of the cloud.
var (
	atDaytona bool
	// The ordinary user of sandboxes.
	user, home = "agent", "/home/agent"
	// What a destroyed sandbox is, and how the start of another is told: the
	// platform forgets what was destroyed.
	gone, afresh = "destroyed", "replaced"
)

func chooseProvider() error {
	switch name := os.Getenv("BERTH_TEST_PROVIDER"); name {
	case "", "local":
	case "daytona":
		atDaytona, user, home, gone, afresh = true, "daytona", "/home/daytona", "pending", "created"
		tokenHeader = "X-Daytona-Preview-Token"
	default:
		return fmt.Errorf("BERTH_TEST_PROVIDER=%s; allowed: local, daytona", name)
	}
	return nil
}

// notAtDaytona skips what no provider daytona promises.
func notAtDaytona(t *testing.T, why string) {
	t.Helper()
	if atDaytona {
		t.Skip("not at Daytona: ", why)
	}
}

// servingBuckets has the sandboxes of a site reach the services that hold the
// test's buckets: at Daytona what serves a bucket is inside of the sandbox.
func (s *site) servingBuckets() *site {
	s.t.Helper()
	if atDaytona {
		return s.configured("defaults: {network_allow_list: [127.0.0.1/32]}\n", loopbackOpen)
	}
	return s
}

// onlyBuckets adds to what start_sandbox is given that nothing but the test's
// buckets is reached: on this machine they are, with everything closed.
func onlyBuckets(a args) args {
	a["network_block_all"] = true
	if atDaytona {
		a["network_allow_list"] = "127.0.0.1"
	}
	return a
}

// reached has a text name the machine's loopback as what serves buckets does.
func reached(text string) string {
	if atDaytona {
		return atLoopback(text)
	}
	return text
}

// sweep has a server start where the sandboxes lie: that looks at their intervals.
func (s *site) sweep() {
	s.t.Helper()
	p := driver.Program{Path: program, State: s.beneath, Args: []string{"--provider", "local"}}
	srv, err := p.ListenAndServe(s.t.Context(), 0)
	must(s.t, err)
	s.t.Cleanup(srv.Kill)
}

// sessionLabel of a sandbox at Daytona tells whose it is.
const sessionLabel = "berth/session"

// cloud is a berth that serves the Daytona API, and an account there.
type cloud struct {
	url    string
	state  string
	server *driver.Server
}

const cloudKey = "an-account-of-tests"

// startCloud serves from a state directory. Whoever calls ends it.
func startCloud(state string, args ...string) (*cloud, error) {
	port, err := driver.FreePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p := driver.Program{Path: program, State: state, Args: append([]string{"--provider", "local", "--daytona-api", address}, args...)}
	server, err := p.ListenAndServe(context.Background(), 0) // beyond the test that asks first
	return &cloud{url: "http://" + address + "/api", state: state, server: server}, err
}

var (
	sharedCloud *cloud
	startShared = sync.OnceValues(func() (*cloud, error) {
		file := filepath.Join(filepath.Dir(shared), "cloud.yaml")
		if err := os.WriteFile(file, []byte(loopbackOpen), 0o600); err != nil {
			return nil, err
		}
		c, err := startCloud(shared, "--config", file)
		if err == nil {
			sharedCloud = c
		}
		return c, err
	})
)

// theCloud has the sandboxes of most tests, which are deleted when t ends.
func theCloud(t testing.TB) *cloud {
	t.Helper()
	c, err := startShared()
	must(t, err)
	t.Cleanup(func() { c.remove(t, idsOf(t)) })
	return c
}

// newCloud serves from a state directory until the test ends.
func newCloud(t testing.TB, state string, configuration ...string) *cloud {
	t.Helper()
	if len(configuration) == 0 {
		configuration = []string{loopbackOpen}
	}
	var read site
	read.t = t
	c, err := startCloud(state, read.configured(configuration...).Args...)
	must(t, err)
	t.Cleanup(c.server.Kill)
	return c
}

// program is a berth whose sandboxes are the account's.
func (c *cloud) program(t testing.TB) driver.Program {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(shared), "f") //nolint:usetesting // see TestMain
	must(t, err)
	t.Cleanup(func() { removeAll(dir) })
	return driver.Program{Path: program, State: dir, Args: []string{"--provider", "daytona"},
		Env: []string{"DAYTONA_API_URL=" + c.url, "DAYTONA_API_KEY=" + cloudKey, "DAYTONA_JWT_TOKEN=", "DAYTONA_ORGANIZATION_ID=", "DAYTONA_TARGET="}}
}

func (c *cloud) site(t testing.TB) *site {
	t.Helper()
	return &site{t: t, Program: c.program(t), beneath: c.state, cloud: c}
}

// remove deletes the sandboxes of the sessions.
func (c *cloud) remove(t testing.TB, sessions []string) {
	t.Helper()
	for _, b := range c.list(t) {
		if slices.Contains(sessions, b.Labels[sessionLabel]) {
			c.ask(t, http.MethodDelete, "/sandbox/"+b.ID, nil)
		}
	}
}

// empty deletes all that is in the account.
func (c *cloud) empty(t testing.TB) {
	t.Helper()
	c.remove(t, c.sessions(t))
	wait(t, time.Minute, "the account is empty", func() bool { return len(c.list(t)) == 0 })
}

type listed struct {
	ID     string            `json:"id"`
	Labels map[string]string `json:"labels"`
}

func (c *cloud) list(t testing.TB) []listed {
	t.Helper()
	var all []listed
	for cursor := ""; ; {
		var page struct {
			Items      []listed `json:"items"`
			NextCursor string   `json:"nextCursor"`
		}
		c.ask(t, http.MethodGet, "/sandbox?limit=200&cursor="+cursor, &page)
		all = append(all, page.Items...)
		if cursor = page.NextCursor; cursor == "" {
			return all
		}
	}
}

// sessions are those that its sandboxes belong to, one each, in order.
func (c *cloud) sessions(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, b := range c.list(t) {
		out = append(out, b.Labels[sessionLabel])
	}
	slices.Sort(out)
	return out
}

func (c *cloud) ask(t testing.TB, method, path string, v any) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, c.url+path, nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+cloudKey)
	resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	} else if v != nil {
		must(t, json.Unmarshal(b, v))
	}
}

// front is a berth whose sandboxes are the account's, and which is killed and
// started again.
type front struct {
	driver.Program
	port   int
	server atomic.Pointer[driver.Server]
}

func (c *cloud) front(t *testing.T) *front {
	t.Helper()
	f := &front{Program: c.program(t)}
	var err error
	f.port, err = driver.FreePort()
	must(t, err)
	f.begin(t)
	t.Cleanup(func() { f.now().Kill() })
	return f
}

func (f *front) now() *driver.Server { return f.server.Load() }

func (f *front) begin(t *testing.T) {
	srv, err := f.ListenAndServe(context.WithoutCancel(t.Context()), f.port)
	if err != nil {
		t.Errorf("a server does not start: %v", err)
		return
	}
	f.server.Store(srv)
}

// restart kills the server, and starts the next.
func (f *front) restart(t *testing.T) {
	f.now().Kill()
	f.begin(t)
}
