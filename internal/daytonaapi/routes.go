package daytonaapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"berth/internal/access"
	"berth/sandbox"
)

// Bounds of requests.
const (
	maxBody       = 16 << 20 // bytes, of the control plane
	maxConcurrent = 1000     // requests at once
)

// call is one request of a known owner.
type call struct {
	w     http.ResponseWriter
	r     *http.Request
	owner sandbox.Owner
	base  string // "http://host:port", as the client knows this server
}

func (c *call) ctx() context.Context { return c.r.Context() }

// handler answers with a body for JSON, or nil for an empty one.
type handler func(c *call) (any, error)

// sandboxHandler is a handler of the owner's sandbox that {s} names.
type sandboxHandler func(c *call, key sandbox.Key) (any, error)

// written tells that a handler has answered by itself.
type written struct{}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	open := func(pattern string, do handler) { s.route(mux, pattern, http.StatusOK, false, do) }
	handle := func(pattern string, do handler) { s.route(mux, pattern, http.StatusOK, true, do) }
	with := func(status int, pattern string, do handler) { s.route(mux, pattern, status, true, do) }
	of := func(do sandboxHandler) handler {
		return func(c *call) (any, error) {
			key, err := s.find(c.ctx(), c.owner, c.r.PathValue("s"))
			if err != nil {
				return nil, err
			}
			began := time.Now()
			body, err := do(c, key)
			s.record(c, key, began, c.pathArgs(), err)
			return body, err
		}
	}

	open("GET /api/config", s.getConfig)
	open("GET /api/health", s.getHealth)
	open("GET /api/health/ready", s.getReady)
	open("GET /api/socket.io/", s.noEvents)
	handle("GET /api/api-keys/current", s.currentKey)
	handle("GET /api/api-keys", s.listKeys)

	handle("POST /api/sandbox", s.createSandbox)
	handle("GET /api/sandbox", s.listSandboxes)
	handle("GET /api/sandbox/paginated", s.listPaginated)
	handle("GET /api/sandbox/{s}", of(s.getSandbox))
	handle("DELETE /api/sandbox/{s}", of(s.deleteSandbox))
	handle("POST /api/sandbox/{s}/start", of(s.startSandbox))
	handle("POST /api/sandbox/{s}/stop", of(s.stopSandbox))
	handle("POST /api/sandbox/{s}/archive", of(s.archiveSandbox))
	handle("POST /api/sandbox/{s}/recover", of(s.recoverSandbox))
	handle("GET /api/sandbox/{s}/toolbox-proxy-url", of(s.toolboxURL))
	handle("PUT /api/sandbox/{s}/labels", of(s.setLabels))
	with(http.StatusCreated, "POST /api/sandbox/{s}/public/{public}", of(s.setPublic))
	with(http.StatusCreated, "POST /api/sandbox/{s}/autostop/{minutes}", of(s.setAutoStop))
	with(http.StatusCreated, "POST /api/sandbox/{s}/autoarchive/{minutes}", of(s.setAutoArchive))
	with(http.StatusCreated, "POST /api/sandbox/{s}/autodelete/{minutes}", of(s.setAutoDelete))
	with(http.StatusCreated, "POST /api/sandbox/{s}/last-activity", of(s.touch))
	handle("POST /api/sandbox/{s}/network-settings", of(s.setNetwork))
	handle("POST /api/sandbox/{s}/resize", of(s.resizeSandbox))
	handle("GET /api/sandbox/{s}/ports/{port}/preview-url", of(s.previewURL))
	handle("GET /api/sandbox/{s}/ports/{port}/signed-preview-url", of(s.signedPreviewURL))
	with(http.StatusCreated, "POST /api/sandbox/{s}/ports/{port}/signed-preview-url/{token}/expire", of(s.expirePreviewURL))
	handle("POST /api/sandbox/{s}/fork", of(s.forkSandbox))
	handle("GET /api/sandbox/{s}/forks", of(s.listForks))
	handle("GET /api/sandbox/{s}/parent", of(s.getParent))
	handle("GET /api/sandbox/{s}/ancestors", of(s.listAncestors))
	handle("POST /api/sandbox/{s}/snapshot", of(s.snapshotSandbox))
	handle("GET /api/sandbox/{s}/build-logs", of(s.sandboxLog))
	handle("GET /api/sandbox/{s}/build-logs-url", of(s.sandboxLogURL))

	handle("POST /api/snapshots", s.createSnapshot)
	handle("GET /api/snapshots", s.listSnapshots)
	handle("GET /api/snapshots/{snapshot}", s.getSnapshot)
	handle("DELETE /api/snapshots/{snapshot}", s.deleteSnapshot)
	handle("POST /api/snapshots/{snapshot}/activate", s.activateSnapshot)
	handle("GET /api/snapshots/{snapshot}/build-logs", s.snapshotLog)
	handle("GET /api/snapshots/{snapshot}/build-logs-url", s.snapshotLogURL)
	handle("GET /api/object-storage/push-access", s.pushAccess)

	handle("GET /api/volumes", s.listVolumes)
	handle("POST /api/volumes", s.createVolume)
	handle("GET /api/volumes/{v}", s.getVolume)
	handle("GET /api/volumes/by-name/{name}", s.volumeByName)
	handle("DELETE /api/volumes/{v}", s.deleteVolume)

	for name, patterns := range missing {
		for _, p := range patterns {
			with(0, p, func(*call) (any, error) {
				return nil, refuse(http.StatusNotImplemented, "%s is not there on this server", name)
			})
		}
	}
	with(0, "/", func(c *call) (any, error) {
		return nil, refuse(http.StatusNotFound, "Cannot %s %s", c.r.Method, c.r.URL.Path)
	})
	return s.outer(mux)
}

