//go:build linux

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/tree"
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
		if _, err := a.image(ctx, p.n, p.s.o.Platform); err != nil {
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
	if err := p.room(); err != nil {
		return err
	}
	p.tell("pulling")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for _, l := range missing {
		wg.Go(func() {
			if err := p.layer(ctx, l); err != nil {
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

// room refuses a pull that cannot fit: compressed and, at the least twice as
// large, unpacked.
func (p *pull) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.s.o.Dir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: p.s.o.Dir, Err: err}
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < p.total*3 {
		return fault("%s needs at least %d MiB on the file system of %s, and %d MiB are free; free some space (berth images prune, berth prune), or move the state directory with BERTH_STATE",
			p.n.Full, p.total*3>>20, p.s.o.Dir, free>>20)
	}
	return nil
}

// layer makes one layer, unless somebody else does so meanwhile.
func (p *pull) layer(ctx context.Context, l Layer) error {
	s := p.s
	lk, err := s.lock(ctx, "layer-"+p.form.Name+"-"+hexOf(l.Diff), false, nil)
	if err != nil {
		return err
	}
	defer lk.release(true)
	if s.ready(p.form, l.Diff) {
		p.got(l.Size)
		return nil
	}
	src, err := p.open(ctx)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		open := func() (io.ReadCloser, error) {
			r, _, err := src.blob(ctx, l, 0)
			return r, err
		}
		var blob string
		sure := false
		if !src.stored() {
			if blob, sure, err = p.download(ctx, src, l); err != nil {
				return err
			}
			open = func() (io.ReadCloser, error) { return os.Open(blob) }
		}
		err = p.unpack(ctx, l, open, src.stored(), l.Blob != "" && !sure)
		var damaged *damagedError
		if blob != "" && errors.As(err, &damaged) {
			// A blob of before the power was lost may be full of zeros.
			_ = os.Remove(blob)
			if try == 0 {
				continue
			}
		}
		if errors.As(err, &damaged) {
			return fault("%s: layer %s is damaged: %s; nothing of it was kept", p.n.Full, l.Diff, damaged.text)
		}
		return p.explain(l, err)
	}
}

// damagedError: bytes are not those that a digest promised.
type damagedError struct{ text string }

func (e *damagedError) Error() string { return e.text }

// explain turns what a hostile or damaged layer is into a sentence.
func (p *pull) explain(l Layer, err error) error {
	var le *tree.LayerError
	if errors.As(err, &le) {
		return &sandbox.UserError{Text: fmt.Sprintf("image: %s cannot be used: layer %s: %s; nothing of it was kept", p.n.Full, l.Diff, le.Text), Err: sandbox.ErrUnavailable}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault("the file system of %s is full; free some space (berth images prune, berth prune), and pull %s again: it goes on where it was", p.s.o.Dir, p.n.Full)
	}
	return err
}

// download fetches a layer's blob into a file, and goes on where an earlier
// download was. It returns the file; sure tells that its digest is right, else it
// is from an earlier pull.
func (p *pull) download(ctx context.Context, src source, l Layer) (file string, sure bool, err error) {
	s := p.s
	path := s.path("blobs", hexOf(l.Blob))
	lk, err := s.lock(ctx, "blob-"+hexOf(l.Blob), false, nil)
	if err != nil {
		return "", false, err
	}
	defer lk.release(true)
	if fi, err := os.Stat(path); err == nil && fi.Size() == l.Size {
		p.got(l.Size)
		return path, false, nil // its digest is checked when it is unpacked
	}
	select {
	case s.downloads <- struct{}{}:
		defer func() { <-s.downloads }()
	case <-ctx.Done():
		return "", false, ctx.Err()
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	sum := sha256.New()
	have, err := io.Copy(sum, io.LimitReader(f, l.Size+1))
	if err != nil {
		return "", false, err
	}
	if have > l.Size {
		if have, err = 0, f.Truncate(0); err != nil {
			return "", false, err
		}
		sum.Reset()
	}
	p.got(have)
	for idle := 0; have < l.Size; {
		n, err := p.piece(ctx, src, l, f, sum, &have)
		if err == nil && n > 0 || n > 0 && ctx.Err() == nil {
			idle = 0
			continue
		}
		if idle++; idle == attempts || ctx.Err() != nil || isUser(err) {
			if ctx.Err() != nil {
				return "", false, ctx.Err()
			}
			if err == nil {
				err = fault("%s: layer %s ends after %d of %d bytes", p.n.Full, l.Blob, have, l.Size)
			}
			if !isUser(err) {
				err = p.explain(l, err)
			}
			return "", false, err
		}
		t := time.NewTimer(s.o.pause << idle)
		select {
		case <-ctx.Done():
			t.Stop()
			return "", false, ctx.Err()
		case <-t.C:
		}
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != l.Blob {
		_ = os.Remove(part)
		return "", false, fault("%s: what the registry sent for layer %s has the digest %s; it was thrown away: pull again, and if it goes on, ask who keeps the registry", p.n.Full, l.Blob, got)
	}
	if err := s.o.step("pull:downloaded"); err != nil {
		return "", false, err
	}
	return path, true, os.Rename(part, path)
}

func isUser(err error) bool {
	var ue *sandbox.UserError
	return errors.As(err, &ue)
}

// piece receives what one answer gives.
func (p *pull) piece(ctx context.Context, src source, l Layer, f *os.File, sum hash.Hash, have *int64) (int64, error) {
	r, at, err := src.blob(ctx, l, *have)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if at != *have {
		p.got(-*have)
		*have = 0
		sum.Reset()
		if err := f.Truncate(0); err != nil {
			return 0, err
		}
	}
	if _, err := f.Seek(*have, io.SeekStart); err != nil {
		return 0, err
	}
	buf := make([]byte, 128<<10)
	var got int64
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if int64(n) > l.Size-*have {
				return got, fault("%s: the registry sends more than the %d bytes of layer %s", p.n.Full, l.Size, l.Blob)
			}
			if _, werr := f.Write(buf[:n]); werr != nil {
				return 0, werr
			}
			_, _ = sum.Write(buf[:n])
			*have += int64(n)
			got += int64(n)
			p.got(int64(n))
			if serr := p.s.o.step("pull:bytes"); serr != nil {
				return 0, &sandbox.UserError{Text: serr.Error(), Err: serr}
			}
		}
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}

// layerFile is layer.json.
type layerFile struct {
	Diff    string            `json:"diff"`
	Blob    string            `json:"blob,omitempty"`
	Summary tree.LayerSummary `json:"summary"`
	// Boot is set until the files are surely on the disk: after a new start
	// of the machine they may not be, and are laid down again.
	Boot string `json:"boot,omitempty"`
}

func (s *Store) layerDir(form Form, diff string) string {
	return s.path("layers", form.Name, hexOf(diff))
}

// ready tells whether a layer is there and whole.
func (s *Store) ready(form Form, diff string) bool {
	lf, err := s.layerFile(form, diff)
	return err == nil && lf.whole()
}

func (lf *layerFile) whole() bool { return lf.Boot == "" || lf.Boot == bootID() }

func (s *Store) layerFile(form Form, diff string) (*layerFile, error) {
	var lf layerFile
	if err := readJSON(filepath.Join(s.layerDir(form, diff), "layer.json"), &lf); err != nil {
		return nil, err
	}
	if lf.Diff != diff {
		return nil, fs.ErrNotExist
	}
	return &lf, nil
}

// unpack lays a layer down aside and renames it into place. The caller holds
// its lock.
//
// With count its bytes are counted as received; with verify the blob's digest is
// looked at, beside that of its content.
func (p *pull) unpack(ctx context.Context, l Layer, open func() (io.ReadCloser, error), count, verify bool) (err error) {
	s := p.s
	select {
	case s.unpacks <- struct{}{}:
		defer func() { <-s.unpacks }()
	case <-ctx.Done():
		return ctx.Err()
	}
	dir := s.layerDir(p.form, l.Diff)
	tmp := s.path("tmp", p.form.Name+"-"+hexOf(l.Diff))
	for _, old := range []string{tmp, dir} { // of a killed process, or another boot
		if err := p.form.As.Remove(ctx, old); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(tmp, "fs"), 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = p.form.As.Remove(context.WithoutCancel(ctx), tmp)
		}
	}()
	blob, err := open()
	if err != nil {
		return err
	}
	defer blob.Close()
	var raw io.Reader = blob
	if count {
		raw = &counted{blob, p.got}
	}
	limit := s.o.MaxBytes + s.o.MaxEntries<<9 + 64<<20
	pump, err := newPump(ctx, raw, verify, limit)
	if err != nil {
		return err
	}
	defer pump.Close()
	sum, err := p.form.As.UnpackLayer(ctx, pump, filepath.Join(tmp, "fs"), tree.LayerOptions{
		UserXattr: p.form.UserXattr, Count: p.form.Count, MaxBytes: s.o.MaxBytes, MaxEntries: s.o.MaxEntries})
	if err == nil {
		_, err = io.Copy(io.Discard, pump)
	}
	if perr := pump.failed(); perr != nil {
		err = perr // it tells more than what became of it
	}
	// Whatever was wrong in it: if these are not the bytes that were promised,
	// that is what is to be said.
	if err == nil || isLayerFault(err) {
		if _, cerr := io.Copy(io.Discard, pump); cerr == nil {
			diff, transferred := pump.sums()
			if verify && transferred != l.Blob {
				return &damagedError{"its digest is " + transferred + ", and should be " + l.Blob}
			}
			if diff != l.Diff {
				return &damagedError{"the digest of its content is " + diff}
			}
		}
	}
	if err != nil {
		return err
	}
	if err := s.o.step("pull:unpacked"); err != nil {
		return err
	}
	lf := layerFile{Diff: l.Diff, Blob: l.Blob, Summary: sum, Boot: bootID()}
	if err := writeJSON(filepath.Join(tmp, "layer.json"), lf, false); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	s.settleLayer(p.form, lf)
	return nil
}

func isLayerFault(err error) bool {
	var le *tree.LayerError
	return errors.As(err, &le)
}

// settleLayer waits beside everything else until a layer is on the disk, and
// notes it. Then its blob is not needed any more.
func (s *Store) settleLayer(form Form, lf layerFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.settling.Go(func() {
		dir := s.layerDir(form, lf.Diff)
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		err = unix.Syncfs(fd)
		_ = unix.Close(fd)
		lf.Boot = ""
		if err == nil {
			err = writeJSON(filepath.Join(dir, "layer.json"), lf, true)
		}
		if err != nil {
			s.log.Warn("layer may not be on the disk", slog.String("layer", lf.Diff), slog.Any("err", err))
			return
		}
		if lf.Blob != "" {
			_ = os.Remove(s.path("blobs", hexOf(lf.Blob)))
		}
	})
}

type counted struct {
	r   io.Reader
	got func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.got(int64(n))
	return n, err
}
