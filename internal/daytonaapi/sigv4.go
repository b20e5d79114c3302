package daytonaapi

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
)

// Requests to the object storage are signed by AWS Signature Version 4 with
// session credentials that last an hour. The session token says whose they are
// and until when, under our own signature; key and secret follow from it. So
// nothing of them is kept.

const (
	credentialTime = time.Hour
	clockSkew      = 15 * time.Minute
	signedTime     = "20060102T150405Z"
	emptyTrailer   = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	unsigned       = "UNSIGNED-PAYLOAD"
)

// credentials for one owner.
type credentials struct {
	accessKey, secret, token string
	owner                    sandbox.Owner
}

type claims struct {
	Owner   sandbox.Owner `json:"o"`
	Expires int64         `json:"e"` // unix seconds
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = io.WriteString(h, text) // never fails
	return h.Sum(nil)
}

func (s *storage) credentials(owner sandbox.Owner, expires time.Time) credentials {
	b, _ := json.Marshal(claims{owner, expires.Unix()}) // plain text always encodes
	text := base64.RawURLEncoding.EncodeToString(b)
	return s.derive(owner, text+"."+base64.RawURLEncoding.EncodeToString(mac(s.key, "token "+text)))
}

func (s *storage) derive(owner sandbox.Owner, token string) credentials {
	return credentials{owner: owner, token: token, accessKey: "BERTH" + strings.ToUpper(hex.EncodeToString(mac(s.key, "access "+token)[:8])),
		secret: base64.RawURLEncoding.EncodeToString(mac(s.key, "secret "+token))}
}

var errSignature = errors.New("the signature does not match")

// verify finds the owner who signed r, and has r.Body fail unless it is what
// was signed.
func (s *storage) verify(r *http.Request, now time.Time) (sandbox.Owner, error) {
	token := r.Header.Get("X-Amz-Security-Token")
	text, sum, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(sum)
	var c claims
	if err != nil || !hmac.Equal(raw, mac(s.key, "token "+text)) {
		return "", errors.New("the session token is not ours")
	}
	if b, err := base64.RawURLEncoding.DecodeString(text); err != nil || json.Unmarshal(b, &c) != nil {
		return "", errors.New("the session token is not ours")
	}
	if now.Unix() > c.Expires {
		return "", errors.New("the session token has expired; ask for new ones")
	}
	at, err := time.Parse(signedTime, r.Header.Get("X-Amz-Date"))
	if err != nil || at.Sub(now).Abs() > clockSkew {
		return "", errors.New("x-amz-date is missing, or far from this server's time")
	}
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	parts := map[string]string{}
	for p := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		parts[k] = v
	}
	want := s.derive(c.Owner, token)
	scope := strings.Split(parts["Credential"], "/")
	if !ok || len(scope) != 5 || scope[0] != want.accessKey || scope[1] != at.Format("20060102") || scope[3] != "s3" || scope[4] != "aws4_request" {
		return "", errSignature
	}
	names := strings.Split(parts["SignedHeaders"], ";")
	for _, must := range []string{"host", "x-amz-date", "x-amz-security-token"} {
		if !slices.Contains(names, must) {
			return "", errors.New(must + " is not signed")
		}
	}
	payload := r.Header.Get("X-Amz-Content-Sha256")
	h := sha256.Sum256([]byte(canonical(r, names, payload)))
	toSign := strings.Join([]string{"AWS4-HMAC-SHA256", r.Header.Get("X-Amz-Date"), strings.Join(scope[1:], "/"), hex.EncodeToString(h[:])}, "\n")
	key := []byte("AWS4" + want.secret)
	for _, part := range scope[1:] {
		key = mac(key, part)
	}
	got, err := hex.DecodeString(parts["Signature"])
	if err != nil || subtle.ConstantTimeCompare(got, mac(key, toSign)) != 1 {
		return "", errSignature
	}
	return c.Owner, checkPayload(r, payload)
}

