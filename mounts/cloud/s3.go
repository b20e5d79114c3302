package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"

	"berth/mounts"
	"berth/mounts/objects"
)

// noteKey is the metadata key of Options.Note in every service; Azure takes
// only what is an identifier.
const noteKey = "berth"

type s3Bucket struct {
	client *s3.Client
	name   string
	// careless services do not know conditions; then each write looks first,
	// which leaves a gap. Check finds out.
	careless bool
}

func openS3(ctx context.Context, j mounts.Job, rt http.RoundTripper) (*s3Bucket, error) {
	s := j.Service
	var cfg aws.Config
	if s.Ambient {
		var err error
		// Who gives the identity is asked by a client of the SDK's own, which alone
		// takes AWS_CA_BUNDLE.
		if cfg, err = config.LoadDefaultConfig(ctx); err != nil {
			return nil, err
		}
	}
	if s.Region != "" {
		cfg.Region = s.Region
	}
	if s.Endpoint == "" && (cfg.Region == "" || cfg.Region == "auto") {
		cfg.Region = "us-east-1"
	} else if cfg.Region == "" {
		cfg.Region = "auto"
	}
	switch {
	case s.Anonymous:
		cfg.Credentials = aws.AnonymousCredentials{}
	case !s.Ambient:
		cfg.Credentials = credentials.NewStaticCredentialsProvider(s.AccessKeyID, s.SecretAccessKey, s.SessionToken)
	}
	cfg.HTTPClient = &http.Client{Transport: rt}
	cfg.Retryer = func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) {
			// The call's patience ends it.
			o.MaxAttempts = 12
			o.MaxBackoff = time.Second
			o.RateLimiter = ratelimit.None
		})
	}
	// Services that are not Amazon's know little of the newer checksums, and not all
	// of them refuse a body that ends early, as the death of its sender leaves it. So
	// the signature holds the SHA-256 of what they get.
	cfg.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	cfg.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.DisableLogOutputChecksumValidationSkipped = true
		o.ContinueHeaderThresholdBytes = -1
		if s.Endpoint != "" {
			o.BaseEndpoint = aws.String(strings.TrimSuffix(s.Endpoint, "/"))
			o.UsePathStyle = true
			o.APIOptions = append(o.APIOptions, signedBodies)
		}
	})
	return &s3Bucket{client: client, name: j.Bucket}, nil
}

// signedBodies has the SHA-256 of bodies signed over TLS too, where the SDK would
// leave it out.
func signedBodies(stack *middleware.Stack) error {
	switch stack.ID() {
	case "PutObject", "UploadPart":
		hash := &v4.ComputePayloadSHA256{}
		_, err := stack.Finalize.Swap(hash.ID(), hash)
		return err
	}
	return nil
}

// PartSize is the same for all parts, since R2 asks for that; with 10,000 parts
// it reaches 160 GiB, and beyond that an upload begins anew with longer ones.
func (b *s3Bucket) PartSize() int64  { return 16 << 20 }
func (b *s3Bucket) MaxParts() int    { return 10_000 }
func (b *s3Bucket) NotedLists() bool { return false }

func (b *s3Bucket) List(ctx context.Context, prefix string, deep bool, token string, limit int) (objects.Page, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	in := &s3.ListObjectsV2Input{Bucket: &b.name, MaxKeys: aws.Int32(int32(limit)), EncodingType: types.EncodingTypeUrl}
	if prefix != "" {
		in.Prefix = &prefix
	}
	if !deep {
		in.Delimiter = aws.String("/")
	}
	if token != "" {
		in.ContinuationToken = &token
	}
	out, err := b.client.ListObjectsV2(ctx, in)
	if err == nil {
		err = s3List(out)
	}
	if err != nil {
		return objects.Page{}, s3Error(ctx, err)
	}
	plain := func(s *string) string {
		if out.EncodingType == types.EncodingTypeUrl {
			if u, err := url.QueryUnescape(aws.ToString(s)); err == nil {
				return u
			}
		}
		return aws.ToString(s)
	}
	p := objects.Page{Next: aws.ToString(out.NextContinuationToken), Objects: make([]objects.Object, 0, len(out.Contents)+len(out.CommonPrefixes))}
	if !aws.ToBool(out.IsTruncated) {
		p.Next = ""
	}
	for _, o := range out.Contents {
		etag := aws.ToString(o.ETag)
		p.Objects = append(p.Objects, objects.Object{Key: plain(o.Key), Size: aws.ToInt64(o.Size), ModTime: aws.ToTime(o.LastModified), Version: etag, ETag: etag})
	}
	for _, d := range out.CommonPrefixes {
		p.Objects = append(p.Objects, objects.Object{Key: plain(d.Prefix), Dir: true})
	}
	sortObjects(p.Objects)
	return p, nil
}

