package api

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxMessage bounds what is shown of an error's message, in bytes.
const maxMessage = 300

// envelope is an error's body, in whichever shape it comes: the control plane's,
// the toolbox', or one of its older routes'.
type envelope struct {
	StatusCode int             `json:"statusCode"`
	Message    json.RawMessage `json:"message"` // a text, or a list of them
	Error      json.RawMessage `json:"error"`   // a text
	Errors     json.RawMessage `json:"errors"`  // a list of texts
	Code       string          `json:"code"`
	ErrorCode  string          `json:"error_code"`
}

// fault makes an error of an answer that is no success.
func (c *Client) fault(r request, resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxFault)) // whatever came of it
	e := &Error{Method: r.method, Path: r.path, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	var env envelope
	own := json.Unmarshal(b, &env) == nil && (len(env.Message) > 0 || len(env.Error) > 0 || len(env.Errors) > 0 || env.Code != "")
	switch {
	case own:
		if env.StatusCode >= 400 && env.StatusCode <= 599 {
			e.Status = env.StatusCode
		}
		e.Code = env.Code
		if e.Code == "" {
			e.Code = env.ErrorCode
		}
		e.Code = c.clean(e.Code)
		for _, raw := range []json.RawMessage{env.Message, env.Errors, env.Error} {
			if e.Message = c.clean(texts(raw)); e.Message != "" {
				break
			}
		}
	case page(resp, b):
		e.Message = "a web page answers, not the API"
	default:
		e.Message = c.clean(string(b))
	}
	e.kind = kindOf(r, e, own, page(resp, b))
	return e
}

// kindOf is the kind of an answer. own tells that the platform itself spoke, and
// not a proxy before it; foreign that it was a web page.
func kindOf(r request, e *Error, own, foreign bool) error {
	switch s := e.Status; {
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		return ErrUnauthorized
	case s == http.StatusNotFound:
		if r.base != "" && own && saysNotRunning(e.Message) {
			return ErrNotRunning
		}
		if foreign {
			return r.doubt() // whoever answers there does not know
		}
		return ErrNotFound
	case s == http.StatusConflict:
		return ErrConflict
	case s == http.StatusRequestTimeout:
		return ErrTimeout
	case s == http.StatusBadRequest && r.base != "" && saysNotRunning(e.Message):
		return ErrNotRunning
	case s == http.StatusTooManyRequests, s == http.StatusServiceUnavailable && own:
		return ErrUnavailable // refused as a whole
	case s >= 500:
		return r.doubt()
	}
	return nil
}

// saysNotRunning recognises how the proxies before a toolbox say that there is
// no running sandbox behind them.
func saysNotRunning(message string) bool {
	m := strings.ToLower(message)
	for _, part := range []string{"is the sandbox started", "failed to resolve container ip", "not running", "not started", "is stopped", "no ip address found"} {
		if strings.Contains(m, part) {
			return true
		}
	}
	return false
}

// texts reads a JSON text, or a list of them.
func texts(raw json.RawMessage) string {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return one
	}
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return strings.Join(list, ", ")
	}
	return ""
}

var address = regexp.MustCompile(`https?://[^\s"'<>]+`)

// clean makes a foreign text fit to be shown: one line, short, without
// credentials.
func (c *Client) clean(s string) string {
	s = strings.ToValidUTF8(s, "�")
	for _, hidden := range c.secrets {
		s = strings.ReplaceAll(s, hidden, "REDACTED")
	}
	s = address.ReplaceAllStringFunc(s, func(a string) string {
		u, err := url.Parse(a)
		if err != nil {
			return "(an address)"
		}
		u.User, u.RawQuery, u.Fragment = nil, "", ""
		return u.String()
	})
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(s) > maxMessage {
		s = s[:maxMessage]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return s
}

// retryAfter is the longest wait that an answer asks for: the plain header, or
// the platform's own, one for each kind of limit (Retry-After-sandbox-create).
func retryAfter(h http.Header, now time.Time) time.Duration {
	var most time.Duration
	for k, v := range h {
		if !strings.HasPrefix(http.CanonicalHeaderKey(k), "Retry-After") || len(v) == 0 {
			continue
		}
		var d time.Duration
		if n, err := strconv.ParseFloat(strings.TrimSpace(v[0]), 64); err == nil && n > 0 && n < 1e6 {
			d = time.Duration(n * float64(time.Second))
		} else if at, err := http.ParseTime(v[0]); err == nil {
			// By the server's clock, where it tells it: ours may be wrong.
			if d0, err := http.ParseTime(h.Get("Date")); err == nil {
				now = d0
			}
			d = at.Sub(now)
		}
		most = max(most, d)
	}
	return most
}

// OverQuota tells that err is a refusal since the organization's quota is used
// up, which the platform says in words alone.
func OverQuota(err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusBadRequest {
		return false
	}
	m := strings.ToLower(e.Message)
	return strings.Contains(m, "limit exceeded") || strings.Contains(m, "quota exceeded") || strings.Contains(m, "exceeds maximum allowed")
}
