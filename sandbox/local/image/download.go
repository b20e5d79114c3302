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
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/tree"
)

// partSuffix ends the name of a blob that is not whole yet.
const partSuffix = ".part"

// lookEvery is how many bytes are stored between two looks at the free space.
const lookEvery = 2 << 20

// layer makes one layer, unless somebody else does so meanwhile.
func (p *pull) layer(ctx context.Context, l Layer) (*layerFile, error) {
	s := p.s
	src, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		open := func() (io.ReadCloser, error) {
			r, _, err := src.blob(ctx, l, 0)
			return r, err
		}
		blob, sure := "", false
		if !src.stored() {
			if blob, sure, err = p.download(ctx, src, l); err != nil {
				return nil, err
			}
			open = func() (io.ReadCloser, error) { return os.Open(blob) }
		}
		err = p.lay(ctx, l, open, src.stored(), l.Blob != "" && !sure)
		var damaged *damagedError
		if blob != "" && errors.As(err, &damaged) {
			// A blob of before the power was lost may be full of zeros.
			_ = os.Remove(blob)
			if try == 0 {
				continue
			}
		}
		if errors.As(err, &damaged) {
			return nil, fault("%s: layer %s is damaged: %s; nothing of it was kept", p.n.Full, l.Diff, damaged.text)
		}
		if err != nil {
			return nil, p.explain(l, err)
		}
		return s.layerFile(p.form, l.Diff)
	}
}

// lay unpacks a layer, unless it is there. Its lock is held for that alone: a
// registry may take its time, and another have the same layer.
func (p *pull) lay(ctx context.Context, l Layer, open func() (io.ReadCloser, error), count, verify bool) error {
	lk, err := p.s.lock(ctx, "layer-"+p.form.Name+"-"+hexOf(l.Diff), false, nil)
	if err != nil {
		return err
	}
	defer lk.release(true)
	if p.s.ready(p.form, l.Diff) {
		if count {
			p.got(l.Size)
		}
		return nil
	}
	return p.unpack(ctx, l, open, count, verify)
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
	var low *floorError
	if errors.As(err, &low) {
		return fault("on the file system of %s %s, and the pull of %s was stopped so that the rest stays free for others; free some space (berth images prune, berth prune), and pull it again: it goes on where it was", p.s.o.Dir, low, p.n.Full)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault("the file system of %s is full; free some space (berth images prune, berth prune), and pull %s again: it goes on where it was", p.s.o.Dir, p.n.Full)
	}
	return err
}

// blobFile is the file of a blob as it comes from a registry. Each has its own:
// what one sends, right or wrong, soon or never, is not what another waits for.
func blobFile(digest, host string) string {
	sum := sha256.Sum256([]byte(host))
	return hexOf(digest) + "-" + hex.EncodeToString(sum[:8])
}

// downloads is how many layers of a registry are fetched at a time. Each has its
// own, likewise.
const downloads = 4

// turn waits for that of a download from a registry, until end is called.
func (s *Store) turn(ctx context.Context, host string) (end func(), err error) {
	s.mu.Lock()
	c := s.downloads[host]
	if c == nil {
		c = make(chan struct{}, downloads)
		s.downloads[host] = c
	}
	s.mu.Unlock()
	select {
	case c <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if <-c; len(c) == 0 && s.downloads[host] == c {
			delete(s.downloads, host) // at the worst, who waits for c is one too many
		}
	}, nil
}

// download fetches a layer's blob into a file, and goes on where an earlier
// download was. It returns the file; sure tells that its digest is right, else it
// is from an earlier pull.
func (p *pull) download(ctx context.Context, src source, l Layer) (file string, sure bool, err error) {
	s := p.s
	host := p.n.ref.Context().RegistryStr()
	path := s.path("blobs", blobFile(l.Blob, host))
	lk, err := s.lock(ctx, "blob-"+blobFile(l.Blob, host), false, nil)
	if err != nil {
		return "", false, err
	}
	defer lk.release(true)
	if fi, err := os.Stat(path); err == nil && fi.Size() == l.Size {
		p.got(l.Size)
		return path, false, nil // its digest is checked when it is unpacked
	}
	if s.ready(p.form, l.Diff) { // and so the file is not needed any more
		p.got(l.Size)
		return path, false, nil
	}
	turn, err := s.turn(ctx, host)
	if err != nil {
		return "", false, err
	}
	defer turn()
	part := path + partSuffix
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
		var low *floorError
		if errors.As(err, &low) {
			return "", false, p.explain(l, err)
		}
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
	var got, looked int64
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if looked -= int64(n); looked < 0 {
				looked = lookEvery
				if err := p.s.floor(); err != nil {
					return got, err
				}
			}
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
