package preview

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/sandbox"
)

// How a request brings the token of a port that is not public. The query wins
// a cookie at a browser's first visit. None of them reaches the server inside.
const (
	HeaderToken  = "Berth-Preview-Token"
	QueryToken   = "berth_token"
	cookiePrefix = "berth_" // and the label
	// The same for clients of the Daytona API.
	headerDaytona = "X-Daytona-Preview-Token"
	queryDaytona  = "DAYTONA_SANDBOX_AUTH_KEY"
)

// Bounds of a port.
const (
	maxRequests = 256             // at once, also streams and WebSockets
	stallTime   = 2 * time.Minute // in which a client must take or send something, once it has begun
	answerTime  = 5 * time.Minute // for the head of an answer
	retryAfter  = 2 * time.Second // when nothing listens yet
)

type proxy struct {
	manager   *sandbox.Manager
	log       *slog.Logger
	transport *http.Transport
	reverse   *httputil.ReverseProxy

	mu   sync.Mutex
	open map[string]int // requests under way, by label
}

func newProxy(m *sandbox.Manager, log *slog.Logger) *proxy {
	p := &proxy{manager: m, log: log, open: map[string]int{}}
	p.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			label, _, _ := strings.Cut(addr, ":")
			return m.DialPort(ctx, label)
		},
		DisableCompression:    true,
		MaxIdleConnsPerHost:   16,
		MaxIdleConns:          256,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: answerTime,
	}
	p.reverse = &httputil.ReverseProxy{
		Transport:     p.transport,
		FlushInterval: -1, // what streams must not wait
		Rewrite:       rewrite,
		ModifyResponse: func(r *http.Response) error {
			dropOurs(r.Header)
			return nil
		},
		ErrorHandler: p.failed,
		ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return p
}

func (p *proxy) close() { p.transport.CloseIdleConnections() }

type targetKey struct{}

// target travels with a request from serve to rewrite.
type target struct {
	label  string
	secure bool
}

// rewrite sends the request to the label, under the name that the client used:
// that is what origins and redirects are compared with.
func rewrite(r *httputil.ProxyRequest) {
	t := r.In.Context().Value(targetKey{}).(target)
	r.Out.URL.Scheme, r.Out.URL.Host = "http", t.label
	r.Out.Host = r.In.Host
	r.SetXForwarded() // in place of what the client claimed
	if t.secure {
		r.Out.Header.Set("X-Forwarded-Proto", "https")
	}
	r.Out.Header.Del(HeaderToken)
	r.Out.Header.Del(headerDaytona)
	// Cookies hold for all ports of an address, so that other previews' come
	// along, and would open those.
	cookies := r.Out.Header.Values("Cookie")
	r.Out.Header.Del("Cookie")
	for _, line := range cookies {
		var keep []string
		for c := range strings.SplitSeq(line, ";") {
			if c = strings.TrimSpace(c); c != "" && !strings.HasPrefix(c, cookiePrefix) {
				keep = append(keep, c)
			}
		}
		if len(keep) > 0 {
			r.Out.Header.Add("Cookie", strings.Join(keep, "; "))
		}
	}
	r.Out.URL.RawQuery, _ = cutToken(r.In.URL.RawQuery)
}

// dropOurs keeps what is inside from setting cookies that open other ports.
func dropOurs(h http.Header) {
	cookies := h.Values("Set-Cookie")
	h.Del("Set-Cookie")
	for _, c := range cookies {
		if !strings.HasPrefix(strings.TrimSpace(c), cookiePrefix) {
			h.Add("Set-Cookie", c)
		}
	}
}

// cutToken takes the token out of a query and leaves the rest byte for byte.
func cutToken(query string) (rest, token string) {
	if !strings.Contains(query, QueryToken) && !strings.Contains(query, queryDaytona) {
		return query, ""
	}
	var keep []string
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if name != QueryToken && name != queryDaytona {
			keep = append(keep, part)
			continue
		}
		if v, err := url.QueryUnescape(value); err == nil {
			token = v
		}
	}
	return strings.Join(keep, "&"), token
}

