package cloud

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"berth/mounts"
	"berth/mounts/objects"
)

type azureBucket struct{ client *container.Client }

func openAzure(_ context.Context, j mounts.Job, rt http.RoundTripper) (*azureBucket, error) {
	s := j.Service
	opts := &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: &http.Client{Transport: rt},
		Retry:     policy.RetryOptions{MaxRetries: 11, RetryDelay: 50 * time.Millisecond, MaxRetryDelay: time.Second},
	}}
	base := strings.TrimSuffix(s.Endpoint, "/")
	if base == "" {
		base = "https://" + s.Account + ".blob.core.windows.net"
	}
	u := base + "/" + url.PathEscape(j.Bucket)
	var c *container.Client
	var err error
	switch {
	case s.Anonymous:
		c, err = container.NewClientWithNoCredential(u, opts)
	case s.Ambient:
		var cred *azidentity.DefaultAzureCredential
		if cred, err = azidentity.NewDefaultAzureCredential(nil); err == nil {
			c, err = container.NewClient(u, cred, opts)
		}
	case s.ConnectionString != "":
		if c, err = container.NewClientFromConnectionString(s.ConnectionString, j.Bucket, opts); err != nil {
			err = &JobError{"service.connection_string is none of a storage account"}
		}
	case s.SASToken != "":
		c, err = container.NewClientWithNoCredential(u+"?"+strings.TrimPrefix(s.SASToken, "?"), opts)
	default:
		var cred *container.SharedKeyCredential
		if cred, err = container.NewSharedKeyCredential(s.Account, s.AccountKey); err != nil {
			return nil, &JobError{"service.account_key is not base64"}
		}
		c, err = container.NewClientWithSharedKeyCredential(u, cred, opts)
	}
	if err != nil {
		return nil, err
	}
	return &azureBucket{client: c}, nil
}

// PartSize: with 50,000 blocks it reaches 780 GiB.
func (b *azureBucket) PartSize() int64  { return 16 << 20 }
func (b *azureBucket) MaxParts() int    { return 50_000 }
func (b *azureBucket) NotedLists() bool { return true }

func (b *azureBucket) List(ctx context.Context, prefix string, deep bool, token string, limit int) (objects.Page, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	n := int32(limit)
	var marker *string
	if token != "" {
		marker = &token
	}
	var items []*container.BlobItem
	var dirs []*container.BlobPrefix
	var next *string
	if deep {
		r, err := b.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, Marker: marker, MaxResults: &n, Include: container.ListBlobsInclude{Metadata: true}}).NextPage(ctx)
		if err != nil {
			return objects.Page{}, azureError(ctx, err)
		}
		if r.Segment == nil {
			return objects.Page{}, azureError(ctx, errForeign)
		}
		items, next = r.Segment.BlobItems, r.NextMarker
	} else {
		r, err := b.client.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &prefix, Marker: marker, MaxResults: &n, Include: container.ListBlobsInclude{Metadata: true}}).NextPage(ctx)
		if err != nil {
			return objects.Page{}, azureError(ctx, err)
		}
		if r.Segment == nil {
			return objects.Page{}, azureError(ctx, errForeign)
		}
		items, dirs, next = r.Segment.BlobItems, r.Segment.BlobPrefixes, r.NextMarker
	}
	p := objects.Page{Next: value(next)}
	for _, i := range items {
		o := objects.Object{Key: value(i.Name), Noted: true, Note: note(i.Metadata)}
		if pr := i.Properties; pr != nil {
			o.Size, o.ModTime, o.ContentType = value(pr.ContentLength), value(pr.LastModified), value(pr.ContentType)
			o.ETag = quoted(value(pr.ETag))
			o.Version = o.ETag
		}
		p.Objects = append(p.Objects, o)
	}
	for _, d := range dirs {
		p.Objects = append(p.Objects, objects.Object{Key: value(d.Name), Dir: true})
	}
	sortObjects(p.Objects)
	return p, nil
}

func sortObjects(list []objects.Object) {
	slices.SortFunc(list, func(a, b objects.Object) int { return strings.Compare(a.Key, b.Key) })
}

