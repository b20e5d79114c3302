package cloud

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"berth/mounts"
	"berth/mounts/objects"
)

// Check opens a job's bucket and finds out whether it can be used as the job
// says: that it resolves, answers, takes the signature, lists, reads, and
// writes unless it is read-only. It leaves nothing behind.
func Check(ctx context.Context, j mounts.Job) (objects.Bucket, *mounts.Fault) {
	clock := &clock{}
	ctx = context.WithValue(ctx, clockKey{}, clock)
	b, fault := check(ctx, j)
	if fault != nil && (fault.Kind == mounts.FaultClock || fault.Kind == mounts.FaultCredentials || fault.Kind == mounts.FaultListDenied) {
		if text := clock.text(); text != "" {
			return nil, &mounts.Fault{Kind: mounts.FaultClock, Message: text}
		}
	}
	return b, fault
}

func check(ctx context.Context, j mounts.Job) (objects.Bucket, *mounts.Fault) {
	b, err := Open(ctx, j)
	if err != nil {
		if j := (*JobError)(nil); errors.As(err, &j) {
			return nil, &mounts.Fault{Kind: mounts.FaultJob, Message: err.Error()}
		}
		return nil, &mounts.Fault{Kind: mounts.FaultCredentials, Message: errText(err)}
	}
	b, region, fault := checkList(ctx, b, j)
	if fault != nil {
		return nil, fault
	}
	if region != "" {
		j.Service.Region = region
	}
	if f := checkRead(ctx, b, j); f != nil {
		return nil, f
	}
	if !j.ReadOnly {
		if f := checkWrite(ctx, b, j); f != nil {
			return nil, f
		}
	}
	return b, nil
}

// checker lets the drivers say what a raw error of theirs means.
type checker interface {
	// list asks for one key, with few tries, and returns the vendor's error.
	list(ctx context.Context, prefix string) error
}

// checkTries: nobody should wait long to be told of a typing error.
const checkTries = 3

func checkList(ctx context.Context, b objects.Bucket, j mounts.Job) (objects.Bucket, string, *mounts.Fault) {
	err := b.(checker).list(ctx, j.Prefix)
	if err == nil {
		return b, "", nil
	}
	a := answerOf(err)
	// Where no region was given, the service may tell it.
	if r := a.region; r != "" && j.Service.Kind == mounts.S3 && r != j.Service.Region && (j.Service.Region == "" || j.Service.Region == "auto") {
		j.Service.Region = r
		if b, err := Open(ctx, j); err == nil {
			if err = b.(checker).list(ctx, j.Prefix); err == nil {
				return b, r, nil
			}
			a = answerOf(err) // what is wrong besides
		}
	}
	return nil, "", a.fault(j, mounts.FaultListDenied, "list")
}

func checkRead(ctx context.Context, b objects.Bucket, j mounts.Job) *mounts.Fault {
	p, err := b.List(ctx, j.Prefix, true, "", 1)
	if err != nil {
		return answerOf(err).fault(j, mounts.FaultListDenied, "list")
	}
	for _, o := range p.Objects {
		if o.Size == 0 {
			continue
		}
		r, err := b.Read(ctx, o.Key, o.Version, 0, 1)
		if err == nil {
			_, err = io.ReadFull(r, make([]byte, 1))
			r.Close()
		}
		if errors.Is(err, fs.ErrPermission) {
			return &mounts.Fault{Kind: mounts.FaultReadDenied, Message: fmt.Sprintf("the keys may list %s but not read from it; allow reading objects", where(j))}
		}
	}
	return nil
}

