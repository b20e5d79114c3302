package api

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// oldBucket is where servers keep contexts that do not name the bucket.
const oldBucket = "daytona-volume-builds"

// HasContext tells whether the platform's store has a build context of that hash
// already.
func (c *Client) HasContext(ctx context.Context, a PushAccess, hash string) (bool, error) {
	q := url.Values{"list-type": {"2"}, "max-keys": {"1"}, "prefix": {a.OrganizationID + "/" + hash + "/"}}
	resp, err := c.store(ctx, a, http.MethodGet, "", q, nil, 0, emptyHash)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxFault))
	if err != nil {
		return false, fmt.Errorf("list build contexts: %w", ErrUnavailable)
	}
	return strings.Contains(string(b), "<Key>"), nil
}

// PutContext puts a build context, a plain tar of size bytes whose SHA-256 is
// hash, into the platform's store. Builds name it by its hash.
func (c *Client) PutContext(ctx context.Context, a PushAccess, hash string, tar io.Reader, size int64) error {
	resp, err := c.store(ctx, a, http.MethodPut, "/"+a.OrganizationID+"/"+hash+"/context.tar", nil, tar, size, hash)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

var emptyHash = hashOf(nil)

// store sends a request to the platform's store, an S3 service, in path style and
// signed by version 4 of its scheme (docs.aws.amazon.com/IAM/latest/UserGuide,
// "Signature Version 4"). The caller closes the answer's body.
func (c *Client) store(ctx context.Context, a PushAccess, method, key string, query url.Values, body io.Reader, size int64, hash string) (*http.Response, error) {
	u, err := url.Parse(a.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, &Error{Method: "GET", Path: "/object-storage/push-access", Status: http.StatusOK, Message: "the address of the store is none"}
	}
	u.Path = strings.TrimRight(u.Path, "/") + "/" + cmp.Or(a.Bucket, oldBucket) + key
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("%s in the store: the address is none", method)
	}
	req.ContentLength = size
	now := time.Now().UTC()
	stamp, day := now.Format("20060102T150405Z"), now.Format("20060102")
	req.Header.Set("X-Amz-Date", stamp)
	req.Header.Set("X-Amz-Content-Sha256", hash)
	if a.SessionToken != "" {
		req.Header.Set("X-Amz-Security-Token", a.SessionToken)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-tar")
	}
	signed := []string{"host"}
	for k := range req.Header {
		signed = append(signed, strings.ToLower(k))
	}
	slices.Sort(signed)
	var canonical strings.Builder
	canonical.WriteString(method + "\n" + u.EscapedPath() + "\n" + u.RawQuery + "\n")
	for _, k := range signed {
		value := req.Header.Get(k)
		if k == "host" {
			value = u.Host
		}
		canonical.WriteString(k + ":" + value + "\n")
	}
	list := strings.Join(signed, ";")
	canonical.WriteString("\n" + list + "\n" + hash)
	scope := day + "/" + cmp.Or(a.Region, "us-east-1") + "/s3/aws4_request"
	toSign := "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hashOf([]byte(canonical.String()))
	k := []byte("AWS4" + a.Secret)
	for part := range strings.SplitSeq(scope, "/") {
		k = mac(k, part)
	}
	req.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s", a.AccessKey, scope, list, hex.EncodeToString(mac(k, toSign))))
	resp, err := c.http.Do(req)
	r := request{method: method, base: u.Host, path: "/…/context.tar", again: true}
	if err != nil {
		cancel()
		return nil, c.broken(ctx, r, err, true)
	}
	resp.Body = &closing{resp.Body, cancel}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, c.fault(r, resp)
	}
	return resp, nil
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// closing is an answer that is read as it comes.
type closing struct {
	io.ReadCloser
	cancel func()
}

func (b *closing) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}