// missing is what the platform has and this server has not, by the name that
// its answer of 501 tells.
var missing = map[string][]string{
	"pause":          {"POST /api/sandbox/{s}/pause", "POST /api/sandbox/{s}/autopause/{minutes}"},
	"deactivation":   {"POST /api/snapshots/{snapshot}/deactivate"},
	"time to live":   {"POST /api/sandbox/{s}/ttl/{minutes}"},
	"SSH access":     {"POST /api/sandbox/{s}/ssh-access", "DELETE /api/sandbox/{s}/ssh-access", "GET /api/sandbox/ssh-access/validate"},
	"signed files":   {"GET /api/sandbox/{s}/signing-key", "POST /api/sandbox/{s}/signing-key/rotate"},
	"telemetry":      {"GET /api/sandbox/{s}/telemetry/{kind}"},
	"secrets":        {"/api/secret", "/api/secret/", "PUT /api/sandbox/{s}/secrets"},
	"warm pools":     {"/api/warm-pools", "/api/warm-pools/"},
	"registries":     {"/api/docker-registry", "/api/docker-registry/"},
	"organizations":  {"/api/organizations", "/api/organizations/"},
	"users":          {"/api/users", "/api/users/"},
	"runners":        {"/api/runners", "/api/runners/"},
	"webhooks":       {"/api/webhooks", "/api/webhooks/"},
	"audit logs":     {"/api/audit", "/api/audit/"},
	"API key making": {"POST /api/api-keys", "DELETE /api/api-keys/{name}"},
}

// outer is what every request goes through: the bounds, the checks against
// hostile web pages, and the paths that no pattern can match.
func (s *Server) outer(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := s.o.Previews; p != nil {
			if host, _ := s.rules.Addressed(r); p.Match(host) {
				r.Host = host
				p.ServeHTTP(w, r)
				return
			}
		}
		// An earlier request on this connection may have left a deadline.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			w.Header().Set("Retry-After", "1")
			writeError(w, r, http.StatusServiceUnavailable, "too many requests at once; try again")
			return
		}
		defer s.recovered(w, r)
		if s.o.Version != "" {
			w.Header().Set("X-Daytona-Api-Version", s.o.Version)
		}
		ok, refused := s.rules.Guard(w, r, access.CORS{Methods: "GET, POST, PUT, PATCH, DELETE", Expose: "X-Daytona-Api-Version"})
		switch {
		case refused != nil:
			writeError(w, r, http.StatusForbidden, refused.Text)
		case !ok:
		case strings.HasPrefix(r.URL.Path, s3Prefix):
			s.storage.ServeHTTP(w, r)
		case s.serveToolbox(w, r):
		default:
			api.ServeHTTP(w, r)
		}
	})
}

// recovered answers for a handler that panicked.
func (s *Server) recovered(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler { //nolint:errorlint // a value of its own, never wrapped
		panic(p)
	}
	s.log.ErrorContext(r.Context(), "panic", slog.String("path", r.URL.Path), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	writeError(w, r, http.StatusInternalServerError, "internal error")
}

// route has do answer requests of that pattern.
func (s *Server) route(mux *http.ServeMux, pattern string, status int, auth bool, do handler) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		c := &call{w: w, r: r, base: s.base(r)}
		if auth {
			var ok bool
			if c.owner, ok = s.authenticated(w, r); !ok {
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		body, err := do(c)
		switch {
		case err != nil:
			s.fail(w, r, err)
		case body == written{}:
		case body == nil:
			w.WriteHeader(status)
		default:
			writeJSON(w, status, body)
		}
	})
}

