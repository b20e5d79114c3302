package daytona_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/secret"
	"berth/sandbox"
	"berth/sandbox/daytona"
	"berth/sandbox/daytona/api"
)

// cloud is a platform in memory, whose sandboxes go where a test sends them. Its
// toolbox answers nothing.
type cloud struct {
	daytona.Platform // what is not here is not asked for

	mu    sync.Mutex
	boxes map[string]*api.Sandbox // by name
	calls []string
	made  int
	// next tells what follows a state, once it was told so many times; a state
	// that has no successor stays.
	next map[api.State]api.State
	fail map[string]error // by call
}

func newCloud() *cloud {
	return &cloud{boxes: map[string]*api.Sandbox{}, fail: map[string]error{}, next: map[api.State]api.State{
		api.Creating: api.Started, api.PendingBuild: api.Creating, api.PullingSnapshot: api.Started, api.Starting: api.Started, api.Restoring: api.Started,
		api.Resuming: api.Started, api.Stopping: api.Stopped, api.Archiving: api.Archived, api.Destroying: api.Destroyed, api.Pausing: api.Paused, api.Resizing: api.Started}}
}

func (c *cloud) call(name string) error {
	c.calls = append(c.calls, name)
	return c.fail[name]
}

func (c *cloud) find(idOrName string) *api.Sandbox {
	for _, sb := range c.boxes {
		if sb.ID == idOrName {
			return sb
		}
	}
	return c.boxes[idOrName]
}

func (c *cloud) Create(_ context.Context, n api.NewSandbox) (*api.Sandbox, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.call("create"); err != nil {
		return nil, err
	}
	if sb := c.boxes[n.Name]; sb != nil && sb.State != api.Destroyed { // whose name is free
		return nil, fmt.Errorf("name taken: %w", api.ErrConflict)
	}
	c.made++
	sb := &api.Sandbox{ID: fmt.Sprintf("id-%d", c.made), Name: n.Name, Labels: n.Labels, State: api.Creating, Created: time.Now(), AutoStop: n.AutoStop,
		AutoArchive: n.AutoArchive, AutoDelete: n.AutoDelete, NetworkBlockAll: n.NetworkBlockAll, NetworkAllowList: n.NetworkAllowList}
	c.boxes[n.Name] = sb
	out := *sb
	return &out, nil
}

func (c *cloud) Sandbox(_ context.Context, idOrName string) (*api.Sandbox, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.call("get"); err != nil {
		return nil, err
	}
	sb := c.find(idOrName)
	if sb == nil {
		return nil, fmt.Errorf("GET: %w", api.ErrNotFound)
	}
	out := *sb
	out.Labels = maps.Clone(sb.Labels)
	if to := c.next[sb.State]; to != "" {
		if sb.State = to; to == api.Destroyed {
			delete(c.boxes, sb.Name)
		}
	}
	return &out, nil
}

func (c *cloud) Sandboxes(context.Context, api.Filter) iter.Seq2[*api.Sandbox, error] {
	return func(func(*api.Sandbox, error) bool) {}
}

func (c *cloud) to(what, id string, s api.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.call(what); err != nil {
		return err
	}
	sb := c.find(id)
	if sb == nil {
		return api.ErrNotFound
	}
	sb.State = s
	return nil
}

func (c *cloud) Start(_ context.Context, id string) error  { return c.to("start", id, api.Starting) }
func (c *cloud) Stop(_ context.Context, id string) error   { return c.to("stop", id, api.Stopping) }
func (c *cloud) Delete(_ context.Context, id string) error { return c.to("delete", id, api.Destroying) }
func (c *cloud) Recover(_ context.Context, id string) error {
	return c.to("recover", id, api.Starting)
}
func (c *cloud) SetLabels(_ context.Context, id string, labels map[string]string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.find(id).Labels = labels
	return c.call("labels")
}
func (c *cloud) SetAutoStop(_ context.Context, id string, minutes int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.find(id).AutoStop = &minutes
	return c.call("autostop")
}
func (c *cloud) ToolboxURL(context.Context, string) (string, error) {
	return "", fmt.Errorf("no toolbox: %w", api.ErrUnavailable)
}
func (c *cloud) URL() string { return "https://cloud.invalid/api" }
func (c *cloud) Close()      {}

