//go:build unix

package buckettest

import (
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Session lets in only who signs a session token along, which the S3 server itself
// does not know: the requests are signed anew without it. Another token is told to
// have expired.
func (p *Proxy) Session(token string) {
	p.mu.Lock()
	p.token = token
	p.mu.Unlock()
	p.Break(func(r *http.Request) Fault {
		switch got := r.Header.Get(tokenHeader); {
		case got == token && strings.Contains(r.Header.Get("Authorization"), strings.ToLower(tokenHeader)):
			return Fault{}
		case got == "":
			return Fault{Status: http.StatusForbidden, Body: "<Error><Code>InvalidAccessKeyId</Code></Error>"}
		}
		return Fault{Status: http.StatusBadRequest, Body: "<Error><Code>ExpiredToken</Code></Error>"}
	})
}

const tokenHeader = "X-Amz-Security-Token"

// sign replaces the signature of a request with a session token.
func (p *Proxy) sign(r *http.Request) {
	p.mu.Lock()
	token, s := p.token, p.Job.Service
	p.mu.Unlock()
	if token == "" {
		return
	}
	r.Header.Del(tokenHeader)
	r.Header.Del("Authorization")
	keys := aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey}
	err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).
		SignHTTP(r.Context(), keys, r, r.Header.Get("X-Amz-Content-Sha256"), "s3", s.Region, time.Now())
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}
