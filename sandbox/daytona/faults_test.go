//go:build linux

package daytona_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona"
)

// quick looks often, so that tests need not wait.
func quick(o *daytona.Options) {
	o.Times = daytona.Times{Look: 200 * time.Millisecond, Doubt: 3 * time.Second}
}

const web = "<html><body><h1>502 Bad Gateway</h1></body></html>"

// However the creation is answered, there is one sandbox of the session, or none;
// never two.
func TestNeverTwo(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule func() *rule
		made bool // the first call comes to its sandbox
	}{
		{"gateway_timeout_after_it_was_accepted", func() *rule { return on("POST", "/sandbox", 1, after(504, "")) }, true},
		{"web_page_after_it_was_accepted", func() *rule { return on("POST", "/sandbox", 1, after(502, web)) }, true},
		{"internal_error_after_it_was_accepted", func() *rule { return on("POST", "/sandbox", 1, after(500, `{"statusCode":500,"message":"oops"}`)) }, true},
		{"cut_in_the_status_line", func() *rule { return on("POST", "/sandbox", 1, cut(5)) }, true},
		{"cut_in_the_header", func() *rule { return on("POST", "/sandbox", 1, cut(40)) }, true},
		{"cut_in_the_body", func() *rule { return on("POST", "/sandbox", 1, cut(150)) }, true},
		{"cut_at_once", func() *rule { return on("POST", "/sandbox", 1, cut(0)) }, true},
		{"web_page_instead", func() *rule { return on("POST", "/sandbox", 1, instead(502, web)) }, false},
		{"refused_for_now", func() *rule {
			return on("POST", "/sandbox", 2, instead(429, `{"statusCode":429,"message":"Too Many Requests"}`))
		}, true},
		{"maintenance", func() *rule {
			return on("POST", "/sandbox", 1, instead(503, `{"statusCode":503,"message":"maintenance"}`))
		}, false},
		{"told_twice", func() *rule {
			return on("POST", "/sandbox", 1, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				after(409, `{"statusCode":409,"message":"exists"}`)(w, r, next)
			})
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAccount(t)
			p := a.open(t, quick)
			m, err := sandbox.NewManager(p, sandbox.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			a.faults.set(tt.rule())
			res, err := m.StartSandbox(t.Context(), who, sandbox.Spec{})
			if tt.made && (err != nil || res.Outcome != sandbox.Created) {
				t.Errorf("StartSandbox = %+v, %v", res, err)
			}
			if n := a.count(t); n > 1 || tt.made && n != 1 {
				t.Errorf("there are %d sandboxes", n)
			}
			if !tt.made {
				if err == nil || !strings.Contains(err.Error(), "again") {
					t.Errorf("StartSandbox = %v, want an error that says what to do", err)
				}
				if res, err := m.StartSandbox(t.Context(), who, sandbox.Spec{}); err != nil || res.Info.Status != sandbox.StatusRunning {
					t.Errorf("the same call again: %+v, %v", res, err)
				}
				if n := a.count(t); n != 1 {
					t.Errorf("there are %d sandboxes after the second call", n)
				}
			}
		})
	}
}

