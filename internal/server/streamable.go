package server

import (
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/sandbox"
)

// serveMCP is the Streamable HTTP endpoint, of every protocol version.
func (s *Server) serveMCP(w http.ResponseWriter, r *http.Request, owner sandbox.Owner) {
	modern := mcp.IsModernProtocol(r.Header.Get(mcp.HeaderProtocolVersion))
	switch {
	case r.Method == http.MethodPost:
		s.servePost(w, r, owner)
	case r.Method == http.MethodGet && !modern:
		s.serveGet(w, r, owner)
	case r.Method == http.MethodDelete && !modern:
		s.serveDelete(w, r, owner)
	default:
		w.Header().Set("Allow", http.MethodPost)
		if !modern {
			w.Header().Set("Allow", "GET, POST, DELETE")
		}
		http.Error(w, r.Method+" is not supported here by this protocol version", http.StatusMethodNotAllowed)
	}
}

// body reads a request of bounded size; when it cannot, it has answered. What
// was read counts as held until release is called.
func (s *Server) body(w http.ResponseWriter, r *http.Request, owner sandbox.Owner) (raw []byte, release func(), ok bool) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		s.refuse(w, "content type", http.StatusUnsupportedMediaType, "the body must have Content-Type: application/json")
		return nil, nil, false
	}
	b, release, err := s.held.read(w, r, owner, s.o.MaxBody)
	if err == nil {
		return b, release, true
	}
	release()
	switch large := (*http.MaxBytesError)(nil); {
	case errors.As(err, &large):
		s.metrics.refused.WithLabelValues("body").Inc()
		w.Header().Set("Connection", "close")
		writeJSON(w, http.StatusRequestEntityTooLarge, rpcError(nil, mcp.INVALID_REQUEST, fmt.Sprintf("the message is larger than %d bytes; send large content in parts", large.Limit)))
	case errors.Is(err, errHeld):
		s.metrics.refused.WithLabelValues("held").Inc()
		w.Header().Set("Connection", "close")
		w.Header().Set("Retry-After", "1")
		writeJSON(w, http.StatusServiceUnavailable, rpcError(nil, mcp.INTERNAL_ERROR, "the server is busy: too many large messages are worked on. Send this one again when others have ended; it has not started."))
	default:
		http.Error(w, "the body could not be read", http.StatusBadRequest)
	}
	return nil, nil, false
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	e := newEvents(w)
	_ = e.answer(status, v) // a client that is gone needs no answer
}

// session finds the protocol session that a legacy request names. A session
// that this process has not seen yet, but whose id is good, is taken up:
// another server, or this one before a restart, opened it.
func (s *Server) session(r *http.Request, owner sandbox.Owner) (*peer, sandbox.SessionID, int) {
	id := r.Header.Get(mcpserver.HeaderKeySessionID)
	if id == "" {
		return nil, "", http.StatusBadRequest
	}
	bound, err := s.ids.check(kindHTTP, id, owner)
	if err != nil {
		if errors.Is(err, errEnded) {
			s.forget(id, owner) // another server ended it
		}
		return nil, "", http.StatusNotFound
	}
	s.mu.Lock()
	p := s.sessions[id]
	if p == nil {
		p = newPeer(id, &s.lastID)
		p.Initialize()
		s.remember(p)
	}
	s.mu.Unlock()
	return p, bound, http.StatusOK
}

func sessionRefusal(w http.ResponseWriter, status int) {
	if status == http.StatusBadRequest {
		http.Error(w, mcpserver.HeaderKeySessionID+" header is missing; send the one that the answer to initialize had", status)
		return
	}
	http.Error(w, "no such protocol session; begin a new one with initialize", status)
}

