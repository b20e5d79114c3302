//go:build unix

package providertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"berth/sandbox"
)

// Fake is a provider that keeps its sandboxes in a directory of the host and
// runs their commands as ordinary host processes: it isolates nothing. Paths
// inside a sandbox are the host's paths beneath the sandbox's root; any other
// absolute path means the same path beneath the root. Users and intervals are
// recorded and have no effect; there are no terminals. It is safe for concurrent
// use, and Reopen gives a second provider over the same store.
type Fake struct {
	store *fakeStore

	mu     sync.Mutex
	closed bool
}

var _ sandbox.Provider = (*Fake)(nil)

// FakeOptions of NewFake. The zero value works.
type FakeOptions struct {
	// LogLimit bounds what is kept of each output stream; 0 = 64 MiB.
	LogLimit int64
	// Name is the provider's name; "" = "fake".
	Name string
	// Now is the clock of records; nil = time.Now.
	Now func() time.Time
}

// NewFake returns a provider whose sandboxes live beneath dir, an existing
// directory. The caller ends everything with Shutdown.
func NewFake(dir string, o FakeOptions) *Fake {
	if o.LogLimit == 0 {
		o.LogLimit = 64 << 20
	}
	if o.Name == "" {
		o.Name = "fake"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if d, err := filepath.EvalSymlinks(dir); err == nil {
		dir = d
	}
	return &Fake{store: &fakeStore{dir: dir, options: o, boxes: map[sandbox.Key]*fakeBox{}}}
}

// Reopen returns another provider over the same store, as a second server
// process would be.
func (f *Fake) Reopen() *Fake { return &Fake{store: f.store} }

// Shutdown kills every process of the store and waits for them.
func (f *Fake) Shutdown() {
	f.store.mu.Lock()
	boxes := make([]*fakeBox, 0, len(f.store.boxes))
	for _, b := range f.store.boxes {
		boxes = append(boxes, b)
	}
	boxes = append(boxes, f.store.retired...)
	f.store.mu.Unlock()
	for _, b := range boxes {
		b.endAll(0, "the fake was shut down")
	}
}

// SetStatus forces a sandbox into a status, as a fault from outside would;
// reason is its Info.Reason. Processes are lost when it does not run.
func (f *Fake) SetStatus(key sandbox.Key, s sandbox.Status, reason string) {
	b := f.store.find(key)
	if b == nil {
		return
	}
	if s != sandbox.StatusRunning {
		b.loseAll("the sandbox went away")
	}
	b.mu.Lock()
	b.status, b.reason = s, reason
	if s == sandbox.StatusStopped {
		b.stopped = f.store.options.Now()
	}
	b.mu.Unlock()
}

// fakeStore is what all providers over one store share.
type fakeStore struct {
	dir     string
	options FakeOptions

	mu      sync.Mutex
	boxes   map[sandbox.Key]*fakeBox
	retired []*fakeBox
	made    int

	volumes   []fakeVolume
	snapshots []fakeSnapshot
	buckets   map[string]string // their keys
}

func (s *fakeStore) find(key sandbox.Key) *fakeBox {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boxes[key]
}

// Name is the name of FakeOptions.
func (f *Fake) Name() string { return f.store.options.Name }

func (f *Fake) usable(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return sandbox.ErrClosed
	}
	return ctx.Err()
}

// Create makes the key's sandbox, running.
func (f *Fake) Create(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
	if err := f.usable(ctx); err != nil {
		return nil, err
	}
	s := f.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.boxes[key]; old != nil && old.info().Status != sandbox.StatusDestroyed {
		return nil, sandbox.ErrExists
	}
	s.made++
	root, err := os.MkdirTemp(s.dir, "box-")
	if err != nil {
		return nil, err
	}
	b := &fakeBox{store: s, key: key, seq: s.made, root: root, home: filepath.Join(root, "home", accountOf(spec)), spec: spec,
		status: sandbox.StatusRunning, created: s.options.Now(), procs: map[sandbox.ProcessID]*fakeProcess{}}
	if err := s.fill(ctx, b); err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	s.boxes[key] = b
	return &fakeInstance{box: b, provider: f}, nil
}

// Lookup finds the key's sandbox.
func (f *Fake) Lookup(ctx context.Context, key sandbox.Key) (sandbox.Instance, error) {
	if err := f.usable(ctx); err != nil {
		return nil, err
	}
	b := f.store.find(key)
	if b == nil {
		return nil, sandbox.ErrNotFound
	}
	return &fakeInstance{box: b, provider: f}, nil
}

// List returns owner's sandboxes, or all.
func (f *Fake) List(ctx context.Context, owner sandbox.Owner) ([]sandbox.Info, error) {
	if err := f.usable(ctx); err != nil {
		return nil, err
	}
	s := f.store
	s.mu.Lock()
	var boxes []*fakeBox
	for k, b := range s.boxes {
		if owner == "" || k.Owner == owner {
			boxes = append(boxes, b)
		}
	}
	s.mu.Unlock()
	sort.Slice(boxes, func(i, j int) bool { return boxes[i].seq < boxes[j].seq })
	var infos []sandbox.Info
	for _, b := range boxes {
		if i := b.info(); i.Status != sandbox.StatusDestroyed {
			infos = append(infos, i)
		}
	}
	return infos, nil
}

// Describe tells what a new sandbox would be.
func (f *Fake) Describe(ctx context.Context, spec sandbox.Spec) (sandbox.Info, error) {
	if err := f.usable(ctx); err != nil {
		return sandbox.Info{}, err
	}
	return sandbox.Info{Provider: f.Name(), Name: spec.Name, Status: sandbox.StatusPending, Spec: spec,
		Home: "/home/" + accountOf(spec), User: accountOf(spec), Runtimes: fakeRuntimes(), Guarantees: fakeGuarantees()}, nil
}

// Sweep does nothing: nothing of the fake's has intervals.
func (f *Fake) Sweep(ctx context.Context) error { return f.usable(ctx) }

// Close refuses later calls of this provider; sandboxes live on.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func fakeGuarantees() []sandbox.Guarantee {
	return []sandbox.Guarantee{{Name: "isolation", State: sandbox.NotEnforced, Detail: "a fake for tests: commands run on the host"}}
}
