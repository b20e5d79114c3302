package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"berth/mounts"
	"berth/mounts/objects"
)

// gcsBucket speaks Google's JSON API, version 1
// (https://cloud.google.com/storage/docs/json_api/v1). Google's own client
// links gRPC and its telemetry, which would be more memory than all the rest.
type gcsBucket struct {
	client *http.Client
	base   string // without a trailing slash
	name   string
}

const gcsScope = "https://www.googleapis.com/auth/devstorage.read_write"

func openGCS(ctx context.Context, j mounts.Job, rt http.RoundTripper) (*gcsBucket, error) {
	s := j.Service
	b := &gcsBucket{client: &http.Client{Transport: rt}, base: "https://storage.googleapis.com", name: j.Bucket}
	if s.Endpoint != "" {
		b.base = strings.TrimSuffix(s.Endpoint, "/")
	}
	if s.Anonymous {
		return b, nil
	}
	ctx = context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, b.client)
	var source oauth2.TokenSource
	if s.Ambient {
		cred, err := google.FindDefaultCredentials(ctx, gcsScope)
		if err != nil {
			return nil, err
		}
		source = cred.TokenSource
	} else {
		cfg, err := google.JWTConfigFromJSON([]byte(s.ServiceAccountKey), gcsScope)
		if err != nil {
			return nil, &JobError{"service.service_account_key is not the JSON text of a service account's key"}
		}
		source = cfg.TokenSource(ctx)
	}
	b.client = &http.Client{Transport: &oauth2.Transport{Source: oauth2.ReuseTokenSource(nil, source), Base: rt}}
	return b, nil
}

// PartSize is where a single request still is no burden; see Upload.
func (b *gcsBucket) PartSize() int64  { return 16 << 20 }
func (b *gcsBucket) MaxParts() int    { return 10_000 }
func (b *gcsBucket) NotedLists() bool { return true }