func (b *s3Bucket) Head(ctx context.Context, key string) (objects.Object, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return objects.Object{}, s3Error(ctx, err)
	}
	etag := aws.ToString(out.ETag)
	return objects.Object{Key: key, Size: aws.ToInt64(out.ContentLength), ModTime: aws.ToTime(out.LastModified), Version: etag, ETag: etag,
		ContentType: aws.ToString(out.ContentType), Note: out.Metadata[noteKey], Noted: true, Meta: out.Metadata}, nil
}

func (b *s3Bucket) Read(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, error) {
	ctx, done := patient(ctx, nil)
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", off, off+n-1))}
	if version != "" {
		in.IfMatch = &version
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		defer done()
		return nil, s3Error(ctx, err)
	}
	if version != "" && aws.ToString(out.ETag) != version {
		defer done()
		out.Body.Close()
		return nil, objects.ErrChanged
	}
	return &body{out.Body, done}, nil
}

// body ends its call when it is closed.
type body struct {
	io.ReadCloser
	done func()
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.done()
	return err
}

func (b *s3Bucket) Put(ctx context.Context, key string, r io.ReaderAt, size int64, o objects.Options) (string, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	if err := b.look(ctx, key, o.Cond); err != nil {
		return "", err
	}
	in := &s3.PutObjectInput{Bucket: &b.name, Key: &key, Body: io.NewSectionReader(r, 0, size), ContentLength: &size, Metadata: noteMeta(o.Note)}
	in.IfMatch, in.IfNoneMatch = b.conditions(o.Cond)
	if o.ContentType != "" {
		in.ContentType = &o.ContentType
	}
	out, err := b.client.PutObject(ctx, in)
	if err != nil {
		return "", s3Error(ctx, err)
	}
	return s3Version(ctx, out.ETag)
}

func noteMeta(note string) map[string]string {
	if note == "" {
		return nil
	}
	return map[string]string{noteKey: note}
}

func (b *s3Bucket) conditions(c objects.Cond) (match, noneMatch *string) {
	switch {
	case b.careless:
	case c.Absent:
		noneMatch = aws.String("*")
	case c.Version != "":
		match = &c.Version
	}
	return match, noneMatch
}

// look is what is left of a condition where the service knows none.
func (b *s3Bucket) look(ctx context.Context, key string, c objects.Cond) error {
	if !b.careless || c == (objects.Cond{}) {
		return nil
	}
	o, err := b.Head(ctx, key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if c.Version != "" {
			return objects.ErrChanged
		}
		return nil
	case err != nil:
		return err
	case c.Absent || o.Version != c.Version:
		return objects.ErrChanged
	}
	return nil
}

func (b *s3Bucket) Upload(ctx context.Context, key string, o objects.Options) (objects.Upload, error) {
	ctx, done := patient(ctx, nil)
	defer done()
	in := &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: &key, Metadata: noteMeta(o.Note)}
	if o.ContentType != "" {
		in.ContentType = &o.ContentType
	}
	out, err := b.client.CreateMultipartUpload(ctx, in)
	if err != nil {
		return nil, s3Error(ctx, err)
	}
	return &s3Upload{b: b, key: key, id: aws.ToString(out.UploadId), cond: o.Cond, etags: map[int]string{}}, nil
}

