package providertest

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
	"time"

	"berth/internal/preview"
	"berth/sandbox"
)

// A web server on a port of its own choice, which it prints.
var webServers = map[sandbox.Language]string{
	sandbox.JavaScript: `exec %P -e 'const s=require("http").createServer((q,a)=>a.end("hello from "+q.url.split("?")[0])).listen(0,"%A",()=>console.log("port "+s.address().port+"."))'`,
	sandbox.Python: `exec %P -uc 'import http.server
class H(http.server.BaseHTTPRequestHandler):
  def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(("hello from "+self.path.split("?")[0]).encode())
  def log_message(self, *a): pass
s=http.server.HTTPServer(("%A",0),H);print("port %d."%s.server_address[1]);s.serve_forever()'`,
}

// linker tells where ports are reached: the provider, or berth's own previews where
// it only dials them.
type linker struct {
	*suite
	t        *testing.T
	manager  *sandbox.Manager
	previews *preview.Server
}

func (s *suite) linker(t *testing.T) *linker {
	t.Helper()
	l := &linker{suite: s, t: t}
	var err error
	if l.manager, err = sandbox.NewManager(s.p, sandbox.Options{}); err != nil {
		t.Fatal(err)
	}
	if l.previews, err = preview.New(preview.Options{Manager: l.manager, State: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.previews.Close(); err != nil {
			t.Error(err)
		}
		if err := l.manager.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *linker) link(b *box, port uint16, public *bool) sandbox.PortLink {
	l.t.Helper()
	res, err := l.manager.ExposePort(l.ctx(l.t), b.key, sandbox.PortRequest{Port: int(port), Public: public})
	if err != nil {
		l.t.Fatalf("expose port %d: %v", port, err)
	}
	if res.Link != nil {
		return *res.Link
	}
	urls, err := l.previews.Open(l.ctx(l.t), res.Port)
	if err != nil {
		l.t.Fatalf("open port %d: %v", port, err)
	}
	link := sandbox.PortLink{URL: urls[len(urls)-1], Public: res.Port.Public}
	if !link.Public {
		link.Token, link.Header, link.VisitURL = res.Port.Token, "Berth-Preview-Token", link.URL+"/?berth_token="+res.Port.Token
	}
	return link
}

// visit asks an address, as a browser does, and returns the status and the body.
func (l *linker) visit(address, header, token string) (int, string) {
	l.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		l.t.Fatal(err)
	}
	// Not every resolver knows names below localhost.
	dial := func(ctx context.Context, network, to string) (net.Conn, error) {
		if host, port, err := net.SplitHostPort(to); err == nil && strings.HasSuffix(host, ".localhost") {
			to = net.JoinHostPort("127.0.0.1", port)
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
	client := &http.Client{Jar: jar, Timeout: l.h.Timeout, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(l.ctx(l.t), http.MethodGet, address, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set(header, token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

const greeting = "hello from /"

// opens waits until the address shows the web server.
func (l *linker) opens(what, address, header, token string) {
	l.t.Helper()
	for end := time.Now().Add(l.h.Timeout); ; time.Sleep(50 * time.Millisecond) {
		code, body := l.visit(address, header, token)
		if code == http.StatusOK && body == greeting {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: %s shows %d %.300q, want %q", what, address, code, body, greeting)
		}
	}
}

func (l *linker) closed(what, address, header, token string) {
	l.t.Helper()
	if code, body := l.visit(address, header, token); code == http.StatusOK || strings.Contains(body, greeting) {
		l.t.Errorf("%s: %s shows %d %.300q", what, address, code, body)
	}
}

// web starts a web server inside and returns its port.
func (b *box) web() uint16 {
	b.t.Helper()
	return b.serve("web", webServers, "127.0.0.1")
}

// testLinks: PortLinker, or PortDialer and PortKeeper beneath berth's previews. A
// port is opened by its token or to everybody, as long as its sandbox runs.
func testLinks(t *testing.T, s *suite) {
	if !s.can(t, Links) {
		return
	}
	l := s.linker(t)
	b, other := s.make(t), s.make(t)
	port := b.web()
	theirs := l.link(other, other.web(), nil)
	private := l.link(b, port, nil)
	if private.Public || private.Token == "" || private.Header == "" || private.VisitURL == "" {
		t.Fatalf("by default: got %+v, want a token", private)
	}
	l.opens("with its token", private.URL, private.Header, private.Token)
	l.opens("at the address for people", private.VisitURL, "", "")
	l.closed("without a token", private.URL, "", "")
	l.closed("with a wrong token", private.URL, private.Header, "wrong"+private.Token)
	l.closed("with another sandbox's token", private.URL, private.Header, theirs.Token)
	if again := l.link(b, port, nil); again.URL != private.URL || again.Token != private.Token {
		t.Errorf("once more: got %+v, want %+v", again, private)
	}
	unused := l.link(b, 1, nil)
	l.closed("where nothing listens", unused.URL, unused.Header, unused.Token)

	public := l.link(b, port, new(true))
	if !public.Public || public.Token != "" {
		t.Errorf("made public: got %+v", public)
	}
	l.opens("public", public.URL, "", "")
	if err := b.inst.Stop(b.ctx(t)); err != nil {
		t.Fatal(err)
	}
	l.closed("of a stopped sandbox", public.URL, "", "")
	b.status(sandbox.StatusStopped) // which a visit does not start
	if err := b.inst.Start(b.ctx(t)); err != nil {
		t.Fatal(err)
	}
	port = b.web()
	private = l.link(b, port, new(false))
	l.opens("after a start", private.URL, private.Header, private.Token)
	if err := b.inst.Destroy(b.ctx(t)); err != nil {
		t.Fatal(err)
	}
	l.closed("of a destroyed sandbox", private.URL, private.Header, private.Token)
	l.opens("another sandbox's", theirs.URL, theirs.Header, theirs.Token)
}
