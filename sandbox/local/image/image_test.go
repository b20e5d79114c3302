//go:build linux

package image_test

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"berth/sandbox/local/image"
	"berth/sandbox/local/tree"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// form is what the test's user can do without help.
func form() image.Form {
	if os.Geteuid() == 0 {
		return image.Form{Name: "range", Count: 65536}
	}
	return image.Form{Name: "single", As: tree.As{Shift: tree.IDShift{Single: true}}, UserXattr: true, Count: 65536}
}

// files of a layer, names and contents in turn.
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if to, ok := strings.CutPrefix(files[i+1], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, files[i+1] = tar.TypeSymlink, to, 0, ""
		}
		if strings.HasSuffix(files[i], "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if strings.Contains(files[i], "bin/") {
			h.Mode = 0o755
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, files[i+1])
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func gz(t testing.TB, b []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	must(t, err)
	return l
}

// zs is a layer compressed with zstd.
type zs struct {
	v1.Layer
	diff v1.Hash
}

func (z zs) DiffID() (v1.Hash, error) { return z.diff, nil }

func zst(t testing.TB, b []byte) v1.Layer {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	must(t, err)
	diff, _, err := v1.SHA256(bytes.NewReader(b))
	must(t, err)
	return zs{static.NewLayer(w.EncodeAll(b, nil), types.OCILayerZStd), diff}
}

func build(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	im := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	im = mutate.ConfigMediaType(im, types.OCIConfigJSON)
	im, err := mutate.AppendLayers(im, layers...)
	must(t, err)
	cf, err := im.ConfigFile()
	must(t, err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Config.Env, cf.Config.User, cf.Config.WorkingDir = []string{"PATH=/bin", "A=b"}, "app", "/srv/app"
	im, err = mutate.ConfigFile(im, cf)
	must(t, err)
	return im
}

// reg is a registry on loopback that counts and spoils what it serves.
type reg struct {
	*httptest.Server
	host  string
	blobs atomic.Int64 // requests of blobs
	with  atomic.Pointer[func(http.ResponseWriter, *http.Request, http.Handler)]
}

func newReg(t testing.TB) *reg {
	t.Helper()
	r := &reg{}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/sha256:") {
			r.blobs.Add(1)
		}
		if f := r.with.Load(); f != nil {
			(*f)(w, req, h)
			return
		}
		h.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	r.host = strings.TrimPrefix(r.URL, "http://")
	return r
}

func (r *reg) spoil(f func(http.ResponseWriter, *http.Request, http.Handler)) { r.with.Store(&f) }

func (r *reg) push(t testing.TB, repo string, im v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	must(t, err)
	must(t, remote.Write(ref, im))
	return ref.String()
}

func anywhere(image.Name) bool { return true }

func store(t testing.TB, o image.Options) *image.Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "images")
	}
	if o.Private == nil {
		o.Private = anywhere
	}
	s, err := image.New(o.Settle())
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func pull(t testing.TB, s *image.Store, text string) (*image.Image, error) {
	t.Helper()
	n, err := s.Parse(text)
	must(t, err)
	im, pin, err := s.Pull(t.Context(), n, form(), false, nil)
	pin.Release()
	return im, err
}

// shown reads a file of an image.
func shown(t testing.TB, s *image.Store, im *image.Image, file string) string {
	t.Helper()
	dirs, err := s.Lower(im, form())
	must(t, err)
	for _, d := range dirs {
		if b, err := os.ReadFile(filepath.Join(d, file)); err == nil {
			return string(b)
		}
	}
	return ""
}

