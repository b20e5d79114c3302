//go:build linux

package image

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/tree"
)

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
	pump, err := newPump(ctx, raw, verify, s.limit(), s.floor)
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

// limit bounds a layer's stream, headers included.
func (s *Store) limit() int64 { return s.o.MaxBytes + s.o.MaxEntries<<9 + 64<<20 }

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
			s.dropBlobs(lf.Blob)
		}
	})
}

// dropBlobs removes a blob as it came from wherever; downloads go on.
func (s *Store) dropBlobs(digest string) {
	_ = s.each("blobs", func(path string, fi fs.FileInfo) {
		if strings.HasPrefix(fi.Name(), hexOf(digest)) && !strings.HasSuffix(fi.Name(), partSuffix) {
			_ = os.Remove(path)
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
