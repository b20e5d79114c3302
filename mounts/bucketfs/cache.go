//go:build linux

package bucketfs

import (
	lru "container/list"
	"sync"

	"golang.org/x/sys/unix"
)

// blockSize is what is fetched at least, and cached.
const blockSize = 256 << 10

// content is what is cached of one version of an object.
type content struct {
	version string
	size    int64
	blocks  map[int64]*block // guarded by cache.mu
}

// block is a piece of content; the last one of an object is shorter.
type block struct {
	of    *content
	index int64
	data  []byte
	// ready is closed when data is there, or err says why not.
	ready chan struct{}
	err   error

	// Guarded by cache.mu.
	pins int
	elem *lru.Element // in the order of use; nil while it is fetched or after it was dropped
}

// cache bounds the memory that blocks take. Whole blocks lie outside of the Go
// heap, whose collector would let it grow to twice their size.
type cache struct {
	mu    sync.Mutex
	limit int64
	used  int64
	order *lru.List // front: next to go
	free  [][]byte
	done  bool
}

func newCache(limit int64) *cache { return &cache{limit: max(limit, 4*blockSize), order: lru.New()} }

func (c *content) length(index int64) int { return int(min(blockSize, c.size-index*blockSize)) }

// add makes the block that is not there; c.mu is held. Without must, nil means
// that there is no room for it.
func (c *cache) add(of *content, index int64, must bool) *block {
	n := of.length(index)
	for c.used+int64(n) > c.limit {
		e := c.order.Front()
		if e == nil {
			if !must {
				return nil
			}
			break // a reader waits for it; there are no more of those than calls
		}
		c.evict(e.Value.(*block))
	}
	b := &block{of: of, index: index, ready: make(chan struct{})}
	b.data = c.buffer(n)
	c.used += int64(n)
	of.blocks[index] = b
	b.pins = 1 // the fetcher's
	return b
}

func (c *cache) buffer(n int) []byte {
	if n < blockSize {
		return make([]byte, n)
	}
	if last := len(c.free) - 1; last >= 0 {
		b := c.free[last]
		c.free = c.free[:last]
		return b
	}
	b, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, blockSize)
	}
	return b
}

// evict drops a block that nobody uses.
func (c *cache) evict(b *block) {
	if b.elem != nil {
		c.order.Remove(b.elem)
		b.elem = nil
	}
	if b.of.blocks[b.index] == b {
		delete(b.of.blocks, b.index)
	}
	if b.data == nil {
		return
	}
	c.used -= int64(len(b.data))
	if cap(b.data) == blockSize && len(b.data) == blockSize {
		c.free = append(c.free, b.data)
	}
	b.data = nil
}

// unpin ends a use. The block is used next to last, or, when it is spent, first
// to go.
func (c *cache) unpin(b *block, spent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.pins--
	if b.pins > 0 {
		return
	}
	select {
	case <-b.ready:
	default:
		return
	}
	switch {
	case b.err != nil || b.of.blocks[b.index] != b || c.done:
		c.evict(b)
	case b.elem == nil && spent:
		b.elem = c.order.PushFront(b)
	case b.elem == nil:
		b.elem = c.order.PushBack(b)
	}
}

// pin begins a use; c.mu is held.
func (c *cache) pin(b *block) {
	b.pins++
	if b.elem != nil {
		c.order.Remove(b.elem)
		b.elem = nil
	}
}

// has tells whether anything of a content is cached.
func (c *cache) has(of *content) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return of != nil && len(of.blocks) > 0
}

// drop forgets a content.
func (c *cache) drop(of *content) {
	if of == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range of.blocks {
		delete(of.blocks, b.index)
		if b.pins == 0 {
			c.evict(b)
		}
	}
}

func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	for e := c.order.Front(); e != nil; e = c.order.Front() {
		c.evict(e.Value.(*block))
	}
	for _, b := range c.free {
		_ = unix.Munmap(b)
	}
	c.free = nil
}
