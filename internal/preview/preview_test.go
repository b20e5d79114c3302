//go:build unix

package preview_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/preview"
	"berth/sandbox"
)

func TestWhatIsInsideSees(t *testing.T) {
	b := newBench(t, "")
	_, named, plain := b.inside(true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Set-Cookie", "mine=1")
		w.Header().Add("Set-Cookie", "berth_other=stolen")
		fmt.Fprintf(w, "%s %s|host %s|for %s|host %s|proto %s|hop %s|cookie %s|auth %s", r.Method, r.RequestURI, r.Host, r.Header.Get("X-Forwarded-For"),
			r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Hop"), r.Header.Get("Cookie"), r.Header.Get("Authorization"))
	})
	for _, u := range []string{named, plain} {
		host := strings.TrimPrefix(u, "http://")
		resp, got := do(t, "GET", u+"/a%2Fb?x=1;y&z=%zz", nil, "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil", "X-Forwarded-Proto", "gopher",
			"Connection", "X-Hop", "X-Hop", "secret", "Cookie", "a=1; berth_x=2; b=3", "Authorization", "Bearer app")
		want := "GET /a%2Fb?x=1;y&z=%zz|host " + host + "|for 127.0.0.1|host " + host + "|proto http|hop |cookie a=1; b=3|auth Bearer app"
		if resp.StatusCode != 200 || got != want {
			t.Errorf("%s:\n got %s\nwant %s", u, got, want)
		}
		if c := resp.Header.Values("Set-Cookie"); len(c) != 1 || c[0] != "mine=1" {
			t.Errorf("%s: cookies set: %q", u, c)
		}
	}
}

func TestToken(t *testing.T) {
	b := newBench(t, "")
	var seen atomic.Value
	p, named, plain := b.inside(false, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(fmt.Sprint(r.RequestURI, r.Header))
		_, _ = io.WriteString(w, "in")
	})
	other, _, _ := b.inside(false, func(http.ResponseWriter, *http.Request) {})
	for _, u := range []string{named, plain} {
		for _, with := range [][]string{nil, {"Berth-Preview-Token", "wrong"}, {"Berth-Preview-Token", other.Token}, {"Authorization", "Bearer " + p.Token},
			{"Cookie", "berth_" + p.Label + "=" + p.Token}, {"Cookie", "berth_" + p.Label + "="}} {
			if resp, body := do(t, "GET", u, nil, with...); resp.StatusCode != 401 || strings.Contains(body, p.Token) {
				t.Errorf("%s with %q: got %d %s", u, with, resp.StatusCode, body)
			}
		}
		if resp, body := do(t, "GET", u+"/?berth_token=wrong", nil); resp.StatusCode != 401 || !strings.Contains(body, "X-Daytona-Preview-Token") || !strings.Contains(body, "DAYTONA_SANDBOX_AUTH_KEY") {
			t.Errorf("a wrong token in the query: %d %s", resp.StatusCode, body)
		}
		if _, body := do(t, "GET", u, nil, "Berth-Preview-Token", p.Token); body != "in" {
			t.Errorf("with the header: %q", body)
		}
		// A program: served at once, the token gone.
		if resp, body := do(t, "POST", u+"/x?a=1&berth_token="+p.Token+"&b=2", strings.NewReader("x")); body != "in" || resp.StatusCode != 200 {
			t.Errorf("with the query: %d %q", resp.StatusCode, body)
		}
		if s := seen.Load().(string); strings.Contains(s, p.Token) || !strings.HasPrefix(s, "/x?a=1&b=2") {
			t.Errorf("the token reaches what is inside: %s", s)
		}
		// A browser: sent to the address without it, with a cookie.
		resp, _ := do(t, "GET", u+"//evil.example/x?berth_token="+p.Token+"&a=1", nil, "Accept", "text/html")
		if resp.StatusCode != 303 || resp.Header.Get("Location") != "/evil.example/x?a=1" || resp.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("first visit: %d, to %q", resp.StatusCode, resp.Header.Get("Location"))
		}
		cookies := resp.Cookies()
		if len(cookies) != 1 || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteLaxMode || cookies[0].Domain != "" || cookies[0].Secure ||
			strings.Contains(cookies[0].Value, p.Token) || cookies[0].Name != "berth_"+p.Label {
			t.Fatalf("first visit: cookies %v", cookies)
		}
		if resp, body := do(t, "GET", u, nil, "Cookie", "x=1; "+cookies[0].Name+"="+cookies[0].Value); body != "in" || resp.StatusCode != 200 {
			t.Errorf("with the cookie: %d %q", resp.StatusCode, body)
		}
		if s := seen.Load().(string); strings.Contains(s, cookies[0].Value) {
			t.Errorf("the cookie reaches what is inside: %s", s)
		}
	}
	b.expose(int(p.Number), true)
	if resp, _ := do(t, "GET", named, nil); resp.StatusCode != 200 {
		t.Errorf("public now: %d", resp.StatusCode)
	}
	b.expose(int(p.Number), false)
	if resp, _ := do(t, "GET", named, nil); resp.StatusCode != 401 {
		t.Errorf("private again: %d", resp.StatusCode)
	}
}

