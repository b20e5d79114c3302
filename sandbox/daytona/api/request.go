package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	tries = 4
	// patience is the longest that one retry waits; a server that asks for more
	// is told to the caller instead.
	patience  = 20 * time.Second
	maxAnswer = 64 << 20 // bytes, of JSON
	maxFault  = 64 << 10 // bytes, of an error's body
)

// request is one call.
type request struct {
	method string
	base   string // "" the control plane
	path   string // escaped
	query  url.Values
	body   any // is sent as JSON; nil: none
	// stream is sent instead of body; it can be sent once.
	stream io.Reader
	kind   string // content type of stream
	size   int64  // of stream; -1: not known
	header http.Header
	// again: it may be carried out twice.
	again bool
	// timeout of one try; 0: the client's, negative: none.
	timeout time.Duration
}

// do sends r and decodes the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, r request, out any) error {
	_, err := c.ask(ctx, r, out)
	return err
}

// ask is do for who wants to see the answer's header, too.
func (c *Client) ask(ctx context.Context, r request, out any) (http.Header, error) {
	resp, cancel, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	defer resp.Body.Close()
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxFault)) // so that the connection can be used again
		return resp.Header, nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, c.broken(ctx, r, fmt.Errorf("read the answer: %w", err), true)
	case len(b) > maxAnswer:
		return nil, &Error{Method: r.method, Path: r.path, Status: resp.StatusCode, Message: "the answer is longer than 64 MiB", kind: r.doubt()}
	}
	if err := json.Unmarshal(b, out); err != nil {
		e := &Error{Method: r.method, Path: r.path, Status: resp.StatusCode, Message: "the answer is no JSON of the expected form", kind: r.doubt()}
		if page(resp, b) {
			e.Message = "a web page answers and not the API: its address must be complete, such as " + DefaultURL
		}
		return nil, e
	}
	return resp.Header, nil
}

// get sends r and returns what the answer says.
func get[T any](ctx context.Context, c *Client, r request) (T, error) {
	var out T
	err := c.do(ctx, r, &out)
	return out, err
}

// doubt is the kind of an error of which it is not known what was done.
func (r request) doubt() error {
	if r.again {
		return ErrUnavailable
	}
	return ErrMaybeDone
}

// send sends r until it is answered. The caller closes the answer's body and
// calls cancel after that. An answer that is no success is an error.
func (c *Client) send(ctx context.Context, r request) (*http.Response, context.CancelFunc, error) {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return nil, nil, fmt.Errorf("%s %s: %w", r.method, r.path, err)
		}
	}
	began := time.Now()
	for try := 1; ; try++ {
		resp, cancel, err := c.once(ctx, r, body)
		log := c.log.With(slog.String("method", r.method), slog.String("path", r.path), slog.Int("try", try))
		if err == nil {
			log.Debug("daytona", slog.Int("status", resp.StatusCode), slog.Duration("duration", time.Since(began)))
			return resp, cancel, nil
		}
		log.Debug("daytona", slog.Any("err", err), slog.Duration("duration", time.Since(began)))
		var wait time.Duration
		var refused *Error
		retry := r.stream == nil && try < tries && ctx.Err() == nil
		switch {
		case errors.As(err, &refused) && refused.Status == http.StatusTooManyRequests:
			if wait = refused.RetryAfter; wait == 0 {
				wait = max(c.pause(try), time.Second)
			}
		case errors.Is(err, errNotSent) || r.again && errors.Is(err, ErrUnavailable):
			wait = c.pause(try)
			if refused != nil {
				wait = max(wait, refused.RetryAfter)
			}
		default:
			retry = false
		}
		if !retry || wait > patience {
			return nil, nil, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, nil, err
		}
	}
}

// pause before a retry, with some chance in it, so that many do not come at once.
func (c *Client) pause(try int) time.Duration {
	d := c.o.Pause << (try - 1)
	return d/2 + rand.N(d)
}

// errNotSent: nothing of the request has left.
var errNotSent = errors.New("nothing was sent")

// once sends r one time.
func (c *Client) once(ctx context.Context, r request, body []byte) (*http.Response, context.CancelFunc, error) {
	timeout := r.timeout
	if timeout == 0 {
		timeout = c.o.Timeout
	}
	if timeout < 0 {
		timeout = 365 * 24 * time.Hour
	}
	tctx, cancel := context.WithTimeout(ctx, timeout)
	var sent atomic.Bool
	tctx = httptrace.WithClientTrace(tctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	to := r.base
	if to == "" {
		to = c.base
	}
	to += r.path
	if len(r.query) > 0 {
		to += "?" + r.query.Encode()
	}
	reader := r.stream
	if reader == nil && body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(tctx, r.method, to, reader)
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("%s %s: the address is none", r.method, r.path)
	}
	req.Header = c.headers.Clone()
	for k, v := range r.header {
		req.Header[k] = v
	}
	switch {
	case r.stream != nil:
		req.Header.Set("Content-Type", r.kind)
		req.ContentLength = r.size
	case body != nil:
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		err = c.broken(tctx, r, err, sent.Load())
		cancel()
		return nil, nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, cancel, nil
	}
	err = c.fault(r, resp)
	resp.Body.Close()
	cancel()
	return nil, nil, err
}

// broken says what is known after a connection broke, or could not be made.
func (c *Client) broken(ctx context.Context, r request, err error, sent bool) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the address
	}
	text := c.clean(err.Error())
	kinds := []error{ErrUnavailable}
	switch {
	case !sent:
		kinds = append(kinds, errNotSent)
	case !r.again:
		kinds = append(kinds, ErrMaybeDone)
	}
	if cause := ctx.Err(); cause != nil {
		kinds = append(kinds, cause)
	}
	return &connError{text: r.method + " " + r.path + ": " + text, kinds: kinds}
}

// connError is an error without an answer.
type connError struct {
	text  string
	kinds []error
}

func (e *connError) Error() string   { return e.text }
func (e *connError) Unwrap() []error { return e.kinds }

// page tells that an answer is a web page, as the platform's dashboard gives for
// every path that is not the API's.
func page(resp *http.Response, b []byte) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || bytes.HasPrefix(bytes.TrimSpace(b), []byte("<"))
}