// canonical is the request as it is signed.
func canonical(r *http.Request, names []string, payload string) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	var b strings.Builder
	b.WriteString(r.Method + "\n" + path + "\n" + canonicalQuery(r.URL.RawQuery) + "\n")
	for _, n := range names {
		var values []string
		switch n {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		default:
			values = slices.Clone(r.Header.Values(n))
		}
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), " ")
		}
		b.WriteString(n + ":" + strings.Join(values, ",") + "\n")
	}
	b.WriteString("\n" + strings.Join(names, ";") + "\n" + payload)
	return b.String()
}

func canonicalQuery(raw string) string {
	if raw == "" {
		return ""
	}
	enc := func(s string) string {
		if u, err := url.QueryUnescape(s); err == nil {
			s = u
		}
		return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
	}
	var list []string
	for p := range strings.SplitSeq(raw, "&") {
		k, v, _ := strings.Cut(p, "=")
		list = append(list, enc(k)+"="+enc(v))
	}
	slices.Sort(list)
	return strings.Join(list, "&")
}

// checkPayload has r.Body be what was sent, without its framing, and fail where
// it is not what was signed.
func checkPayload(r *http.Request, payload string) error {
	switch {
	case payload == unsigned:
		return nil
	case payload == emptyTrailer:
		r.Body = io.NopCloser(&chunked{r: bufio.NewReader(r.Body), crc: crc32.NewIEEE()})
		return nil
	case strings.HasPrefix(payload, "STREAMING-"):
		return errors.New("chunks that are signed each are not taken; sign the whole body, or none of it")
	}
	want, err := hex.DecodeString(payload)
	if err != nil || len(want) != sha256.Size {
		return errors.New("x-amz-content-sha256 is no SHA-256")
	}
	r.Body = io.NopCloser(&hashed{r: r.Body, h: sha256.New(), want: want})
	return nil
}

// hashed fails at the end of what is not as it was signed.
type hashed struct {
	r    io.Reader
	h    hash.Hash
	want []byte
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	if errors.Is(err, io.EOF) && !bytes.Equal(h.h.Sum(nil), h.want) {
		return n, errSignature
	}
	return n, err
}

// chunked reads aws-chunked framing: sizes in hexadecimal, and a checksum after
// the last chunk.
type chunked struct {
	r    *bufio.Reader
	left int64
	last bool
	crc  hash.Hash32
}

var errFraming = errors.New("the body is not framed as aws-chunked")

func (c *chunked) Read(p []byte) (int, error) {
	if c.last {
		return 0, io.EOF
	}
	if c.left == 0 {
		line, err := c.line()
		if err != nil {
			return 0, err
		}
		size, _, _ := strings.Cut(line, ";")
		if c.left, err = strconv.ParseInt(size, 16, 64); err != nil || c.left < 0 {
			return 0, errFraming
		}
		if c.left == 0 {
			c.last = true
			return 0, c.trailer()
		}
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.crc.Write(p[:n])
	if c.left -= int64(n); c.left == 0 && err == nil {
		if line, lerr := c.line(); lerr != nil || line != "" {
			return n, errFraming
		}
	}
	if errors.Is(err, io.EOF) {
		err = &s3Fault{http.StatusBadRequest, "IncompleteBody", "the body ends within a chunk"}
	}
	return n, err
}

func (c *chunked) line() (string, error) {
	b, err := c.r.ReadSlice('\n')
	if err != nil {
		return "", errFraming
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// trailer checks the checksum; io.EOF when all is well. Who sends this framing
// has said that one comes.
func (c *chunked) trailer() error {
	for {
		line, err := c.line()
		if err != nil || line == "" {
			return &s3Fault{http.StatusBadRequest, "IncompleteBody", "the body ends before its checksum"}
		}
		name, value, _ := strings.Cut(line, ":")
		if name = strings.ToLower(name); !strings.HasPrefix(name, "x-amz-checksum-") {
			continue
		}
		if name != "x-amz-checksum-crc32" {
			return io.EOF // of a kind that is not checked here
		}
		if want := base64.StdEncoding.EncodeToString(c.crc.Sum(nil)); strings.TrimSpace(value) != want {
			return &s3Fault{http.StatusBadRequest, "BadDigest", "the checksum does not match"}
		}
		return io.EOF
	}
}
