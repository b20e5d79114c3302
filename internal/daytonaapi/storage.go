package daytonaapi

import (
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// Bounds of what builds copy from.
const (
	maxContext  = 1 << 30            // bytes of one upload
	maxContexts = 8 << 30            // of all of an owner
	contextTime = 7 * 24 * time.Hour // that one is kept unused
	uploadTime  = 24 * time.Hour     // that an unfinished one is
	bucket      = "berth-builds"     // there is one
	s3Prefix    = "/s3/"             // of its paths
	objectName  = "context.tar"      // there is one below each hash
	noObject    = "NoSuchKey"        // S3's words
	denied      = "AccessDenied"     //
	badRequest  = "InvalidRequest"   //
	tooLarge    = "EntityTooLarge"   //
	noUpload    = "NoSuchUpload"     //
	xmlns       = "http://s3.amazonaws.com/doc/2006-03-01/"
)

// storage is as much of S3 as SDKs upload build contexts by: objects
// ORGANIZATION/HASH/context.tar, put whole or in parts, listed, and read by
// their owner.
type storage struct {
	dir string // DIR/ORGANIZATION/HASH/context.tar, and DIR/uploads
	key []byte
	log *slog.Logger

	mu     sync.Mutex
	coming map[sandbox.Owner]int64 // what uploads under way may still bring
}

func openStorage(dir string, log *slog.Logger) (*storage, error) {
	if err := os.MkdirAll(filepath.Join(dir, "uploads"), 0o700); err != nil {
		return nil, fmt.Errorf("state of the Daytona API: %w", err)
	}
	file := filepath.Join(dir, "signing.key")
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, 32)
		_, _ = rand.Read(key) // never fails, see crypto/rand
		err = writeFile(file, key)
	}
	if err == nil && len(key) != 32 {
		err = fmt.Errorf("%s is damaged; remove it, and uploads under way begin anew", file)
	}
	if err != nil {
		return nil, fmt.Errorf("state of the Daytona API: %w", err)
	}
	return &storage{dir: dir, key: key, log: log, coming: map[sandbox.Owner]int64{}}, nil
}

type pushAccess struct {
	AccessKey      string `json:"accessKey"`
	Secret         string `json:"secret"`
	SessionToken   string `json:"sessionToken"`
	StorageURL     string `json:"storageUrl"`
	OrganizationID string `json:"organizationId"`
	Bucket         string `json:"bucket"`
	Region         string `json:"region"`
}

func (s *Server) pushAccess(c *call) (any, error) {
	k := s.storage.credentials(c.owner, time.Now().Add(credentialTime))
	return pushAccess{k.accessKey, k.secret, k.token, c.base + strings.TrimSuffix(s3Prefix, "/"), organization(c.owner), bucket, "us-east-1"}, nil
}

// s3Fault is an error in S3's words.
type s3Fault struct {
	status     int
	code, text string
}

func (f *s3Fault) Error() string { return f.text }

var contextHash = lazily(`^[A-Za-z0-9_-]{1,128}$`)

// ServeHTTP serves what is below s3Prefix.
func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := s.serve(w, r)
	if err == nil {
		return
	}
	var f *s3Fault
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &f):
	case errors.As(err, &large):
		f = &s3Fault{http.StatusBadRequest, tooLarge, fmt.Sprintf("an upload has at most %d bytes", int64(maxContext))}
	case errors.Is(err, errSignature), errors.Is(err, errFraming):
		f = &s3Fault{http.StatusForbidden, "SignatureDoesNotMatch", err.Error()}
	default:
		s.log.ErrorContext(r.Context(), "object storage", slog.Any("err", err))
		f = &s3Fault{http.StatusInternalServerError, "InternalError", "internal error"}
	}
	writeXML(w, f.status, struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}{Code: f.code, Message: f.text})
}

