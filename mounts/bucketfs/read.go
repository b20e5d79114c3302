//go:build linux

package bucketfs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"berth/mounts/objects"
)

// reader is where somebody reads in a file, and how much is read ahead of them.
type reader struct {
	mu   sync.Mutex
	next int64 // where a sequential reader goes on
	// window is how many blocks are fetched ahead; 0 for random reads.
	window int64
	// ahead is the block that reading ahead has come to.
	ahead int64
	// of is the content that was read from; it changes only while nothing was.
	of   *content
	read bool
	// failed are the newest failures that nobody was told of twice.
	failed []failure
}

const (
	// failedMax is how many reads the kernel has at the service at once, or so.
	failedMax = 16
	// failedFor is how soon after it fails.
	failedFor = 250 * time.Millisecond
	// slack is how far the kernel's own reading ahead jumps about.
	slack = 1 << 20
	// windowMax is in blocks; it is also bounded by the cache.
	windowMax = 32
	// streamBlocks are fetched by one request at most, and twice as many from a
	// service that begins to answer within nearby: it bounds no connection, and
	// what a request costs counts more than having several under way.
	streamBlocks = 8
	nearby       = 10 * time.Millisecond
)

// stream is how many blocks one request fetches at most.
func (f *FS) stream() int64 {
	if d := f.firstByte.Load(); d > 0 && d < int64(nearby) {
		return 2 * streamBlocks
	}
	return streamBlocks
}

// answered notes how long the service took to begin an answer. The shortest of
// late counts: what a call waits for others, here or there, is no distance.
func (f *FS) answered(took time.Duration) {
	least := f.firstByte.Load()
	if least == 0 || int64(took) < least {
		least = int64(took)
	}
	f.firstByte.Store(max(1, least+(int64(took)-least)/64)) // of two at a time one is lost, which does not matter
}

// readResult is data that lies in cached blocks, until Done.
type readResult struct {
	f      *FS
	parts  [][]byte
	blocks []*block
	spent  []bool
}

// Size is as fuse.ReadResult says.
func (r *readResult) Size() int {
	n := 0
	for _, p := range r.parts {
		n += len(p)
	}
	return n
}

// Bytes is as fuse.ReadResult says.
func (r *readResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:0]
	for _, p := range r.parts {
		buf = append(buf, p...)
	}
	return buf, fuse.OK
}

// Slices lets the server write without gathering.
func (r *readResult) Slices() ([][]byte, fuse.Status) { return r.parts, fuse.OK }

// Done is as fuse.ReadResult says.
func (r *readResult) Done() {
	for i, b := range r.blocks {
		r.f.cache.unpin(b, r.spent[i])
	}
	r.blocks, r.parts = nil, nil
}

// contentOf returns the cached content of the object that n shows now.
func (n *node) contentOf() *content {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.content == nil || n.content.version != n.attr.version {
		n.content = &content{version: n.attr.version, size: n.attr.size, blocks: map[int64]*block{}}
	}
	return n.content
}

// readContent returns up to size bytes of a file's object from off.
func (f *FS) readContent(n *node, r *reader, off int64, size int) (*readResult, error) {
	if err := r.failedAhead(off, size); err != nil {
		return nil, err
	}
	res, err := f.readOnce(n, r, off, size)
	if errors.Is(err, objects.ErrUnavailable) {
		r.mu.Lock()
		r.failed = append(r.failed, failure{from: off, to: off + int64(size), at: time.Now(), err: err})
		r.failed = r.failed[max(0, len(r.failed)-failedMax):]
		r.mu.Unlock()
	}
	return res, err
}

// failure is a read that the service did not answer.
type failure struct {
	from, to int64
	at       time.Time
	err      error
}

