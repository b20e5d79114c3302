//go:build unix

package cloud_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"berth/internal/buckettest"
	"berth/mounts/objects"
)

// gcsUploads is a Google bucket, and how to begin uploads of a content in it.
type gcsUploads struct {
	t       *testing.T
	b       objects.Bucket
	content []byte
}

func newGCSUploads(t *testing.T, size int) gcsUploads {
	u := gcsUploads{t, buckettest.GCS(t).Bucket(t), make([]byte, size)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(u.content)
	return u
}

const gcsPartSize = 256 << 10

func (u gcsUploads) begin(key string, o objects.Options) objects.Upload {
	u.t.Helper()
	up, err := u.b.Upload(u.t.Context(), key, o)
	if err != nil {
		u.t.Fatal(err)
	}
	return up
}

func (u gcsUploads) part(up objects.Upload, n int) error {
	off := n * gcsPartSize
	return up.Part(u.t.Context(), n, bytes.NewReader(u.content), int64(off), int64(min(gcsPartSize, len(u.content)-off)))
}

func (u gcsUploads) absent(key string) {
	u.t.Helper()
	if o, err := u.b.Head(u.t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		u.t.Errorf("%s in the bucket: %+v, %v", key, o, err)
	}
}

// Parts that come in any order make the object, whichever length it has, and not
// before it is complete.
func TestGCSUploadInAnyOrder(t *testing.T) {
	for name, size := range map[string]int{"whole chunks": 12 * gcsPartSize, "a rest": 11*gcsPartSize + 5, "one part": gcsPartSize, "a rest alone": 5} {
		t.Run(name, func(t *testing.T) {
			u := newGCSUploads(t, size)
			parts := (size + gcsPartSize - 1) / gcsPartSize
			up := u.begin("key", objects.Options{ContentType: "text/csv", Note: "note", Cond: objects.Cond{Absent: true}})
			var wg sync.WaitGroup
			for _, n := range rand.Perm(parts) {
				wg.Go(func() {
					if err := u.part(up, n); err != nil {
						t.Errorf("part %d: %v", n, err)
					}
				})
			}
			wg.Wait()
			u.absent("key")
			version, err := up.Complete(t.Context(), parts)
			if err != nil {
				t.Fatal(err)
			}
			o, err := u.b.Head(t.Context(), "key")
			if err != nil || o.Version != version || o.ContentType != "text/csv" || o.Note != "note" {
				t.Errorf("the object is %+v, %v; version %s is told", o, err, version)
			}
			r, err := u.b.Read(t.Context(), "key", version, 0, int64(size))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, u.content) {
				t.Errorf("the object has %d bytes, %v; not the %d that were sent", len(got), err, size)
			}
		})
	}
}

// What Google's uploads cannot do is left to Put, and leaves nothing behind.
func TestGCSUploadCannot(t *testing.T) {
	u := newGCSUploads(t, 3*gcsPartSize+5)
	for name, parts := range map[string][]int{"a part again": {0, 1, 2, 0, 3}, "a part is missing": {0, 2, 3}, "fewer than were sent": {0, 1, 2}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			up := u.begin("key", objects.Options{})
			var err error
			for _, n := range parts {
				err = errors.Join(err, u.part(up, n))
			}
			count := 4
			if name == "fewer than were sent" {
				count = 2
			}
			if _, cerr := up.Complete(t.Context(), count); !errors.Is(cerr, errors.ErrUnsupported) {
				t.Errorf("complete: %v", cerr)
			}
			if (err != nil) != (name == "a part again") || err != nil && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("parts: %v", err)
			}
			if err := u.part(up, 3); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("a part after that: %v", err)
			}
			u.absent("key")
		})
	}
	t.Run("aborted", func(t *testing.T) {
		up := u.begin("key", objects.Options{})
		for n := range 4 {
			if err := u.part(up, n); err != nil {
				t.Fatal(err)
			}
		}
		if err := up.Abort(t.Context()); err != nil {
			t.Errorf("abort: %v", err)
		}
		if _, err := up.Complete(t.Context(), 4); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("complete: %v", err)
		}
		u.absent("key")
	})
	t.Run("changed meanwhile", func(t *testing.T) {
		up := u.begin("key", objects.Options{Cond: objects.Cond{Absent: true}})
		for n := range 4 {
			if err := u.part(up, n); err != nil {
				t.Fatal(err)
			}
		}
		theirs, err := u.b.Put(t.Context(), "key", bytes.NewReader([]byte("theirs")), 6, objects.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := up.Complete(t.Context(), 4); !errors.Is(err, objects.ErrChanged) {
			t.Errorf("complete: %v", err)
		}
		if o, err := u.b.Head(t.Context(), "key"); err != nil || o.Version != theirs {
			t.Errorf("the object is %+v, %v; want theirs, %s", o, err, theirs)
		}
	})
}