// told is how often each call but get came.
func (c *cloud) told() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(slices.DeleteFunc(slices.Clone(c.calls), func(s string) bool { return s == "get" }), " ")
}

// over makes a Manager of sandboxes in c.
func over(t *testing.T, c *cloud, change func(*daytona.Options)) (*sandbox.Manager, *daytona.Provider) {
	t.Helper()
	o := daytona.Options{Key: secret.New("dtn_key")}
	if change != nil {
		change(&o)
	}
	p, err := daytona.Over(o, c)
	if err != nil {
		t.Fatal(err)
	}
	m, err := sandbox.NewManager(p, sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.Close()
		_ = p.Close()
	})
	return m, p
}

var who = sandbox.Key{Owner: sandbox.LocalOwner, Session: "s"}

// What becomes of a session whose sandbox is in each of the platform's states.
func TestReconnection(t *testing.T) {
	for _, tt := range []struct {
		state       api.State
		recoverable bool
		outcome     sandbox.StartOutcome
		calls       string
	}{
		{api.Started, false, sandbox.Connected, ""},
		{api.Stopped, false, sandbox.Connected, "start"},
		{api.Archived, false, sandbox.Connected, "start"},
		{api.Paused, false, sandbox.Connected, "start"},
		{api.Starting, false, sandbox.Connected, ""},
		{api.Creating, false, sandbox.Connected, ""},
		{api.PendingBuild, false, sandbox.Connected, ""},
		{api.PullingSnapshot, false, sandbox.Connected, ""},
		{api.Restoring, false, sandbox.Connected, ""},
		{api.Resuming, false, sandbox.Connected, ""},
		{api.Resizing, false, sandbox.Connected, ""},
		{api.Stopping, false, sandbox.Connected, "start"},
		{api.Archiving, false, sandbox.Connected, "start"},
		// It went away while somebody waited for it: a fresh one.
		{api.Destroying, false, sandbox.Replaced, "create"},
		{api.Destroyed, false, sandbox.Created, "create"},
		{api.Errored, true, sandbox.Connected, "recover"},
		{api.Errored, false, sandbox.Replaced, "delete create"},
		{api.BuildFailed, false, sandbox.Replaced, "delete create"},
	} {
		t.Run(fmt.Sprintf("%s_%t", tt.state, tt.recoverable), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud()
				m, p := over(t, c, nil)
				c.boxes["x"] = &api.Sandbox{ID: "native", Name: daytona.NameOf(p, who), State: tt.state, Recoverable: tt.recoverable, ErrorReason: "disk on fire",
					Labels: map[string]string{"berth/owner": "local", "berth/session": "s", "berth/form": "1"}}
				c.boxes[c.boxes["x"].Name] = c.boxes["x"]
				delete(c.boxes, "x")
				res, err := m.StartSandbox(t.Context(), who, sandbox.Spec{})
				if err != nil {
					t.Fatalf("StartSandbox: %v", err)
				}
				if res.Outcome != tt.outcome || c.told() != tt.calls {
					t.Errorf("got %s by %q, want %s by %q", res.Outcome, c.told(), tt.outcome, tt.calls)
				}
				if tt.state == api.Errored && !tt.recoverable && !strings.Contains(res.Notice.Replaced, "disk on fire") {
					t.Errorf("the notice does not say why: %q", res.Notice.Replaced)
				}
			})
		})
	}
}

// A state that never ends is given up in time, and told.
func TestNeverSettles(t *testing.T) {
	for _, s := range []api.State{api.Starting, api.Stopping, api.Destroying, "a state of tomorrow"} {
		synctest.Test(t, func(t *testing.T) {
			c := newCloud()
			clear(c.next)
			m, p := over(t, c, nil)
			name := daytona.NameOf(p, who)
			c.boxes[name] = &api.Sandbox{ID: "native", Name: name, State: s, Labels: map[string]string{"berth/owner": "local", "berth/session": "s"}}
			began := time.Now()
			var err error
			for range 5 { // each call answers within its own time
				if _, err = m.StartSandbox(t.Context(), who, sandbox.Spec{}); errors.Is(err, sandbox.ErrUnavailable) {
					break
				}
			}
			if took := time.Since(began); !errors.Is(err, sandbox.ErrUnavailable) || took > 3*time.Minute || c.told() != "" {
				t.Errorf("%s: got %v after %v, calls %q; want ErrUnavailable after two minutes or so", s, err, took, c.told())
			}
			in, err := p.Lookup(t.Context(), who)
			if err != nil {
				t.Fatal(err)
			}
			began = time.Now()
			if err := in.Stop(t.Context()); s != api.Destroying && (!errors.Is(err, sandbox.ErrUnavailable) || !strings.Contains(err.Error(), string(s))) {
				t.Errorf("%s: Stop = %v, want ErrUnavailable that names the state", s, err)
			}
			if err := in.Destroy(t.Context()); err == nil && s == api.Destroying {
				t.Errorf("Destroy of what stays says that it is gone")
			}
			if took := time.Since(began); took > 6*time.Minute {
				t.Errorf("%s: Stop and Destroy took %v", s, took)
			}
		})
	}
}

