// Package objects says what a bucket service can do, whichever it is; package
// cloud has the real ones, and Memory is one for tests.
//
// Keys are exact: what the bucket holds is what a caller sees, byte for byte,
// so that names stay the same for every other program that uses the bucket.
// Calls that write can be made to depend on what the object is at that moment;
// see Cond.
package objects

import (
	"context"
	"errors"
	"io"
	"time"
)

// The errors that callers may test for, besides fs.ErrNotExist,
// fs.ErrPermission and the context's.
var (
	// ErrChanged: a condition did not hold; somebody else wrote the object.
	ErrChanged = errors.New("the object was changed by somebody else")
	// ErrUnavailable: the service did not answer, or answered that it cannot
	// now, for as long as a call may last.
	ErrUnavailable = errors.New("the bucket service is not available")
	// ErrTooBig: the object is larger than the service takes.
	ErrTooBig = errors.New("the object is too big for the service")
	// ErrKey: the service takes no such key.
	ErrKey = errors.New("the service takes no such key")
)

// Object is what a bucket knows of one key, or, with Dir, that keys begin with
// Key, which then ends with '/'.
type Object struct {
	Key  string
	Dir  bool
	Size int64
	// ModTime is when the service stored this content.
	ModTime time.Time
	// Version names this content among all that the key ever had: an ETag, or
	// a generation. It is opaque, and never empty for an object.
	Version string
	// ETag as the service writes it.
	ETag string
	// ContentType is known after Head, and in lists of GCS and Azure.
	ContentType string
	// Note is the text kept with the object (see Options.Note). It is only
	// known when Noted; lists of S3 do not tell it.
	Note  string
	Noted bool

	// Meta is all metadata that Head found, which Bucket.Note keeps.
	Meta map[string]string
}

// Page is a part of a list, in the order of the keys' bytes.
type Page struct {
	Objects []Object
	// Next asks for the page after this one; empty: this is the last.
	Next string
}

// Cond is what must be so for a write to happen; the zero Cond asks nothing.
type Cond struct {
	// Absent: there is no object under the key.
	Absent bool
	// Version: the object has this version.
	Version string
}

// Options are what is stored with an object.
type Options struct {
	Cond        Cond
	ContentType string
	// Note is a short ASCII text kept in the object's metadata.
	Note string
}

// Bucket is one bucket or container. Its methods are safe for concurrent use.
// They retry what may be retried, until the service has been silent for as long
// as Patience, and then return ErrUnavailable.
type Bucket interface {
	// List returns keys that begin with prefix. With deep false, those that
	// have a '/' after it are folded into one Object with Dir. token is Next
	// of the page before; max bounds the page, at most 1000.
	List(ctx context.Context, prefix string, deep bool, token string, max int) (Page, error)
	Head(ctx context.Context, key string) (Object, error)
	// Read returns n bytes from off of the given version, or ErrChanged. The
	// reader may end early with an error; the caller asks again from there.
	Read(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, error)
	// Put stores size bytes of body and returns the new version. Whatever
	// happens, the key holds the old content or the new one.
	Put(ctx context.Context, key string, body io.ReaderAt, size int64, o Options) (version string, err error)
	// Upload begins an object whose parts arrive in any order.
	Upload(ctx context.Context, key string, o Options) (Upload, error)
	// Copy makes key to an object like from, on the service's side. The note
	// is from's own, or *note.
	Copy(ctx context.Context, from Object, to string, cond Cond, note *string) (version string, err error)
	// Note replaces the note and, when it is not empty, the content type of an
	// object as Head returned it; content stays.
	Note(ctx context.Context, o Object, note, contentType string) (version string, err error)
	// Delete removes the object; with a version, only if it has it. Removing
	// what is not there is no error.
	Delete(ctx context.Context, key, version string) error
	// PartSize is how long the parts of an Upload are, but for the last.
	PartSize() int64
	// MaxParts is how many parts an Upload has at most.
	MaxParts() int
	// NotedLists tells whether lists hold the notes.
	NotedLists() bool
}

// Upload is an object on its way. Nothing is seen of it before Complete.
type Upload interface {
	// Part sends part n, counted from 0; sending it again replaces it.
	Part(ctx context.Context, n int, body io.ReaderAt, off, size int64) error
	// Complete makes the object from parts 0 to parts-1.
	Complete(ctx context.Context, parts int) (version string, err error)
	// Abort drops what was sent.
	Abort(ctx context.Context) error
}

// Patience is for how long a service may be silent before a call gives up. It
// leaves time for an answer within ten seconds.
const Patience = 8 * time.Second
