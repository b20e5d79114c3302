package toolbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"syscall"
	"time"

	"berth/sandbox"
)

// Codes of errors, as the toolbox daemon has them.
const (
	codeBadRequest     = "BAD_REQUEST"
	codeInvalidBody    = "INVALID_REQUEST_BODY"
	codeForbidden      = "FORBIDDEN"
	codeNotFound       = "NOT_FOUND"
	codeConflict       = "CONFLICT"
	codeGone           = "GONE"
	codeInternal       = "INTERNAL_SERVER_ERROR"
	codeNotImplemented = "NOT_IMPLEMENTED"
	codeUnavailable    = "SERVICE_UNAVAILABLE"
	codeExecTimeout    = "PROCESS_EXECUTION_TIMEOUT"
	codeNoProcess      = "PROCESS_NOT_FOUND"
	codeSessionEnded   = "SESSION_ENDED"
	codeCompleted      = "COMMAND_ALREADY_COMPLETED"
	codeFileNotFound   = "FILE_NOT_FOUND"
	codeFileDenied     = "FILE_ACCESS_DENIED"
	codeInvalidPath    = "INVALID_FILE_PATH"
	codeFileRead       = "FILE_READ_FAILED"
)

// apiError is an error as the API tells it.
type apiError struct {
	status int
	code   string
	text   string
}

func (e *apiError) Error() string { return e.text }

func badRequest(format string, a ...any) error {
	return &apiError{status: http.StatusBadRequest, code: codeBadRequest, text: fmt.Sprintf(format, a...)}
}

// errAborted ends an answer that has begun, so that its reader sees that it is
// not whole.
var errAborted = errors.New("answer cut short")

// envelope is the body of an error.
type envelope struct {
	StatusCode int    `json:"statusCode"`
	Message    string `json:"message"`
	Code       string `json:"code"`
	Source     string `json:"source"`
	Timestamp  string `json:"timestamp"`
	Path       string `json:"path"`
	Method     string `json:"method"`
}

// kinds are the errors of the domain. The first that fits counts.
var kinds = []struct {
	err    error
	status int
	code   string
}{
	{sandbox.ErrNotRunning, http.StatusBadRequest, codeBadRequest},
	{sandbox.ErrNotFound, http.StatusNotFound, codeNotFound},
	{sandbox.ErrNoProcess, http.StatusNotFound, codeNoProcess},
	{sandbox.ErrExited, http.StatusGone, codeCompleted},
	{sandbox.ErrStdinClosed, http.StatusGone, codeGone},
	{sandbox.ErrMaybeStarted, http.StatusBadGateway, codeUnavailable},
	{sandbox.ErrClosed, http.StatusServiceUnavailable, codeUnavailable},
	{sandbox.ErrUnavailable, http.StatusServiceUnavailable, codeUnavailable},
	{sandbox.ErrStarting, http.StatusServiceUnavailable, codeUnavailable},
	{sandbox.ErrUnsupported, http.StatusNotImplemented, codeNotImplemented},
	{sandbox.ErrLimit, http.StatusBadRequest, codeBadRequest},
	{sandbox.ErrNoProgram, http.StatusBadRequest, codeBadRequest},
	{sandbox.ErrIsDir, http.StatusBadRequest, codeInvalidPath},
	{sandbox.ErrNotDir, http.StatusBadRequest, codeInvalidPath},
	{sandbox.ErrNotEmpty, http.StatusBadRequest, codeInvalidPath},
	{sandbox.ErrNotRegular, http.StatusBadRequest, codeInvalidPath},
	{fs.ErrNotExist, http.StatusNotFound, codeFileNotFound},
	{fs.ErrExist, http.StatusConflict, codeConflict},
	{fs.ErrPermission, http.StatusForbidden, codeFileDenied},
	{syscall.ENOSPC, http.StatusInsufficientStorage, codeInternal},
	{syscall.EBUSY, http.StatusConflict, codeConflict},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, codeUnavailable},
	{context.Canceled, http.StatusServiceUnavailable, codeUnavailable},
}

func describe(err error) (status int, code string) {
	if e := new(apiError); errors.As(err, &e) {
		return e.status, e.code
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.status, k.code
		}
	}
	var field *sandbox.FieldError
	var user *sandbox.UserError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge, codeInvalidBody
	case errors.As(err, &field), errors.As(err, &user):
		return http.StatusBadRequest, codeBadRequest
	}
	return http.StatusInternalServerError, codeInternal
}

func statusOf(err error) int { s, _ := describe(err); return s }

// publicText is what a caller is told of err.
func publicText(err error, ref string) string {
	switch {
	case ref != "":
		return "internal error, reference " + ref
	case errors.Is(err, sandbox.ErrClosed), errors.Is(err, context.Canceled):
		return "the server is shutting down; try again"
	}
	return err.Error()
}

func newEnvelope(r *http.Request, err error, ref string) envelope {
	status, code := describe(err)
	return envelope{StatusCode: status, Message: publicText(err, ref), Code: code, Source: "DAYTONA_DAEMON",
		Timestamp: time.Now().UTC().Format(time.RFC3339), Path: r.URL.Path, Method: r.Method}
}

func writeError(w http.ResponseWriter, r *http.Request, err error, ref string) {
	e := newEnvelope(r, err, ref)
	writeJSON(w, e.StatusCode, e)
}

// writeJSON answers v.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // v is ours
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a caller that has left is told nothing
}

func (c *call) answer(status int, v any) error {
	writeJSON(c.w, status, v)
	return nil
}

// empty answers without a body.
func (c *call) empty(status int) error {
	if status != http.StatusNoContent {
		c.w.Header().Set("Content-Length", "0")
	}
	c.w.WriteHeader(status)
	return nil
}

// maxBody bounds a JSON body, in bytes.
const maxBody = 16 << 20

// decode reads the JSON object of the body. Fields that nobody knows are passed
// over, as clients are older and newer than the server.
func (c *call) decode(v any) error {
	d := json.NewDecoder(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the JSON object")
		}
	}
	if err == nil {
		return nil
	}
	var large *http.MaxBytesError
	var wrong *json.UnmarshalTypeError
	text := "the body is no JSON object: " + err.Error()
	switch {
	case errors.As(err, &large):
		return &apiError{status: http.StatusRequestEntityTooLarge, code: codeInvalidBody, text: "the body has more than 16 MiB"}
	case errors.Is(err, io.EOF):
		text = "the body is empty; it must be a JSON object"
	case errors.As(err, &wrong) && wrong.Field != "":
		text = fmt.Sprintf("%s: a %s does not fit; it must be a %s", wrong.Field, wrong.Value, wrong.Type)
	}
	return &apiError{status: http.StatusBadRequest, code: codeInvalidBody, text: text}
}
