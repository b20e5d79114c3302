//go:build linux

package bucketfs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"berth/mounts"
	"berth/mounts/objects"
)

// Options say what is shown of a bucket, and how.
type Options struct {
	// Prefix confines the mount to keys that begin with it; empty, or it ends
	// with '/'.
	Prefix   string
	ReadOnly bool
	View     mounts.View
	// Staging is a directory for data on its way into the bucket; empty: the
	// system's directory for temporary files.
	Staging string
	// Log; nil: nothing is logged. It gets keys, and never what is in files.
	Log *slog.Logger
}

// FS is a bucket as a file system. It is served by fuse.NewServer.
type FS struct {
	fuse.RawFileSystem
	bucket objects.Bucket
	o      Options
	log    *slog.Logger
	server *fuse.Server
	begun  time.Time
	// ctx is for what outlives a call: reading ahead, sending parts.
	ctx    context.Context
	cancel context.CancelFunc
	jobs   sync.WaitGroup

	// mu guards the tree: nodes, their places and counts, and handles.
	mu      sync.Mutex
	root    *node
	nodes   map[uint64]*node
	handles map[uint64]*handle
	dirs    map[uint64]*dirHandle
	last    uint64
	// listed counts the entries of kept lists.
	listed int

	// moving is held by a rename of a directory, and shared by writes into
	// the bucket, whose keys would change under them.
	moving sync.RWMutex

	cache   *cache
	sending chan struct{} // a place for each part on its way
	staged  atomic.Int64
	// firstByte is how long the service takes at least to begin an answer to a
	// read, in nanoseconds; 0 before the first.
	firstByte atomic.Int64
	quiet     quiet
}

// Times and sizes that have one right value.
const (
	defaultTimeout = 5 * time.Second
	defaultCache   = 11 << 20
	// sendAtOnce is how many parts of all files are sent at a time.
	sendAtOnce = 4
	// nameMax is Linux's.
	nameMax = 255
	// keyMax is what S3 and GCS take; Azure counts characters, which are fewer.
	keyMax = 1024
)

// New returns the file system of a bucket. Close ends it.
func New(b objects.Bucket, o Options) *FS {
	if o.View.FileMode == 0 {
		o.View.FileMode = 0o644
	}
	if o.View.DirMode == 0 {
		o.View.DirMode = 0o755
	}
	if o.View.AttrTimeout <= 0 {
		o.View.AttrTimeout = defaultTimeout
	}
	if o.View.CacheBytes <= 0 {
		o.View.CacheBytes = defaultCache
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &FS{RawFileSystem: fuse.NewDefaultRawFileSystem(), bucket: b, o: o, log: o.Log, begun: time.Now(), ctx: ctx, cancel: cancel,
		nodes: map[uint64]*node{}, handles: map[uint64]*handle{}, dirs: map[uint64]*dirHandle{}, last: fuse.FUSE_ROOT_ID,
		cache: newCache(o.View.CacheBytes), sending: make(chan struct{}, sendAtOnce)}
	f.root = &node{id: fuse.FUSE_ROOT_ID, kind: dir, attr: attr{kind: dir, mtime: f.begun, noted: true}}
	f.nodes[f.root.id] = f.root
	return f
}

// MountOptions are what the file system needs of the kernel.
func (f *FS) MountOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		FsName: "bucket", Name: "bucket",
		AllowOther: f.o.View.AllowOther, Options: []string{"default_permissions"},
		MaxWrite: 1 << 20, MaxBackground: 16,
		// Bounds the buffers of requests under way.
		MaxInflightRequestBytes: 4 << 20,
		IgnoreSecurityLabels:    true,
		ExtraCapabilities:       fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO,
	}
}

// Init is called by the server when the kernel has said hello.
func (f *FS) Init(s *fuse.Server) { f.server = s }

// String names the file system in mount tables.
func (f *FS) String() string { return "bucket" }

// Close ends what goes on in the background, and returns the paths of files
// with content that nobody was told is saved, and that now is lost. The server
// must have ended.
func (f *FS) Close() (lost []string) {
	f.mu.Lock()
	var dirty []*node
	for _, n := range f.nodes {
		if n.dirty() {
			dirty = append(dirty, n)
		}
	}
	f.mu.Unlock()
	for _, n := range dirty {
		n.write.Lock()
		if err := f.save(n); err != nil && n.dirty() {
			lost = append(lost, f.key(n))
		}
		n.write.Unlock()
	}
	f.cancel()
	f.jobs.Wait()
	f.cache.close()
	return lost
}

// background runs a job that Close waits for.
func (f *FS) background(job func()) {
	f.jobs.Add(1)
	go func() {
		defer f.jobs.Done()
		job()
	}()
}

// status turns an error into the answer to a call. What only the operator can
// mend is logged.
func (f *FS) status(op, key string, err error) fuse.Status {
	var errno syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.As(err, &errno):
		if errno == syscall.ENOSPC {
			f.quiet.warn(f.log, "no room for data on its way into the bucket", op, key, err)
		}
		return fuse.Status(errno)
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, fs.ErrPermission):
		f.quiet.warn(f.log, "the service refused", op, key, err)
		return fuse.EACCES
	case errors.Is(err, objects.ErrChanged):
		f.log.Warn("changed by somebody else meanwhile", slog.String("op", op), slog.String("key", key))
		return fuse.Status(syscall.ESTALE)
	case errors.Is(err, objects.ErrTooBig):
		return fuse.Status(syscall.EFBIG)
	case errors.Is(err, objects.ErrKey):
		return fuse.Status(syscall.ENAMETOOLONG)
	case errors.Is(err, os.ErrClosed):
		return fuse.Status(syscall.EBADF)
	}
	f.quiet.warn(f.log, "the service failed", op, key, err)
	return fuse.EIO
}

// quiet keeps a dead service from filling the log: one line a second.
type quiet struct {
	last    atomic.Int64
	dropped atomic.Int64
}

func (q *quiet) warn(l *slog.Logger, msg, op, key string, err error) {
	now := time.Now().UnixNano()
	if last := q.last.Load(); now-last < int64(time.Second) || !q.last.CompareAndSwap(last, now) {
		q.dropped.Add(1)
		return
	}
	l.Warn(msg, slog.String("op", op), slog.String("key", key), slog.Any("err", err), slog.Int64("more", q.dropped.Swap(0))) //nolint:sloglint // the callers' messages are constants
}