// servePost takes one message.
func (s *Server) servePost(w http.ResponseWriter, r *http.Request, owner sandbox.Owner) {
	raw, release, ok := s.body(w, r, owner)
	if !ok {
		return
	}
	defer release()
	json, stream := accepts(r)
	if !json && !stream {
		http.Error(w, "the answer is application/json or text/event-stream; Accept allows neither", http.StatusNotAcceptable)
		return
	}
	m, problem := parse(raw)
	if problem != nil {
		writeJSON(w, http.StatusBadRequest, problem)
		return
	}
	e := newEvents(w)
	e.can, e.only = stream, !json
	if version := r.Header.Get(mcp.HeaderProtocolVersion); m.modern() || mcp.IsModernProtocol(version) {
		s.postModern(w, r, owner, m, e)
		return
	} else if m.method != string(mcp.MethodInitialize) && version != "" && !mcp.IsValidProtocolVersion(version) {
		writeJSON(w, http.StatusBadRequest, rpcError(m.id, mcp.INVALID_REQUEST, fmt.Sprintf("protocol version %.40q is not supported; supported: %s", version, strings.Join(mcp.ValidProtocolVersions, ", "))))
		return
	}
	if m.method == string(mcp.MethodInitialize) && m.id != nil {
		s.initialize(w, r, owner, m, e)
		return
	}
	p, bound, status := s.session(r, owner)
	if p == nil {
		sessionRefusal(w, status)
		return
	}
	switch {
	case m.isAnswer():
		p.answer(m)
		w.WriteHeader(http.StatusAccepted)
	case m.method == string(mcp.MethodNotificationCancelled):
		p.cancelCall(m.cancelled())
		w.WriteHeader(http.StatusAccepted)
	case m.isNotification():
		who := caller(r, owner, "http")
		who.Connection, who.DefaultSession = p.id, bound
		s.notify(p, who, m)
		w.WriteHeader(http.StatusAccepted)
	default:
		who := caller(r, owner, "http")
		who.Connection, who.DefaultSession = p.id, bound
		s.serveCall(r, e, s.newCall(p, who, m, e.message), errDisconnected, nil)
	}
}

// initialize opens a protocol session.
func (s *Server) initialize(w http.ResponseWriter, r *http.Request, owner sandbox.Owner, m *message, e *events) {
	id, bound := s.ids.make(kindHTTP, owner)
	p := newPeer(id, &s.lastID)
	who := caller(r, owner, "http")
	who.Connection, who.DefaultSession = id, bound
	s.serveCall(r, e, s.newCall(p, who, m, e.message), errDisconnected, func(answer any) {
		if _, failed := answer.(mcp.JSONRPCError); failed || !p.Initialized() {
			return
		}
		w.Header().Set(mcpserver.HeaderKeySessionID, id)
		s.mu.Lock()
		s.remember(p)
		s.mu.Unlock()
	})
}

// postModern takes a message of protocol version 2026-07-28 or later: no
// session, and the headers repeat what the body says.
func (s *Server) postModern(w http.ResponseWriter, r *http.Request, owner sandbox.Owner, m *message, e *events) {
	header := r.Header.Get(mcp.HeaderProtocolVersion)
	refuse := func(code int, text string) { writeJSON(w, http.StatusBadRequest, rpcError(m.id, code, text)) }
	switch {
	case m.isAnswer():
		refuse(mcp.INVALID_REQUEST, "protocol version "+mcp.ProtocolVersion20260728+" has no answers from clients; send the request again with inputResponses")
		return
	case r.Header.Get(mcp.HeaderLastEventID) != "":
		refuse(mcp.HEADER_MISMATCH, "streams cannot be resumed (Last-Event-ID); send the request again with a new id")
		return
	case header == "":
		refuse(mcp.HEADER_MISMATCH, mcp.HeaderProtocolVersion+" header is missing; the request names "+m.metaVersion+" in "+mcp.MetaKeyProtocolVersion)
		return
	case m.metaVersion == "":
		refuse(mcp.INVALID_PARAMS, "missing or invalid _meta field "+mcp.MetaKeyProtocolVersion)
		return
	case header != m.metaVersion:
		refuse(mcp.HEADER_MISMATCH, fmt.Sprintf("%s header %.40q does not match %s %.40q", mcp.HeaderProtocolVersion, header, mcp.MetaKeyProtocolVersion, m.metaVersion))
		return
	case !mcp.IsValidProtocolVersion(m.metaVersion):
		response := mcp.UnsupportedProtocolVersionError{Version: m.metaVersion, Supported: mcp.ValidProtocolVersions}.JSONRPCError()
		response.ID = requestID(m.id)
		writeJSON(w, http.StatusBadRequest, response)
		return
	case m.method == string(mcp.MethodNotificationCancelled):
		// It could only name another client's request.
		refuse(mcp.INVALID_REQUEST, "over HTTP a request is cancelled by closing its stream; "+m.method+" needs a protocol session")
		return
	}
	lookup := func(name string) (string, bool) {
		values := r.Header.Values(name)
		return r.Header.Get(name), len(values) > 0
	}
	if err := checkHeaders(s.mcp, r.Header.Get, lookup, m); err != nil {
		refuse(mcp.HEADER_MISMATCH, err.Error())
		return
	}
	who := caller(r, owner, "http")
	if m.isNotification() {
		s.notify(nil, who, m)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	s.serveCall(r, e, s.newCall(nil, who, m, e.message), sandbox.ErrCancelled, nil)
}

// serveCall works on a request until its answer is written. gone is the cause
// that the handler's context ends with when the client leaves; before, if
// set, may look at the answer and set headers.
func (s *Server) serveCall(r *http.Request, e *events, c *call, gone error, before func(any)) {
	defer c.cancel(nil)
	done, open := s.calls.begin()
	if !open {
		_ = e.answer(http.StatusServiceUnavailable, rpcError(c.msg.id, mcp.INTERNAL_ERROR, "the server is shutting down; repeat the request, which has not started"))
		return
	}
	defer done()
	if c.msg.method == string(mcp.MethodSubscriptionsListen) {
		release, ok := s.stream()
		if !ok {
			_ = e.answer(http.StatusServiceUnavailable, busy(c.msg))
			return
		}
		defer release()
	} else {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			e.w.Header().Set("Retry-After", "1")
			_ = e.answer(http.StatusServiceUnavailable, busy(c.msg))
			return
		}
	}
	defer whenGone(r, func() { c.cancel(gone) })()
	stop := func() {}
	if before == nil { // a comment would send the headers
		stop = keepAlive(e, s.o.KeepAlive)
	}
	answer := s.run(c)
	stop()
	if before != nil {
		before(answer)
	}
	status := http.StatusOK
	if c.msg.modern() {
		if failed, ok := answer.(mcp.JSONRPCError); ok {
			status = httpStatus(failed.Error.Code)
		}
	}
	if err := e.answer(status, answer); err != nil {
		s.o.Logger.Debug("answer not delivered", slog.String("method", c.msg.method), slog.Any("err", err))
	}
}

