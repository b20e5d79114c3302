package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/secret"
	"berth/sandbox/daytona/api"
)

const key = "dtn_0123456789abcdef"

// serve starts a server and a client of it.
func serve(t *testing.T, h http.HandlerFunc) *api.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return client(t, s.URL+"/api")
}

func client(t *testing.T, url string) *api.Client {
	t.Helper()
	c, err := api.New(api.Options{URL: url, Key: secret.New(key), Agent: "berth/test", Timeout: 30 * time.Second, Pause: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(w http.ResponseWriter, status int, body string) {
	if strings.HasPrefix(body, "{") || strings.HasPrefix(body, "[") {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func TestNew(t *testing.T) {
	for name, c := range map[string]struct {
		o    api.Options
		want string // of the error; "": none
	}{
		"key":                {api.Options{Key: secret.New(key)}, ""},
		"none":               {api.Options{}, "neither an API key nor a JWT"},
		"jwt":                {api.Options{JWT: secret.New("e.y.j"), Organization: "o"}, ""},
		"jwt alone":          {api.Options{JWT: secret.New("e.y.j")}, "organization"},
		"newline":            {api.Options{Key: secret.New(key + "\nX: y")}, "white space"},
		"not an address":     {api.Options{Key: secret.New(key), URL: "app.daytona.io"}, "address"},
		"address with login": {api.Options{Key: secret.New(key), URL: "https://a:b@c/api"}, "address"},
		"file":               {api.Options{Key: secret.New(key), URL: "file:///etc/passwd"}, "address"},
	} {
		_, err := api.New(c.o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: New = %v, want %q", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), key) {
			t.Errorf("%s: the key is in %v", name, err)
		}
	}
}

func TestHeaders(t *testing.T) {
	var got http.Header
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		answer(w, 200, `{"version":"1"}`)
	})
	if _, err := c.Config(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got.Get("Authorization") != "Bearer "+key || !strings.HasPrefix(got.Get("User-Agent"), "berth/test (") || got.Get("X-Daytona-Source") != "berth" || got.Get("X-Daytona-Organization-Id") != "" {
		t.Errorf("got %v", got)
	}
	j, err := api.New(api.Options{URL: c.URL(), JWT: secret.New("e.y.j"), Organization: "org-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := j.Config(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got.Get("Authorization") != "Bearer e.y.j" || got.Get("X-Daytona-Organization-Id") != "org-1" {
		t.Errorf("with a JWT: got %v", got)
	}
}

// Errors in every shape, and what kind they are to who asked once and to who
// may ask again.
func TestFaults(t *testing.T) {
	envelope := func(status int, message string) string {
		b, _ := json.Marshal(map[string]any{"statusCode": status, "message": message, "error": "X", "path": "/p"})
		return string(b)
	}
	for name, c := range map[string]struct {
		status       int
		body         string
		create, exec error // the kinds of POST /sandbox and of a toolbox' execute
		text         string
	}{
		"validation":      {400, `{"statusCode":400,"message":["a is wrong","b too"]}`, nil, nil, "a is wrong, b too"},
		"unauthorized":    {401, envelope(401, "no"), api.ErrUnauthorized, api.ErrUnauthorized, "no"},
		"forbidden":       {403, envelope(403, "no right"), api.ErrUnauthorized, api.ErrUnauthorized, "no right"},
		"not found":       {404, "", api.ErrNotFound, api.ErrNotFound, "404 Not Found"},
		"conflict":        {409, envelope(409, "name taken"), api.ErrConflict, api.ErrConflict, "name taken"},
		"inner status":    {500, envelope(409, "name taken"), api.ErrConflict, api.ErrConflict, "409 Conflict"},
		"timeout":         {408, `{"statusCode":408,"message":"slow","code":"PROCESS_EXECUTION_TIMEOUT"}`, api.ErrTimeout, api.ErrTimeout, "slow"},
		"internal":        {500, envelope(500, "oops"), api.ErrMaybeDone, api.ErrMaybeDone, "oops"},
		"bad gateway":     {502, "<html><body>Bad Gateway</body></html>", api.ErrMaybeDone, api.ErrMaybeDone, "a web page answers"},
		"empty":           {502, "", api.ErrMaybeDone, api.ErrMaybeDone, "502 Bad Gateway"},
		"maintenance":     {503, envelope(503, "be back soon"), api.ErrUnavailable, api.ErrUnavailable, "be back soon"},
		"gateway timeout": {504, "", api.ErrMaybeDone, api.ErrMaybeDone, "504"},
		"no address":      {400, envelope(400, "bad request: failed to resolve container IP: is the Sandbox started?"), nil, api.ErrNotRunning, "started"},
		"old pty":         {400, `{"error":"id is required"}`, nil, nil, "id is required"},
		"old upload":      {400, `{"errors":["a: no space","b: no space"],"files":[]}`, nil, nil, "a: no space, b: no space"},
		"secrets":         {400, "you sent " + key + " to https://u:p@host/x?token=abc", nil, nil, "you sent REDACTED to https://host/x"},
		"long":            {400, strings.Repeat("ü", 1<<20), nil, nil, "üü…"},
		"controls":        {400, "a\x1b[31m\r\nb\x00", nil, nil, "a [31m b"},
		"redirect":        {307, "", nil, nil, "307"},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				w.Header().Set("Location", "/elsewhere")
				answer(w, c.status, c.body)
			})
			check := func(what string, err, kind error) {
				t.Helper()
				var e *api.Error
				if !errors.As(err, &e) {
					t.Fatalf("%s = %v, want an Error", what, err)
				}
				for _, k := range []error{api.ErrMaybeDone, api.ErrNotRunning, api.ErrNotFound, api.ErrConflict, api.ErrTimeout, api.ErrUnauthorized, api.ErrUnavailable} {
					if errors.Is(err, k) != (k == kind) {
						t.Errorf("%s = %v: is %v is %t", what, err, k, k != kind)
					}
				}
				if text := err.Error(); !strings.Contains(text, c.text) || len(text) > 400 || strings.Contains(text, key) || strings.ContainsAny(text, "\n\x00\x1b") {
					t.Errorf("%s: text %q, want %q in it", what, text, c.text)
				}
			}
			_, err := cl.Create(t.Context(), api.NewSandbox{Name: "n"})
			check("Create", err, c.create)
			_, _, err = cl.Toolbox(cl.URL()+"/toolbox", "id").Execute(t.Context(), "true", time.Minute)
			check("Execute", err, c.exec)
			if n := calls.Load(); n != 2 {
				t.Errorf("%d requests for two calls: one was sent again", n)
			}
		})
	}
}

// What is sent again by itself, and what is not.
func TestRetries(t *testing.T) {
	get := func(ctx context.Context, c *api.Client) error { _, err := c.Sandbox(ctx, "x"); return err }
	start := func(ctx context.Context, c *api.Client) error { return c.Start(ctx, "x") }
	create := func(ctx context.Context, c *api.Client) error {
		_, err := c.Create(ctx, api.NewSandbox{})
		return err
	}
	for _, tt := range []struct {
		name   string
		call   func(context.Context, *api.Client) error
		status int
		header string
		fails  int // how often it answers so, before it goes well
		want   int // requests; 0: fails+1, and success
	}{
		{"get_503", get, 503, "", 2, 0},
		{"get_always_502", get, 502, "", 99, 4},
		{"start_504", start, 504, "", 1, 0},
		{"create_503", create, 503, "", 1, 1},
		{"create_500", create, 500, "", 1, 1},
		{"create_429", create, 429, "0.01", 2, 0},
		{"create_429_too_long", create, 429, "3600", 1, 1},
		{"get_400", get, 400, "", 1, 1},
		{"get_404", get, 404, "", 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int32
			c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if int(n.Add(1)) <= tt.fails {
					if tt.header != "" {
						w.Header().Set("Retry-After-sandbox-create", tt.header)
					}
					answer(w, tt.status, "")
					return
				}
				answer(w, 201, `{"id":"1","state":"started"}`)
			})
			err := tt.call(t.Context(), c)
			want := tt.want
			if want == 0 {
				want = tt.fails + 1
				if err != nil {
					t.Errorf("got %v", err)
				}
			} else if err == nil {
				t.Error("it succeeded")
			}
			if int(n.Load()) != want {
				t.Errorf("%d requests, want %d", n.Load(), want)
			}
			var e *api.Error
			if tt.header == "3600" && (!errors.As(err, &e) || e.RetryAfter != time.Hour) {
				t.Errorf("got %v, want RetryAfter 1h", err)
			}
		})
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "15")
		answer(w, 429, "")
		cancel()
	})
	began := time.Now()
	if err := c.Start(ctx, "x"); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("Start = %v after %v, want an error at once", err, time.Since(began))
	}
}

