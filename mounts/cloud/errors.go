package cloud

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"

	"berth/mounts/objects"
)

// errForeign is an answer that says yes, and that no bucket service gives.
var errForeign = errors.New("the answer is not that of a bucket service")

// statusError is the error of an answer that its code did not explain, or of no
// answer. The cause is told, not wrapped: vendors' errors end here.
func statusError(ctx context.Context, status int, code string, err error) error {
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return fmt.Errorf("%w: no answer for %v", objects.ErrUnavailable, objects.Patience)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case status == http.StatusPreconditionFailed || status == http.StatusConflict:
		return objects.ErrChanged
	case status == http.StatusNotFound:
		return fmt.Errorf("%w (%s)", fs.ErrNotExist, code)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fmt.Errorf("%w (%s)", fs.ErrPermission, code)
	case status == http.StatusRequestEntityTooLarge:
		return objects.ErrTooBig
	}
	if code == "" {
		code = errText(err)
	}
	return fmt.Errorf("%w: %d %s", objects.ErrUnavailable, status, code)
}

// errText is what may be said of a transport's error: addresses may stay,
// queries and everything signed go.
func errText(err error) string {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	s := err.Error()
	if len(s) > 200 {
		s = s[:200]
	}
	return s
}