// record writes a call that may have changed something into the sandbox's event
// log, as the toolbox and the tools of MCP do.
func (s *Server) record(c *call, key sandbox.Key, began time.Time, args map[string]any, err error) {
	if c.r.Method == http.MethodGet {
		return
	}
	e := sandbox.Event{Time: began, Tool: "daytona " + c.r.Pattern, Args: args, Outcome: "ok", Duration: time.Since(began)}
	if err != nil {
		_, text, known := told(err)
		if !known {
			text = "internal error"
		}
		e.Outcome, e.Error = "error", text
	}
	s.m.Record(key, e)
}

// pathArgs are what the path says besides the sandbox, but for tokens.
func (c *call) pathArgs() map[string]any {
	args := map[string]any{}
	for _, name := range []string{"public", "minutes", "port"} {
		if v := c.r.PathValue(name); v != "" {
			args[name] = v
		}
	}
	return args
}

// authenticated finds who calls, or answers 401.
func (s *Server) authenticated(w http.ResponseWriter, r *http.Request) (sandbox.Owner, bool) {
	owner, sent, ok := s.rules.Owner(r)
	if ok {
		return owner, true
	}
	text := "an API key is needed: Authorization: Bearer TOKEN"
	if sent {
		text = "the API key is not known"
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="berth"`)
	writeError(w, r, http.StatusUnauthorized, text)
	return "", false
}

// base is this server's URL, as the request's client knows it.
func (s *Server) base(r *http.Request) string {
	host, scheme := s.rules.Addressed(r)
	return scheme + "://" + host
}

// decode reads the request's body into v. Fields that v does not have are left
// out, as the platform does.
func (c *call) decode(v any) error {
	b, err := io.ReadAll(c.r.Body)
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return refuse(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", large.Limit)
	}
	if err != nil {
		return refuse(http.StatusBadRequest, "the body ended early")
	}
	if len(b) == 0 {
		b = []byte("{}")
	}
	err = json.Unmarshal(b, v)
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind) && kind.Field != "":
		return refuse(http.StatusBadRequest, "%s must be %s", kind.Field, kindName(kind))
	case err != nil:
		return refuse(http.StatusBadRequest, "the body is no JSON object that fits: %v", err)
	}
	return nil
}

func kindName(e *json.UnmarshalTypeError) string {
	switch k := e.Type.Kind().String(); {
	case strings.HasPrefix(k, "int"), strings.HasPrefix(k, "float"):
		return "a number, and is a " + e.Value
	case k == "bool":
		return "a boolean, and is a " + e.Value
	case k == "slice":
		return "an array, and is a " + e.Value
	case k == "map", k == "struct":
		return "an object, and is a " + e.Value
	default:
		return fmt.Sprintf("a %s, and is a %s", k, e.Value)
	}
}

// serveToolbox hands what is below /toolbox/{sandbox} to the toolbox. Releases
// before the proxy had it below the control plane, too.
func (s *Server) serveToolbox(w http.ResponseWriter, r *http.Request) bool {
	path := r.URL.EscapedPath()
	rest, ok := strings.CutPrefix(path, "/toolbox/")
	inner := ""
	if !ok {
		if rest, ok = strings.CutPrefix(path, "/api/toolbox/"); !ok {
			return false
		}
		inner = "/toolbox"
	}
	name, rest, _ := strings.Cut(rest, "/")
	rest, ok = strings.CutPrefix("/"+rest, inner)
	if s.o.Toolbox == nil || !ok || inner != "" && !strings.HasPrefix(rest, "/") {
		writeError(w, r, http.StatusNotFound, "Cannot "+r.Method+" "+r.URL.Path)
		return true
	}
	owner, ok := s.authenticated(w, r)
	if !ok {
		return true
	}
	name, err := url.PathUnescape(name)
	plain, perr := url.PathUnescape(rest)
	if err != nil || perr != nil {
		writeError(w, r, http.StatusBadRequest, "the path cannot be decoded")
		return true
	}
	key, err := s.running(r.Context(), owner, name)
	if err != nil {
		s.fail(w, r, err)
		return true
	}
	inside := r.Clone(r.Context())
	inside.Header.Del("Authorization")
	inside.URL.Path, inside.URL.RawPath = plain, rest
	s.o.Toolbox.Serve(w, inside, key)
	return true
}
