package sandbox

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// MaxImage bounds the name of an image, in bytes.
const MaxImage = 1024

// Abilities of a Provider that makes sandboxes from images (Spec.Image).
type (
	// Imager tells whether an image may be named. allowed are the operator's
	// patterns, in which * stands for any text: they match whole names
	// ("docker.io/library/debian:12"), and files of this machine only where
	// they begin like them ("oci:/images/*"). Nil allows everything, files too.
	// Only names are looked at, no network. The error is a *FieldError for the
	// field image. Without this ability Spec.Image is ErrUnsupported.
	Imager interface {
		CheckImage(name string, allowed []string) error
	}
	// ImageLister lists the images that are there, the one used last first.
	ImageLister interface {
		Images(ctx context.Context) ([]ImageInfo, error)
	}
	// ImagePuller fetches an image, or what its name leads to now, for the
	// sandboxes to come.
	ImagePuller interface {
		PullImage(ctx context.Context, name string) (ImageInfo, error)
	}
	// ImagePruner removes images that no sandbox stands on and none was made
	// of for so long; with only, those of these names or digests. dry tells
	// what would go, and removes nothing.
	ImagePruner interface {
		PruneImages(ctx context.Context, unused time.Duration, only []string, dry bool) (PrunedImages, error)
	}
)

// ImageInfo describes an image that is there.
type ImageInfo struct {
	Names    []string // whole names that lead to it; may be empty
	Digest   string   // of its manifest, "sha256:…"
	Platform string   // "linux/amd64"
	// Pulled is when it was fetched last, Used when a sandbox was made of it.
	Pulled, Used time.Time
	Disk         int64 // bytes of its layers, those it shares with others too
	Layers       int
	Sandboxes    int // that stand on it
	// Remarks tell what of the image sandboxes see otherwise than it is, such
	// as "2 device nodes were left out"; nil: nothing.
	Remarks []string
}

// PrunedImages is what PruneImages removed.
type PrunedImages struct {
	Images []ImageInfo
	Bytes  int64
}

// Progress tells how far long work for a call is.
type Progress struct {
	Text        string // "pulling the image …: 3 of 5 layers, 120 of 345 MiB"
	Done, Total int64  // bytes; Total 0: not known
	// Log: Text is a line of a build's log, and not how far something is.
	Log bool
}

type progressKey struct{}

// WithProgress has work that is done for a call tell how far it is. f must not
// block; it may be called by several goroutines.
func WithProgress(ctx context.Context, f func(Progress)) context.Context {
	return context.WithValue(ctx, progressKey{}, f)
}

// Report tells how far the work is to whoever waits for it.
func Report(ctx context.Context, p Progress) {
	if f, ok := ctx.Value(progressKey{}).(func(Progress)); ok && f != nil {
		f(p)
	}
}

// checkImage refuses an image that the provider or the operator does not allow,
// before anything is made.
func (m *Manager) checkImage(spec Spec) error {
	if spec.Image == "" {
		return nil
	}
	im, ok := m.provider.(Imager)
	if !ok {
		return &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("image: the provider %s makes no sandboxes from images; leave image out", m.provider.Name())}
	}
	if m.options.Limits.AnyImage {
		return im.CheckImage(spec.Image, nil)
	}
	return im.CheckImage(spec.Image, m.options.Limits.AllowedImages)
}

// imageUser is a user or a number, and perhaps a group or another; compiled when the
// first is named.
var imageUser = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.-]{0,63}\$?|[0-9]{1,9})(:([A-Za-z_][A-Za-z0-9_.-]{0,63}\$?|[0-9]{1,9}))?$`)
})

// userName checks the form of a user's name; which there are depends on the
// sandbox.
func (f *faults) userName(user string) {
	if user != "" && !imageUser().MatchString(user) {
		f.add("user", fmt.Sprintf("there is no user %.40q", user), "agent, root; in a sandbox of an image one of its users, or a number", "")
	}
}

// checkUser refuses a user that only a sandbox of an image can have, where the
// key's sandbox is none or would be none.
func (m *Manager) checkUser(ctx context.Context, key Key, user string, f *faults) {
	if user == "" || user == "root" || !imageUser().MatchString(user) || ownUsers(m.provider) {
		return // or refused already
	}
	spec, image := m.options.Defaults, m.options.Defaults.Image != "" || m.options.Defaults.Snapshot != ""
	if info, ok := m.peekInfo(ctx, key); ok && info.Status != StatusDestroyed {
		spec, image = info.Spec, info.Spec.Image != "" || info.Image != nil
	}
	if !image {
		f.user(user, spec.account())
	}
}

func ownUsers(p Provider) bool {
	_, own := p.(OwnUsers)
	return own
}

// peekInfo is what is known of a sandbox, of late when it is believed to run.
func (m *Manager) peekInfo(ctx context.Context, key Key) (Info, bool) {
	m.mu.Lock()
	b := m.boxes[key]
	m.mu.Unlock()
	if b != nil && time.Since(b.seen) < recheck {
		return b.info, true
	}
	inst, err := m.peek(ctx, key)
	if err != nil {
		return Info{}, false
	}
	info, err := glance(ctx, inst)
	return info, err == nil
}

func (f *faults) image(image string) {
	if len(image) > MaxImage || !printable(image) || strings.TrimSpace(image) != image {
		f.add("image", fmt.Sprintf("%.80q is no name of an image", image), "a name such as debian:12, at most 1,024 bytes", "")
	}
}