func same(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return want != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// cookieValue stands for the token in browsers; the token cannot be told from it.
func cookieValue(token string) string {
	sum := sha256.Sum256([]byte("berth preview cookie\x00" + token))
	return hex.EncodeToString(sum[:])
}

// serve serves one request to the port of that label and number. open: it has
// shown already that it may.
func (p *proxy) serve(w http.ResponseWriter, r *http.Request, label string, number uint16, secure, open bool) {
	// An earlier request on this connection may have left deadlines.
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{})
	port, err := p.manager.ExposedPort(r.Context(), label)
	if err == nil && port.Number != number {
		err = sandbox.ErrNotFound
	}
	if err != nil {
		p.failed(w, r, err)
		return
	}
	if !port.Public && !open {
		rest, token := cutToken(r.URL.RawQuery)
		switch {
		case same(token, port.Token):
			http.SetCookie(w, &http.Cookie{Name: cookiePrefix + label, Value: cookieValue(port.Token), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: secure})
			if (r.Method == http.MethodGet || r.Method == http.MethodHead) && wantsPage(r) {
				// So that the token stays out of history, logs and Referer.
				to := *r.URL
				to.RawQuery = rest
				w.Header().Set("Referrer-Policy", "no-referrer")
				w.Header().Set("Cache-Control", "no-store")
				w.Header().Set("Location", localPath(to.RequestURI()))
				w.WriteHeader(http.StatusSeeOther)
				return
			}
		case same(r.Header.Get(HeaderToken), port.Token), same(r.Header.Get(headerDaytona), port.Token):
		default:
			if !hasCookie(r, label, port.Token) {
				page(w, r, http.StatusUnauthorized, "A token is needed", "This port is not public. Give its token in the header "+HeaderToken+" or "+headerDaytona+", or open the page once with ?"+QueryToken+"=TOKEN or ?"+queryDaytona+"=TOKEN.", 0)
				return
			}
		}
	}
	if !p.enter(label) {
		page(w, r, http.StatusServiceUnavailable, "Too many requests", "This port has "+strconv.Itoa(maxRequests)+" requests open, and takes no more.", retryAfter)
		return
	}
	defer p.leave(label)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &slowBody{ReadCloser: r.Body, rc: rc}
	}
	r = r.WithContext(context.WithValue(r.Context(), targetKey{}, target{label: label, secure: secure}))
	// The server inside may answer before it has read all that is sent.
	_ = rc.EnableFullDuplex()
	p.reverse.ServeHTTP(&slowWriter{ResponseWriter: w, rc: rc}, r)
}

// localPath keeps a redirect on this host: a path of two slashes would name another.
func localPath(uri string) string { return "/" + strings.TrimLeft(uri, "/\\") }

func hasCookie(r *http.Request, label, token string) bool {
	ok := false
	for _, c := range r.CookiesNamed(cookiePrefix + label) {
		ok = same(c.Value, cookieValue(token)) || ok
	}
	return ok
}

func (p *proxy) enter(label string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[label] >= maxRequests {
		return false
	}
	p.open[label]++
	return true
}

func (p *proxy) leave(label string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[label]--; p.open[label] == 0 {
		delete(p.open, label)
	}
}

// slowWriter ends a connection whose client takes nothing for stallTime.
type slowWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (w *slowWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *slowWriter) Write(b []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(stallTime))
	return w.ResponseWriter.Write(b)
}

// slowBody likewise for one that sends nothing.
type slowBody struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (b *slowBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(stallTime))
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		// Else the connection would be held for dead while the answer streams.
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// failed answers for a port that cannot.
func (p *proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		page(w, r, http.StatusNotFound, "No such port", "This address belongs to no exposed port: its sandbox was destroyed, or never was.", 0)
	case errors.Is(err, syscall.ECONNREFUSED):
		page(w, r, http.StatusBadGateway, "Nothing listens yet", "The sandbox runs, and nothing listens on this port inside. This page tries again by itself.", retryAfter)
	case errors.Is(err, sandbox.ErrNotRunning):
		page(w, r, http.StatusServiceUnavailable, "The sandbox is stopped", "It answers again at this address once it is started and its server runs.", 15*time.Second)
	case r.Context().Err() != nil:
		// The client has gone.
		w.WriteHeader(http.StatusBadGateway)
	default:
		p.log.DebugContext(r.Context(), "exposed port", slog.Any("err", err))
		page(w, r, http.StatusBadGateway, "No answer", "The server inside ended the connection, or answered with what is not HTTP.", 0)
	}
}

func wantsPage(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

// page answers in berth's own words. With again, the client is asked to come
// back after it; browsers do so by themselves.
func page(w http.ResponseWriter, r *http.Request, status int, title, text string, again time.Duration) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Berth-Preview", "1") // told apart from the answers of what is inside
	if again > 0 {
		h.Set("Retry-After", strconv.Itoa(int(again.Seconds())))
	}
	if !wantsPage(r) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, title+". "+text+"\n") // a client that is gone needs no page
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	refresh := ""
	if again > 0 && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		refresh = `<meta http-equiv="refresh" content="` + strconv.Itoa(int(again.Seconds())) + `">`
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `<!doctype html><html lang="en"><head><meta charset="utf-8">`+refresh+`<title>`+html.EscapeString(title)+
		`</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1em}</style></head><body><h1>`+
		html.EscapeString(title)+`</h1><p>`+html.EscapeString(text)+"</p></body></html>\n")
}