func TestPages(t *testing.T) {
	b := newBench(t, "")
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	p := b.expose(port, true)
	urls, err := b.ports.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	resp, body := do(t, "GET", urls[0], nil, "Accept", "text/html,*/*")
	if resp.StatusCode != 502 || resp.Header.Get("Retry-After") != "2" || !strings.Contains(body, `http-equiv="refresh"`) {
		t.Errorf("not up yet: %d %v %s", resp.StatusCode, resp.Header, body)
	}
	if resp, body := do(t, "GET", urls[1], nil); resp.StatusCode != 502 || strings.Contains(body, "<") {
		t.Errorf("for a program: %d %s", resp.StatusCode, body)
	}
	n := strconv.Itoa(portOf(t, urls[0]))
	for host, want := range map[string]int{
		"3-" + p.Label + ".localhost:" + n:                                     404, // another port
		strconv.Itoa(port) + "-" + strings.Repeat("a", 20) + ".localhost:" + n: 404,
		"localhost:" + n: 404,
		"x." + strconv.Itoa(port) + "-" + p.Label + ".localhost:" + n:        404,
		strings.ToUpper(strconv.Itoa(port)+"-"+p.Label) + ".LOCALHOST.:" + n: 502,
		strconv.Itoa(port) + "-" + p.Label + ".localhost.evil.example":       404,
	} {
		if resp, _ := do(t, "GET", urls[0], nil, "Host", host); resp.StatusCode != want {
			t.Errorf("Host %s: got %d, want %d", host, resp.StatusCode, want)
		}
	}
	if resp, _ := do(t, "GET", urls[1], nil, "Host", "rebound.example"); resp.StatusCode != 403 {
		t.Errorf("the loopback port by a foreign name: got %d, want 403", resp.StatusCode)
	}
	if _, err := b.manager.StopSandbox(t.Context(), b.key, false); err != nil {
		t.Fatal(err)
	}
	if resp, body := do(t, "GET", urls[0], nil, "Accept", "text/html"); resp.StatusCode != 503 || !strings.Contains(body, "stopped") {
		t.Errorf("stopped: %d %s", resp.StatusCode, body)
	}
	if info, err := b.manager.GetSandbox(t.Context(), b.key); err != nil || info.Status != sandbox.StatusStopped || len(info.Ports) != 1 {
		t.Errorf("a visit started it, or took the port away: %v, %v", info, err)
	}
	if _, err := b.manager.DestroySandbox(t.Context(), b.key); err != nil {
		t.Fatal(err)
	}
	if resp, _ := do(t, "GET", urls[0], nil); resp.StatusCode != 404 {
		t.Errorf("destroyed: %d", resp.StatusCode)
	}
}

func TestLargeBodiesAndStreams(t *testing.T) {
	b := newBench(t, "")
	next := make(chan struct{})
	_, named, _ := b.inside(true, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/echo" {
			_ = http.NewResponseController(w).EnableFullDuplex()
			_, _ = io.Copy(w, r.Body)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next // the next one only once the client has this one
		}
	})
	big := make([]byte, 8<<20)
	_, _ = rand.Read(big)
	if resp, got := do(t, "POST", named+"/echo", strings.NewReader(string(big))); resp.StatusCode != 200 || got != string(big) {
		t.Errorf("8 MiB came back as %d, %d bytes", resp.StatusCode, len(got))
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", named+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", i) || !lines.Scan() {
			t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
		}
		next <- struct{}{}
	}
}

// TestUpgrade speaks what a WebSocket does: an upgrade, then bytes both ways.
func TestUpgrade(t *testing.T) {
	b := newBench(t, "")
	_, named, _ := b.inside(true, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			w.WriteHeader(400)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(c, rw)
	})
	u, err := url.Parse(named)
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", "127.0.0.1:"+u.Port())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", u.Host)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("upgrade: %v, %v", resp, err)
	}
	for i := range 100 {
		sent := fmt.Sprintf("message %d\n", i)
		if _, err := io.WriteString(c, sent); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != sent {
			t.Fatalf("got %q, %v", got, err)
		}
	}
}

func TestRequestsAreBounded(t *testing.T) {
	b := newBench(t, "")
	hold := make(chan struct{})
	var in atomic.Int32
	_, _, plain := b.inside(true, func(_ http.ResponseWriter, r *http.Request) {
		in.Add(1)
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	})
	const most = 256
	done := make(chan int, most)
	for range most {
		go func() {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", plain, nil)
			resp, err := client.Do(req)
			if err != nil {
				done <- 0
				return
			}
			_ = resp.Body.Close()
			done <- resp.StatusCode
		}()
	}
	for in.Load() < most {
		select {
		case code := <-done:
			t.Fatalf("one of those allowed ended with %d", code)
		case <-time.After(time.Millisecond):
		}
	}
	if resp, _ := do(t, "GET", plain, nil); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %d %v", resp.StatusCode, resp.Header)
	}
	close(hold)
	for range most {
		if code := <-done; code != 200 {
			t.Fatalf("one of those allowed ended with %d", code)
		}
	}
	if resp, _ := do(t, "GET", plain, nil); resp.StatusCode != 200 {
		t.Errorf("afterwards: %d", resp.StatusCode)
	}
}

