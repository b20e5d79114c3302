//go:build linux

package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"berth/sandbox"
	"berth/sandbox/local/image"
)

// nothing fails the test when the store holds anything of an image.
func nothing(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"tmp", "names", "images", "pins", "layers/" + form().Name} {
		if left, _ := os.ReadDir(filepath.Join(dir, d)); len(left) != 0 {
			t.Errorf("%s holds %v", d, left)
		}
	}
}

// refusal pulls what must be refused, in a sentence for the caller.
func refusal(t *testing.T, o image.Options, ref, want string) {
	t.Helper()
	o.Dir = filepath.Join(t.TempDir(), "s")
	s := store(t, o)
	_, err := pull(t, s, ref)
	var ue *sandbox.UserError
	if !errors.As(err, &ue) || !strings.Contains(err.Error(), want) {
		t.Errorf("pull = %v, want a sentence with %q", err, want)
	}
	nothing(t, o.Dir)
}

// Manifests and configurations that are not what their digests say.
func TestWrongDigests(t *testing.T) {
	im := build(t, gz(t, tarOf(t, "a", "1")))
	digest, err := im.Digest()
	must(t, err)
	conf, err := im.ConfigName()
	must(t, err)
	manifest, err := im.RawManifest()
	must(t, err)
	other := func(old, with string) []byte { return bytes.Replace(manifest, []byte(old), []byte(with), 1) }
	m, err := im.Manifest()
	must(t, err)
	layer := m.Layers[0].Digest
	for _, tt := range []struct {
		name, path, by, want string
		body                 []byte
	}{
		{"manifest_by_digest", "/manifests/" + digest.String(), "@" + digest.String(), "something else than", other(layer.String(), "sha256:"+strings.Repeat("0", 64))},
		{"configuration", "/blobs/" + conf.String(), "", "something else than", []byte(`{"os":"linux"}`)},
		{"configuration_without_end", "/blobs/" + conf.String(), "", "more than", make([]byte, 5<<20)},
		{"manifest_without_end", "/manifests/", "", "more than", make([]byte, 5<<20)},
		{"digest_of_another_kind", "/manifests/latest", "", "no SHA-256", other(layer.String(), "sha512:"+strings.Repeat("0", 128))},
		{"digest_that_is_a_path", "/manifests/latest", "", "damaged", other(layer.String(), "sha256:../../../../etc/passwd")},
		{"configuration_that_is_a_path", "/manifests/latest", "", "damaged", other(conf.String(), "../../../evil")},
		{"negative_size", "/manifests/latest", "", "a digest that is no SHA-256", other(fmt.Sprintf(`"size":%d`, m.Layers[0].Size), `"size":-1`)},
		{"endless_size", "/manifests/latest", "", "a layer of", other(fmt.Sprintf(`"size":%d`, m.Layers[0].Size), `"size":4611686018427387904`)},
		{"no_json", "/manifests/latest", "", "damaged", []byte("<html>")},
		{"fewer_layers", "/manifests/latest", "", "its configuration names 1", func() []byte {
			var v map[string]any
			must(t, json.Unmarshal(manifest, &v))
			v["layers"] = []any{}
			b, err := json.Marshal(v)
			must(t, err)
			return b
		}()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReg(t)
			r.push(t, "a", im)
			r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
				if strings.Contains(req.URL.Path, tt.path) {
					w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
					_, _ = w.Write(tt.body)
					return
				}
				h.ServeHTTP(w, req)
			})
			refusal(t, image.Options{}, r.host+"/a"+tt.by, tt.want)
		})
	}
}

// A layer that is not what the configuration says of its content.
func TestLayerWithAnotherContent(t *testing.T) {
	r := newReg(t)
	liar := zs{gz(t, tarOf(t, "evil", "x")), v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}}
	refusal(t, image.Options{}, r.push(t, "a", build(t, liar)), "the digest of its content is")
}

// Streams that end too early, though their digest is right.
func TestTruncatedLayers(t *testing.T) {
	whole := tarOf(t, "a", strings.Repeat("content that does not compress to nothing ", 1000), "b", "2")
	compressed := func(l v1.Layer) []byte {
		rc, err := l.Compressed()
		must(t, err)
		b, err := io.ReadAll(rc)
		must(t, err)
		return b
	}
	g, z := compressed(gz(t, whole)), compressed(zst(t, whole))
	diff, _, err := v1.SHA256(bytes.NewReader(whole))
	must(t, err)
	for _, tt := range []struct {
		name, want string
		bytes      []byte
	}{
		{"gzip_cut", "cannot be decompressed", g[:len(g)/2]},
		{"gzip_without_its_sum", "cannot be decompressed", g[:len(g)-4]},
		{"gzip_head", "damaged", g[:5]},
		{"zstd_cut", "cannot be decompressed", z[:len(z)/2]},
		{"zstd_head", "damaged", z[:5]},
		{"plain_cut", "ends within", whole[:len(whole)/2]},
		{"empty", "the digest of its content is", nil},
		{"gzip_wrong_sum", "cannot be decompressed", append(bytes.Clone(g[:len(g)-8]), 1, 2, 3, 4, 5, 6, 7, 8)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newReg(t)
			want := tt.want
			if tt.name == "plain_cut" {
				want = "damaged" // the digest of the content is looked at first
			}
			refusal(t, image.Options{}, r.push(t, "a", build(t, zs{static.NewLayer(tt.bytes, types.OCILayer), diff})), want)
		})
	}
}

