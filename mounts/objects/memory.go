package objects

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is a bucket in memory, for tests: as strict as S3 with conditions and
// as silent in lists.
type Memory struct {
	// Before, when set, is asked before each call ("list", "head", "read",
	// "put", "upload", "part", "complete", "copy", "note", "delete"); its error
	// is the call's. It is set before the bucket is used.
	Before func(call, key string) error
	// Part is what PartSize returns; 0: 16 MiB.
	Part int64

	mu      sync.Mutex
	objects map[string]memObject
	last    int
}

type memObject struct {
	Object
	data []byte
}

var _ Bucket = (*Memory)(nil)

func (m *Memory) before(ctx context.Context, call, key string) error {
	if m.Before != nil {
		if err := m.Before(call, key); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// PartSize is as Bucket says.
func (m *Memory) PartSize() int64 {
	if m.Part > 0 {
		return m.Part
	}
	return 16 << 20
}

// MaxParts is as Bucket says.
func (m *Memory) MaxParts() int { return 10_000 }

// NotedLists is as Bucket says.
func (m *Memory) NotedLists() bool { return false }

// List is as Bucket says.
func (m *Memory) List(ctx context.Context, prefix string, deep bool, token string, limit int) (Page, error) {
	if err := m.before(ctx, "list", prefix); err != nil {
		return Page{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	for k := range m.objects {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var p Page
	for _, k := range keys {
		o := m.objects[k].Object
		o.Note, o.Noted, o.ContentType, o.Meta = "", false, "", nil
		if i := strings.IndexByte(k[len(prefix):], '/'); i >= 0 && !deep {
			o = Object{Key: k[:len(prefix)+i+1], Dir: true}
		}
		if o.Key <= token && token != "" || len(p.Objects) > 0 && p.Objects[len(p.Objects)-1].Key == o.Key {
			continue
		}
		if len(p.Objects) == limit {
			p.Next = p.Objects[limit-1].Key
			break
		}
		p.Objects = append(p.Objects, o)
	}
	return p, nil
}

// Head is as Bucket says.
func (m *Memory) Head(ctx context.Context, key string) (Object, error) {
	if err := m.before(ctx, "head", key); err != nil {
		return Object{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return Object{}, fs.ErrNotExist
	}
	return o.Object, nil
}

// Read is as Bucket says.
func (m *Memory) Read(ctx context.Context, key, version string, off, n int64) (io.ReadCloser, error) {
	if err := m.before(ctx, "read", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	switch {
	case !ok:
		return nil, fs.ErrNotExist
	case version != "" && o.Version != version:
		return nil, ErrChanged
	case off >= o.Size:
		return nil, fmt.Errorf("%w: range", ErrUnavailable)
	}
	return io.NopCloser(bytes.NewReader(o.data[off:min(off+n, o.Size)])), nil
}

// store is called with the lock held.
func (m *Memory) store(key string, data []byte, o Options, meta map[string]string) (string, error) {
	old, ok := m.objects[key]
	if o.Cond.Absent && ok || o.Cond.Version != "" && old.Version != o.Cond.Version {
		return "", ErrChanged
	}
	m.last++
	if m.objects == nil {
		m.objects = map[string]memObject{}
	}
	v := fmt.Sprintf("v%d", m.last)
	m.objects[key] = memObject{Object{Key: key, Size: int64(len(data)), ModTime: time.Now().Truncate(time.Second), Version: v, ETag: v,
		ContentType: o.ContentType, Note: o.Note, Noted: true, Meta: meta}, data}
	return v, nil
}

// Put is as Bucket says.
func (m *Memory) Put(ctx context.Context, key string, r io.ReaderAt, size int64, o Options) (string, error) {
	if err := m.before(ctx, "put", key); err != nil {
		return "", err
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), data); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store(key, data, o, nil)
}

// Upload is as Bucket says.
func (m *Memory) Upload(ctx context.Context, key string, o Options) (Upload, error) {
	if err := m.before(ctx, "upload", key); err != nil {
		return nil, err
	}
	return &memUpload{m: m, key: key, o: o, parts: map[int][]byte{}}, nil
}

type memUpload struct {
	m     *Memory
	key   string
	o     Options
	mu    sync.Mutex
	parts map[int][]byte
}

func (u *memUpload) Part(ctx context.Context, n int, r io.ReaderAt, off, size int64) error {
	if err := u.m.before(ctx, "part", u.key); err != nil {
		return err
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, off, size), data); err != nil {
		return err
	}
	u.mu.Lock()
	u.parts[n] = data
	u.mu.Unlock()
	return nil
}

func (u *memUpload) Complete(ctx context.Context, parts int) (string, error) {
	if err := u.m.before(ctx, "complete", u.key); err != nil {
		return "", err
	}
	var data []byte
	for n := range parts {
		p, ok := u.parts[n]
		if !ok {
			return "", fmt.Errorf("%w: no part %d", ErrUnavailable, n)
		}
		if n < parts-1 && int64(len(p)) != int64(len(u.parts[0])) {
			return "", fmt.Errorf("%w: part %d has another length", ErrUnavailable, n)
		}
		data = append(data, p...)
	}
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	return u.m.store(u.key, data, u.o, nil)
}

func (u *memUpload) Abort(context.Context) error { return nil }

// Copy is as Bucket says.
func (m *Memory) Copy(ctx context.Context, from Object, to string, cond Cond, note *string) (string, error) {
	if err := m.before(ctx, "copy", to); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	src, ok := m.objects[from.Key]
	switch {
	case !ok:
		return "", fs.ErrNotExist
	case from.Version != "" && src.Version != from.Version:
		return "", ErrChanged
	}
	o := Options{Cond: cond, ContentType: src.ContentType, Note: src.Note}
	if note != nil {
		o.Note = *note
	}
	return m.store(to, src.data, o, src.Meta)
}

// Note is as Bucket says.
func (m *Memory) Note(ctx context.Context, o Object, note, contentType string) (string, error) {
	if err := m.before(ctx, "note", o.Key); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.objects[o.Key]
	if !ok {
		return "", fs.ErrNotExist
	}
	if contentType == "" {
		contentType = old.ContentType
	}
	return m.store(o.Key, old.data, Options{Cond: Cond{Version: o.Version}, ContentType: contentType, Note: note}, old.Meta)
}

// Delete is as Bucket says.
func (m *Memory) Delete(ctx context.Context, key, version string) error {
	if err := m.before(ctx, "delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return nil
	}
	if version != "" && o.Version != version {
		return ErrChanged
	}
	delete(m.objects, key)
	return nil
}