// checkWrite asks to replace an object that is not there. Who may write is told
// that the condition does not hold; who may not, that. A service that knows no
// conditions stores it, and it is removed.
func checkWrite(ctx context.Context, b objects.Bucket, j mounts.Job) *mounts.Fault {
	key := j.Prefix + ".berth-check-" + randomText()
	_, err := b.Put(ctx, key, bytes.NewReader(nil), 0, objects.Options{Cond: objects.Cond{Version: b.(interface{ impossible() string }).impossible()}})
	switch {
	case errors.Is(err, objects.ErrChanged), errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		if c, ok := b.(interface{ noConditions() }); ok {
			c.noConditions()
		}
		if err := b.Delete(ctx, key, ""); err != nil {
			return &mounts.Fault{Kind: mounts.FaultWriteDenied, Message: fmt.Sprintf("the keys may write to %s but not delete: the object %s stays; allow deleting, or mount read-only", where(j), key)}
		}
		return nil
	case errors.Is(err, fs.ErrPermission):
		return &mounts.Fault{Kind: mounts.FaultWriteDenied, Message: fmt.Sprintf("the keys may not write to %s; allow it, or mount read-only", where(j))}
	}
	return &mounts.Fault{Kind: mounts.FaultOther, Message: fmt.Sprintf("writing to %s fails: %s", where(j), errText(err))}
}

func (b *s3Bucket) impossible() string { return `"00000000000000000000000000000000"` }

func (b *s3Bucket) noConditions() { b.careless = true }

func where(j mounts.Job) string {
	if j.Prefix != "" {
		return fmt.Sprintf("bucket %q below %q", j.Bucket, j.Prefix)
	}
	return fmt.Sprintf("bucket %q", j.Bucket)
}

func endpoint(j mounts.Job) string {
	if j.Service.Endpoint != "" {
		return j.Service.Endpoint
	}
	return "the " + string(j.Service.Kind) + " service"
}

// answer is what a failed request tells, whichever the service.
type answer struct {
	status int
	code   string
	region string
	err    error
}

var expecting = regexp.MustCompile(`expecting ['"]([a-z0-9-]+)['"]`)

func answerOf(err error) answer {
	a := answer{err: err}
	if api := smithy.APIError(nil); errors.As(err, &api) {
		a.code = api.ErrorCode()
		if m := expecting.FindStringSubmatch(api.ErrorMessage()); m != nil {
			a.region = m[1]
		}
	}
	if r := (*awshttp.ResponseError)(nil); errors.As(err, &r) {
		a.status = r.HTTPStatusCode()
		if region := r.Response.Header.Get("X-Amz-Bucket-Region"); region != "" {
			a.region = region
		}
	}
	if r := (*azcore.ResponseError)(nil); errors.As(err, &r) {
		a.status, a.code = r.StatusCode, r.ErrorCode
	}
	if r := (*gcsAnswer)(nil); errors.As(err, &r) {
		a.status, a.code = r.status, r.reason
	}
	return a
}