func (s *storage) serve(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxContext+maxContext/64) // with framing
	owner, err := s.verify(r, time.Now())
	if errors.Is(err, errSignature) {
		return err
	}
	if err != nil {
		return &s3Fault{http.StatusForbidden, denied, err.Error()}
	}
	name, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, s3Prefix), "/")
	if name != bucket {
		return &s3Fault{http.StatusNotFound, "NoSuchBucket", "the bucket is " + bucket}
	}
	q := r.URL.Query()
	if key == "" && r.Method == http.MethodGet {
		return s.list(w, owner, q.Get("prefix"))
	}
	org, rest, _ := strings.Cut(key, "/")
	hash, file, _ := strings.Cut(rest, "/")
	if org != organization(owner) || !contextHash().MatchString(hash) || file != objectName {
		return &s3Fault{http.StatusForbidden, denied, "only " + organization(owner) + "/HASH/" + objectName + " can be reached with these credentials"}
	}
	path := s.path(owner, hash)
	switch {
	case r.Method == http.MethodPut && !q.Has("uploadId"):
		return s.put(w, r, owner, path)
	case r.Method == http.MethodPost && q.Has("uploads"):
		return s.begin(w, owner, key)
	case r.Method == http.MethodPut:
		return s.part(w, r, owner, q.Get("uploadId"), q.Get("partNumber"))
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return s.complete(w, owner, q.Get("uploadId"), key, path)
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return s.abort(w, owner, q.Get("uploadId"))
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return &s3Fault{http.StatusNotFound, noObject, "there is no such object"}
		}
		if err != nil {
			return err
		}
		defer f.Close()
		http.ServeContent(w, r, "", time.Time{}, f)
		return nil
	}
	return &s3Fault{http.StatusNotImplemented, "NotImplemented", r.Method + " is not there on this server"}
}

func (s *storage) path(owner sandbox.Owner, hash string) string {
	return filepath.Join(s.dir, organization(owner), hash, objectName)
}

// used is how many bytes an owner has uploaded.
func (s *storage) used(owner sandbox.Owner) (n int64) {
	for _, dir := range []string{organization(owner), filepath.Join("uploads", organization(owner))} {
		_ = filepath.WalkDir(filepath.Join(s.dir, dir), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if fi, err := d.Info(); err == nil {
					n += fi.Size()
				}
			}
			return nil // what cannot be seen counts nothing
		})
	}
	return n
}

// reserve makes room for an upload of at most n bytes, until done is called. Those
// that come at the same time count, each with all that it may bring.
func (s *storage) reserve(owner sandbox.Owner, n int64) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if used := s.used(owner) + s.coming[owner]; used+n > maxContexts {
		return nil, &s3Fault{http.StatusBadRequest, tooLarge, fmt.Sprintf("%d bytes are uploaded already, or on their way; allowed: %d. They are removed %d days after their last use", used, int64(maxContexts), int(contextTime.Hours()/24))}
	}
	s.coming[owner] += n
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.coming[owner] -= n; s.coming[owner] == 0 {
			delete(s.coming, owner)
		}
	}, nil
}

// most is what a request's body may bring.
func most(r *http.Request) int64 {
	if r.ContentLength < 0 {
		return maxContext
	}
	return min(r.ContentLength, maxContext)
}

// save writes what r has, n bytes at most, to path, as a whole and onto the disk.
func (s *storage) save(owner sandbox.Owner, path string, r io.Reader, n int64) error {
	done, err := s.reserve(owner, n)
	if err != nil {
		return err
	}
	defer done()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, "uploads"), "put-*")
	if err != nil {
		return err
	}
	got, err := io.Copy(f, r)
	if err == nil && got > maxContext {
		err = &http.MaxBytesError{Limit: maxContext}
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// etag names an object's content; clients of ours do not compare it.
func etag(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return `""`
	}
	return fmt.Sprintf(`"%x-%x"`, fi.ModTime().UnixNano(), fi.Size())
}

func (s *storage) put(w http.ResponseWriter, r *http.Request, owner sandbox.Owner, path string) error {
	if err := s.save(owner, path, r.Body, most(r)); err != nil {
		return err
	}
	w.Header().Set("ETag", etag(path))
	w.WriteHeader(http.StatusOK)
	return nil
}

var (
	uploadID   = lazily(`^[A-Z2-7]{26}$`)
	partNumber = lazily(`^[1-9][0-9]{0,4}$`)
)

// upload is the directory of an owner's upload in parts.
func (s *storage) upload(owner sandbox.Owner, id string) (string, error) {
	dir := filepath.Join(s.dir, "uploads", organization(owner), id)
	if !uploadID().MatchString(id) {
		return "", &s3Fault{http.StatusNotFound, noUpload, "there is no such upload"}
	}
	if _, err := os.Stat(dir); err != nil {
		return "", &s3Fault{http.StatusNotFound, noUpload, "there is no such upload"}
	}
	return dir, nil
}

func (s *storage) begin(w http.ResponseWriter, owner sandbox.Owner, key string) error {
	id := rand.Text()
	if err := os.MkdirAll(filepath.Join(s.dir, "uploads", organization(owner), id), 0o700); err != nil {
		return err
	}
	writeXML(w, http.StatusOK, struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		NS       string   `xml:"xmlns,attr"`
		Bucket   string
		Key      string
		UploadID string `xml:"UploadId"`
	}{NS: xmlns, Bucket: bucket, Key: key, UploadID: id})
	return nil
}

