package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"berth/internal/secret"
	"berth/internal/server"
	"berth/internal/session"
	"berth/sandbox"
)

func TestSessionIDs(t *testing.T) {
	r := newHTTP(t, server.Options{})
	id := r.open(nil)
	good := header{"Mcp-Session-Id": id}
	if code, body := r.status("POST", "/mcp", call(1, "hello"), good); code != 200 || !strings.Contains(body, "world") {
		t.Errorf("call = %d %s", code, body)
	}
	if code, _ := r.status("POST", "/mcp", initialized, good); code != 202 {
		t.Errorf("notification = %d, want 202", code)
	}
	changed := []byte(id)
	changed[20] ^= 1
	for name, c := range map[string]struct {
		h    header
		code int
	}{
		"none":    {nil, 400},
		"forged":  {header{"Mcp-Session-Id": "mcp-session-00000000-0000-0000-0000-000000000000"}, 404},
		"changed": {header{"Mcp-Session-Id": string(changed)}, 404},
	} {
		for _, method := range []string{"POST", "GET", "DELETE"} {
			body := ""
			if method == "POST" {
				body = call(1, "hello")
			}
			if code, _ := r.status(method, "/mcp", body, c.h); code != c.code {
				t.Errorf("%s with %s session = %d, want %d", method, name, code, c.code)
			}
		}
	}
}

func TestDeleteEndsTheSession(t *testing.T) {
	key, dir := bytes.Repeat([]byte("k"), 32), t.TempDir()
	ended := make(chan session.Caller, 10)
	r := newHTTP(t, server.Options{Key: key, EndedDir: dir, Ended: func(c session.Caller) { ended <- c }})
	other := newHTTP(t, server.Options{Key: key, EndedDir: dir, Ended: func(c session.Caller) { ended <- c }})
	id := r.open(nil)
	h := header{"Mcp-Session-Id": id}
	get := r.do(t.Context(), "GET", "/mcp", "", h)
	defer get.Body.Close()
	elsewhere, leave := context.WithCancel(context.Background())
	defer leave()
	go func() {
		if a := other.do(elsewhere, "POST", "/mcp", call(1, "block"), h); a != nil {
			a.Body.Close()
		}
	}()
	next(t, other.started, "call on the other server")
	if code, _ := r.status("DELETE", "/mcp", "", h); code != 200 {
		t.Errorf("DELETE = %d", code)
	}
	if c := next(t, ended, "word of the ended connection"); c.Connection != id || c.Owner != sandbox.LocalOwner {
		t.Errorf("ended %+v, want connection %s", c, id)
	}
	if _, err := io.Copy(io.Discard, get.Body); err != nil {
		t.Errorf("the session's stream ended with %v", err)
	}
	for _, s := range []*rig{r, other} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			body := ""
			if method == "POST" {
				body = call(2, "hello")
			}
			if code, _ := s.status(method, "/mcp", body, h); code != 404 {
				t.Errorf("%s after DELETE = %d, want 404", method, code)
			}
		}
	}
	if c := next(t, ended, "word of the other server's ended connection"); c.Connection != id {
		t.Errorf("ended there %+v, want connection %s", c, id)
	}
	if got := next(t, other.causes, "end of the other server's call"); errors.Is(got, sandbox.ErrCancelled) {
		t.Error("DELETE cancelled a call; it hands over")
	}
	after := newHTTP(t, server.Options{Key: key, EndedDir: dir})
	if code, _ := after.status("POST", "/mcp", call(2, "hello"), h); code != 404 {
		t.Errorf("POST after DELETE and a restart = %d, want 404", code)
	}
}

func TestSessionHoldsOverARestart(t *testing.T) {
	key := bytes.Repeat([]byte("k"), 32)
	first := newHTTP(t, server.Options{Key: key})
	h := header{"Mcp-Session-Id": first.open(nil)}
	first.status("POST", "/mcp", call(1, "hello"), h)
	before := next(t, first.callers, "call")
	second := newHTTP(t, server.Options{Key: key})
	if code, body := second.status("POST", "/mcp", call(1, "hello"), h); code != 200 {
		t.Fatalf("call on the second server = %d %s", code, body)
	}
	if after := next(t, second.callers, "call"); after != before || after.DefaultSession == "" || after.Connection != h["Mcp-Session-Id"] {
		t.Errorf("caller = %+v, was %+v", after, before)
	}
	stranger := newHTTP(t, server.Options{})
	if code, _ := stranger.status("POST", "/mcp", call(1, "hello"), h); code != 404 {
		t.Errorf("call on a server with another key = %d, want 404", code)
	}
}