// failedAhead returns the failure of a read that this one is a part of. The
// kernel asks for a page once more before it gives up, and nobody shall wait
// twice; the call after that is a new one.
func (r *reader) failedAhead(off int64, size int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = slices.DeleteFunc(r.failed, func(x failure) bool { return time.Since(x.at) > failedFor })
	for i, x := range r.failed {
		if off >= x.from && off+int64(size) <= x.to {
			r.failed = slices.Delete(r.failed, i, i+1)
			return x.err
		}
	}
	return nil
}

func (f *FS) readOnce(n *node, r *reader, off int64, size int) (*readResult, error) {
	for again := false; ; again = true {
		r.mu.Lock()
		c := r.of
		if c == nil {
			c = n.contentOf()
			r.of = c
		}
		begun := r.read
		r.mu.Unlock()
		res, err := f.readBlocks(n, c, r, off, size)
		switch {
		case err == nil:
			r.mu.Lock()
			r.read = true
			r.mu.Unlock()
			return res, nil
		case !errors.Is(err, objects.ErrChanged) && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case begun || again:
			// Half of one state and half of another is no file.
			return nil, objects.ErrChanged
		}
		// Nothing was read yet: show what is there now.
		if err := f.refresh(n); errors.Is(err, fs.ErrNotExist) {
			return nil, objects.ErrChanged // read knows no other word for it
		} else if err != nil {
			return nil, err
		}
		r.mu.Lock()
		if !r.read {
			r.of = nil
		}
		r.mu.Unlock()
	}
}

// refresh asks what an object is now, and lets the kernel do so too.
func (f *FS) refresh(n *node) error {
	n.mu.Lock()
	n.until = time.Time{}
	n.mu.Unlock()
	f.mu.Lock()
	parent, name, gone := n.parent, n.name, n.gone
	if parent != nil {
		f.forgetList(parent)
	}
	f.mu.Unlock()
	if gone || parent == nil {
		return objects.ErrChanged
	}
	m, _, err := f.lookup(f.ctx, parent, name)
	if err != nil {
		return err
	}
	if m != n {
		return objects.ErrChanged
	}
	if f.server != nil {
		f.server.InodeNotify(n.id, -1, 0)
	}
	return nil
}

// know asks what a file's object is where that is forgotten, as it is when what
// was written could not be saved: without a version, a write has no condition,
// and would go over what others wrote.
func (f *FS) know(n *node) error {
	n.mu.Lock()
	known := n.attr.kind != file || n.fresh || n.stage != nil || n.attr.version != ""
	n.mu.Unlock()
	if known {
		return nil
	}
	return f.refresh(n)
}

// readBlocks reads from the cache, and fetches what is not there.
func (f *FS) readBlocks(n *node, c *content, r *reader, off int64, size int) (*readResult, error) {
	res := &readResult{f: f}
	if off >= c.size || size <= 0 {
		return res, nil
	}
	end := min(off+int64(size), c.size)
	first, last := off/blockSize, (end-1)/blockSize
	stream := f.stream()
	blocks := f.want(n, c, first, last, r.plan(f, c, off, end, stream), stream)
	r.mu.Lock()
	sequential := r.window > 0
	r.mu.Unlock()
	for _, b := range blocks {
		<-b.ready
		if b.err != nil {
			for _, b := range blocks {
				f.cache.unpin(b, false)
			}
			return nil, b.err
		}
		from := max(off, b.index*blockSize) - b.index*blockSize
		to := min(end, b.index*blockSize+int64(len(b.data))) - b.index*blockSize
		res.parts = append(res.parts, b.data[from:to])
		// A block that was read to its end is in the kernel's cache.
		res.spent = append(res.spent, sequential && int(to) == len(b.data))
	}
	res.blocks = blocks
	return res, nil
}

