//go:build linux

// Package image keeps the images that sandboxes start from: it pulls them from
// registries, OCI layouts and docker save files, with no daemon, and lays their
// layers down once for all sandboxes.
//
// A Store is a directory that several processes share:
//
//	names/HASH.json      what a name led to when it was pulled last
//	images/HEX.json      an image: its layers and its configuration
//	layers/FORM/HEX/     a layer: layer.json, and its files in fs/
//	blobs/HEX-REGISTRY   and with .part: a layer as it came, until its files are on the disk
//	pins/                images that are being used, by processes that live
//	locks/, tmp/, trash/
//
// Layers come into being by one rename, so that what is there is whole. What a
// machine that lost its power may have lost is found out by the boot id, see
// layerFile. Nothing that an image holds can touch the host: package tree lays
// it down.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/tree"
)

// The bounds when the Options name none.
const (
	DefaultMaxBytes   = 64 << 30
	DefaultMaxEntries = 4_000_000
)

// Options of New. The zero value works but for Dir.
type Options struct {
	// Dir is the store's directory; it is made when something is stored.
	Dir    string
	Logger *slog.Logger // nil discards
	// Aliases are the operator's own names: what stands on the left is taken
	// for what is on the right, also with a tag of its own.
	Aliases map[string]string
	// Mirrors are tried before a registry ("docker.io"), in order; each is a
	// host, or a URL with one and perhaps a path.
	Mirrors map[string][]string
	// Platform is "os/architecture[/variant]"; empty: this machine's.
	Platform string
	// AuthFiles are credential files as Docker and Podman write them, those
	// that exist; the first that knows a registry counts.
	AuthFiles []string
	// Private tells whether a name's registry may be at an address that is
	// not public. Nil: none may.
	Private func(Name) bool
	// MaxBytes bounds what an image unpacks to, all its layers together;
	// MaxEntries each layer. 0: the defaults.
	MaxBytes   int64
	MaxEntries int64

	// step is called at steps whose interruption tests try.
	step func(name string) error
	// settle is how long Close waits for the disk.
	settle time.Duration
	// pause is the first between two attempts; each is twice the one before.
	pause time.Duration
	// stall is how long a registry may send next to nothing.
	stall time.Duration
}

// Form is how layers lie on disk. Sandboxes of one form share them.
type Form struct {
	// Name tells forms apart; it is the name of a directory.
	Name string
	// As lays the files down and removes them.
	As tree.As
	// UserXattr: the layers are mounted in a user namespace.
	UserXattr bool
	// Count is how many ids the sandboxes have.
	Count int
}

// Image is an image of one platform. It is immutable.
type Image struct {
	// Name is the whole name that it was pulled by.
	Name string `json:"name"`
	// Digest is the manifest's ("sha256:…"); of a docker save file, the
	// configuration's.
	Digest string `json:"digest"`
	// Platform as "linux/amd64".
	Platform string `json:"platform"`
	// Layers, the lowest first.
	Layers []Layer `json:"layers"`
	// What the image says of its commands.
	Env     []string `json:"env,omitempty"`
	User    string   `json:"user,omitempty"`
	WorkDir string   `json:"work_dir,omitempty"`
	// OnBuild are the steps that it asks those to do who build on it, shortened.
	OnBuild []string `json:"on_build,omitempty"`
}

// Layer is one of an image's.
type Layer struct {
	// Diff is the digest of the tar stream: the layer's identity.
	Diff string `json:"diff"`
	// Blob is the digest of what is transferred; empty in a docker save file.
	Blob string `json:"blob,omitempty"`
	Size int64  `json:"size"` // of the blob, bytes
}

// Size is that of the blobs together.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Progress tells how far a pull is.
type Progress struct {
	Name   string
	Step   string // "looking up", "pulling", "ready"
	Layers int
	Done   int   // layers that are ready
	Bytes  int64 // received
	Total  int64 // to receive
}

// String is a line for people, such as "pulling debian:12: 3 of 5 layers, 120
// of 345 MiB".
func (p Progress) String() string {
	if p.Layers == 0 {
		return p.Step + " the image " + p.Name
	}
	s := fmt.Sprintf("%s the image %s: %d of %d layers", p.Step, p.Name, p.Done, p.Layers)
	if p.Total > 0 {
		s += fmt.Sprintf(", %.1f of %.1f MiB", float64(p.Bytes)/(1<<20), float64(p.Total)/(1<<20))
	}
	return s
}