// quoted: lists write ETags without the quotes that headers have.
func quoted(e azcore.ETag) string {
	if e == "" || strings.HasPrefix(string(e), `"`) {
		return string(e)
	}
	return `"` + string(e) + `"`
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// note finds the note in metadata, whose names come in any case.
func note(meta map[string]*string) string {
	for k, v := range meta {
		if strings.EqualFold(k, noteKey) {
			return value(v)
		}
	}
	return ""
}

func azureMeta(meta map[string]string) map[string]*string {
	m := map[string]*string{}
	for k, v := range meta {
		m[k] = &v
	}
	return m
}

func (b *azureBucket) Head(ctx context.Context, key string) (objects.Object, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	r, err := b.client.NewBlobClient(key).GetProperties(ctx, nil)
	if err != nil {
		return objects.Object{}, azureError(ctx, err)
	}
	meta := map[string]string{}
	for k, v := range r.Metadata {
		if strings.EqualFold(k, noteKey) {
			k = noteKey
		}
		meta[k] = value(v)
	}
	etag := quoted(value(r.ETag))
	return objects.Object{Key: key, Size: value(r.ContentLength), ModTime: value(r.LastModified), Version: etag, ETag: etag,
		ContentType: value(r.ContentType), Note: meta[noteKey], Noted: true, Meta: meta}, nil
}

func (b *azureBucket) Read(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, error) {
	ctx, done := patient(ctx, nil)
	r, err := b.client.NewBlobClient(key).DownloadStream(ctx, &blob.DownloadStreamOptions{
		Range: blob.HTTPRange{Offset: off, Count: n}, AccessConditions: azureCond(objects.Cond{Version: version})})
	if err != nil {
		defer done()
		return nil, azureError(ctx, err)
	}
	return &body{r.Body, done}, nil
}

func azureCond(c objects.Cond) *blob.AccessConditions {
	m := &blob.ModifiedAccessConditions{}
	switch {
	case c.Absent:
		any := azcore.ETagAny
		m.IfNoneMatch = &any
	case c.Version != "":
		v := azcore.ETag(c.Version)
		m.IfMatch = &v
	default:
		return nil
	}
	return &blob.AccessConditions{ModifiedAccessConditions: m}
}

func headers(contentType string) *blob.HTTPHeaders {
	if contentType == "" {
		return nil
	}
	return &blob.HTTPHeaders{BlobContentType: &contentType}
}

func (b *azureBucket) Put(ctx context.Context, key string, r io.ReaderAt, size int64, o objects.Options) (string, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	out, err := b.client.NewBlockBlobClient(key).Upload(ctx, streaming.NopCloser(io.NewSectionReader(r, 0, size)), &blockblob.UploadOptions{
		Metadata: azureMeta(noteMeta(o.Note)), HTTPHeaders: headers(o.ContentType), AccessConditions: azureCond(o.Cond)})
	if err != nil {
		return "", azureError(ctx, err)
	}
	return quoted(value(out.ETag)), nil
}

func (b *azureBucket) Upload(_ context.Context, key string, o objects.Options) (objects.Upload, error) {
	return &azureUpload{b: b, client: b.client.NewBlockBlobClient(key), id: newID(), o: o}, nil
}

// azureUpload stages blocks, which the service drops after a week when nobody
// commits them.
type azureUpload struct {
	b      *azureBucket
	client *blockblob.Client
	id     string
	o      objects.Options
}

// block names part n; all names of a blob must have one length.
func (u *azureUpload) block(n int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s-%08d", u.id, n))
}

func (u *azureUpload) Part(ctx context.Context, n int, r io.ReaderAt, off, size int64) error {
	ctx, done := patient(ctx, nil)
	defer done()
	_, err := u.client.StageBlock(ctx, u.block(n), streaming.NopCloser(io.NewSectionReader(r, off, size)), nil)
	return azureError(ctx, err)
}

func (u *azureUpload) Complete(ctx context.Context, parts int) (string, error) {
	ctx, done := patient(ctx, func(ctx context.Context) error { return u.b.list(ctx, "") })
	defer done()
	ids := make([]string, parts)
	for i := range ids {
		ids[i] = u.block(i)
	}
	out, err := u.client.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
		Metadata: azureMeta(noteMeta(u.o.Note)), HTTPHeaders: headers(u.o.ContentType), AccessConditions: azureCond(u.o.Cond)})
	if err != nil {
		return "", azureError(ctx, err)
	}
	return quoted(value(out.ETag)), nil
}

func (u *azureUpload) Abort(context.Context) error { return nil }

