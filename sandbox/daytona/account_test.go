//go:build linux

package daytona_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/internal/access"
	"berth/internal/daytonaapi"
	"berth/internal/daytonaapi/toolbox"
	"berth/internal/localtest"
	"berth/internal/preview"
	"berth/internal/secret"
	"berth/sandbox"
	"berth/sandbox/daytona"
	"berth/sandbox/local"
	"berth/sandbox/local/client"
)

// The Daytona of these tests is berth's own, over the local provider.
var (
	beneath *local.Provider
	state   string
)

func TestMain(m *testing.M) {
	os.Exit(localtest.Run(m, func(p *local.Provider, dir string) { beneath, state = p, dir }))
}

var accounts atomic.Int64

// account is an account at Daytona: an owner of the server beneath.
type account struct {
	owner   sandbox.Owner
	token   string
	manager *sandbox.Manager
	http    *httptest.Server
	faults  *faults
}

// newAccount serves one until t ends, and then destroys all that is in it.
func newAccount(t *testing.T, change ...func(*sandbox.Options)) *account {
	t.Helper()
	n := accounts.Add(1)
	a := &account{owner: sandbox.Owner(fmt.Sprintf("account-%d", n)), token: fmt.Sprintf("dtn_%020d", n)}
	log := slog.New(slog.NewTextHandler(logTo{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o := sandbox.Options{Logger: log}
	for _, c := range change {
		c(&o)
	}
	var err error
	if a.manager, err = sandbox.NewManager(beneath, o); err != nil {
		t.Fatal(err)
	}
	ports, err := preview.New(preview.Options{Manager: a.manager, State: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	tb := toolbox.New(toolbox.Options{Manager: a.manager, Logger: log})
	s, err := daytonaapi.New(daytonaapi.Options{Manager: a.manager, State: t.TempDir(), Logger: log, Version: "test", Toolbox: tb, Previews: ports,
		Access: access.Options{Tokens: []access.Token{{Name: string(a.owner), Token: secret.New(a.token)}}}})
	if err != nil {
		t.Fatal(err)
	}
	a.faults = &faults{next: s}
	a.http = httptest.NewServer(a.faults)
	ports.Share(a.http.Listener.Addr())
	t.Cleanup(func() {
		a.http.CloseClientConnections()
		a.http.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		tb.Close()
		if err := ports.Close(); err != nil {
			t.Error(err)
		}
		if err := a.manager.Close(); err != nil {
			t.Error(err)
		}
		localtest.DestroyAll(t, beneath, a.owner)
	})
	return a
}

func (a *account) options() daytona.Options {
	return daytona.Options{URL: a.http.URL + "/api", Key: secret.New(a.token), KeyFrom: "a test"}
}

// open returns a provider of the account's sandboxes.
func (a *account) open(t *testing.T, change func(*daytona.Options)) *daytona.Provider {
	t.Helper()
	o := a.options()
	if change != nil {
		change(&o)
	}
	p, err := daytona.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// count is how many sandboxes there really are.
func (a *account) count(t *testing.T) int {
	t.Helper()
	list, err := beneath.List(t.Context(), a.owner)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// kill ends the sandbox with that native id, as the death of its machine does.
func (a *account) kill(t *testing.T, id string) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(state, "sandboxes", "*"))
	if err != nil {
		t.Fatal(err)
	}
	killed := false
	for _, dir := range dirs {
		if b, err := os.ReadFile(filepath.Join(dir, "sandbox.json")); err != nil || !strings.Contains(string(b), id) {
			continue
		}
		if r, _, err := client.Alive(dir); err == nil && r != nil {
			for _, pid := range []int{r.MonitorPID, r.Ready.InitPID} {
				if pid > 1 {
					killed = syscall.Kill(pid, syscall.SIGKILL) == nil || killed
				}
			}
		}
	}
	if !killed {
		t.Fatalf("nothing of %s to kill", id)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		in, err := beneath.Lookup(t.Context(), sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)})
		if err == nil {
			if info, err := in.Info(t.Context()); err == nil && info.Status == sandbox.StatusStopped {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not show that it was killed: %v", id, err)
		}
	}
}

// patience is how long a test waits for what must happen.
const patience = 2 * time.Minute

type logTo struct{ t *testing.T }

func (l logTo) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// faults stand between the client and the server, and do to requests what a test
// says.
type faults struct {
	next  http.Handler
	rules atomic.Pointer[[]*rule]
}

// rule is what happens to requests of a kind.
type rule struct {
	method, suffix string // of the path; "" any
	times          atomic.Int64
	seen           atomic.Int64
	// do answers; next is the server.
	do func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func (f *faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rules := f.rules.Load(); rules != nil {
		for _, u := range *rules {
			if u.method != "" && u.method != r.Method || !strings.HasSuffix(r.URL.Path, u.suffix) {
				continue
			}
			u.seen.Add(1)
			if u.times.Add(-1) >= 0 {
				u.do(w, r, f.next)
				return
			}
		}
	}
	f.next.ServeHTTP(w, r)
}

// set has the given rules hold, and no others.
func (f *faults) set(rules ...*rule) { f.rules.Store(&rules) }

// on makes a rule for so many requests.
func on(method, suffix string, times int64, do func(w http.ResponseWriter, r *http.Request, next http.Handler)) *rule {
	u := &rule{method: method, suffix: suffix, do: do}
	u.times.Store(times)
	return u
}

// instead answers in the server's place, which does not see the request.
func instead(status int, body string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

// after answers in the server's place, which has done what was asked.
func after(status int, body string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithoutCancel(r.Context())))
		instead(status, body)(w, r, nil)
	}
}

// cut passes the first n bytes of the answer on, and breaks the connection then.
func cut(n int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r.WithContext(context.WithoutCancel(r.Context())))
		var raw strings.Builder
		fmt.Fprintf(&raw, "HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", rec.Code, rec.Body.Len(), rec.Body)
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = conn.Write([]byte(raw.String()[:min(n, raw.Len())]))
		conn.Close()
	}
}