// httpStatus is what protocol version 2026-07-28 prescribes for an error.
func httpStatus(code int) int {
	switch code {
	case mcp.METHOD_NOT_FOUND:
		return http.StatusNotFound
	case mcp.HEADER_MISMATCH, mcp.MISSING_REQUIRED_CLIENT_CAPABILITY, mcp.UNSUPPORTED_PROTOCOL_VERSION,
		mcp.INVALID_REQUEST, mcp.INVALID_PARAMS, mcp.PARSE_ERROR:
		return http.StatusBadRequest
	}
	return http.StatusOK
}

// serveGet is the stream of a legacy session that carries what belongs to no
// request.
func (s *Server) serveGet(w http.ResponseWriter, r *http.Request, owner sandbox.Owner) {
	if _, stream := accepts(r); !stream {
		http.Error(w, "the answer is text/event-stream, which Accept does not allow", http.StatusNotAcceptable)
		return
	}
	p, _, status := s.session(r, owner)
	if p == nil {
		sessionRefusal(w, status)
		return
	}
	release, ok := s.stream()
	if !ok {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many open event streams", http.StatusServiceUnavailable)
		return
	}
	defer release()
	defer p.use()()
	e := newEvents(w)
	if e.open() != nil {
		return
	}
	tick := time.NewTicker(s.o.KeepAlive)
	defer tick.Stop()
	broadcasts := p.broadcastChannel()
	for {
		var err error
		select {
		case n := <-broadcasts:
			err = e.message(n)
		case <-tick.C:
			err = e.comment()
		case <-p.ended:
			return
		case <-r.Context().Done():
			return
		case <-s.streamCtx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// serveDelete ends a legacy session: its id is refused from now on. Sandboxes
// are not touched.
func (s *Server) serveDelete(w http.ResponseWriter, r *http.Request, owner sandbox.Owner) {
	p, _, status := s.session(r, owner)
	if p == nil {
		sessionRefusal(w, status)
		return
	}
	if err := s.ids.end(p.id); err != nil {
		s.o.Logger.Warn("other servers were not told that a protocol session ended", slog.Any("err", err))
	}
	s.forget(p.id, owner)
	w.WriteHeader(http.StatusOK)
}

// accepts reads the Accept header; without one, everything is accepted.
func accepts(r *http.Request) (json, stream bool) {
	values := r.Header.Values("Accept")
	if len(values) == 0 {
		return true, true
	}
	for _, part := range strings.Split(strings.Join(values, ","), ",") {
		t, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil || params["q"] == "0" {
			continue
		}
		json = json || slices.Contains([]string{"*/*", "application/*", "application/json"}, t)
		stream = stream || slices.Contains([]string{"*/*", "text/*", "text/event-stream"}, t)
	}
	return json, stream
}