// plan notes a read and returns up to which block to read ahead, by requests for
// so many blocks.
func (r *reader) plan(f *FS, c *content, off, end, stream int64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	sequential := off >= r.next-slack && off <= r.next+slack
	last := (end - 1) / blockSize
	switch {
	case !sequential:
		r.window, r.ahead, r.next = 0, last, end
		return last
	case r.window == 0 && r.next == 0 && off == 0:
		// Most that are opened are read from the front; how far, nobody knows.
		r.window = 1
	case end > r.next:
		most := min(windowMax, f.cache.limit/blockSize*3/4)
		r.window = min(max(2*r.window, 2), most)
	}
	r.next = max(r.next, end)
	final := (c.size - 1) / blockSize
	goal := min(last+r.window, final)
	r.ahead = max(r.ahead, last)
	// Short requests cost as much as long ones.
	if goal-r.ahead < min(stream, r.window/2) && goal != final {
		return last
	}
	goal = max(goal, last)
	r.ahead = max(goal, r.ahead)
	return goal
}

// want returns blocks first to last, pinned, and starts fetching those that are
// not there, and on to goal, by requests for so many blocks.
func (f *FS) want(n *node, c *content, first, last, goal, stream int64) []*block {
	f.cache.mu.Lock()
	var blocks []*block
	var run []*block
	var runs [][]*block
	flush := func() {
		if len(run) > 0 {
			runs = append(runs, run)
			run = nil
		}
	}
	for i := first; i <= max(last, goal); i++ {
		b := c.blocks[i]
		if b == nil {
			if b = f.cache.add(c, i, i <= last); b == nil {
				break
			}
			run = append(run, b)
			if int64(len(run)) == stream {
				flush()
			}
		} else {
			flush()
		}
		if i <= last {
			f.cache.pin(b)
			blocks = append(blocks, b)
		}
	}
	flush()
	f.cache.mu.Unlock()
	for _, run := range runs {
		f.background(func() { f.fetch(func() string { return f.key(n) }, c, run) })
	}
	return blocks
}

// fetch fills blocks that follow each other from one request, and from further
// ones where it breaks off.
func (f *FS) fetch(key func() string, c *content, blocks []*block) {
	off := blocks[0].index * blockSize
	end := off
	for _, b := range blocks {
		end += int64(len(b.data))
	}
	var (
		rd    io.ReadCloser
		err   error
		i, at int // block, and bytes of it that are there
		last  = time.Now()
	)
	for i < len(blocks) {
		if rd == nil {
			if rd, err = f.open(key, c, off, end-off); err != nil {
				break
			}
		}
		var k int
		k, err = rd.Read(blocks[i].data[at:])
		if k > 0 {
			last = time.Now()
		}
		off, at = off+int64(k), at+k
		for i < len(blocks) && at == len(blocks[i].data) {
			f.finished(blocks[i], nil)
			i, at = i+1, 0
		}
		if err != nil && i < len(blocks) {
			rd.Close()
			rd = nil
			if time.Since(last) >= objects.Patience || f.ctx.Err() != nil {
				break
			}
			pause(f.ctx, 50*time.Millisecond)
		}
	}
	if rd != nil {
		rd.Close()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = objects.ErrUnavailable
	}
	for ; i < len(blocks); i++ {
		f.finished(blocks[i], err)
	}
}

// open asks for a range; the key may change meanwhile, when a directory above
// gets another name.
func (f *FS) open(key func() string, c *content, off, size int64) (io.ReadCloser, error) {
	for {
		now, begin := key(), time.Now()
		rd, err := f.bucket.Read(f.ctx, now, c.version, off, size)
		if err == nil {
			f.answered(time.Since(begin))
		}
		if errors.Is(err, fs.ErrNotExist) && key() != now {
			continue
		}
		return rd, err
	}
}

func (f *FS) finished(b *block, err error) {
	b.err = err
	f.cache.mu.Lock()
	if err != nil && b.of.blocks[b.index] == b {
		delete(b.of.blocks, b.index) // the next who wants it tries again
	}
	f.cache.mu.Unlock()
	close(b.ready)
	f.cache.unpin(b, false)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