// A fault of the network is no reason to make another sandbox.
func TestLookupFails(t *testing.T) {
	for _, fault := range []error{api.ErrUnavailable, api.ErrUnauthorized, errors.New("no")} {
		synctest.Test(t, func(t *testing.T) {
			c := newCloud()
			m, _ := over(t, c, nil)
			c.fail["get"] = fault
			if _, err := m.StartSandbox(t.Context(), who, sandbox.Spec{}); err == nil {
				t.Errorf("%v: StartSandbox succeeded", fault)
			}
			if c.told() != "" {
				t.Errorf("%v: calls %q, want none", fault, c.told())
			}
		})
	}
}

// A session keeps its sandbox whatever the names are; another owner's session of
// the same id is another one.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		m, p := over(t, c, nil)
		if _, err := m.StartSandbox(t.Context(), who, sandbox.Spec{Name: "my box"}); err != nil {
			t.Fatal(err)
		}
		res, err := m.StartSandbox(t.Context(), who, sandbox.Spec{Name: "renamed"})
		if err != nil || res.Outcome != sandbox.Connected || res.Info.Name != "renamed" || c.made != 1 {
			t.Errorf("another name: %+v, %v, %d made", res, err, c.made)
		}
		other := sandbox.Key{Owner: "bob", Session: who.Session}
		if res, err := m.StartSandbox(t.Context(), other, sandbox.Spec{}); err != nil || res.Outcome != sandbox.Created || c.made != 2 {
			t.Errorf("another owner: %+v, %v", res, err)
		}
		seen := map[string]bool{}
		for _, k := range []sandbox.Key{who, other, {Owner: "local", Session: "S"}, {Owner: "a", Session: "b.c"}, {Owner: "a\x00b", Session: "c"}, {Owner: "a", Session: sandbox.SessionID(strings.Repeat("x", 63))}} {
			n := daytona.NameOf(p, k)
			if seen[n] || len(n) > 63 {
				t.Errorf("%v: name %q of %d bytes, seen %t", k, n, len(n), seen[n])
			}
			seen[n] = true
		}
	})
}

// What is kept with a sandbox is there for another server of the account; the
// environment can be read with the key alone.
func TestSpecIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		m, p := over(t, c, nil)
		spec := sandbox.Spec{Name: "n\u00e4me \U0001F600", Env: map[string]string{"TOKEN": "hunter2-hunter2"}, Labels: map[string]string{"a/b": "c"}, Language: sandbox.Python,
			WorkingDirectory: "/" + strings.Repeat("deep/", 100), AutoStop: new(7 * time.Minute), Timeout: new(time.Minute)}
		if _, err := m.StartSandbox(t.Context(), who, spec); err != nil {
			t.Fatal(err)
		}
		sb, err := c.Sandbox(t.Context(), daytona.NameOf(p, who))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range sb.Labels {
			if strings.Contains(v, "hunter2") || strings.Contains(v, "TOKEN") {
				t.Errorf("label %s shows the environment: %q", k, v)
			}
			if len(k) > 63 || len(v) > 256 {
				t.Errorf("label %s has %d bytes", k, len(v))
			}
		}
		check := func(what string, change func(*daytona.Options), env string) {
			t.Helper()
			_, q := over(t, c, change)
			in, err := q.Lookup(t.Context(), who)
			if err != nil {
				t.Fatal(err)
			}
			info, err := in.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := info.Spec
			if info.Name != spec.Name || got.WorkingDirectory != spec.WorkingDirectory || got.Language != sandbox.Python || *got.AutoStop != 7*time.Minute || *got.Timeout != time.Minute ||
				!maps.Equal(got.Labels, spec.Labels) || got.Env["TOKEN"] != env || (env == "") != strings.Contains(info.Reason, "another key") {
				t.Errorf("%s: got %+v, reason %q", what, got, info.Reason)
			}
		}
		check("another server", nil, "hunter2-hunter2")
		check("another key", func(o *daytona.Options) { o.Key = secret.New("dtn_other") }, "")
		check("another key, and back", nil, "hunter2-hunter2")
	})
}