// Two servers that see a session for the first time at one moment.
func TestTwins(t *testing.T) {
	a := newAccount(t)
	var wg sync.WaitGroup
	created := 0
	var mu sync.Mutex
	for range 2 {
		m, err := sandbox.NewManager(a.open(t, quick), sandbox.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		wg.Go(func() {
			res, err := m.StartSandbox(t.Context(), who, sandbox.Spec{})
			for range 3 {
				if !errors.Is(err, sandbox.ErrStarting) {
					break
				}
				res, err = m.StartSandbox(t.Context(), who, sandbox.Spec{})
			}
			if err != nil {
				t.Errorf("a twin: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if res.Outcome == sandbox.Created {
				created++
			}
		})
	}
	wg.Wait()
	if n := a.count(t); n != 1 || created != 1 {
		t.Errorf("there are %d sandboxes, %d were created", n, created)
	}
}

// Commands run once, and what they write comes whole, whatever happens to the
// answers.
func TestCommandsThroughFaults(t *testing.T) {
	a := newAccount(t)
	m, err := sandbox.NewManager(a.open(t, quick), sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.ExecuteCommand(t.Context(), who, sandbox.RunRequest{Command: "true"}); err != nil {
		t.Fatal(err)
	}
	const exec = "/process/execute"
	n := 0
	for name, u := range map[string]*rule{
		"bad gateway after":  on("POST", exec, 1, after(502, "")),
		"web page instead":   on("POST", exec, 1, instead(502, web)),
		"internal error":     on("POST", exec, 1, after(500, "")),
		"too many":           on("POST", exec, 1, instead(429, "")),
		"cut at once":        on("POST", exec, 1, cut(0)),
		"cut in the header":  on("POST", exec, 1, cut(30)),
		"cut in the answer":  on("POST", exec, 1, cut(120)),
		"cut near its end":   on("POST", exec, 1, cut(300)),
		"three times in row": on("POST", exec, 3, after(502, "")),
	} {
		n++
		a.faults.set(u)
		res, err := m.ExecuteCommand(t.Context(), who, sandbox.RunRequest{Command: fmt.Sprintf("echo %d >>ran; seq 2000; exit 7", n)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		out := res.Stdout.Head + res.Stdout.Tail
		if res.Process.ExitCode == nil || *res.Process.ExitCode != 7 || !strings.HasPrefix(out, "1\n2\n") || !strings.HasSuffix(out, "1999\n2000\n") || res.Stdout.Cut != 0 {
			t.Errorf("%s: exit %v, %d bytes", name, res.Process.ExitCode, len(out))
		}
	}
	a.faults.set()
	res, err := m.ExecuteCommand(t.Context(), who, sandbox.RunRequest{Command: "sort -n ran | uniq -c | awk '$1 != 1'; wc -l <ran"})
	if err != nil || strings.TrimSpace(res.Stdout.Head) != fmt.Sprint(n) {
		t.Errorf("ran: %q, %v; want each of %d once", res.Stdout.Head, err, n)
	}
}

// The sandbox dies beneath a command: that had started, so it is not run again, and
// no exit code is invented; the next command finds the sandbox brought back.
func TestDyingInMidCommand(t *testing.T) {
	a := newAccount(t)
	p := a.open(t, quick)
	m, err := sandbox.NewManager(p, sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	res, err := m.SpawnProcess(t.Context(), who, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Command: "echo x >>ran; sync ran; echo begun; exec sleep 600"}, WaitFor: sandbox.WaitPattern, Pattern: "begun"})
	if err != nil || !res.Matched {
		t.Fatalf("SpawnProcess = %+v, %v", res, err)
	}
	waited := make(chan error, 1)
	go func() {
		r, err := m.ReadOutput(t.Context(), who, sandbox.ReadRequest{Process: res.Process.ID, WaitFor: sandbox.WaitExit, Wait: new(40 * time.Second)})
		if err == nil && r.Process.ExitCode != nil {
			err = fmt.Errorf("exit code %d of a command that never exited", *r.Process.ExitCode)
		} else if err == nil && r.Process.State == sandbox.ProcessRunning {
			err = errors.New("it is said to run")
		} else {
			err = nil
		}
		waited <- err
	}()
	a.kill(t, native(t, p, who))
	if err := <-waited; err != nil {
		t.Errorf("waiting for it: %v", err)
	}
	next, err := m.ExecuteCommand(t.Context(), who, sandbox.RunRequest{Command: "cat ran"})
	if err != nil || next.Stdout.Head != "x\n" {
		t.Fatalf("the next command: %+v, %v", next, err)
	}
	old, err := m.ReadOutput(t.Context(), who, sandbox.ReadRequest{Process: res.Process.ID, WaitFor: sandbox.WaitNone})
	if err != nil || old.Process.State != sandbox.ProcessLost || old.Process.ExitCode != nil || !strings.Contains(old.Stdout.Head, "begun") {
		t.Errorf("the process that was beneath: %+v, %v; want it lost, its output kept", old, err)
	}
	if n := a.count(t); n != 1 {
		t.Errorf("there are %d sandboxes", n)
	}
}

// What the platform refuses is told with what to do, and without the key.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		rule *rule
		kind error
		want string
	}{
		"key":        {on("GET", "", 99, instead(401, `{"statusCode":401,"message":"Invalid credentials"}`)), sandbox.ErrUnavailable, "not accepted"},
		"permission": {on("POST", "/sandbox", 99, instead(403, `{"statusCode":403,"message":"Forbidden resource"}`)), sandbox.ErrUnavailable, "permission"},
		"quota":      {on("POST", "/sandbox", 99, instead(400, `{"statusCode":400,"message":"Total CPU limit exceeded. Maximum allowed: 10."}`)), sandbox.ErrLimit, "destroy or archive"},
		"wrong path": {on("", "", 99, instead(200, "<!doctype html>")), sandbox.ErrUnavailable, "web page"},
		"too many":   {on("GET", "", 99, instead(429, `{"statusCode":429,"message":"slow down"}`)), sandbox.ErrUnavailable, "too many requests"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAccount(t)
			m, err := sandbox.NewManager(a.open(t, quick), sandbox.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			a.faults.set(tt.rule)
			_, err = m.StartSandbox(t.Context(), who, sandbox.Spec{})
			if err == nil || !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), a.token) {
				t.Errorf("StartSandbox = %v, want %q in it", err, tt.want)
			}
			if n := a.count(t); n != 0 {
				t.Errorf("there are %d sandboxes", n)
			}
		})
	}
}