type s3Upload struct {
	b       *s3Bucket
	key, id string
	cond    objects.Cond
	mu      sync.Mutex
	etags   map[int]string
}

func (u *s3Upload) Part(ctx context.Context, n int, r io.ReaderAt, off, size int64) error {
	ctx, done := patient(ctx, nil)
	defer done()
	out, err := u.b.client.UploadPart(ctx, &s3.UploadPartInput{Bucket: &u.b.name, Key: &u.key, UploadId: &u.id,
		PartNumber: aws.Int32(int32(n + 1)), Body: io.NewSectionReader(r, off, size), ContentLength: &size})
	if err != nil {
		return s3Error(ctx, err)
	}
	etag, err := s3Version(ctx, out.ETag)
	if err != nil {
		return err
	}
	u.mu.Lock()
	u.etags[n] = etag
	u.mu.Unlock()
	return nil
}

func (u *s3Upload) Complete(ctx context.Context, parts int) (string, error) {
	ctx, done := patient(ctx, u.b.probe)
	defer done()
	if err := u.b.look(ctx, u.key, u.cond); err != nil {
		return "", err
	}
	list := make([]types.CompletedPart, parts)
	u.mu.Lock()
	for i := range list {
		list[i] = types.CompletedPart{PartNumber: aws.Int32(int32(i + 1)), ETag: aws.String(u.etags[i])}
	}
	u.mu.Unlock()
	in := &s3.CompleteMultipartUploadInput{Bucket: &u.b.name, Key: &u.key, UploadId: &u.id, MultipartUpload: &types.CompletedMultipartUpload{Parts: list}}
	in.IfMatch, in.IfNoneMatch = u.b.conditions(u.cond)
	out, err := u.b.client.CompleteMultipartUpload(ctx, in)
	if err != nil {
		return "", s3Error(ctx, err)
	}
	return s3Version(ctx, out.ETag)
}

func (u *s3Upload) Abort(ctx context.Context) error {
	ctx, done := patient(ctx, nil)
	defer done()
	_, err := u.b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &u.b.name, Key: &u.key, UploadId: &u.id})
	return s3Error(ctx, err)
}

func (b *s3Bucket) probe(ctx context.Context) error {
	_, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.name, MaxKeys: aws.Int32(1)})
	return err
}

// Longer objects cannot be copied by one call.
const s3CopyLimit = 5 << 30

func (b *s3Bucket) Copy(ctx context.Context, from objects.Object, to string, cond objects.Cond, note *string) (string, error) {
	ctx, done := patient(ctx, b.probe)
	defer done()
	if err := b.look(ctx, to, cond); err != nil {
		return "", err
	}
	if from.Size > s3CopyLimit {
		return b.copyParts(ctx, from, to, cond, note)
	}
	in := &s3.CopyObjectInput{Bucket: &b.name, Key: &to, CopySource: b.source(from.Key)}
	if from.Version != "" {
		in.CopySourceIfMatch = &from.Version
	}
	if note != nil {
		in.MetadataDirective, in.Metadata = types.MetadataDirectiveReplace, withNote(from.Meta, *note)
		if from.ContentType != "" {
			in.ContentType = &from.ContentType
		}
	}
	in.IfMatch, in.IfNoneMatch = b.conditions(cond)
	out, err := b.client.CopyObject(ctx, in)
	if err != nil {
		return "", s3Error(ctx, err)
	}
	if out.CopyObjectResult == nil {
		return "", fmt.Errorf("%w: the answer to a copy has no result", objects.ErrUnavailable)
	}
	return s3Version(ctx, out.CopyObjectResult.ETag)
}

func withNote(meta map[string]string, note string) map[string]string {
	m := map[string]string{}
	for k, v := range meta {
		m[k] = v
	}
	m[noteKey] = note
	if note == "" {
		delete(m, noteKey)
	}
	return m
}