// What berth did not make is used where the operator lets it be.
func TestAdoption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud()
		c.boxes["made-by-sdk"] = &api.Sandbox{ID: "11111111-2222", Name: "made-by-sdk", State: api.Stopped, Labels: map[string]string{"team": "x", "code-toolbox-language": "python"}}
		c.boxes["bobs"] = &api.Sandbox{ID: "b", Name: "bobs", State: api.Started, Labels: map[string]string{"berth/owner": "bob", "berth/session": "bobs"}}
		key := func(s string) sandbox.Key {
			return sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.SessionID(s)}
		}
		_, strict := over(t, c, nil)
		if _, err := strict.Lookup(t.Context(), key("made-by-sdk")); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("without adopt: %v, want ErrNotFound", err)
		}
		m, p := over(t, c, func(o *daytona.Options) { o.Adopt = true })
		for _, s := range []string{"made-by-sdk", "11111111-2222"} {
			res, err := m.StartSandbox(t.Context(), key(s), sandbox.Spec{})
			if err != nil || res.Outcome != sandbox.Connected || res.Info.Key != key(s) || res.Info.Spec.Labels["team"] != "x" || res.Info.Spec.Language != sandbox.Python {
				t.Errorf("%s: got %+v, %v", s, res, err)
			}
		}
		if c.made != 0 {
			t.Errorf("%d were made", c.made)
		}
		if _, err := p.Lookup(t.Context(), key("bobs")); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("another owner's: %v, want ErrNotFound", err)
		}
	})
}

func TestNoKey(t *testing.T) {
	p, err := daytona.New(daytona.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Describe(t.Context(), sandbox.Spec{}.WithDefaults(sandbox.Spec{})); err != nil {
		t.Errorf("Describe: %v", err)
	}
	_, err = p.Lookup(t.Context(), who)
	if !errors.Is(err, sandbox.ErrUnavailable) || !strings.Contains(err.Error(), "DAYTONA_API_KEY") || !strings.Contains(err.Error(), "daytona.api_key") {
		t.Errorf("Lookup = %v, want what to do about the key", err)
	}
}

// Clocks differ, and jump: whether a sandbox was down before a command was sent is
// told by the server's clock alone.
func TestDownBefore(t *testing.T) {
	for _, tt := range []struct {
		skew, ago time.Duration
		want      error
	}{{0, time.Hour, sandbox.ErrNotRunning}, {3 * time.Hour, time.Hour, sandbox.ErrNotRunning}, {-3 * time.Hour, time.Hour, sandbox.ErrNotRunning},
		{0, 0, api.ErrMaybeDone}, {3 * time.Hour, 0, api.ErrMaybeDone}, {-3 * time.Hour, time.Second, api.ErrMaybeDone}} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/toolbox/") {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			now := time.Now().UTC().Add(tt.skew)
			w.Header().Set("Date", now.Format(http.TimeFormat))
			fmt.Fprintf(w, `{"id":"n","name":"n","state":"stopped","updatedAt":%q,"toolboxProxyUrl":"http://%s/toolbox"}`, now.Add(-tt.ago).Format(time.RFC3339Nano), r.Host)
		}))
		p, err := daytona.New(daytona.Options{URL: s.URL + "/api", Key: secret.New("dtn_key"), Adopt: true})
		if err != nil {
			t.Fatal(err)
		}
		in, err := p.Lookup(t.Context(), sandbox.Key{Owner: "local", Session: "n"})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = in.(*daytona.Instance).Exec(t.Context(), "true", time.Minute)
		if !errors.Is(err, tt.want) || errors.Is(err, sandbox.ErrNotRunning) != (tt.want == sandbox.ErrNotRunning) {
			t.Errorf("skew %v, stopped %v ago: %v, want %v", tt.skew, tt.ago, err, tt.want)
		}
		p.Close()
		s.Close()
	}
}