// A connection that breaks at any byte: what may have been done is told, what
// surely was not is sent again, and no half answer is taken for a whole one.
func TestCutAnywhere(t *testing.T) {
	const whole = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 35\r\n\r\n{\"exitCode\":0,\"result\":\"all of it\"}"
	for cut := 0; cut < len(whole); cut++ {
		func() {
			var served atomic.Int32
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var wg sync.WaitGroup
			defer wg.Wait()
			defer l.Close()
			wg.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					served.Add(1)
					buf := make([]byte, 4096)
					_, _ = conn.Read(buf)
					_, _ = io.WriteString(conn, whole[:cut])
					conn.Close()
				}
			})
			c := client(t, "http://"+l.Addr().String()+"/api")
			out, code, err := c.Toolbox("http://"+l.Addr().String()+"/toolbox", "x").Execute(t.Context(), "echo", time.Minute)
			if err == nil || !errors.Is(err, api.ErrMaybeDone) {
				t.Errorf("cut after %d bytes: Execute = %q, %v, %v; want ErrMaybeDone", cut, out, code, err)
			}
			if served.Load() != 1 {
				t.Errorf("cut after %d bytes: the command was sent %d times", cut, served.Load())
			}
		}()
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + l.Addr().String()
	l.Close()
	_, err = client(t, at+"/api").Create(t.Context(), api.NewSandbox{})
	if !errors.Is(err, api.ErrUnavailable) || errors.Is(err, api.ErrMaybeDone) {
		t.Errorf("Create = %v, want ErrUnavailable and not ErrMaybeDone", err)
	}
}