func (b *azureBucket) Copy(ctx context.Context, from objects.Object, to string, cond objects.Cond, note *string) (string, error) {
	ctx, done := patient(ctx, func(ctx context.Context) error { return b.list(ctx, "") })
	defer done()
	opts := &blob.StartCopyFromURLOptions{AccessConditions: azureCond(cond)}
	if from.Version != "" {
		v := azcore.ETag(from.Version)
		opts.SourceModifiedAccessConditions = &blob.SourceModifiedAccessConditions{SourceIfMatch: &v}
	}
	if note != nil {
		opts.Metadata = azureMeta(withNote(from.Meta, *note))
	}
	dst := b.client.NewBlobClient(to)
	out, err := dst.StartCopyFromURL(ctx, b.client.NewBlobClient(from.Key).URL(), opts)
	if err != nil {
		return "", azureError(ctx, err)
	}
	etag, status := quoted(value(out.ETag)), value(out.CopyStatus)
	for status == blob.CopyStatusTypePending {
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return "", azureError(ctx, ctx.Err())
		case <-t.C:
		}
		r, err := dst.GetProperties(ctx, nil)
		if err != nil {
			return "", azureError(ctx, err)
		}
		etag, status = quoted(value(r.ETag)), value(r.CopyStatus)
	}
	if status != blob.CopyStatusTypeSuccess && status != "" {
		return "", fmt.Errorf("%w: the copy ended as %s", objects.ErrUnavailable, status)
	}
	return etag, nil
}

func (b *azureBucket) Note(ctx context.Context, o objects.Object, note, contentType string) (string, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	c := b.client.NewBlobClient(o.Key)
	version := o.Version
	if contentType != "" && contentType != o.ContentType {
		h, err := c.GetProperties(ctx, nil)
		if err != nil {
			return "", azureError(ctx, err)
		}
		out, err := c.SetHTTPHeaders(ctx, blob.HTTPHeaders{BlobContentType: &contentType, BlobCacheControl: h.CacheControl, BlobContentDisposition: h.ContentDisposition,
			BlobContentEncoding: h.ContentEncoding, BlobContentLanguage: h.ContentLanguage, BlobContentMD5: h.ContentMD5},
			&blob.SetHTTPHeadersOptions{AccessConditions: azureCond(objects.Cond{Version: version})})
		if err != nil {
			return "", azureError(ctx, err)
		}
		version = quoted(value(out.ETag))
	}
	out, err := c.SetMetadata(ctx, azureMeta(withNote(o.Meta, note)), &blob.SetMetadataOptions{AccessConditions: azureCond(objects.Cond{Version: version})})
	if err != nil {
		return "", azureError(ctx, err)
	}
	return quoted(value(out.ETag)), nil
}

func (b *azureBucket) Delete(ctx context.Context, key, version string) error {
	ctx, done := patient(ctx, nil)
	defer done()
	_, err := b.client.NewBlobClient(key).Delete(ctx, &blob.DeleteOptions{AccessConditions: azureCond(objects.Cond{Version: version})})
	if err = azureError(ctx, err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func azureError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		return statusError(ctx, 0, "", err)
	}
	switch r.ErrorCode {
	case "ConditionNotMet", "BlobAlreadyExists", "SourceConditionNotMet", "TargetConditionNotMet":
		return objects.ErrChanged
	case "InvalidBlockList":
		// Somebody else's commit drops all blocks that were not committed.
		return fmt.Errorf("%w (%s)", fs.ErrNotExist, r.ErrorCode)
	case "InvalidResourceName", "InvalidUri":
		return objects.ErrKey
	}
	return statusError(ctx, r.StatusCode, r.ErrorCode, err)
}

func (b *azureBucket) list(ctx context.Context, prefix string) error {
	ctx, done := patient(ctx, nil)
	defer done()
	ctx = policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: checkTries - 1, RetryDelay: 50 * time.Millisecond, MaxRetryDelay: time.Second})
	n := int32(1)
	r, err := b.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, MaxResults: &n}).NextPage(ctx)
	if err == nil && r.Segment == nil {
		err = errForeign
	}
	if err != nil && ctx.Err() != nil {
		return azureError(ctx, err)
	}
	return err
}

func (b *azureBucket) impossible() string { return `"0x0"` }

// MakeContainer makes a job's container; for tests, which begin with none.
func MakeContainer(ctx context.Context, j mounts.Job) error {
	b, err := openAzure(ctx, j, &watched{next: transport(false)})
	if err != nil {
		return err
	}
	_, err = b.client.Create(ctx, nil)
	return azureError(ctx, err)
}
