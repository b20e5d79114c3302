//go:build linux

package bucketfs

import (
	"context"
	"errors"
	"io/fs"
	"mime"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth/mounts/objects"
)

// upload is a long file on its way into the bucket in parts, while it is still
// being written. A part that is written to again is sent again.
type upload struct {
	f    *FS
	key  string
	o    objects.Options
	size int64 // of a part

	beginning sync.Mutex // guards what follows
	up        objects.Upload
	refused   time.Time // when beginning last failed, and why
	err       error

	mu    sync.Mutex
	parts map[int]*part
	// failed is when and why a part was not sent.
	failed time.Time
	why    error
	wg     sync.WaitGroup
}

type part struct {
	changed int // how often it was written to since it was first sent
	sent    int // what changed was when it was sent; -1: it is not
	length  int64
}

// save puts a node's content into the bucket, if it has any that the bucket has
// not. n.write is held.
func (f *FS) save(n *node) error {
	f.moving.RLock()
	defer f.moving.RUnlock()
	err := f.saveAs(n, f.key(n))
	if errors.Is(err, objects.ErrChanged) {
		// It never can be: who opens the file next gets the others' content, also
		// while the kernel has not yet told that this one is closed.
		n.mu.Lock()
		if n.stage != nil {
			n.stage.old = true
		}
		n.mu.Unlock()
	}
	return err
}

// saveAs does so under a key; moving is held.
func (f *FS) saveAs(n *node, key string) error {
	n.mu.Lock()
	s := n.stage
	if s == nil || !s.dirty {
		n.mu.Unlock()
		return nil
	}
	a := n.attr
	cond := objects.Cond{Version: a.version}
	if n.fresh {
		cond = objects.Cond{Absent: true}
	}
	n.mu.Unlock()
	f.mu.Lock()
	parent, gone := n.parent, n.gone
	f.mu.Unlock()
	if gone {
		return nil // nobody can name it any more
	}
	if a.note.special() && !f.bucket.NotedLists() {
		if err := f.hint(f.ctx, parent); err != nil {
			return err
		}
	}
	a.note.id = newID()
	if u := s.upload; u != nil {
		if un := parseNote(u.o.Note); un.mode == a.note.mode && un.mtime.Equal(a.note.mtime) {
			a.note.id = un.id
		}
	}
	size := s.length()
	version, err := f.putOnce(s, key, size, cond, a.note)
	if err != nil {
		return err
	}
	s.upload, s.tried = nil, nil
	n.mu.Lock()
	s.dirty, n.fresh = false, false
	n.attr.version, n.attr.size, n.attr.note, n.attr.noted = version, size, a.note, true
	n.attr.stored = time.Time{}
	n.kept = version
	n.until = time.Now().Add(f.o.View.AttrTimeout)
	c := n.content
	n.content = nil
	n.mu.Unlock()
	f.mu.Lock()
	f.storedLocked(n)
	f.cache.drop(c)
	f.mu.Unlock()
	return nil
}

// putOnce stores content, also when the answer to an earlier try was lost: then
// the object that the condition does not hold for is our own.
func (f *FS) putOnce(s *stage, key string, size int64, cond objects.Cond, n note) (string, error) {
	for again := false; ; again = true {
		s.tried = append(s.tried, n.id)
		version, err := f.put(s, key, size, objects.Options{Cond: cond, ContentType: contentType(key), Note: n.String()})
		if err == nil && len(s.tried) > 1 {
			err = f.arrived(key, n.id, cond)
		}
		if !errors.Is(err, objects.ErrChanged) && !errors.Is(err, fs.ErrNotExist) {
			return version, err
		}
		h, herr := f.bucket.Head(f.ctx, key)
		id := parseNote(h.Note).id
		switch {
		case herr != nil && !errors.Is(herr, fs.ErrNotExist):
			return "", herr
		case herr == nil && id == n.id:
			return h.Version, nil
		case again:
			return "", objects.ErrChanged
		case herr == nil && slices.Contains(s.tried, id):
			cond = objects.Cond{Version: h.Version}
		case herr == nil && cond.Version == h.Version, herr != nil && cond.Absent:
			// The condition holds: it is the upload that the service dropped.
		default:
			return "", objects.ErrChanged
		}
		n.id = newID()
	}
}