func (s *storage) part(w http.ResponseWriter, r *http.Request, owner sandbox.Owner, id, number string) error {
	dir, err := s.upload(owner, id)
	if err != nil {
		return err
	}
	if !partNumber().MatchString(number) {
		return &s3Fault{http.StatusBadRequest, badRequest, "partNumber must be 1 to 99999"}
	}
	path := filepath.Join(dir, number)
	if err := s.save(owner, path, r.Body, most(r)); err != nil {
		return err
	}
	w.Header().Set("ETag", etag(path))
	w.WriteHeader(http.StatusOK)
	return nil
}

// complete joins the parts in order.
func (s *storage) complete(w http.ResponseWriter, owner sandbox.Owner, id, key, path string) error {
	dir, err := s.upload(owner, id)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var numbers []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	if len(numbers) == 0 {
		return &s3Fault{http.StatusBadRequest, badRequest, "the upload has no parts"}
	}
	var parts []io.Reader
	var size int64
	for _, n := range numbers {
		f, err := os.Open(filepath.Join(dir, strconv.Itoa(n)))
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		size += fi.Size()
		parts = append(parts, f)
	}
	if err := s.save(owner, path, io.MultiReader(parts...), min(size, maxContext)); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	writeXML(w, http.StatusOK, struct {
		XMLName  xml.Name `xml:"CompleteMultipartUploadResult"`
		NS       string   `xml:"xmlns,attr"`
		Location string
		Bucket   string
		Key      string
		ETag     string
	}{NS: xmlns, Location: s3Prefix + bucket + "/" + key, Bucket: bucket, Key: key, ETag: etag(path)})
	return nil
}

func (s *storage) abort(w http.ResponseWriter, owner sandbox.Owner, id string) error {
	dir, err := s.upload(owner, id)
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

type s3Object struct {
	Key          string
	LastModified string
	ETag         string
	Size         int64
	StorageClass string
}

// list tells what of an owner's objects begins with prefix. What is asked for
// is about to be used.
func (s *storage) list(w http.ResponseWriter, owner sandbox.Owner, prefix string) error {
	org := organization(owner)
	if !strings.HasPrefix(prefix, org+"/") {
		return &s3Fault{http.StatusForbidden, denied, "only what is below " + org + "/ can be listed with these credentials"}
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, org))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var list []s3Object
	for _, e := range entries {
		key := org + "/" + e.Name() + "/" + objectName
		path := s.path(owner, e.Name())
		if fi, err := os.Stat(path); err == nil && strings.HasPrefix(key, prefix) {
			s.use(path)
			list = append(list, s3Object{Key: key, LastModified: stamp(fi.ModTime()), ETag: etag(path), Size: fi.Size(), StorageClass: "STANDARD"})
		}
	}
	writeXML(w, http.StatusOK, struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		NS          string   `xml:"xmlns,attr"`
		Name        string
		Prefix      string
		KeyCount    int
		MaxKeys     int
		IsTruncated bool
		Contents    []s3Object
	}{NS: xmlns, Name: bucket, Prefix: prefix, KeyCount: len(list), MaxKeys: 1000, Contents: list})
	return nil
}

// use notes that an object is needed.
func (s *storage) use(path string) {
	now := time.Now()
	_ = os.Chtimes(path, now, now) // it goes a little early, at the worst
}

// sweep removes what nobody has needed for long.
func (s *storage) sweep(now time.Time) {
	uploads := filepath.Join(s.dir, "uploads")
	var begun []string // uploads without parts
	_ = filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		fi, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		most := contextTime
		switch below := strings.HasPrefix(path, uploads+string(filepath.Separator)); {
		case below:
			most = uploadTime
		case d.IsDir() || filepath.Base(path) != objectName:
			return nil
		}
		if now.Sub(fi.ModTime()) <= most {
			return nil
		}
		if d.IsDir() {
			if uploadID().MatchString(d.Name()) {
				begun = append(begun, path)
			}
			return nil
		}
		_ = os.Remove(path)
		_ = os.Remove(filepath.Dir(path)) // unless something is in it
		return nil
	})
	for _, dir := range begun {
		_ = os.Remove(dir) // likewise
	}
}

func writeXML(w http.ResponseWriter, status int, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err) // of types that always encode
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = w.Write(append([]byte(xml.Header), b...)) // a client that is gone needs no answer
}
