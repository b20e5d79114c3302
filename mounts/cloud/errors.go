package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/smithy-go"
	"golang.org/x/oauth2"

	"berth/mounts"
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
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > 200 {
		s = s[:200]
	}
	return s
}

// plain is the fault of an answer that a person misreads when it is told by its
// code alone; nil: it is another.
func (a answer) plain(j mounts.Job) *mounts.Fault {
	f := func(k mounts.FaultKind, format string, args ...any) *mounts.Fault {
		return &mounts.Fault{Kind: k, Message: fmt.Sprintf(format, args...)}
	}
	s3 := j.Service.Kind == mounts.S3
	var token *oauth2.RetrieveError
	switch {
	case j.Service.Ambient && a.status == 0 && noIdentity(a.err):
		return f(mounts.FaultCredentials, "this machine has no identity for %s: neither variables, nor the vendor's files, nor a role of the machine gave one", j.Service.Kind)
	case errors.As(a.err, &token) && tokenCode(token) != "":
		return f(mounts.FaultCredentials, "Google does not accept the service account's key (%.40s); make a new one", tokenCode(token))
	case token != nil:
		status := 0
		if token.Response != nil {
			status = token.Response.StatusCode
		}
		return f(mounts.FaultCredentials, "the token service, which the key's token_uri names, gives no token (status %d); check the service account's key", status)
	case j.Service.Anonymous && (a.status == http.StatusUnauthorized || a.status == http.StatusForbidden || a.code == "PublicAccessNotPermitted"):
		return f(mounts.FaultCredentials, "%s is not open to everybody, and the connection has no keys", where(j))
	case s3 && a.code == "XAdminUserNotFound": // versitygw's
		return f(mounts.FaultCredentials, "the service does not know the access key; check access_key_id")
	case s3 && a.code == "NoSuchKey": // where a bucket was asked for
		return f(mounts.FaultEndpoint, "%s takes what follows it for an object and no bucket; leave the bucket's name out of the endpoint", endpoint(j))
	}
	return nil
}

// refused is the fault of an answer in the form of the service whose code is
// not known here; nil: it has no such form.
func (a answer) refused(j mounts.Job) *mounts.Fault {
	api := smithy.APIError(nil)
	if !errors.As(a.err, &api) || a.status < 400 || a.status >= 500 || a.code == "" || a.code == "UnknownError" {
		return nil
	}
	return &mounts.Fault{Kind: mounts.FaultOther, Message: fmt.Sprintf("%s refuses; it says: %.60s: %.140s", endpoint(j), a.code, api.ErrorMessage())}
}

// tokenCode is why there is no token, such as invalid_grant (RFC 6749, section
// 5.2); empty where what answered is no token service.
func tokenCode(e *oauth2.RetrieveError) string {
	if e.ErrorCode != "" {
		return e.ErrorCode
	}
	var body struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(e.Body, &body) != nil { // the flow of service accounts does not
		return ""
	}
	return body.Error
}

// noIdentity tells that an SDK looked for the machine's own identity and found
// none; what it says in the end is of the last place it looked at.
func noIdentity(err error) bool {
	s := err.Error()
	for _, part := range []string{"failed to refresh cached credentials", "EC2 IMDS", "DefaultAzureCredential: failed to acquire a token", "could not find default credentials"} {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}
