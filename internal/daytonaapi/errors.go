package daytonaapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"berth/sandbox"
)

// fault is an error with the status that it is answered with.
type fault struct {
	status int
	text   string
}

func (f *fault) Error() string { return f.text }

func refuse(status int, format string, a ...any) error {
	return &fault{status, fmt.Sprintf(format, a...)}
}

// wireFields are the API's names of the keys that errors of the domain name.
var wireFields = map[string]string{
	"auto_stop_minutes": "autoStopInterval", "auto_archive_minutes": "autoArchiveInterval", "auto_delete_minutes": "autoDeleteInterval",
	"network_allow_list": "networkAllowList", "network_allow_domains": "domainAllowList", "network_block_all": "networkBlockAll",
	"resources.cpu": "cpu", "resources.memory_gib": "memory", "resources.disk_gib": "disk", "session_id": "id", "new_session_id": "id",
	"image": "buildInfo.dockerfileContent", "volume": "volumeId",
}

// told is what an error's reader gets: a status, and a sentence. known is false
// for what only the log may tell.
func told(err error) (status int, text string, known bool) {
	var f *fault
	var user *sandbox.UserError
	if errors.As(err, &f) {
		return f.status, f.text, true
	}
	if list := fields(err); len(list) > 0 {
		var texts []string
		for _, e := range list {
			said := *e
			if n, ok := wireFields[said.Field]; ok {
				said.Field = n
			}
			texts = append(texts, said.Error())
		}
		return http.StatusBadRequest, strings.Join(texts, ", "), true
	}
	status = http.StatusInternalServerError
	switch {
	case errors.Is(err, sandbox.ErrBuildFailed):
		return http.StatusBadRequest, err.Error(), true
	case errors.Is(err, sandbox.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, sandbox.ErrExists), errors.Is(err, sandbox.ErrStarting):
		status = http.StatusConflict
	case errors.Is(err, sandbox.ErrLimit):
		status = http.StatusBadRequest
	case errors.Is(err, sandbox.ErrNotRunning):
		return http.StatusBadRequest, "the sandbox is not running; start it first", true
	case errors.Is(err, sandbox.ErrUnsupported):
		status = http.StatusUnprocessableEntity
	case errors.Is(err, sandbox.ErrUnavailable):
		status = http.StatusServiceUnavailable
	case errors.Is(err, sandbox.ErrClosed), errors.Is(err, errClosing), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable, "the server is shutting down; try again", true
	}
	if errors.As(err, &user) {
		text = user.Text
		if status == http.StatusInternalServerError {
			status = http.StatusBadRequest
		}
		if errors.Is(err, sandbox.ErrLimit) {
			text = "limit exceeded: " + text // what clients look for
		}
		return status, text, true
	}
	if status == http.StatusNotFound {
		return status, "there is no such sandbox", true
	}
	return status, "", false
}

// fields are the *sandbox.FieldErrors that err is or joins.
func fields(err error) []*sandbox.FieldError {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var list []*sandbox.FieldError
		for _, e := range j.Unwrap() {
			list = append(list, fields(e)...)
		}
		return list
	}
	var fe *sandbox.FieldError
	if errors.As(err, &fe) {
		return []*sandbox.FieldError{fe}
	}
	return nil
}

// say is the sentence of an error for a record or a state; what only the log
// may tell goes there, with a reference.
func (s *Server) say(ctx context.Context, err error) string {
	_, text, known := told(err)
	if known {
		return text
	}
	ref := rand.Text()[:10]
	s.log.ErrorContext(ctx, "internal error", slog.String("reference", ref), slog.Any("err", err))
	return "internal error, reference " + ref
}

// errorBody is the API's envelope.
type errorBody struct {
	Path       string `json:"path"`
	Timestamp  string `json:"timestamp"`
	StatusCode int    `json:"statusCode"`
	Error      string `json:"error"`
	Message    string `json:"message"`
	Source     string `json:"source"`
}

// fail answers with err. A client that is gone gets nothing.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return
	}
	status, text, known := told(err)
	if !known {
		text = s.say(r.Context(), err)
	}
	writeError(w, r, status, text)
}

func writeError(w http.ResponseWriter, r *http.Request, status int, text string) {
	source := "DAYTONA_API"
	if strings.HasPrefix(r.URL.Path, "/toolbox/") {
		source = "DAYTONA_PROXY"
	}
	writeJSON(w, status, errorBody{Path: r.URL.Path, Timestamp: stamp(time.Now()), StatusCode: status, Error: http.StatusText(status), Message: text, Source: source})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // of types that always encode
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that is gone needs no answer
}

// stamp writes a time as the API does.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