func (b *s3Bucket) source(key string) *string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return aws.String(b.name + "/" + strings.ReplaceAll(strings.Join(parts, "/"), "+", "%2B"))
}

func (b *s3Bucket) copyParts(ctx context.Context, from objects.Object, to string, cond objects.Cond, note *string) (string, error) {
	head, err := b.Head(ctx, from.Key)
	if err != nil {
		return "", err
	}
	meta := head.Meta
	if note != nil {
		meta = withNote(meta, *note)
	}
	create, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: &to, Metadata: meta, ContentType: &head.ContentType})
	if err != nil {
		return "", s3Error(ctx, err)
	}
	u := &s3Upload{b: b, key: to, id: aws.ToString(create.UploadId), cond: cond, etags: map[int]string{}}
	const piece = 1 << 30
	n := 0
	for off := int64(0); off < from.Size; off += piece {
		in := &s3.UploadPartCopyInput{Bucket: &b.name, Key: &to, UploadId: &u.id, PartNumber: aws.Int32(int32(n + 1)), CopySource: b.source(from.Key),
			CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", off, min(off+piece, from.Size)-1))}
		if from.Version != "" {
			in.CopySourceIfMatch = &from.Version
		}
		out, err := b.client.UploadPartCopy(ctx, in)
		if err != nil {
			_ = u.Abort(context.WithoutCancel(ctx))
			return "", s3Error(ctx, err)
		}
		u.etags[n] = aws.ToString(out.CopyPartResult.ETag)
		n++
	}
	return u.Complete(ctx, n)
}

// Note copies the object onto itself, which is how S3 replaces metadata.
func (b *s3Bucket) Note(ctx context.Context, o objects.Object, note, contentType string) (string, error) {
	if contentType != "" {
		o.ContentType = contentType
	}
	return b.Copy(ctx, o, o.Key, objects.Cond{}, &note)
}

// Delete looks at the version first, since few services take a condition here.
func (b *s3Bucket) Delete(ctx context.Context, key, version string) error {
	ctx, done := patient(ctx, nil)
	defer done()
	if version != "" {
		o, err := b.Head(ctx, key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if o.Version != version {
			return objects.ErrChanged
		}
	}
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &key})
	if err = s3Error(ctx, err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func s3Error(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var code string
	var status int
	if api := smithy.APIError(nil); errors.As(err, &api) {
		code = api.ErrorCode()
	}
	if resp := (*awshttp.ResponseError)(nil); errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	switch code {
	case "NoSuchKey", "NotFound":
		return fmt.Errorf("%w (%s)", fs.ErrNotExist, code)
	case "PreconditionFailed", "ConditionalRequestConflict":
		return objects.ErrChanged
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed":
		return fmt.Errorf("%w (%s)", fs.ErrPermission, code)
	case "EntityTooLarge":
		return objects.ErrTooBig
	case "KeyTooLongError", "InvalidObjectName":
		return objects.ErrKey
	}
	return statusError(ctx, status, code, err)
}

func (b *s3Bucket) list(ctx context.Context, prefix string) error {
	ctx, done := patient(ctx, nil)
	defer done()
	out, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.name, MaxKeys: aws.Int32(1), Prefix: &prefix}, func(o *s3.Options) {
		o.RetryMaxAttempts = checkTries
	})
	if err == nil {
		err = s3List(out)
	}
	if err != nil && ctx.Err() != nil {
		return s3Error(ctx, err)
	}
	return err
}

// s3List refuses the answer of who is no S3 service: the SDK takes any document
// for an empty list.
func s3List(out *s3.ListObjectsV2Output) error {
	if out.Name == nil && out.KeyCount == nil && out.MaxKeys == nil {
		return errForeign
	}
	return nil
}

// s3Version is the version in the answer to a write; whoever answers without one
// has stored nothing.
func s3Version(ctx context.Context, etag *string) (string, error) {
	if aws.ToString(etag) == "" {
		return "", s3Error(ctx, errForeign)
	}
	return *etag, nil
}