// arrived waits until the bucket shows what it has just acknowledged: a service
// that is at work on an earlier try of the same upload may say that it is done
// before it is.
func (f *FS) arrived(key, id string, before objects.Cond) error {
	for begun := time.Now(); time.Since(begun) < objects.Patience; pause(f.ctx, 50*time.Millisecond) {
		h, err := f.bucket.Head(f.ctx, key)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		case err == nil && (parseNote(h.Note).id == id || h.Version != before.Version):
			return nil // ours, or what somebody wrote over it
		}
	}
	return objects.ErrUnavailable
}

// put sends content, in parts when it is long.
func (f *FS) put(s *stage, key string, size int64, o objects.Options) (string, error) {
	if s.upload != nil && (s.upload.key != key || s.upload.o != o || s.upload.tooLong(size)) {
		s.upload.abandon()
		s.upload = nil
	}
	if s.upload == nil && size <= f.bucket.PartSize() {
		return f.bucket.Put(f.ctx, key, s, size, o)
	}
	if s.upload == nil {
		s.upload = f.newUpload(key, size, o)
	}
	version, err := s.upload.finish(f.ctx, s, size)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		s.upload = nil
		return f.bucket.Put(f.ctx, key, s, size, o)
	case err != nil && !errors.Is(err, objects.ErrUnavailable):
		// It cannot be completed, ever.
		s.upload.abandon()
		s.upload = nil
	}
	return version, err
}

func (f *FS) newUpload(key string, size int64, o objects.Options) *upload {
	u := &upload{f: f, key: key, o: o, size: f.bucket.PartSize(), parts: map[int]*part{}}
	for u.tooLong(size) {
		u.size *= 8
	}
	return u
}

func (u *upload) tooLong(size int64) bool {
	return (size+u.size-1)/u.size > int64(u.f.bucket.MaxParts())
}

// ahead sends the parts of a file that is written from front to back as soon as
// they are full. n.write is held.
func (f *FS) ahead(n *node, s *stage, off, end int64) {
	sequential := off == s.end
	s.end = end
	if s.upload != nil {
		s.upload.wrote(off, end)
	}
	if !sequential || end < f.bucket.PartSize() {
		return
	}
	if s.upload != nil && s.upload.tooLong(end) {
		s.upload.abandon()
		s.upload = nil
	}
	if s.upload == nil {
		n.mu.Lock()
		a := n.attr
		cond := objects.Cond{Version: a.version}
		if n.fresh {
			cond = objects.Cond{Absent: true}
		}
		n.mu.Unlock()
		a.note.id = newID()
		key := f.key(n)
		s.upload = f.newUpload(key, end, objects.Options{Cond: cond, ContentType: contentType(key), Note: a.note.String()})
	}
	s.upload.sendFull(s, off, end)
}

// start begins the upload at the service, if it has not begun. Those who wait
// while that fails share the failure; who comes later tries again.
func (u *upload) start() (objects.Upload, error) {
	asked := time.Now()
	u.beginning.Lock()
	defer u.beginning.Unlock()
	if u.up != nil {
		return u.up, nil
	}
	if u.refused.After(asked) {
		return nil, u.err
	}
	up, err := u.f.bucket.Upload(u.f.ctx, u.key, u.o)
	if err != nil {
		u.refused, u.err = time.Now(), err
		return nil, err
	}
	u.up = up
	return up, nil
}

// wrote notes that parts have to be sent again.
func (u *upload) wrote(off, end int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := int(off / u.size); int64(i)*u.size < end; i++ {
		if p := u.parts[i]; p != nil {
			p.changed++
		}
	}
}

// sendFull sends the parts that a write has just filled.
func (u *upload) sendFull(s *stage, off, end int64) {
	for i := int(off / u.size); int64(i+1)*u.size <= end; i++ {
		u.mu.Lock()
		known := u.parts[i] != nil
		u.mu.Unlock()
		if !known {
			u.send(s, i, u.size)
		}
	}
}