// Indexes that lead to indexes, to nothing, or to far too much.
func TestIndexBombs(t *testing.T) {
	im := build(t, gz(t, tarOf(t, "a", "1")))
	here := &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	r := newReg(t)
	push := func(repo string, index v1.ImageIndex) string {
		ref, err := name.ParseReference(r.host + "/" + repo)
		must(t, err)
		must(t, remote.WriteIndex(ref, index))
		return ref.String()
	}
	over := func(inner mutate.Appendable) v1.ImageIndex {
		return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: inner, Descriptor: v1.Descriptor{Platform: here}})
	}
	deep := over(im)
	for range 6 {
		deep = over(deep)
	}
	refusal(t, image.Options{}, push("deep", deep), "no image of a system")
	refusal(t, image.Options{}, push("empty", mutate.IndexMediaType(empty.Index, types.OCIImageIndex)), "names no image")

	var many []byte
	entry, err := partial.Descriptor(im)
	must(t, err)
	b, err := json.Marshal(entry)
	must(t, err)
	many = append(many, `{"schemaVersion":2,"mediaType":"`+string(types.OCIImageIndex)+`","manifests":[`...)
	for len(many) < 5<<20 {
		many = append(append(many, b...), ',')
	}
	many = append(append(many, b...), "]}"...)
	r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		if strings.Contains(req.URL.Path, "/many/manifests/latest") {
			w.Header().Set("Content-Type", string(types.OCIImageIndex))
			_, _ = w.Write(many)
			return
		}
		h.ServeHTTP(w, req)
	})
	refusal(t, image.Options{}, r.host+"/many", "more than")
	r.with.Store(nil)

	// Layers beyond number: each would hold files open.
	r.push(t, "layers", im)
	m, err := im.Manifest()
	must(t, err)
	m = m.DeepCopy()
	for len(m.Layers) < 1001 {
		m.Layers = append(m.Layers, m.Layers[0])
	}
	layers, err := json.Marshal(m)
	must(t, err)
	r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		if strings.Contains(req.URL.Path, "/layers/manifests/latest") {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = w.Write(layers)
			return
		}
		h.ServeHTTP(w, req)
	})
	refusal(t, image.Options{}, r.host+"/layers", "1001 layers; at most 1000")
}

// Where a registry leads elsewhere, its credentials do not go along.
func TestCredentialsStayWithTheirHost(t *testing.T) {
	im := build(t, gz(t, tarOf(t, "a", "1")))
	for _, kind := range []string{"Basic", "Bearer"} {
		t.Run(kind, func(t *testing.T) {
			r := newReg(t)
			ref := r.push(t, "a", im)
			// Another host, as a content network is, that serves the blobs.
			other := newReg(t)
			other.push(t, "a", im)
			var leaked []string
			seen := 0
			other.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
				seen++
				if a := req.Header.Get("Authorization") + req.Header.Get("Cookie"); a != "" || strings.Contains(req.URL.String(), "s3cret") || strings.Contains(req.Referer(), "s3cret") {
					leaked = append(leaked, req.URL.String()+" "+a)
				}
				h.ServeHTTP(w, req)
			})
			r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
				if req.URL.Path == "/token" {
					if u, p, _ := req.BasicAuth(); u != "me" || p != "s3cret" {
						t.Errorf("the token server was asked with %q", req.Header.Get("Authorization"))
					}
					_, _ = io.WriteString(w, `{"token":"t0ken"}`)
					return
				}
				if req.Header.Get("Authorization") == "" {
					w.Header().Set("WWW-Authenticate", map[string]string{"Basic": `Basic realm="x"`, "Bearer": `Bearer realm="` + r.URL + `/token",service="x"`}[kind])
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				if strings.Contains(req.URL.Path, "/blobs/") {
					http.Redirect(w, req, other.URL+req.URL.Path, http.StatusTemporaryRedirect)
					return
				}
				h.ServeHTTP(w, req)
			})
			file := filepath.Join(t.TempDir(), "config.json")
			must(t, os.WriteFile(file, fmt.Appendf(nil, `{"auths":{%q:{"username":"me","password":"s3cret"}}}`, r.host), 0o600))
			_, err := pull(t, store(t, image.Options{AuthFiles: []string{file}}), ref)
			must(t, err)
			if seen == 0 {
				t.Error("nothing was asked of the other host, so nothing is shown")
			}
			if leaked != nil {
				t.Errorf("credentials went to another host: %q", leaked)
			}
		})
	}
}

// A registry that answers with one redirect after the other.
func TestEndlessRedirects(t *testing.T) {
	r := newReg(t)
	ref := r.push(t, "a", build(t, gz(t, tarOf(t, "a", "1"))))
	r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		if strings.Contains(req.URL.Path, "/manifests/") {
			http.Redirect(w, req, req.URL.Path+"x", http.StatusFound)
			return
		}
		h.ServeHTTP(w, req)
	})
	refusal(t, image.Options{}, ref, "redirects")
}

// What could not be laid down as it is, is said.
func TestRemarks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners")
	}
	r := newReg(t)
	s := store(t, image.Options{})
	im, err := pull(t, s, r.push(t, "a", build(t, gz(t, oddities(t)))))
	must(t, err)
	got := strings.Join(s.Remarks(im, form()), "; ")
	if want := "1 file belongs to a user beyond the 65536 that a sandbox has here; nobody owns it inside; 2 device nodes were left out; 1 extended attribute was left out"; got != want {
		t.Errorf("remarks = %q, want %q", got, want)
	}
	plain, err := pull(t, s, r.push(t, "b", build(t, gz(t, tarOf(t, "b", "1")))))
	must(t, err)
	if got := s.Remarks(plain, form()); got != nil {
		t.Errorf("remarks of a plain image = %q", got)
	}
}