func TestPullFromEverywhere(t *testing.T) {
	im := build(t, gz(t, tarOf(t, "etc/", "", "etc/passwd", "app:x:7:8::/srv:/bin/sh\n", "a", "1")), zst(t, tarOf(t, "a", "2", ".wh.b", "")))
	want, err := im.Digest()
	must(t, err)
	r := newReg(t)
	ref := r.push(t, "team/app:1", im)
	dir := t.TempDir()
	p, err := layout.Write(filepath.Join(dir, "oci"), empty.Index)
	must(t, err)
	must(t, p.AppendImage(im, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"})))
	must(t, p.AppendImage(build(t, gz(t, tarOf(t, "other", "x"))), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v2"})))
	saved := build(t, gz(t, tarOf(t, "etc/", "", "etc/passwd", "app:x:7:8::/srv:/bin/sh\n", "a", "1")), gz(t, tarOf(t, "a", "2", ".wh.b", "")))
	tag, err := name.NewTag("team/app:1")
	must(t, err)
	must(t, tarball.WriteToFile(filepath.Join(dir, "saved.tar"), tag, saved))
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: build(t, gz(t, tarOf(t, "a", "wrong"))), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: im, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	iref, err := name.ParseReference(r.host + "/team/multi")
	must(t, err)
	must(t, remote.WriteIndex(iref, index))

	for _, tt := range []struct{ name, text, digest string }{
		{"registry", ref, want.String()},
		{"by_digest", r.host + "/team/app@" + want.String(), want.String()},
		{"index", iref.String(), want.String()},
		{"layout", "oci:" + filepath.Join(dir, "oci") + ":v1", want.String()},
		{"docker_save", "docker-archive:" + filepath.Join(dir, "saved.tar"), ""},
		{"alias", "daytonaio/sandbox:1", want.String()},
		{"alias_with_tag", "other:1", want.String()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := store(t, image.Options{Aliases: map[string]string{"daytonaio/sandbox": ref, "other": r.host + "/team/app"}})
			got, err := pull(t, s, tt.text)
			must(t, err)
			if tt.digest != "" && got.Digest != tt.digest {
				t.Errorf("digest = %s, want %s", got.Digest, tt.digest)
			}
			if got.User != "app" || got.WorkDir != "/srv/app" || !cmp.Equal(got.Env, []string{"PATH=/bin", "A=b"}) || got.Platform != "linux/"+runtime.GOARCH {
				t.Errorf("image = %+v", got)
			}
			if a := shown(t, s, got, "a"); a != "2" {
				t.Errorf("a = %q, want 2", a)
			}
			dirs, err := s.Lower(got, form())
			must(t, err)
			a, ok := image.View{Dirs: dirs}.Account(got.User)
			if !ok || a.UID != 7 || a.GID != 8 || a.Home != "/srv" || a.Shell != "/bin/sh" {
				t.Errorf("user = %+v, %t", a, ok)
			}
		})
	}
	s := store(t, image.Options{})
	for text, want := range map[string]string{
		"oci:" + filepath.Join(dir, "oci"):         "several images",
		"oci:" + filepath.Join(dir, "oci") + ":v3": "has no image v3; tags: ",
		"oci:" + dir:                      "index.json is missing",
		"docker-archive:" + dir + "/none": "cannot be opened",
		r.host + "/team/app:2":            "there is no image",
	} {
		if _, err := pull(t, s, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pull of %s = %v, want %q", text, err, want)
		}
	}
	s = store(t, image.Options{Platform: "linux/mips"})
	if _, err := pull(t, s, iref.String()); err == nil || !strings.Contains(err.Error(), "is for linux/s390x") {
		t.Errorf("pull for another platform = %v", err)
	}
}

// The second pull asks nobody, nor does one of another image for shared layers.
func TestLayersAreShared(t *testing.T) {
	r := newReg(t)
	base := gz(t, tarOf(t, "base", "x"))
	one := r.push(t, "one", build(t, base, gz(t, tarOf(t, "one", "x"))))
	two := r.push(t, "two", build(t, base, gz(t, tarOf(t, "two", "x"))))
	s := store(t, image.Options{})
	_, err := pull(t, s, one)
	must(t, err)
	n := r.blobs.Load()
	_, err = pull(t, s, one)
	must(t, err)
	if got := r.blobs.Load(); got != n {
		t.Errorf("%d more requests for an image that is there", got-n)
	}
	_, err = pull(t, s, two)
	must(t, err)
	if got := r.blobs.Load() - n; got != 2 { // its configuration and its own layer
		t.Errorf("%d requests for an image that shares a layer, want 2", got)
	}
}

func TestPrune(t *testing.T) {
	r := newReg(t)
	base := gz(t, tarOf(t, "base", "x"))
	s := store(t, image.Options{})
	pulled := map[string]*image.Image{}
	for _, n := range []string{"used", "pinned", "idle"} {
		im, err := pull(t, s, r.push(t, n, build(t, base, gz(t, tarOf(t, n, n)))))
		must(t, err)
		pulled[n] = im
	}
	n, err := s.Parse(r.host + "/pinned")
	must(t, err)
	_, pin, err := s.Pull(t.Context(), n, form(), false, nil)
	must(t, err)
	use := func() (image.Used, error) {
		var u image.Used
		u.Add(pulled["used"])
		return u, nil
	}
	got, err := s.Prune(t.Context(), image.PruneOptions{Unused: time.Hour, Used: use})
	must(t, err)
	if len(got.Images) != 0 || got.Layers != 0 {
		t.Errorf("pruned %+v, though all were used within the hour", got)
	}
	got, err = s.Prune(t.Context(), image.PruneOptions{Used: use})
	must(t, err)
	if len(got.Images) != 1 || got.Images[0].Digest != pulled["idle"].Digest || got.Layers != 1 || got.Bytes < 4 {
		t.Errorf("pruned %+v, want the idle image and its own layer", got)
	}
	pin.Release()
	got, err = s.Prune(t.Context(), image.PruneOptions{Used: use})
	must(t, err)
	if len(got.Images) != 1 || got.Images[0].Digest != pulled["pinned"].Digest {
		t.Errorf("pruned %+v, want the one that was pinned", got)
	}
	list, err := s.List()
	must(t, err)
	if len(list) != 1 || list[0].Disk != 5 || !cmp.Equal(list[0].Names, []string{r.host + "/used:latest"}) {
		t.Errorf("list = %+v", list)
	}
	if _, err := pull(t, s, r.host+"/idle"); err != nil {
		t.Errorf("pull after prune: %v", err)
	}
}

func TestNames(t *testing.T) {
	s := store(t, image.Options{})
	for text, full := range map[string]string{
		"debian": "docker.io/library/debian:latest", "debian:12": "docker.io/library/debian:12", "ghcr.io/a/b:1": "ghcr.io/a/b:1", "docker://a/b": "docker.io/a/b:latest",
		"localhost:5000/x": "localhost:5000/x:latest", "oci:/a/b:t": "oci:/a/b:t", "oci:/a/b": "oci:/a/b", "docker-archive:/a/../b.tar": "docker-archive:/b.tar",
	} {
		n, err := s.Parse(text)
		if err != nil || n.Full != full {
			t.Errorf("Parse(%q) = %q, %v; want %q", text, n.Full, err, full)
		}
	}
	for _, text := range []string{"", "a b", "A/B", "https://x/y", "oci:a", "docker-archive:", "x\x00y", strings.Repeat("a", 2000), "a@sha256:12",
		"ghcr.io/acme/../evil/x", "ghcr.io/acme/./x", "ghcr.io/acme//x", "ghcr.io/acme/-x", "ghcr.io/acme/.x"} {
		if n, err := s.Parse(text); err == nil {
			t.Errorf("Parse(%q) = %q, want an error", text, n.Full)
		}
	}
	for _, tt := range []struct {
		text, pattern string
		want          bool
	}{
		{"debian:12", "*", true}, {"debian:12", "debian:12", true}, {"debian:12", "docker.io/library/*", true}, {"debian:12", "docker.io/library/debian", true},
		{"debian:12", "ghcr.io/*", false}, {"ghcr.io/acme/x", "ghcr.io/acme/*", true}, {"ghcr.io/acmeevil/x", "ghcr.io/acme/*", false},
		// A pattern without a registry means Docker's.
		{"debian:12", "debian:*", true}, {"debian:12", "debian", true}, {"docker.io/library/debian:12", "debian:*", true}, {"debian:12", "library/*", true}, {"a/b:1", "a/*", true},
		{"debian:5000/x", "debian:*", false}, {"debian:5000/x", "debian:5000/*", true}, {"debian.evil.example/x", "debian*", false}, {"debian.evil.example/x", "*", true},
		{"library.evil.example/x", "library*", false}, {"localhost:5000/x", "localhost:5000/*", true}, {"localhost/x", "localhost/*", true}, {"localhost:5000/x", "local*", false},
		{"debian:12@sha256:" + strings.Repeat("0", 64), "debian:12*", false}, {"debian@sha256:" + strings.Repeat("0", 64), "debian@*", true}, {"evil/x", "*debian*", false},
		{"oci:/x", "*", false}, {"oci:/x/y", "oci:/x/*", true}, {"oci:/z", "oci:/x/*", false}, {"docker-archive:/x.tar", "docker-archive:*", true},
	} {
		n, err := s.Parse(tt.text)
		must(t, err)
		if got := n.Match([]string{tt.pattern}); got != tt.want {
			t.Errorf("%s matches %s = %t, want %t", tt.text, tt.pattern, got, tt.want)
		}
	}
}

func TestView(t *testing.T) {
	top, low := t.TempDir(), t.TempDir()
	w := func(dir, name, text string) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	w(low, "usr/bin/sh", "x")
	w(low, "usr/bin/gone", "x")
	w(low, "opt/old/x", "x")
	w(top, "opt/new", "x")
	must(t, os.Symlink("usr/bin", filepath.Join(low, "bin")))
	must(t, os.Symlink("/bin/sh", filepath.Join(low, "usr/bin/link")))
	must(t, os.Symlink("../../../../../../../../etc/passwd", filepath.Join(low, "usr/bin/out")))
	must(t, os.Symlink("loop", filepath.Join(low, "loop")))
	must(t, os.MkdirAll(filepath.Join(top, "usr/bin"), 0o755))
	must(t, syscall.Mknod(filepath.Join(top, "usr/bin/gone"), syscall.S_IFCHR|0o600, 0))
	v := image.View{Dirs: []string{top, low}}
	for name, want := range map[string]bool{"/bin/sh": true, "/usr/bin/link": true, "/bin/gone": false, "/usr/bin/out": false, "/loop": false, "/usr/bin": false, "/opt/new": true, "/opt/old/x": true, "/nothing/x": false} {
		if got := v.Program(name); got != want {
			t.Errorf("Program(%s) = %t, want %t", name, got, want)
		}
	}
	if !v.Dir("/bin") || v.Dir("/bin/sh") {
		t.Error("Dir is wrong about /bin or /bin/sh")
	}
}