type gcsObject struct {
	Name        string            `json:"name,omitempty"`
	Size        string            `json:"size,omitempty"`
	Updated     *time.Time        `json:"updated,omitempty"`
	Generation  string            `json:"generation,omitempty"`
	ETag        string            `json:"etag,omitempty"`
	ContentType string            `json:"contentType,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

func (o gcsObject) object() objects.Object {
	size, _ := strconv.ParseInt(o.Size, 10, 64)
	out := objects.Object{Key: o.Name, Size: size, Version: o.Generation, ETag: o.ETag, ContentType: o.ContentType, Note: o.Metadata[noteKey], Noted: true, Meta: o.Metadata}
	if o.Updated != nil {
		out.ModTime = *o.Updated
	}
	return out
}

// gcsAnswer is an answer that says no.
type gcsAnswer struct {
	status int
	reason string
}

func (e *gcsAnswer) Error() string { return fmt.Sprintf("%d %s", e.status, e.reason) }

func (b *gcsBucket) url(path string, query url.Values) string {
	return b.base + path + "?" + query.Encode()
}

func (b *gcsBucket) object(key string) string {
	return "/storage/v1/b/" + url.PathEscape(b.name) + "/o/" + escapeAll(key)
}

// escapeAll escapes slashes too.
func escapeAll(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// do asks until there is an answer that is worth it, or patience is at its end.
// body makes the request's body anew for each try.
func (b *gcsBucket) do(ctx context.Context, method, u string, body func() (io.Reader, int64, string), header http.Header) (*http.Response, error) {
	most, bounded := ctx.Value(triesKey{}).(int)
	for try, wait := 1, 50*time.Millisecond; ; try, wait = try+1, min(2*wait, time.Second) {
		resp, err := b.once(ctx, method, u, body, header)
		if err == nil && resp.StatusCode < 300 {
			return resp, nil
		}
		if err == nil {
			err = readGCSAnswer(resp)
		}
		if !retriable(err) || bounded && try >= most {
			return nil, err
		}
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, err
		case <-t.C:
		}
	}
}

// triesKey bounds the tries of calls with such a context.
type triesKey struct{}

func retriable(err error) bool {
	if errors.As(err, new(*privateError)) {
		return false
	}
	if a := (*gcsAnswer)(nil); errors.As(err, &a) {
		return a.status == http.StatusRequestTimeout || a.status == http.StatusTooManyRequests || a.status >= 500
	}
	if t := (*oauth2.RetrieveError)(nil); errors.As(err, &t) {
		return t.Response != nil && t.Response.StatusCode >= 500
	}
	return true
}

func (b *gcsBucket) once(ctx context.Context, method, u string, body func() (io.Reader, int64, string), header http.Header) (*http.Response, error) {
	var r io.Reader
	var n int64
	var contentType string
	if body != nil {
		r, n, contentType = body()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, r)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if r != nil {
		req.ContentLength = n
		req.Header.Set("Content-Type", contentType)
	}
	return b.client.Do(req)
}

// readGCSAnswer takes the reason out of an error's body, of which it reads
// little.
func readGCSAnswer(resp *http.Response) error {
	defer resp.Body.Close()
	a := &gcsAnswer{status: resp.StatusCode}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var e struct {
		Error struct {
			Errors []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	if json.Unmarshal(text, &e) == nil && len(e.Error.Errors) > 0 {
		a.reason = e.Error.Errors[0].Reason
	}
	if a.reason == "" {
		a.reason = http.StatusText(resp.StatusCode)
	}
	return a
}

// decode reads an answer's JSON, and says at the end of a failure what kind.
func decode(ctx context.Context, resp *http.Response, err error, into any) error {
	if err != nil {
		return gcsError(ctx, err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return gcsError(ctx, err)
	}
	return nil
}

func gcsError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if a := (*gcsAnswer)(nil); errors.As(err, &a) {
		return statusError(ctx, a.status, a.reason, err)
	}
	if t := (*oauth2.RetrieveError)(nil); errors.As(err, &t) {
		return fmt.Errorf("%w (%s)", fs.ErrPermission, t.ErrorCode)
	}
	return statusError(ctx, 0, "", err)
}

func jsonBody(v any) func() (io.Reader, int64, string) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs
	}
	return func() (io.Reader, int64, string) { return bytes.NewReader(text), int64(len(text)), "application/json" }
}

func (b *gcsBucket) listURL(prefix string, deep bool, token string, limit int) string {
	q := url.Values{"maxResults": {strconv.Itoa(limit)},
		"fields": {"items(name,size,updated,generation,etag,contentType,metadata),prefixes,nextPageToken"}}
	if prefix != "" {
		q.Set("prefix", prefix)
	}
	if !deep {
		q.Set("delimiter", "/")
	}
	if token != "" {
		q.Set("pageToken", token)
	}
	return b.url("/storage/v1/b/"+url.PathEscape(b.name)+"/o", q)
}

func (b *gcsBucket) List(ctx context.Context, prefix string, deep bool, token string, limit int) (objects.Page, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	var out struct {
		Items         []gcsObject `json:"items"`
		Prefixes      []string    `json:"prefixes"`
		NextPageToken string      `json:"nextPageToken"`
	}
	resp, err := b.do(ctx, http.MethodGet, b.listURL(prefix, deep, token, limit), nil, nil)
	if err := decode(ctx, resp, err, &out); err != nil {
		return objects.Page{}, err
	}
	p := objects.Page{Next: out.NextPageToken, Objects: make([]objects.Object, 0, len(out.Items)+len(out.Prefixes))}
	for _, o := range out.Items {
		p.Objects = append(p.Objects, o.object())
	}
	for _, d := range out.Prefixes {
		p.Objects = append(p.Objects, objects.Object{Key: d, Dir: true})
	}
	sortObjects(p.Objects)
	return p, nil
}

func (b *gcsBucket) Head(ctx context.Context, key string) (objects.Object, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	var o gcsObject
	resp, err := b.do(ctx, http.MethodGet, b.url(b.object(key), nil), nil, nil)
	if err := decode(ctx, resp, err, &o); err != nil {
		return objects.Object{}, err
	}
	return o.object(), nil
}

func (b *gcsBucket) Read(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, error) {
	ctx, done := patient(ctx, nil)
	q := url.Values{"alt": {"media"}}
	if version != "" {
		q.Set("ifGenerationMatch", version)
	}
	// Bytes as they are stored: compressed objects are not unpacked.
	h := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}, "Accept-Encoding": {"gzip"}}
	resp, err := b.do(ctx, http.MethodGet, b.url(b.object(key), q), nil, h)
	if err != nil {
		defer done()
		return nil, gcsError(ctx, err)
	}
	if resp.StatusCode != http.StatusPartialContent && off > 0 {
		defer done()
		resp.Body.Close()
		return nil, fmt.Errorf("%w: the answer to a range is the whole", objects.ErrUnavailable)
	}
	if g := resp.Header.Get("X-Goog-Generation"); version != "" && g != "" && g != version {
		defer done()
		resp.Body.Close()
		return nil, objects.ErrChanged
	}
	return &body{resp.Body, done}, nil
}

// condition adds ifGenerationMatch; 0 means that there is no object.
func condition(c objects.Cond, q url.Values) url.Values {
	switch {
	case c.Absent:
		q.Set("ifGenerationMatch", "0")
	case c.Version != "":
		q.Set("ifGenerationMatch", c.Version)
	}
	return q
}

func (b *gcsBucket) Put(ctx context.Context, key string, r io.ReaderAt, size int64, o objects.Options) (string, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	contentType := o.ContentType
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	meta, err := json.Marshal(gcsObject{Name: key, ContentType: contentType, Metadata: noteMeta(o.Note)})
	if err != nil {
		return "", err
	}
	const boundary = "berth-part-7c6f2a1e9d"
	head := "--" + boundary + "\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n" + string(meta) + "\r\n--" + boundary + "\r\nContent-Type: " + contentType + "\r\n\r\n"
	tail := "\r\n--" + boundary + "--\r\n"
	u := b.url("/upload/storage/v1/b/"+url.PathEscape(b.name)+"/o", condition(o.Cond, url.Values{"uploadType": {"multipart"}}))
	var out gcsObject
	resp, err := b.do(ctx, http.MethodPost, u, func() (io.Reader, int64, string) {
		return io.MultiReader(strings.NewReader(head), io.NewSectionReader(r, 0, size), strings.NewReader(tail)),
			int64(len(head)) + size + int64(len(tail)), "multipart/related; boundary=" + boundary
	}, nil)
	if err := decode(ctx, resp, err, &out); err != nil {
		return "", err
	}
	if out.Generation == "" {
		return "", gcsError(ctx, errForeign)
	}
	return out.Generation, nil
}

// Upload is not supported: what Google can do in parallel leaves objects behind
// when it is interrupted. Put streams any size in one request.
func (b *gcsBucket) Upload(context.Context, string, objects.Options) (objects.Upload, error) {
	return nil, errors.ErrUnsupported
}

func (b *gcsBucket) Copy(ctx context.Context, from objects.Object, to string, cond objects.Cond, note *string) (string, error) {
	ctx, done := patient(ctx, func(ctx context.Context) error { return b.list(ctx, "") })
	defer done()
	var in any = struct{}{}
	if note != nil {
		in = gcsObject{ContentType: from.ContentType, Metadata: withNote(from.Meta, *note)}
	}
	q := condition(cond, url.Values{})
	if from.Version != "" {
		q.Set("ifSourceGenerationMatch", from.Version)
	}
	for {
		var out struct {
			Done         bool      `json:"done"`
			RewriteToken string    `json:"rewriteToken"`
			Resource     gcsObject `json:"resource"`
		}
		resp, err := b.do(ctx, http.MethodPost, b.url(b.object(from.Key)+"/rewriteTo/b/"+url.PathEscape(b.name)+"/o/"+escapeAll(to), q), jsonBody(in), nil)
		if err := decode(ctx, resp, err, &out); err != nil {
			return "", err
		}
		if out.Done {
			return out.Resource.Generation, nil
		}
		q.Set("rewriteToken", out.RewriteToken)
	}
}

// Note leaves the generation as it is: the content is the same.
func (b *gcsBucket) Note(ctx context.Context, o objects.Object, note, contentType string) (string, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	q := condition(objects.Cond{Version: o.Version}, url.Values{})
	var out gcsObject
	resp, err := b.do(ctx, http.MethodPatch, b.url(b.object(o.Key), q), jsonBody(gcsObject{ContentType: contentType, Metadata: withNote(o.Meta, note)}), nil)
	if err := decode(ctx, resp, err, &out); err != nil {
		return "", err
	}
	return out.Generation, nil
}

func (b *gcsBucket) Delete(ctx context.Context, key, version string) error {
	ctx, done := patient(ctx, nil)
	defer done()
	resp, err := b.do(ctx, http.MethodDelete, b.url(b.object(key), condition(objects.Cond{Version: version}, url.Values{})), nil, nil)
	if err != nil {
		if err = gcsError(ctx, err); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return resp.Body.Close()
}

func (b *gcsBucket) list(ctx context.Context, prefix string) error {
	ctx, done := patient(ctx, nil)
	defer done()
	ctx = context.WithValue(ctx, triesKey{}, checkTries)
	resp, err := b.do(ctx, http.MethodGet, b.listURL(prefix, true, "", 1), nil, nil)
	if err != nil {
		if ctx.Err() != nil {
			return gcsError(ctx, err)
		}
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(&struct{}{})
}

func (b *gcsBucket) impossible() string { return "1" }