// fault says in words what to mend. denied is the kind of a missing right.
func (a answer) fault(j mounts.Job, denied mounts.FaultKind, verb string) *mounts.Fault {
	f := func(k mounts.FaultKind, format string, args ...any) *mounts.Fault {
		return &mounts.Fault{Kind: k, Message: fmt.Sprintf(format, args...)}
	}
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var op *net.OpError
	var private *privateError
	if f := a.plain(j); f != nil {
		return f
	}
	switch {
	case errors.As(a.err, &private):
		return f(mounts.FaultEndpoint, "%s leads to %s, which is no address of the public internet; only those may be used with inline credentials", endpoint(j), private.addr)
	case errors.As(a.err, &dns):
		return f(mounts.FaultResolve, "the name of %s is not known (%s); check the endpoint, the region and this machine's name servers", endpoint(j), dns.Name)
	case errors.As(a.err, &cert):
		return f(mounts.FaultEndpoint, "the certificate of %s is not trusted: %s", endpoint(j), errText(cert.Err))
	case errors.As(a.err, new(tls.RecordHeaderError)), errors.Is(a.err, http.ErrSchemeMismatch):
		return f(mounts.FaultEndpoint, "%s does not speak TLS; is it http instead of https?", endpoint(j))
	case errors.As(a.err, &op) || errors.As(a.err, new(stalledError)) || errors.Is(a.err, context.DeadlineExceeded) || a.status == 0 && errors.Is(a.err, objects.ErrUnavailable):
		return f(mounts.FaultUnreachable, "nobody answers at %s: %s", endpoint(j), errText(root(a.err)))
	}
	switch a.code {
	case "InvalidAccessKeyId", "InvalidSecurity":
		return f(mounts.FaultCredentials, "the service does not know the access key; check access_key_id")
	case "SignatureDoesNotMatch", "AuthenticationFailed", "InvalidAuthenticationInfo":
		return f(mounts.FaultCredentials, "the service does not accept the signature; check %s", signer(j))
	case "AuthorizationFailure":
		return f(mounts.FaultCredentials, "the service lets nobody in with this signature, or from this machine; check %s, and the account's network rules", signer(j))
	case "ExpiredToken", "TokenRefreshRequired":
		return f(mounts.FaultCredentials, "the session token has expired; get new credentials")
	case "InvalidToken":
		return f(mounts.FaultCredentials, "the service does not accept the session token")
	case "invalid_grant", "invalid_client", "unauthorized_client":
		return f(mounts.FaultCredentials, "Google does not accept the service account's key (%s); make a new one", a.code)
	case "RequestTimeTooSkewed", "RequestExpired":
		return f(mounts.FaultClock, "this machine's clock is off by too much, or the service's; set it")
	case "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "IncorrectEndpoint":
		if a.region != "" {
			return f(mounts.FaultRegion, "the bucket is in region %q, not %q; set region: %s", a.region, j.Service.Region, a.region)
		}
		return f(mounts.FaultRegion, "the service does not accept the region %q; set the bucket's own", j.Service.Region)
	case "NoSuchBucket", "ContainerNotFound", "ResourceNotFound", "NotFound", "notFound":
		return f(mounts.FaultNoBucket, "there is no bucket %q at %s; check the name, or make it", j.Bucket, endpoint(j))
	case "AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch", "forbidden", "insufficientPermissions", "Forbidden", "PublicAccessNotPermitted", "NoAuthenticationInformation":
		return f(denied, "the keys may not %s %s; allow it for them", verb, where(j))
	case "authError", "required":
		return f(mounts.FaultCredentials, "the service does not accept the credentials")
	}
	switch a.status {
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		if a.region != "" {
			return f(mounts.FaultRegion, "the bucket is in region %q, not %q; set region: %s", a.region, j.Service.Region, a.region)
		}
		return f(mounts.FaultEndpoint, "%s points elsewhere (status %d); check the endpoint", endpoint(j), a.status)
	case http.StatusUnauthorized:
		return f(mounts.FaultCredentials, "the service does not accept the credentials (%d %s)", a.status, a.code)
	case http.StatusForbidden:
		return f(denied, "the keys may not %s %s (%s)", verb, where(j), a.code)
	}
	if a.status >= 500 {
		return f(mounts.FaultUnreachable, "%s answers with an error (%d %s); try again later", endpoint(j), a.status, a.code)
	}
	if f := a.refused(j); f != nil {
		return f
	}
	status := ""
	if a.status != 0 {
		status = fmt.Sprintf(" (status %d)", a.status)
	}
	return f(mounts.FaultEndpoint, "what answers at %s does not look like %s%s: %s; check the endpoint", endpoint(j), j.Service.Kind, status, errText(root(a.err)))
}

// signer names what a job's requests are signed with.
func signer(j mounts.Job) string {
	switch s := j.Service; {
	case s.Kind == mounts.S3:
		return "the secret key"
	case s.ConnectionString != "":
		return "the connection string"
	case s.SASToken != "":
		return "the SAS token, and until when it holds"
	}
	return "the account and the account key"
}

// root is the innermost error, without the SDKs' stories around it.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		if _, ok := err.(*net.OpError); ok { //nolint:errorlint // each layer is looked at by itself
			return err
		}
		err = next
	}
}

func randomText() string { return strings.ToLower(newID()) }

func newID() string { return rand.Text()[:12] }
