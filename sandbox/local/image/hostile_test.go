//go:build linux

package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/image"
)

// What is not what its digest says is refused, and nothing of it stays.
func TestCorruptedLayers(t *testing.T) {
	layer := gz(t, tarOf(t, "a", strings.Repeat("content ", 1000)))
	digest, err := layer.Digest()
	must(t, err)
	im := build(t, layer)
	for _, tt := range []struct {
		name, want string
		spoil      func([]byte) []byte
	}{
		{"other_bytes", "has the digest", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
		{"longer", "more than", func(b []byte) []byte { return append(b, 0) }},
		{"shorter", "ends after", func(b []byte) []byte { return b[:0] }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReg(t)
			ref := r.push(t, "a", im)
			r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
				if !strings.HasSuffix(req.URL.Path, digest.String()) {
					h.ServeHTTP(w, req)
					return
				}
				rc, err := layer.Compressed()
				must(t, err)
				b, err := io.ReadAll(rc)
				must(t, err)
				_, _ = w.Write(tt.spoil(b))
			})
			s := store(t, image.Options{Dir: filepath.Join(t.TempDir(), "s")})
			_, err := pull(t, s, ref)
			var ue *sandbox.UserError
			if !errors.As(err, &ue) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("pull = %v, want %q", err, tt.want)
			}
			r.with.Store(nil)
			_, err = pull(t, s, ref)
			must(t, err)
		})
	}
	t.Run("in_a_layout", func(t *testing.T) {
		dir := t.TempDir()
		p, err := layout.Write(dir, empty.Index)
		must(t, err)
		must(t, p.AppendImage(im))
		file := filepath.Join(dir, "blobs/sha256", digest.Hex)
		b, err := os.ReadFile(file)
		must(t, err)
		// Another archive altogether, so that it unpacks.
		var other bytes.Buffer
		w := gzip.NewWriter(&other)
		_, _ = w.Write(tarOf(t, "evil", "x"))
		must(t, w.Close())
		must(t, os.Chmod(file, 0o644))
		must(t, os.WriteFile(file, other.Bytes(), 0o644))
		s := store(t, image.Options{})
		if _, err := pull(t, s, "oci:"+dir); err == nil || !strings.Contains(err.Error(), "its digest is") {
			t.Errorf("pull = %v, want a wrong digest", err)
		}
		must(t, os.WriteFile(file, b[:len(b)/2], 0o644))
		if _, err := pull(t, s, "oci:"+dir); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("pull of half a layer = %v", err)
		}
	})
}

func TestHostileImages(t *testing.T) {
	bomb := func() []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		must(t, w.WriteHeader(&tar.Header{Name: "big", Size: 64 << 20, Mode: 0o644}))
		_, err := io.CopyN(w, zeroReader{}, 64<<20)
		must(t, err)
		must(t, w.Close())
		return b.Bytes()
	}()
	for _, tt := range []struct {
		name, want string
		layer      []byte
	}{
		{"dots", "out of the image", tarOf(t, "../../evil", "x")},
		{"link", "through a link", tarOf(t, "l", "-> /tmp", "l/evil", "x")},
		{"bomb", "the limit", bomb},
		{"no_archive", "no tar archive", bytes.Repeat([]byte("x"), 4096)},
		{"trailing_bomb", "fill the disk", append(tarOf(t, "a", "1"), make([]byte, 100<<20)...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReg(t)
			layer := gz
			if tt.name == "trailing_bomb" {
				layer = zst // which is made faster
			}
			ref := r.push(t, "a", build(t, layer(t, tt.layer)))
			dir := filepath.Join(t.TempDir(), "s")
			s := store(t, image.Options{Dir: dir, MaxBytes: 16 << 20, MaxEntries: 1000})
			_, err := pull(t, s, ref)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("pull = %v, want %q", err, tt.want)
			}
			for _, d := range []string{"tmp", "layers/" + form().Name} {
				if left, _ := os.ReadDir(filepath.Join(dir, d)); len(left) != 0 {
					t.Errorf("%s holds %v", d, left)
				}
			}
		})
	}
}

// Layers that each fit are together more than an image may be, also when some
// were pulled before.
func TestHostileImageOfManyLayers(t *testing.T) {
	var layers []v1.Layer
	for i := range 20 {
		layers = append(layers, zst(t, tarOf(t, fmt.Sprint(i), strings.Repeat("\x00", 6<<20))))
	}
	r := newReg(t)
	ref := r.push(t, "a", build(t, layers...))
	s := store(t, image.Options{MaxBytes: 16 << 20})
	for again := range 2 {
		before := r.blobs.Load()
		if _, err := pull(t, s, ref); err == nil || !strings.Contains(err.Error(), "16 MiB that an image may") {
			t.Errorf("pull = %v, want a refusal", err)
		}
		if n := r.blobs.Load() - before; again > 0 && n > 1 || n > 15 { // the configuration is a blob, too
			t.Errorf("pull %d fetched %d blobs of 21", again+1, n)
		}
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// oddities is a layer of what sandboxes cannot have.
func oddities(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666},
		{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1, Mode: 0o666},
		{Name: "far", Typeflag: tar.TypeReg, Uid: 1 << 20, Mode: 0o644},
		{Name: "noted", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
	} {
		h.Format = tar.FormatPAX
		must(t, w.WriteHeader(h))
	}
	must(t, w.Close())
	return b.Bytes()
}

// An image that is larger than it says does not take the last of a disk that
// others live on, too.
func TestPullLeavesRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	const size = 128 << 20
	disk := t.TempDir()
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	r := newReg(t)
	ref := r.push(t, "a", build(t, zst(t, tarOf(t, "big", strings.Repeat("no hole ", 20<<20)))))
	s := store(t, image.Options{Dir: filepath.Join(disk, "s")})
	least, stop := int64(size), make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			var st unix.Statfs_t
			if unix.Statfs(disk, &st) == nil {
				least = min(least, int64(st.Bavail)*st.Bsize)
			}
		}
	})
	_, err := pull(t, s, ref)
	close(stop)
	watching.Wait()
	if err == nil || !strings.Contains(err.Error(), "less than 6 MiB are free") || !strings.Contains(err.Error(), "berth images prune") {
		t.Errorf("pull = %v, want it stopped for the rest's sake", err)
	}
	if least == 0 || least > size/2 {
		t.Errorf("at the worst %d MiB were free, want some, and fewer than half", least>>20)
	}
	nothing(t, filepath.Join(disk, "s"))
}