func TestTokens(t *testing.T) {
	hash := sha256.Sum256([]byte("token-b"))
	r := newHTTP(t, server.Options{Tokens: []server.Token{
		{Name: "ann", Token: secret.New("token-a")}, {Name: "bob", SHA256: hex.EncodeToString(hash[:])}}})
	for _, path := range []string{"/mcp", "/sse", "/message", "/metrics"} {
		for name, h := range map[string]header{"none": nil, "wrong": bearer("token-c", nil), "basic": {"Authorization": "Basic token-a"}, "empty": bearer("", nil)} {
			a := r.do(t.Context(), "GET", path, "", h)
			a.Body.Close()
			if a.StatusCode != 401 || !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("GET %s with %s token = %d, %q", path, name, a.StatusCode, a.Header.Get("WWW-Authenticate"))
			}
		}
	}
	if code, _ := r.status("GET", "/healthz", "", nil); code != 200 {
		t.Errorf("healthz without a token = %d", code)
	}
	id := r.open(bearer("token-a", nil))
	mine := bearer("token-a", header{"Mcp-Session-Id": id, "Berth-Session": "work"})
	if code, _ := r.status("POST", "/mcp", call(1, "hello"), mine); code != 200 {
		t.Errorf("own session = %d", code)
	}
	if c := next(t, r.callers, "call"); c.Owner != "ann" || c.HeaderSession != "work" || c.Transport != "http" {
		t.Errorf("caller = %+v", c)
	}
	// ann's call runs while bob tries everything with her id.
	go r.status("POST", "/mcp", call(7, "block"), mine)
	next(t, r.started, "start")
	theirs := bearer("token-b", header{"Mcp-Session-Id": id})
	for method, body := range map[string]string{"POST": cancelled(7), "GET": "", "DELETE": ""} {
		if code, _ := r.status(method, "/mcp", body, theirs); code != 404 {
			t.Errorf("%s with another's session = %d, want 404", method, code)
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	endpoint, _ := r.sse(ctx, bearer("token-a", nil))
	if code, _ := r.status("POST", endpoint, call(1, "hello"), bearer("token-b", nil)); code != 404 {
		t.Errorf("message to another's stream = %d, want 404", code)
	}
	select {
	case cause := <-r.causes:
		t.Errorf("another token ended the call: %v", cause)
	default:
	}
	r.status("POST", "/mcp", cancelled(7), mine)
	next(t, r.causes, "own cancel")
	body, h := modernCall(1, "hello")
	r.status("POST", "/mcp", body, bearer("token-b", h))
	if c := next(t, r.callers, "modern call"); c.Owner != "bob" || c.Connection != "" || c.DefaultSession != "" {
		t.Errorf("modern caller = %+v", c)
	}
}

func TestOriginAndHost(t *testing.T) {
	r := newHTTP(t, server.Options{AllowedHosts: []string{"berth.example.com"}, AllowedOrigins: []string{"https://app.example.com"}})
	host := strings.TrimPrefix(r.url, "http://")
	_, port, _ := net.SplitHostPort(host)
	for name, c := range map[string]struct {
		h       header
		refused bool
	}{
		"no origin":       {nil, false},
		"own origin":      {header{"Origin": r.url}, false},
		"listed":          {header{"Origin": "https://app.example.com"}, false},
		"foreign":         {header{"Origin": "https://evil.example.com"}, true},
		"null":            {header{"Origin": "null"}, true},
		"other port":      {header{"Origin": "http://127.0.0.1:1"}, true},
		"other scheme":    {header{"Origin": "https://" + host}, true},
		"localhost":       {header{"Host": "localhost:" + port, "Origin": "http://localhost:" + port}, false},
		"listed host":     {header{"Host": "berth.example.com"}, false},
		"rebound":         {header{"Host": "evil.example.com:" + port, "Origin": "http://evil.example.com:" + port}, true},
		"subdomain":       {header{"Host": "x.localhost:" + port}, true},
		"untrusted proxy": {header{"Host": "evil.example.com", "X-Forwarded-Host": "localhost"}, true},
	} {
		for _, path := range []string{"/mcp", "/sse", "/message", "/healthz", "/metrics"} {
			for _, method := range []string{"GET", "POST", "DELETE", "OPTIONS"} {
				ctx, cancel := context.WithCancel(t.Context())
				a := r.do(ctx, method, path, "", c.h)
				if (a.StatusCode == http.StatusForbidden) != c.refused {
					t.Errorf("%s: %s %s = %d", name, method, path, a.StatusCode)
				}
				allow := a.Header.Get("Access-Control-Allow-Origin")
				if allow == "*" || c.refused && allow != "" {
					t.Errorf("%s: %s %s allows origin %q", name, method, path, allow)
				}
				cancel()
				a.Body.Close()
			}
		}
	}
	a := r.do(t.Context(), "OPTIONS", "/mcp", "", header{"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "mcp-session-id"})
	a.Body.Close()
	if a.StatusCode != 204 || a.Header.Get("Access-Control-Allow-Origin") != "https://app.example.com" || a.Header.Get("Access-Control-Allow-Headers") != "mcp-session-id" {
		t.Errorf("preflight = %d %v", a.StatusCode, a.Header)
	}
	proxied := newHTTP(t, server.Options{TrustedProxies: []string{"127.0.0.0/8"}})
	if code, _ := proxied.status("GET", "/healthz", "", header{"Host": "inner", "X-Forwarded-Host": "localhost"}); code != 200 {
		t.Errorf("through a trusted proxy = %d", code)
	}
}

func TestBodies(t *testing.T) {
	r := newHTTP(t, server.Options{})
	h := header{"Mcp-Session-Id": r.open(nil)}
	a := func() *http.Response {
		q, _ := http.NewRequestWithContext(t.Context(), "POST", r.url+"/mcp", io.LimitReader(zeros{}, 64<<20))
		q.Header.Set("Content-Type", "application/json")
		a, err := r.hc.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}()
	var m rpc
	if err := json.NewDecoder(a.Body).Decode(&m); err != nil || a.StatusCode != 413 || m.Error == nil || m.Error.Code != -32600 {
		t.Errorf("64 MiB = %d %+v %v", a.StatusCode, m, err)
	}
	a.Body.Close()
	for name, c := range map[string]struct {
		body string
		h    header
		code int
	}{
		"nonsense":      {"}{", h, 400},
		"batch":         {"[" + call(1, "hello") + "]", h, 400},
		"text":          {call(1, "hello"), header{"Content-Type": "text/plain"}, 415},
		"accept":        {call(1, "hello"), header{"Accept": "text/html"}, 406},
		"version":       {call(1, "hello"), header{"Mcp-Protocol-Version": "1999-01-01", "Mcp-Session-Id": h["Mcp-Session-Id"]}, 400},
		"15 MiB":        {`{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"` + strings.Repeat("x", 15<<20) + `"}}`, h, 200},
		"modern id":     {call(1, "hello"), header{"Mcp-Protocol-Version": "2026-07-28"}, 400},
		"unknown":       {call(1, "nothing"), h, 200},
		"long sse body": {`{"jsonrpc":"2.0"`, h, 400},
	} {
		if code, body := r.status("POST", "/mcp", c.body, c.h); code != c.code {
			t.Errorf("%s = %d %.200s, want %d", name, code, body, c.code)
		}
	}
	// A client that takes only one of the two types gets it.
	if _, body := r.status("POST", "/mcp", call(1, "count"), header{"Accept": "application/json", "Mcp-Session-Id": h["Mcp-Session-Id"]}); !strings.HasPrefix(body, "{") || !strings.Contains(body, "counted") {
		t.Errorf("json only = %.300s", body)
	}
	s := r.do(t.Context(), "POST", "/mcp", call(1, "hello"), header{"Accept": "text/event-stream", "Mcp-Session-Id": h["Mcp-Session-Id"]})
	defer s.Body.Close()
	if b, _ := io.ReadAll(s.Body); !strings.Contains(string(b), "event: message\ndata: {") || s.Header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("stream only = %s %v", b, s.Header)
	}
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestDiscoverAndInitialize(t *testing.T) {
	r := newHTTP(t, server.Options{})
	code, body := r.status("POST", "/mcp", `{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{`+modernMeta+`}}}`, header{"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "server/discover"})
	if code != 200 || !strings.Contains(body, "2026-07-28") {
		t.Errorf("discover = %d %s", code, body)
	}
	for _, version := range []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"} {
		_, body := r.status("POST", "/mcp", strings.Replace(initialize, "2025-11-25", version, 1), nil)
		if !strings.Contains(body, `"protocolVersion":"`+version+`"`) {
			t.Errorf("initialize %s = %s", version, body)
		}
	}
}

func TestManySSESessions(t *testing.T) {
	r := newHTTP(t, server.Options{})
	const n = 500
	type open struct {
		endpoint string
		m        <-chan rpc
	}
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	all := make([]open, n)
	for i := range all {
		all[i].endpoint, all[i].m = r.sse(ctx, nil)
	}
	seen := map[sandbox.SessionID]bool{}
	for i, o := range all {
		if code, body := r.status("POST", o.endpoint, call(i, "hello"), nil); code != 202 {
			t.Fatalf("session %d = %d %s", i, code, body)
		}
	}
	for i, o := range all {
		if m := next(t, o.m, "answer"); m.text() != "world" || string(m.ID) != string(decode(t, []byte(call(i, ""))).ID) {
			t.Fatalf("session %d got %+v", i, m)
		}
		c := next(t, r.callers, "caller")
		if c.Transport != "sse" || seen[c.DefaultSession] {
			t.Fatalf("caller = %+v, seen before: %v", c, seen[c.DefaultSession])
		}
		seen[c.DefaultSession] = true
	}
	_, body := r.status("GET", "/metrics", "", nil)
	for _, want := range []string{`berth_protocol_sessions{transport="sse"} 500`, "berth_event_streams 500", `berth_tool_calls_total{outcome="ok",tool="hello"} 500`, "berth_build_info{"} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics have no %s", want)
		}
	}
}

func TestStreamAndCallLimits(t *testing.T) {
	r := newHTTP(t, server.Options{MaxStreams: 1, MaxConcurrent: 1})
	h := header{"Mcp-Session-Id": r.open(nil)}
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	r.sse(ctx, nil)
	for _, path := range []string{"/mcp", "/sse"} {
		if code, _ := r.status("GET", path, "", h); code != 503 {
			t.Errorf("second stream on %s = %d, want 503", path, code)
		}
	}
	go r.status("POST", "/mcp", call(1, "block"), h)
	next(t, r.started, "start")
	if code, body := r.status("POST", "/mcp", call(2, "hello"), h); code != 503 || !strings.Contains(body, "busy") {
		t.Errorf("second call = %d %s", code, body)
	}
	r.status("POST", "/mcp", cancelled(1), h)
	next(t, r.causes, "cancel")
}

func TestHealth(t *testing.T) {
	down := errors.New("10.1.2.3 refused")
	r := newHTTP(t, server.Options{Version: "1.2.3", Health: func(context.Context) error { return down }})
	code, body := r.status("GET", "/healthz", "", nil)
	if want := `{"ok":false,"version":"1.2.3","provider":{"reachable":false}}`; code != 503 || strings.TrimSpace(body) != want {
		t.Errorf("healthz = %d %s, want 503 %s", code, body, want)
	}
	if err := r.s.Registerer().Register(prometheus.NewGauge(prometheus.GaugeOpts{Name: "extra", Help: "x"})); err != nil {
		t.Error(err)
	}
	if _, body := r.status("GET", "/metrics", "", nil); !strings.Contains(body, "extra 0") {
		t.Error("metrics lack the registered gauge")
	}
}

func TestBadOptionsAreAllNamed(t *testing.T) {
	_, err := server.New(server.NewMCP("t", "1", server.MCPOptions{}), server.Options{
		Key: []byte("short"), AllowedOrigins: []string{"app"}, TrustedProxies: []string{"nowhere"},
		Tokens: []server.Token{{Token: secret.New("x")}, {Name: "a"}, {Name: "b", SHA256: "12"}}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"key: ", "auth.tokens[0].name", "auth.tokens[1]", "auth.tokens[2].sha256", "allowed_origins[0]", "trusted_proxies[0]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %s:\n%v", want, err)
		}
	}
}

func TestListenersNeedTokensUnlessLoopback(t *testing.T) {
	m := server.NewMCP("t", "1", server.MCPOptions{})
	for name, c := range map[string]struct {
		o  server.Options
		ip string
		ok bool
	}{
		"loopback":   {server.Options{}, "127.0.0.1", true},
		"loopback 6": {server.Options{}, "::1", true},
		"any":        {server.Options{}, "0.0.0.0", false},
		"insecure":   {server.Options{Insecure: true}, "0.0.0.0", true},
		"tokens":     {server.Options{Tokens: tokens("a", "t")}, "10.0.0.1", true},
	} {
		s, err := server.New(m, c.o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CheckListen(&net.TCPAddr{IP: net.ParseIP(c.ip), Port: 1}); (err == nil) != c.ok {
			t.Errorf("%s: CheckListen = %v", name, err)
		}
	}
}

// A bound on each body is not enough: who sends many, or many values in one,
// must not take the server's memory, nor what other owners need of it.
func TestManyLargeBodies(t *testing.T) {
	tokens := []server.Token{{Name: "ann", Token: secret.New("ann-token")}, {Name: "bob", Token: secret.New("bob-token")}}
	r := newHTTP(t, server.Options{Tokens: tokens, MaxHeld: 4 << 20})
	ann, bob := header{"Authorization": "Bearer ann-token"}, header{"Authorization": "Bearer bob-token"}
	ann["Mcp-Session-Id"], bob["Mcp-Session-Id"] = r.open(ann), r.open(bob)
	large := strings.Replace(call(1, "hello"), "{}", `{"a":"`+strings.Repeat("x", 1<<20)+`"}`, 1)

	// Two that are sent all but their end.
	type holder struct {
		end  *io.PipeWriter
		gone chan struct{}
	}
	hold := func() holder {
		in, out := io.Pipe()
		h := holder{out, make(chan struct{})}
		q, err := http.NewRequestWithContext(t.Context(), "POST", r.url+"/mcp", in)
		if err != nil {
			t.Fatal(err)
		}
		q.ContentLength = int64(len(large))
		q.Header.Set("Content-Type", "application/json")
		for k, v := range ann {
			q.Header.Set(k, v)
		}
		go func() {
			defer close(h.gone)
			if a, err := r.hc.Do(q); err == nil {
				_ = a.Body.Close()
			}
		}()
		_, _ = io.WriteString(out, large[:len(large)-1]) // fails when it is refused: see below
		return h
	}
	holders := []holder{hold(), hold()}
	// The last of what was written may not have been read by the server yet; then
	// the third finds room, perhaps so that one of the two finds none. One that
	// stands still for long is refused, too.
	for {
		code, body := r.status("POST", "/mcp", large, ann)
		if code == 503 && strings.Contains(body, "too many large messages") {
			break
		}
		if code != 200 {
			t.Fatalf("a third large body = %d %s", code, body)
		}
		for i, h := range holders {
			select {
			case <-h.gone:
				holders[i] = hold()
			default:
			}
		}
	}
	if code, body := r.status("POST", "/mcp", call(2, "hello"), ann); code != 200 {
		t.Errorf("a small body of the same owner = %d %s", code, body)
	}
	if code, body := r.status("POST", "/mcp", large, bob); code != 200 {
		t.Errorf("a large body of another owner = %d %s", code, body)
	}
	for _, h := range holders {
		_ = h.end.CloseWithError(context.Canceled)
		<-h.gone
	}
	for {
		code, body := r.status("POST", "/mcp", large, ann)
		if code == 200 {
			break
		}
		if code != 503 {
			t.Fatalf("a large body when others have ended = %d %s", code, body)
		}
	}
	many := strings.Replace(call(1, "hello"), "{}", `{"a":[`+strings.Repeat("{},", 200_000)+`0]}`, 1)
	if code, body := r.status("POST", "/mcp", many, bob); code != 400 || !strings.Contains(body, "values") {
		t.Errorf("200,000 values = %d %s", code, body)
	}
}

// Calls of the old transport count as requests do.
func TestConcurrentCallsOverSSE(t *testing.T) {
	r := newHTTP(t, server.Options{MaxConcurrent: 1})
	one, first := r.sse(t.Context(), nil)
	two, second := r.sse(t.Context(), nil)
	r.status("POST", one, call(1, "block"), nil)
	next(t, r.started, "start")
	r.status("POST", two, call(2, "hello"), nil)
	if a := next(t, second, "answer"); !strings.Contains(a.text(), "busy") {
		t.Errorf("a second call = %+v", a)
	}
	r.status("POST", one, cancelled(1), nil)
	next(t, r.causes, "end of the call")
	next(t, first, "answer")
	for {
		r.status("POST", two, call(3, "hello"), nil)
		if a := next(t, second, "answer"); a.text() == "world" {
			return
		}
	}
}
