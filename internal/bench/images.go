package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The image of the images row.
const (
	imageBytes  = 345 << 20
	imageFiles  = 13_000
	imageLayers = 4
)

// images: pulling and unpacking a large image from a registry on loopback,
// beside decompressing its layers alone; and sandboxes of it.
func (b *bench) images() ([]row, error) {
	layers, files, size, err := hostLayers()
	if err != nil {
		return nil, err
	}
	im, compressed, err := imageOf(layers)
	if err != nil {
		return nil, err
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/bench/image:1")
	if err != nil {
		return nil, err
	}
	if err := remote.Write(ref, im); err != nil {
		return nil, err
	}
	state := func(i int) string { return filepath.Join(b.dir, fmt.Sprintf("images-%d", i)) }
	cs := []contender{
		{"berth", func(i int) error {
			out, err := exec.CommandContext(b.ctx, b.program.Path, "images", "pull", "--state", state(i), ref.String()).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}},
		{"decompress alone", func(int) error {
			for _, c := range compressed {
				z, err := gzip.NewReader(bytes.NewReader(c))
				if err != nil {
					return err
				}
				if _, err := io.Copy(io.Discard, z); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	if tar, err := exec.LookPath("tar"); err == nil {
		cs = append(cs, contender{"tar -xz of the layers, one after the other", func(i int) error {
			to := state(i) + "-tar"
			if err := os.Mkdir(to, 0o700); err != nil {
				return err
			}
			for _, c := range compressed {
				cmd := exec.CommandContext(b.ctx, tar, "-xz", "-C", to)
				cmd.Stdin = bytes.NewReader(c)
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
			}
			return nil
		}})
	} else {
		b.absent = append(b.absent, "tar: not installed")
	}
	n := max(3, b.n/10)
	got, err := interleave(n, cs)
	if err != nil {
		return nil, err
	}
	ratio := float64(got["berth"].p50()) / float64(got["decompress alone"].p50())
	rows := []row{{fmt.Sprintf("pull and unpack an image of %.0f MiB, %d files, %d layers", float64(size)/(1<<20), files, imageLayers), "≤ 2 × decompress alone",
		fmt.Sprintf("%s, %.1f × decompress alone", ms(got["berth"].p50()), ratio), beside(got, "berth", cs), judge(ratio <= 2)}}

	// Sandboxes of the last one pulled.
	p := b.program
	p.State = state(n)
	p.Env = append(p.Env, "BERTH_LIMITS_ALLOWED_IMAGES="+ref.Context().RegistryStr()+"/*")
	s, err := p.Stdio(b.ctx, legacy)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var first time.Duration
	var next sample
	for i := range b.n {
		id := fmt.Sprintf("image-%d", i)
		begin := time.Now()
		if _, err := s.Must(b.ctx, "start_sandbox", map[string]any{"session_id": id, "image": ref.String()}); err != nil {
			return nil, err
		}
		if _, err := s.Must(b.ctx, "execute_command", map[string]any{"session_id": id, "argv": []string{"/true", "--version"}}); err != nil {
			return nil, err
		}
		if took := time.Since(begin); i == 0 {
			first = took
		} else {
			next = append(next, took)
		}
		if err := destroy(b.ctx, s, id); err != nil {
			return nil, err
		}
	}
	return append(rows,
		row{"first sandbox of an image that is there → first command's answer", "", ms(first), "", open},
		row{"every further sandbox of it → first command's answer, two calls", "p50 ≤ 25 ms", fmt.Sprintf("p50 %s, p95 %s", ms(next.p50()), ms(next.p95())), "", judge(next.p50() <= 25*time.Millisecond)}), nil
}

var errEnough = errors.New("enough")

// hostLayers makes tar streams of the machine's own files.
func hostLayers() (layers [][]byte, files int, size int64, err error) {
	var bufs [imageLayers]bytes.Buffer
	var ws [imageLayers]*tar.Writer
	for i := range ws {
		ws[i] = tar.NewWriter(&bufs[i])
	}
	put := func(name string, body []byte, mode int64) error {
		w := ws[files%imageLayers]
		files++
		size += int64(len(body))
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := w.Write(body)
		return err
	}
	static, err := os.ReadFile("/usr/sbin/ldconfig")
	if err != nil {
		return nil, 0, 0, fmt.Errorf("a static program for the image: %w", err)
	}
	if err := put("true", static, 0o755); err != nil {
		return nil, 0, 0, err
	}
	for _, top := range []string{"/usr/share", "/usr/lib", "/usr/include", runtime.GOROOT()} { //nolint:staticcheck // only to find many files
		err = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // others will do
			}
			if files >= imageFiles && size >= imageBytes {
				return errEnough
			}
			fi, err := d.Info()
			if err != nil || fi.Size() > 8<<20 || files < imageFiles && fi.Size() > 64<<10 || files >= imageFiles && fi.Size() < 256<<10 {
				return nil //nolint:nilerr // as above
			}
			body, err := os.ReadFile(p)
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			return put(strings.TrimPrefix(p, "/"), body, 0o644)
		})
		if err != nil && !errors.Is(err, errEnough) {
			return nil, 0, 0, err
		}
	}
	for i := range ws {
		if err := ws[i].Close(); err != nil {
			return nil, 0, 0, err
		}
		layers = append(layers, bufs[i].Bytes())
	}
	return layers, files, size, nil
}

func imageOf(layers [][]byte) (v1.Image, [][]byte, error) {
	im := empty.Image
	var compressed [][]byte
	for _, b := range layers {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		if _, err := z.Write(b); err != nil {
			return nil, nil, err
		}
		if err := z.Close(); err != nil {
			return nil, nil, err
		}
		c := out.Bytes()
		compressed = append(compressed, c)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c)), nil })
		if err != nil {
			return nil, nil, err
		}
		if im, err = mutate.AppendLayers(im, l); err != nil {
			return nil, nil, err
		}
	}
	cf, err := im.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	im, err = mutate.ConfigFile(im, cf)
	return im, compressed, err
}