func TestWebPage(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		answer(w, 200, "<!doctype html><title>Dashboard</title>")
	})
	if _, err := c.Sandbox(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "web page") {
		t.Errorf("Sandbox = %v, want a hint at the address", err)
	}
}

func TestList(t *testing.T) {
	var queries []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.Query().Get("labels")+"|"+strings.Join(r.URL.Query()["states"], ",")+"|"+r.URL.Query().Get("cursor"))
		switch r.URL.Query().Get("cursor") {
		case "":
			answer(w, 200, `{"items":[{"id":"1","state":"started","autoStopInterval":null,"cpu":1.5,"new":{"x":[]}}],"nextCursor":"a"}`)
		case "a":
			answer(w, 200, `{"items":[],"nextCursor":"b"}`)
		default:
			answer(w, 200, `{"items":[{"id":"1"},{"id":"2","state":"a state of tomorrow","createdAt":"2026-08-20T10:00:00.000Z"}],"nextCursor":null}`)
		}
	})
	var ids []string
	for s, err := range c.Sandboxes(t.Context(), api.Filter{Labels: map[string]string{"a/b": "c d"}, States: []api.State{api.Started, api.Stopped}}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.ID+string(s.State))
	}
	if fmt.Sprint(ids) != "[1started 2a state of tomorrow]" {
		t.Errorf("got %v", ids)
	}
	if want := `{"a/b":"c d"}|started,stopped|`; len(queries) != 3 || queries[0] != want || queries[2] != want+"b" {
		t.Errorf("queries %q", queries)
	}
}

func TestExecute(t *testing.T) {
	var body string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body = r.URL.Path + " " + string(b) + " " + r.Header.Get("X-Daytona-Skip-Last-Activity-Update")
		answer(w, 200, `{"code":7,"result":"x\u0000y"}`)
	})
	tb := c.Toolbox(strings.TrimSuffix(c.URL(), "/api")+"/toolbox/", "id-1")
	out, code, err := tb.Execute(t.Context(), "echo 'a'", 1500*time.Millisecond)
	if err != nil || out != "x\x00y" || code == nil || *code != 7 {
		t.Errorf("got %q, %v, %v", out, code, err)
	}
	if want := `/toolbox/id-1/process/execute {"command":"echo 'a'","timeout":2} `; body != want {
		t.Errorf("sent %q, want %q", body, want)
	}
	if _, _, err = tb.Quiet().Execute(t.Context(), "x", 0); err != nil || !strings.HasSuffix(body, `"command":"x"} true`) {
		t.Errorf("quiet: sent %q, %v", body, err)
	}
}

func TestUpload(t *testing.T) {
	got := map[string]string{}
	var names []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		m, err := r.MultipartReader()
		if err != nil {
			t.Error(err)
			return
		}
		for {
			p, err := m.NextPart()
			if err != nil {
				break
			}
			b, _ := io.ReadAll(p)
			names, got[p.FormName()] = append(names, p.FormName()), string(b)
		}
		answer(w, 200, `{}`)
	})
	content := strings.Repeat("\x00\r\n--b", 10_000)
	tb := c.Toolbox(c.URL(), "x")
	if err := tb.Upload(t.Context(), "/a/ b", strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(names) != "[files[0].path files[0].file]" || got["files[0].path"] != "/a/ b" || got["files[0].file"] != content {
		t.Errorf("got %v", names)
	}
	got["files[0].file"] = ""
	if err := tb.Upload(t.Context(), "/x", strings.NewReader(content), -1); err != nil || got["files[0].file"] != content {
		t.Errorf("of an unknown size: %v", err)
	}
	if err := tb.Upload(t.Context(), "/x", strings.NewReader("short"), 10); err == nil {
		t.Error("a reader that ends early was taken for a whole file")
	}
}

func TestOverQuota(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 400, `{"statusCode":400,"message":"Total CPU limit exceeded. Maximum allowed: 10."}`)
	})
	if _, err := c.Create(t.Context(), api.NewSandbox{}); !api.OverQuota(err) {
		t.Errorf("OverQuota(%v) is false", err)
	}
}

func FuzzFault(f *testing.F) {
	f.Add(400, []byte(`{"message":["a"],"statusCode":409}`))
	f.Add(502, []byte("<html>"))
	f.Add(500, []byte(`{"message":{"a":1}}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 400 || status > 599 {
			return
		}
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write(body)
		}))
		defer s.Close()
		c := client(t, s.URL)
		defer c.Close()
		_, err := c.Create(t.Context(), api.NewSandbox{})
		var e *api.Error
		if err == nil || !errors.As(err, &e) || e.Status < 400 || e.Status > 599 || len(e.Message) > 310 {
			t.Errorf("Create = %v", err)
		}
	})
}