// send sends one part in the background.
func (u *upload) send(s *stage, i int, length int64) {
	u.mu.Lock()
	p := u.parts[i]
	if p == nil {
		p = &part{sent: -1}
		u.parts[i] = p
	}
	now := p.changed
	u.mu.Unlock()
	u.wg.Add(1)
	u.f.background(func() {
		defer u.wg.Done()
		u.f.sending <- struct{}{}
		defer func() { <-u.f.sending }()
		up, err := u.start()
		if err == nil {
			err = up.Part(u.f.ctx, i, s, int64(i)*u.size, length)
		}
		if err == nil {
			s.sent(int64(i)*u.size, length)
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		switch {
		case err != nil && p.changed != now: // it is sent again, if it is still one
			return
		case err != nil:
			u.failed, u.why = time.Now(), err
			return
		}
		p.sent, p.length = now, length
	})
}

// finish sends what is missing, and makes the object. What fails meanwhile ends
// it: whoever waits has waited for that long already.
func (u *upload) finish(ctx context.Context, s *stage, size int64) (string, error) {
	begun := time.Now()
	count := int((size + u.size - 1) / u.size)
	failed := func() error {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.failed.After(begun) {
			return u.why
		}
		return nil
	}
	u.wg.Wait()
	for i := range count {
		length := min(u.size, size-int64(i)*u.size)
		u.mu.Lock()
		p := u.parts[i]
		have := p != nil && p.sent == p.changed && p.length == length
		u.mu.Unlock()
		if have {
			continue
		}
		// One after the other gets a place, so that a failure ends the queue.
		u.f.sending <- struct{}{}
		<-u.f.sending
		if failed() != nil {
			break
		}
		u.send(s, i, length)
	}
	u.wg.Wait()
	if err := failed(); err != nil {
		return "", err
	}
	up, err := u.start()
	if err != nil {
		return "", err
	}
	return up.Complete(ctx, count)
}

// abandon drops what was sent, in the background.
func (u *upload) abandon() {
	if u == nil {
		return
	}
	u.f.background(func() {
		u.wg.Wait()
		u.beginning.Lock()
		up := u.up
		u.beginning.Unlock()
		if up != nil {
			_ = up.Abort(u.f.ctx) // a service drops those that nobody completes
		}
	})
}

// contentType is by the name's ending, the same on every machine.
func contentType(key string) string {
	switch ext := path.Ext(key); ext {
	case ".txt", ".md", ".log":
		return "text/plain; charset=utf-8"
	case ".csv":
		return "text/csv"
	case ".html", ".css", ".js", ".json", ".xml", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf", ".wasm":
		if t := mime.TypeByExtension(ext); t != "" {
			return t
		}
	}
	return "application/octet-stream"
}

// stageOf returns the staged content of a file, and stages it when it is not:
// up to limit bytes of it, or all with limit < 0. n.write is held.
func (f *FS) stageOf(n *node, limit int64) (*stage, error) {
	if err := f.know(n); err != nil {
		return nil, err
	}
	n.mu.Lock()
	s, a := n.stage, n.attr
	old := s != nil && s.old
	n.mu.Unlock()
	if s != nil && old {
		return nil, objects.ErrChanged
	}
	if s != nil {
		return s, nil
	}
	s = f.newStage()
	size := a.size
	if limit >= 0 {
		size = min(size, limit)
	}
	if size > 0 {
		if err := f.copyInto(s, n, size); err != nil {
			s.drop()
			return nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attr.version != a.version {
		s.drop()
		return nil, objects.ErrChanged
	}
	n.stage = s
	return s, nil
}

// copyInto fetches an object's first bytes.
func (f *FS) copyInto(s *stage, n *node, size int64) error {
	r := &reader{}
	for off := int64(0); off < size; {
		res, err := f.readContent(n, r, off, int(min(1<<20, size-off)))
		if err != nil {
			return err
		}
		for _, p := range res.parts {
			if _, err := s.WriteAt(p, off); err != nil {
				res.Done()
				return err
			}
			off += int64(len(p))
		}
		empty := res.Size() == 0
		res.Done()
		if empty {
			return syscall.EIO
		}
	}
	return nil
}
