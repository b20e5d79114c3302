package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// What callers of a Client may test for. An error that is none of these came
// before anything was sent, or tells that the platform refused the request: the
// thing asked for was surely not done.
var (
	// ErrMaybeDone: the connection broke, or a proxy answered in the platform's
	// place, after the request may have been carried out. It is found under
	// errors of requests that are not sent again by themselves.
	ErrMaybeDone = errors.New("the connection broke; the request may have been carried out")
	// ErrNotRunning: a toolbox request met a sandbox that is there and does not
	// run; nothing was done inside.
	ErrNotRunning = errors.New("the sandbox does not run")
	// ErrNotFound: what the path names does not exist. Of a toolbox request that
	// is the sandbox, but for file requests, where it may be the file: Error.Code
	// tells.
	ErrNotFound = errors.New("not found")
	// ErrConflict: a name in use, or a change of state in progress.
	ErrConflict = errors.New("conflict")
	// ErrTimeout: a command ran into its time limit and was killed.
	ErrTimeout = errors.New("timed out")
	// ErrUnauthorized: the key is not accepted, or may not do this.
	ErrUnauthorized = errors.New("not authorized")
	// ErrUnavailable: the platform cannot answer now (429, 5xx, no connection),
	// also after the retries that were safe.
	ErrUnavailable = errors.New("the platform does not answer")
)

// Error is an answer of the platform that is no success.
type Error struct {
	Method, Path string // of the request; no query, no host
	Status       int    // of HTTP
	Code         string // the platform's, such as FILE_NOT_FOUND; may be empty
	Message      string // at most 300 bytes, one line, without secrets; may be empty
	RetryAfter   time.Duration

	kind error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %d", e.Method, e.Path, e.Status)
	if t := http.StatusText(e.Status); t != "" {
		b.WriteString(" " + t)
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	return b.String()
}

// Unwrap gives the kind of the error, one of this package's, or nil.
func (e *Error) Unwrap() error { return e.kind }
