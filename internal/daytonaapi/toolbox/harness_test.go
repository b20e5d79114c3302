//go:build linux

package toolbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"berth/internal/compile"
	"berth/internal/daytonaapi/toolbox"
	"berth/internal/localtest"
	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/box/entry"
)

var sharedBase string

func TestMain(m *testing.M) {
	entry.Main(os.Args)
	dir, err := os.MkdirTemp("", "berth-base-")
	if err != nil {
		panic(err)
	}
	sharedBase = dir
	code := m.Run()
	if err := localtest.RemoveState(context.Background(), dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// patience is how long a test waits for what must come. It bounds a failure and
// measures nothing.
const patience = 60 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a toolbox over a Manager with the local provider, and one running
// sandbox.
type world struct {
	t       testing.TB
	dir     string
	key     sandbox.Key
	p       sandbox.Provider
	manager *sandbox.Manager
	box     *toolbox.Toolbox
	server  *httptest.Server
	// version is sent as the SDK's.
	version string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	// Not t.TempDir: its long names would not leave room for socket paths.
	dir, err := os.MkdirTemp("", "berth") //nolint:usetesting // see above
	must(t, err)
	must(t, os.Symlink(sharedBase, filepath.Join(dir, "base")))
	w := &world{t: t, dir: dir, key: sandbox.Key{Owner: sandbox.LocalOwner, Session: "box"}, version: "0.218.0"}
	w.serve()
	t.Cleanup(func() {
		w.shut()
		p, err := local.New(local.Options{Dir: dir})
		must(t, err)
		localtest.DestroyAll(t, p, "")
		must(t, p.Close())
		if err := localtest.RemoveState(context.WithoutCancel(t.Context()), dir); err != nil {
			t.Errorf("remove the state: %v", err)
		}
	})
	_, err = w.manager.StartSandbox(t.Context(), w.key, sandbox.Spec{})
	must(t, err)
	return w
}

// serve opens provider, Manager and toolbox over the state directory, as a
// server that starts does.
func (w *world) serve() {
	w.t.Helper()
	p, err := local.New(local.Options{Dir: w.dir})
	must(w.t, err)
	w.p = p
	w.manager, err = sandbox.NewManager(p, sandbox.Options{Compiler: compile.InProcess(), EventDir: filepath.Join(w.dir, "events")})
	must(w.t, err)
	w.box = toolbox.New(toolbox.Options{Manager: w.manager, Logger: slog.New(slog.NewTextHandler(testWriter{w.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.box.Serve(rw, r, w.key) }))
}

// shut ends the server and leaves the sandboxes.
func (w *world) shut() {
	if w.server == nil {
		return
	}
	w.server.CloseClientConnections()
	w.box.Close()
	w.server.Close()
	must(w.t, w.manager.Close())
	must(w.t, w.p.Close())
	w.server = nil
}

// again is another server over the same state.
func (w *world) again() {
	w.t.Helper()
	w.shut()
	w.serve()
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   string
}

func (w *world) request(method, path, contentType string, body io.Reader, headers ...string) answer {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, w.server.URL+path, body)
	must(w.t, err)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if w.version != "" {
		r.Header.Set("X-Daytona-SDK-Version", w.version)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := w.server.Client().Do(r)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: read: %v", method, path, err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

// do sends JSON, wants a status, and reads JSON into v unless nil.
func (w *world) do(method, path string, body any, status int, v any) answer {
	w.t.Helper()
	var r io.Reader
	kind := ""
	if body != nil {
		b, err := json.Marshal(body)
		must(w.t, err)
		r, kind = bytes.NewReader(b), "application/json"
	}
	a := w.request(method, path, kind, r)
	if a.status != status {
		w.t.Fatalf("%s %s %.300v = %d %.1000s, want %d", method, path, body, a.status, a.body, status)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(a.body), v); err != nil {
			w.t.Fatalf("%s %s: %q is no JSON: %v", method, path, a.body, err)
		}
	}
	return a
}

type m = map[string]any

type execResult struct {
	ExitCode *int   `json:"exitCode"`
	Result   string `json:"result"`
}

func (w *world) exec(command string) (int, string) {
	w.t.Helper()
	var r execResult
	w.do("POST", "/process/execute", m{"command": command}, 200, &r)
	return *r.ExitCode, r.Result
}

// run is exec of a command that must succeed.
func (w *world) run(command string) string {
	w.t.Helper()
	code, out := w.exec(command)
	if code != 0 {
		w.t.Fatalf("%s: exit %d, %s", command, code, out)
	}
	return out
}

type sessionResult struct {
	CmdID    string  `json:"cmdId"`
	Output   *string `json:"output"`
	Stdout   *string `json:"stdout"`
	Stderr   *string `json:"stderr"`
	ExitCode *int    `json:"exitCode"`
}

func (w *world) session(id string) {
	w.t.Helper()
	w.do("POST", "/process/session", m{"sessionId": id}, 201, nil)
}

// in runs a command in a session and waits.
func (w *world) in(session, command string) (code int, stdout, stderr string) {
	w.t.Helper()
	var r sessionResult
	w.do("POST", "/process/session/"+session+"/exec", m{"command": command}, 200, &r)
	if r.ExitCode == nil || r.Stdout == nil || r.Stderr == nil {
		w.t.Fatalf("exec %q: %+v", command, r)
	}
	return *r.ExitCode, *r.Stdout, *r.Stderr
}

// begin starts a command in a session and returns its id.
func (w *world) begin(session, command string, quiet bool) string {
	w.t.Helper()
	var r sessionResult
	w.do("POST", "/process/session/"+session+"/exec", m{"command": command, "runAsync": true, "suppressInputEcho": quiet}, 202, &r)
	if r.CmdID == "" || r.ExitCode != nil {
		w.t.Fatalf("exec %q: %+v", command, r)
	}
	return r.CmdID
}

type commandState struct {
	ID       string `json:"id"`
	Command  string `json:"command"`
	ExitCode *int   `json:"exitCode"`
}

// finished polls a command until it has an exit code.
func (w *world) finished(session, command string) int {
	w.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var s commandState
		w.do("GET", "/process/session/"+session+"/command/"+command, nil, 200, &s)
		if s.ExitCode != nil {
			return *s.ExitCode
		}
	}
	w.t.Fatalf("command %s does not end", command)
	return 0
}

type logs struct{ Output, Stdout, Stderr string }

func (w *world) logs(session, command string) logs {
	w.t.Helper()
	var l logs
	w.do("GET", "/process/session/"+session+"/command/"+command+"/logs", nil, 200, &l)
	return l
}

// until polls logs until stdout holds text.
func (w *world) until(session, command, text string) {
	w.t.Helper()
	var l logs
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if l = w.logs(session, command); strings.Contains(l.Stdout, text) {
			return
		}
	}
	w.t.Fatalf("the output of %s is %+v, want %q in it", command, l, text)
}

// dial opens a WebSocket.
func (w *world) dial(path string, protocols ...string) (*websocket.Conn, context.Context) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(cancel)
	h := http.Header{}
	if w.version != "" {
		h.Set("X-Daytona-SDK-Version", w.version)
	}
	ws, res, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(w.server.URL, "http")+path, &websocket.DialOptions{HTTPHeader: h, Subprotocols: protocols})
	if err != nil {
		body := ""
		if res != nil && res.Body != nil {
			b, _ := io.ReadAll(res.Body)
			body = string(b)
		}
		w.t.Fatalf("dial %s: %v %s", path, err, body)
	}
	w.t.Cleanup(func() { _ = ws.CloseNow() })
	ws.SetReadLimit(1 << 20)
	return ws, ctx
}

// problem wants an error in the toolbox's form.
func (w *world) problem(a answer, status int, code, text string) {
	w.t.Helper()
	var e struct {
		StatusCode                                     int
		Message, Code, Source, Timestamp, Path, Method string
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil {
		w.t.Errorf("%d %q is no error: %v", a.status, a.body, err)
		return
	}
	if a.status != status || e.StatusCode != status || e.Code != code || !strings.Contains(e.Message, text) ||
		e.Source != "DAYTONA_DAEMON" || e.Method == "" || !strings.HasPrefix(e.Path, "/") {
		w.t.Errorf("error %d %+v, want %d %s with %q", a.status, e, status, code, text)
	}
}
