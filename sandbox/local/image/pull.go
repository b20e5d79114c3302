//go:build linux

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// nameFile is what a name led to.
type nameFile struct {
	Name   string    `json:"name"`
	Image  string    `json:"image"` // digest
	Pulled time.Time `json:"pulled"`
}

func (s *Store) nameFile(n Name) string {
	sum := sha256.Sum256([]byte(n.Full + "\x00" + s.o.Platform))
	return s.path("names", hex.EncodeToString(sum[:16])+".json")
}

func (s *Store) imageFile(digest string) string { return s.path("images", hexOf(digest)+".json") }

// known finds what n led to when it was pulled last.
func (s *Store) known(n Name) (*Image, error) {
	var nf nameFile
	if err := readJSON(s.nameFile(n), &nf); err != nil {
		return nil, err
	}
	if nf.Name != n.Full || !validDigest(nf.Image) {
		return nil, fs.ErrNotExist
	}
	var im Image
	if err := readJSON(s.imageFile(nf.Image), &im); err != nil {
		return nil, err
	}
	if im.Digest != nf.Image || len(im.Layers) == 0 && im.Platform == "" {
		return nil, fs.ErrNotExist
	}
	im.Name = n.Full
	return &im, nil
}

// Pull makes sure that n's image is laid down in form, and pins it: it stays as
// long as this process lives or until the pin is released. An image of a
// registry that is there is not looked for again unless fresh. report, if not
// nil, is told how far it is; it must not block.
//
// A pull that was killed goes on where it was. Several pulls of a layer, of this
// and of other processes, do it once. The errors of images and registries are
// *sandbox.UserError.
func (s *Store) Pull(ctx context.Context, n Name, form Form, fresh bool, report func(Progress)) (*Image, *Pin, error) {
	if err := s.open(); err != nil {
		return nil, nil, err
	}
	p := &pull{s: s, n: n, form: form, report: report}
	p.tell("looking up")
	var im *Image
	var err error
	if !n.File && !fresh {
		if im, err = s.known(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.WarnContext(ctx, "image record not read", slog.String("image", n.Full), slog.Any("err", err))
		}
	}
	return p.run(ctx, im)
}

// Again lays down an image that was pulled before, from where it came.
func (s *Store) Again(ctx context.Context, im *Image, form Form, report func(Progress)) (*Pin, error) {
	n, err := s.parse(im.Name)
	if err != nil {
		return nil, err
	}
	n.Alias = true // it was allowed when it was pulled
	p := &pull{s: s, n: n, form: form, report: report, again: true}
	_, pin, err := p.run(ctx, im)
	return pin, err
}

// pull is one pull in progress.
type pull struct {
	s      *Store
	n      Name
	form   Form
	report func(Progress)
	again  bool // the image is fixed

	src  source // nil until it is needed
	srcs sync.Mutex

	layers int
	total  int64
	done   atomic.Int64
	bytes  atomic.Int64
	size   atomic.Int64 // of the layers that are ready, unpacked
	told   atomic.Int64 // when, so that reports are few
}

func (p *pull) tell(step string) {
	if p.report == nil {
		return
	}
	p.report(Progress{Name: p.n.Full, Step: step, Layers: p.layers, Done: int(p.done.Load()), Bytes: min(p.bytes.Load(), p.total), Total: p.total})
}

// got counts bytes received, and tells of them ten times a second.
func (p *pull) got(n int64) {
	p.bytes.Add(n)
	now := time.Now().UnixMilli()
	if last := p.told.Load(); now-last >= 100 && p.told.CompareAndSwap(last, now) {
		p.tell("pulling")
	}
}

// open finds the source, once.
func (p *pull) open(ctx context.Context) (source, error) {
	p.srcs.Lock()
	defer p.srcs.Unlock()
	if p.src != nil {
		return p.src, nil
	}
	src, err := p.s.source(ctx, p.n)
	if err != nil {
		return nil, err
	}
	if a, ok := src.(*archive); ok && a.where == nil {
		if _, err := a.image(p.n, p.s.o.Platform); err != nil {
			return nil, err
		}
	}
	p.src = src
	return src, nil
}

func (p *pull) run(ctx context.Context, im *Image) (*Image, *Pin, error) {
	s := p.s
	fresh := im == nil
	if fresh {
		src, err := p.open(ctx)
		if err != nil {
			return nil, nil, err
		}
		if im, err = s.resolve(ctx, p.n, src); err != nil {
			return nil, nil, err
		}
	}
	pin, err := s.pin(ctx, im)
	if err != nil {
		return nil, nil, err
	}
	if err := p.all(ctx, im); err != nil {
		pin.Release()
		return nil, nil, err
	}
	if p.layers > 0 {
		if remarks := s.Remarks(im, p.form); remarks != nil {
			s.log.WarnContext(ctx, "image differs inside", slog.String("image", p.n.Full), slog.Any("remarks", remarks))
		}
	}
	now := time.Now()
	if !p.again {
		if fresh {
			err = writeJSON(s.imageFile(im.Digest), im, false)
			if err == nil {
				err = writeJSON(s.nameFile(p.n), nameFile{Name: p.n.Full, Image: im.Digest, Pulled: now.UTC()}, false)
			}
			if err != nil {
				pin.Release()
				return nil, nil, err
			}
		}
		// When it was used last.
		_ = os.Chtimes(s.imageFile(im.Digest), now, now)
	}
	p.tell("ready:")
	return im, pin, nil
}

// atOnce is how many layers of an image are worked on at a time; each holds a few
// files open.
const atOnce = 8

// all makes every layer, several at a time.
func (p *pull) all(ctx context.Context, im *Image) error {
	var missing []Layer
	seen := map[string]bool{}
	for _, l := range im.Layers {
		if seen[l.Diff] {
			continue
		}
		seen[l.Diff] = true
		if lf, err := p.s.layerFile(p.form, l.Diff); err == nil && lf.whole() {
			p.size.Add(lf.Summary.Bytes)
			if lf.Boot != "" { // whoever made it had no time to wait
				p.s.settleLayer(p.form, *lf)
			}
			continue
		}
		missing = append(missing, l)
		p.total += l.Size
	}
	if len(missing) == 0 {
		return nil
	}
	p.layers = len(missing)
	err := p.sized(0)
	if err == nil {
		err = p.room()
	}
	if err != nil {
		return err
	}
	p.tell("pulling")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, atOnce)
	for _, l := range missing {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			lf, err := p.layer(ctx, l)
			if err == nil {
				err = p.sized(lf.Summary.Bytes)
			}
			if err != nil {
				mu.Lock()
				if failed == nil {
					failed = err
					cancel() // the others would only be stopped
				}
				mu.Unlock()
				return
			}
			p.done.Add(1)
			p.tell("pulling")
		})
	}
	wg.Wait()
	return failed
}

// sized counts what a layer unpacks to, and refuses an image once its layers, of
// which each fits, are together more than it may: those that are left would
// only take time.
func (p *pull) sized(layer int64) error {
	if p.size.Add(layer) <= p.s.o.MaxBytes {
		return nil
	}
	return fault("%s unpacks to more than the %d MiB that an image may (local.images.max_gib)", p.n.Full, p.s.o.MaxBytes>>20)
}