// Store keeps images. It is safe for concurrent use, and several processes may
// share its directory.
type Store struct {
	o       Options
	log     *slog.Logger
	unpacks chan struct{}

	once      sync.Once
	transport http.RoundTripper // made by once
	guarded   http.RoundTripper // likewise

	settling  sync.WaitGroup
	mu        sync.Mutex
	closed    bool
	downloads map[string]chan struct{} // by registry
}

// New checks o and touches nothing yet. The error joins a *sandbox.FieldError
// for each fault.
func New(o Options) (*Store, error) {
	var errs []error
	bad := func(field, problem, allowed string) {
		errs = append(errs, &sandbox.FieldError{Field: "local.images." + field, Problem: problem, Allowed: allowed})
	}
	if o.Platform == "" {
		o.Platform = "linux/" + runtime.GOARCH
	}
	if parts := strings.Split(o.Platform, "/"); len(parts) < 2 || len(parts) > 3 || parts[0] != "linux" || parts[1] == "" {
		bad("platform", fmt.Sprintf("%.40q is no platform", o.Platform), "linux/ARCHITECTURE, such as linux/arm64")
	}
	if o.MaxBytes < 0 || o.MaxEntries < 0 {
		bad("max_gib", "a limit is negative", "0 or more")
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.step == nil {
		o.step = func(string) error { return nil }
	}
	if o.settle == 0 {
		o.settle = 200 * time.Millisecond
	}
	if o.pause == 0 {
		o.pause = 500 * time.Millisecond
	}
	if o.stall == 0 {
		o.stall = stallTime
	}
	s := &Store{o: o, log: o.Logger, downloads: map[string]chan struct{}{}, unpacks: make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))}
	for from, list := range o.Mirrors {
		for _, m := range list {
			if _, err := parseMirror(m); err != nil {
				bad("mirrors."+from, err.Error(), "HOST[:PORT][/PATH], or http:// or https:// before it")
			}
		}
	}
	for alias, to := range o.Aliases {
		if _, err := s.parse(to); err != nil {
			bad("aliases."+alias, fmt.Sprintf("%.200q is no image", to), "a name in a registry, oci:PATH[:TAG], docker-archive:PATH")
		}
	}
	return s, errors.Join(errs...)
}

// Close waits a moment for what was pulled to be on the disk. What is not by
// then is told by the boot id.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.settling.Wait(); close(done) }()
	t := time.NewTimer(s.o.settle)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	return nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.o.Dir}, parts...)...)
}

// open makes the store's directories.
func (s *Store) open() error {
	for _, d := range []string{"names", "images", "layers", "blobs", "pins", "locks", "tmp", "trash"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// hexOf is the file name of a digest, checked by parse or by its registry.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

func validDigest(d string) bool {
	h, ok := strings.CutPrefix(d, "sha256:")
	if !ok || len(h) != 64 || strings.ToLower(h) != h {
		return false
	}
	_, err := hex.DecodeString(h)
	return err == nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// fault is an error of the image or its registry, in a sentence for the caller.
func fault(format string, args ...any) error {
	return &sandbox.UserError{Text: "image: " + fmt.Sprintf(format, args...), Err: sandbox.ErrUnavailable}
}

// writeJSON replaces a file atomically; with durable it is on disk afterwards.
func writeJSON(path string, v any, durable bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readJSON reads at most 4 MiB.
func readJSON(path string, v any) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// bootID tells one start of the machine from another; empty: not known.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// lock is held by one process of all that share the store; the kernel lets go
// of it when the process ends.
type lock struct {
	f    *os.File
	path string
}

// lock takes a lock, shared or alone, and waits for it until ctx ends. wait, if
// not nil, is called while it waits.
func (s *Store) lock(ctx context.Context, name string, shared bool, wait func()) (*lock, error) {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	path := s.path("locks", name)
	for d := time.Millisecond; ; d = min(2*d, 100*time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			if err = s.open(); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		for {
			if err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		// Whoever holds it may remove the file.
		if err == nil && sameFile(f, path) {
			return &lock{f, path}, nil
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
		if err == nil {
			continue
		}
		if wait != nil {
			wait()
		}
		t := time.NewTimer(d)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-t.C:
		}
	}
}

func sameFile(f *os.File, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(f.Fd()), &a) == nil && unix.Lstat(path, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// release lets go; remove only for who holds the lock alone.
func (l *lock) release(remove bool) {
	if remove {
		_ = os.Remove(l.path)
	}
	_ = l.f.Close()
}