// TestAddressesStay: the same addresses after a restart, and from a second process.
func TestAddressesStay(t *testing.T) {
	b := newBench(t, "")
	p, named, plain := b.inside(true, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "in") })
	second := b.another("")
	urls, err := second.Open(t.Context(), mustPort(t, b, p.Label))
	if err != nil || urls[0] != named || urls[1] != plain {
		t.Fatalf("the second process: got %v, %v; want %s, %s", urls, err, named, plain)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { second.Run(ctx); close(ran) }()
	defer func() { cancel(); <-ran }()
	if err := b.ports.Close(); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{named, plain} {
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", u, nil)
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == 200 {
					break
				}
			}
			if time.Now().After(end) {
				t.Fatalf("%s is not taken over", u)
			}
		}
	}
}

func mustPort(t *testing.T, b *bench, label string) sandbox.Port {
	t.Helper()
	p, err := b.manager.ExposedPort(t.Context(), label)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestForeignPort: an address that somebody else has taken meanwhile is not
// given out again.
func TestForeignPort(t *testing.T) {
	b := newBench(t, "")
	p, named, plain := b.inside(true, func(http.ResponseWriter, *http.Request) {})
	if err := b.ports.Close(); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{named, plain} {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:"+strconv.Itoa(portOf(t, u)))
		if err != nil {
			t.Fatal(err)
		}
		foreign := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
		go func() { _ = foreign.Serve(l) }()
		defer foreign.Close()
	}
	urls, err := b.another("").Open(t.Context(), mustPort(t, b, p.Label))
	if err != nil || urls[0] == named || urls[1] == plain {
		t.Errorf("got %v, %v", urls, err)
	}
}

// TestProbePassedOn: who has taken an address may pass the question who serves
// it on to one of ours, which answers for its own port only.
func TestProbePassedOn(t *testing.T) {
	b := newBench(t, "")
	p, named, plain := b.inside(true, func(http.ResponseWriter, *http.Request) {})
	if err := b.ports.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:"+strconv.Itoa(portOf(t, plain)))
	if err != nil {
		t.Fatal(err)
	}
	// What it sends on says in every way where the question came from.
	ours := &url.URL{Scheme: "http", Host: "127.0.0.1:" + strconv.Itoa(portOf(t, named))}
	asked := make(chan int, 10)
	foreign := &http.Server{ReadHeaderTimeout: time.Second, Handler: &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(ours); r.Out.Host = r.In.Host; r.SetXForwarded() },
		ModifyResponse: func(r *http.Response) error { asked <- r.StatusCode; return nil },
	}}
	go func() { _ = foreign.Serve(l) }()
	defer foreign.Close()
	urls, err := b.another("").Open(t.Context(), mustPort(t, b, p.Label))
	if err != nil || urls[0] != named || urls[1] == plain {
		t.Errorf("got %v, %v; want %s, and not %s", urls, err, named, plain)
	}
	select {
	case code := <-asked:
		if code != http.StatusNoContent {
			t.Errorf("the question passed on = %d; this test shows nothing", code)
		}
	default:
		t.Error("nothing was asked; this test shows nothing")
	}
}

func TestPublicURL(t *testing.T) {
	b := newBench(t, "https://Preview.Example.com:8443/")
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Proto"))
	}))
	defer inside.Close()
	p := b.expose(portOf(t, inside.URL), false)
	urls, err := b.ports.Open(t.Context(), p)
	want := fmt.Sprintf("https://%d-%s.preview.example.com:8443", p.Number, p.Label)
	if err != nil || len(urls) != 1 || urls[0] != want {
		t.Fatalf("got %v, %v; want %s", urls, err, want)
	}
	front := httptest.NewServer(b.ports)
	defer front.Close()
	host := fmt.Sprintf("%d-%s.preview.example.com", p.Number, p.Label)
	if !b.ports.Match(host) || b.ports.Match("preview.example.com") || b.ports.Match("evil.example") {
		t.Error("Match is wrong")
	}
	resp, _ := do(t, "GET", front.URL+"/?berth_token="+p.Token, nil, "Host", host, "Accept", "text/html")
	if c := resp.Cookies(); len(c) != 1 || !c[0].Secure {
		t.Errorf("cookies %v", c)
	}
	if _, body := do(t, "GET", front.URL, nil, "Host", host, "Berth-Preview-Token", p.Token); body != "https" {
		t.Errorf("X-Forwarded-Proto is %q", body)
	}
	for _, bad := range []string{"preview.example.com", "ftp://x", "https://x/y", "https://10.0.0.1", "https://u@x"} {
		_, err := preview.New(preview.Options{Manager: b.manager, Public: bad})
		if fe := (&sandbox.FieldError{}); !errors.As(err, &fe) || fe.Field != "ports.public_url" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