// Faults of what was asked for are found before anything is made.
func TestBadSpecs(t *testing.T) {
	a := newAccount(t)
	p := a.open(t, nil)
	for want, spec := range map[string]sandbox.Spec{
		"network_allow_domains": {Network: &sandbox.NetworkPolicy{AllowDomains: []string{"example.com"}}},
		"volumes[0].read_only":  {Volumes: []sandbox.VolumeMount{{Volume: "v", Path: "/v", ReadOnly: true}}},
		"labels":                {Labels: map[string]string{"berth/owner": "bob"}},
		"resources.cpu":         {Image: "debian:12", Resources: sandbox.Resources{CPU: 0.5}},
		"image":                 {Image: "UPPER case"},
	} {
		_, err := p.Create(t.Context(), who, spec.WithDefaults(sandbox.Spec{}))
		var fe *sandbox.FieldError
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: Create = %v", want, err)
		}
	}
	if n := a.count(t); n != 0 {
		t.Errorf("%d sandboxes were made", n)
	}
}

// A running process keeps its sandbox from being stopped, and nothing else does.
func TestKeptAwake(t *testing.T) {
	a := newAccount(t)
	p := a.open(t, quick)
	m, err := sandbox.NewManager(p, sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.StartSandbox(t.Context(), who, sandbox.Spec{AutoStop: new(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	p.Later(50 * time.Second) // so that it is to be stopped soon
	touched := func() int64 {
		t.Helper()
		u := on("POST", "/last-activity", 1<<30, func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
		a.faults.set(u)
		if err := p.Wake(t.Context()); err != nil {
			t.Errorf("Wake: %v", err)
		}
		return u.seen.Load()
	}
	if _, err := m.ExecuteCommand(t.Context(), who, sandbox.RunRequest{Command: "true"}); err != nil {
		t.Fatal(err)
	}
	if n := touched(); n != 0 {
		t.Errorf("an idle sandbox was touched %d times", n)
	}
	if _, err := m.SpawnProcess(t.Context(), who, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Command: "sleep 600"}}); err != nil {
		t.Fatal(err)
	}
	if n := touched(); n != 1 {
		t.Errorf("a busy sandbox was touched %d times, want once", n)
	}
}
