package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"berth/mounts/objects"
)

// gcsChunk divides the length of each request of an upload but the last.
const gcsChunk = 256 << 10

// gcsUpload is a resumable upload
// (https://cloud.google.com/storage/docs/performing-resumable-uploads). Google
// takes its bytes in their order, and each of them once: parts wait here for those
// before them, and one that is not whole chunks for Complete. What fits in no such
// order, and what it is unknown how much arrived of, ends the upload with
// errors.ErrUnsupported. Then nothing is seen of it, unless it was complete.
type gcsUpload struct {
	b           *gcsBucket
	session     string // the address that takes the bytes
	contentType string

	mu   sync.Mutex
	busy bool // a call to Part sends
	next int  // the part after those that were sent
	at   int64
	held map[int]gcsPart
	over bool
}

type gcsPart struct {
	body      io.ReaderAt
	off, size int64
}

var errGCSUpload = fmt.Errorf("the upload to Google cannot go on: %w", errors.ErrUnsupported)

func (b *gcsBucket) uploads(query string) string {
	return b.base + "/upload/storage/v1/b/" + url.PathEscape(b.name) + "/o?" + query
}

func (b *gcsBucket) Upload(ctx context.Context, key string, o objects.Options) (objects.Upload, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	meta := gcsMeta(key, o)
	q := condition(o.Cond, url.Values{"uploadType": {"resumable"}})
	resp, err := b.do(ctx, http.MethodPost, b.uploads(q.Encode()), jsonBody(meta), http.Header{"X-Upload-Content-Type": {meta.ContentType}})
	if err != nil {
		return nil, gcsError(ctx, err)
	}
	defer resp.Body.Close()
	// The service may say which upload it is, and not where our requests go.
	at, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || at.Query().Get("upload_id") == "" {
		return nil, gcsError(ctx, errForeign)
	}
	return &gcsUpload{b: b, session: b.uploads(at.RawQuery), contentType: meta.ContentType, held: map[int]gcsPart{}}, nil
}

func (u *gcsUpload) Part(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n < u.next {
		u.over = true
	}
	if u.over {
		return errGCSUpload
	}
	u.held[n] = gcsPart{body, off, size}
	if u.busy {
		return nil
	}
	u.busy = true
	defer func() { u.busy = false }()
	for {
		p, ok := u.held[u.next]
		if !ok || p.size%gcsChunk != 0 {
			return nil
		}
		if p.off != u.at {
			u.over = true
			return errGCSUpload
		}
		delete(u.held, u.next)
		u.next++
		u.mu.Unlock()
		err := u.chunk(ctx, p)
		u.mu.Lock()
		if err != nil {
			u.over = true
			return err
		}
		if u.at += p.size; u.over { // a part came anew meanwhile
			return errGCSUpload
		}
	}
}

// chunk sends what is followed by more.
func (u *gcsUpload) chunk(ctx context.Context, p gcsPart) error {
	ctx, done := patient(ctx, nil)
	defer done()
	resp, err := u.send(ctx, p, fmt.Sprintf("bytes %d-%d/*", p.off, p.off+p.size-1))
	if err != nil {
		return u.failed(ctx, err)
	}
	if resp.StatusCode != http.StatusPermanentRedirect { // which here means: go on
		return u.failed(ctx, readGCSAnswer(resp))
	}
	defer resp.Body.Close()
	var last int64
	if n, _ := fmt.Sscanf(resp.Header.Get("Range"), "bytes=0-%d", &last); n != 1 || last+1 != p.off+p.size {
		return errGCSUpload
	}
	return nil
}

func (u *gcsUpload) Complete(ctx context.Context, parts int) (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	last, more := u.held[u.next]
	whole := u.next == parts && !more || u.next == parts-1 && more && last.off == u.at
	if u.over || !whole {
		u.over = true
		return "", errGCSUpload
	}
	u.over = true // whatever comes of it
	span := fmt.Sprintf("bytes */%d", u.at)
	if more {
		span = fmt.Sprintf("bytes %d-%d/%d", u.at, u.at+last.size-1, u.at+last.size)
	}
	ctx, done := patient(ctx, func(ctx context.Context) error { return u.b.list(ctx, "") })
	defer done()
	resp, err := u.send(ctx, last, span)
	if err == nil && resp.StatusCode >= 300 {
		err = readGCSAnswer(resp)
	}
	if err != nil {
		return "", u.failed(ctx, err)
	}
	var out gcsObject
	if err := decode(ctx, resp, nil, &out); err != nil {
		return "", err
	}
	if out.Generation == "" {
		return "", gcsError(ctx, errForeign)
	}
	return out.Generation, nil
}

// send is one request. It is not repeated: nobody knows how much of it arrived.
func (u *gcsUpload) send(ctx context.Context, p gcsPart, span string) (*http.Response, error) {
	body := func() (io.Reader, int64, string) { return http.NoBody, 0, u.contentType }
	if p.size > 0 {
		body = func() (io.Reader, int64, string) {
			return io.NewSectionReader(p.body, p.off, p.size), p.size, u.contentType
		}
	}
	return u.b.once(ctx, http.MethodPut, u.session, body, http.Header{"Content-Range": {span}})
}

// failed is the error of a request that went wrong. Where the service was silent,
// whoever waits has waited for long enough; else another way may be tried.
func (u *gcsUpload) failed(ctx context.Context, err error) error {
	silent := ctx.Err() != nil || errors.As(err, new(stalledError))
	err = gcsError(ctx, err)
	if silent || errors.Is(err, objects.ErrChanged) {
		return err
	}
	return fmt.Errorf("%w: %w", errGCSUpload, err)
}

// Abort answers nothing: Google forgets the upload by itself.
func (u *gcsUpload) Abort(ctx context.Context) error {
	u.mu.Lock()
	u.over = true
	u.mu.Unlock()
	ctx, done := patient(ctx, nil)
	defer done()
	resp, err := u.b.once(ctx, http.MethodDelete, u.session, nil, nil)
	if err != nil {
		return gcsError(ctx, err)
	}
	return resp.Body.Close() // Google's yes is 499
}
