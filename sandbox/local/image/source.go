//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxManifest bounds manifests, indexes and configurations, in bytes.
const maxManifest = 4 << 20

// source is where an image comes from.
type source interface {
	// root is what the name leads to, a manifest or an index.
	root(ctx context.Context) ([]byte, types.MediaType, error)
	// small reads a manifest or a configuration, whole.
	small(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// blob opens a layer as it is transferred, at from or, where that cannot
	// be, at 0; at tells which.
	blob(ctx context.Context, l Layer, from int64) (r io.ReadCloser, at int64, err error)
	// stored: blobs can be opened at any time, so they are not copied first.
	stored() bool
}

// resolve finds the image of the wanted platform.
func (s *Store) resolve(ctx context.Context, n Name, src source) (*Image, error) {
	if a, ok := src.(*archive); ok {
		return a.image(ctx, n, s.o.Platform)
	}
	b, kind, err := src.root(ctx)
	if err != nil {
		return nil, err
	}
	for range 4 { // an index may lead to another
		if !kind.IsIndex() {
			break
		}
		d, err := s.choose(n, b)
		if err != nil {
			return nil, err
		}
		if b, err = src.small(ctx, d); err != nil {
			return nil, err
		}
		kind = mediaType(b, d.MediaType)
	}
	switch {
	case kind == types.DockerManifestSchema1 || kind == types.DockerManifestSchema1Signed:
		return nil, fault("%s has a manifest of the old kind 1, which has been out of use since 2017; pull it with docker, and push it again", n.Full)
	case !kind.IsImage():
		return nil, fault("%s is no image of a system but %.80q", n.Full, kind)
	}
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, fault("the manifest of %s is damaged: %v", n.Full, err)
	}
	if m.Config.Size > maxManifest {
		return nil, fault("the configuration of %s has %d bytes; at most %d are allowed", n.Full, m.Config.Size, maxManifest)
	}
	conf, err := src.small(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	im := &Image{Name: n.Full, Digest: digestOf(b)}
	c, err := s.configure(im, conf)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return nil, fault("%s has %d layers, and its configuration names %d", n.Full, len(m.Layers), len(c.RootFS.DiffIDs))
	}
	if err := s.checkLayers(n, len(m.Layers)); err != nil {
		return nil, err
	}
	for i, l := range m.Layers {
		if !l.MediaType.IsLayer() || len(l.URLs) > 0 && !l.MediaType.IsDistributable() {
			return nil, fault("%s is no image of a system: its layer %d is %.80q", n.Full, i+1, l.MediaType)
		}
		layer := Layer{Diff: c.RootFS.DiffIDs[i].String(), Blob: l.Digest.String(), Size: l.Size}
		if !validDigest(layer.Diff) || !validDigest(layer.Blob) || l.Size < 0 {
			return nil, fault("%s has a layer with a digest that is no SHA-256", n.Full)
		}
		if l.Size > s.limit() {
			return nil, fault("%s has a layer of %d MiB; a layer may unpack to %d MiB here (local.images.max_gib)", n.Full, l.Size>>20, s.o.MaxBytes>>20)
		}
		im.Layers = append(im.Layers, layer)
	}
	return im, nil
}

// maxLayers is far more than any builder makes.
const maxLayers = 1000

func (s *Store) checkLayers(n Name, count int) error {
	if count > maxLayers {
		return fault("%s has %d layers; at most %d are allowed", n.Full, count, maxLayers)
	}
	return nil
}

// mediaType is what a manifest says it is; some say it only in their descriptor.
func mediaType(b []byte, other types.MediaType) types.MediaType {
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Version   int             `json:"schemaVersion"`
	}
	if json.Unmarshal(b, &m) != nil {
		return other
	}
	switch {
	case m.Version == 1:
		return types.DockerManifestSchema1
	case m.MediaType != "":
		return m.MediaType
	case other.IsIndex() || other.IsImage():
		return other
	case m.Manifests != nil:
		return types.OCIImageIndex
	case m.Layers != nil:
		return types.OCIManifestSchema1
	}
	return other
}

// choose finds the wanted platform in an index.
func (s *Store) choose(n Name, b []byte) (v1.Descriptor, error) {
	var none v1.Descriptor
	index, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return none, fault("the index of %s is damaged: %v", n.Full, err)
	}
	want, err := v1.ParsePlatform(s.o.Platform)
	if err != nil {
		return none, err
	}
	var there []string
	best := -1
	for i, d := range index.Manifests {
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		if d.Platform == nil {
			if best < 0 {
				best = i
			}
			continue
		}
		if d.Platform.OS == "unknown" { // an attestation
			continue
		}
		if p := d.Platform.String(); !slices.Contains(there, p) {
			there = append(there, p)
		}
		if d.Platform.Satisfies(*want) {
			return d, nil
		}
		// arm64 and arm64/v8 are the same.
		if want.Variant == "" || want.Architecture == "arm64" {
			if d.Platform.OS == want.OS && d.Platform.Architecture == want.Architecture {
				best = i
			}
		}
	}
	if best >= 0 {
		return index.Manifests[best], nil
	}
	if len(there) == 0 {
		return none, fault("the index of %s names no image", n.Full)
	}
	return none, fault("%s is not made for %s; it is for %s", n.Full, s.o.Platform, strings.Join(there[:min(len(there), 12)], ", "))
}

// configure takes from the configuration what sandboxes need of it.
func (s *Store) configure(im *Image, b []byte) (*v1.ConfigFile, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(b))
	if err != nil {
		return nil, fault("the configuration of %s is damaged: %v", im.Name, err)
	}
	if c.OS == "" || c.Architecture == "" {
		return nil, fault("%s says of no system that it is for it; it is no image of a system", im.Name)
	}
	want, err := v1.ParsePlatform(s.o.Platform)
	if err != nil {
		return nil, err
	}
	if c.OS != want.OS || c.Architecture != want.Architecture {
		return nil, fault("%s is for %s/%s, and wanted is %s", im.Name, c.OS, c.Architecture, s.o.Platform)
	}
	im.Platform = c.OS + "/" + c.Architecture
	if c.Variant != "" {
		im.Platform += "/" + c.Variant
	}
	size := 0
	for _, e := range c.Config.Env {
		if size += len(e); size > 128<<10 || len(e) > 120<<10 {
			return nil, fault("the environment of %s has more than 128 KiB", im.Name)
		}
		if strings.IndexByte(e, 0) < 0 {
			im.Env = append(im.Env, e)
		}
	}
	if len(c.Config.User) > 256 || len(c.Config.WorkingDir) > 4000 {
		return nil, fault("the user or working directory of %s is too long", im.Name)
	}
	im.User, im.WorkDir = c.Config.User, c.Config.WorkingDir
	if im.WorkDir != "" {
		im.WorkDir = path.Clean("/" + im.WorkDir)
	}
	return c, nil
}

// layout is an OCI layout directory.
type layout struct{ n Name }

func (l *layout) stored() bool { return true }

func (l *layout) read(name string) ([]byte, error) {
	b, err := readFile(filepath.Join(l.n.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault("%s is no OCI layout: %s is missing in it", l.n.path, name)
	}
	return b, err
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = fault("%s has more than %d bytes", name, maxManifest)
	}
	return b, err
}

// refName annotates a layout's entries with tags.
const refName = "org.opencontainers.image.ref.name"

func (l *layout) root(ctx context.Context) ([]byte, types.MediaType, error) {
	b, err := l.read("index.json")
	if err != nil {
		return nil, "", err
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return nil, "", fault("the index of %s is damaged: %v", l.n.path, err)
	}
	var tags []string
	var found []v1.Descriptor
	for _, d := range index.Manifests {
		tag := d.Annotations[refName]
		if l.n.tag == "" || tag == l.n.tag || strings.HasSuffix(tag, ":"+l.n.tag) || d.Digest.String() == l.n.tag {
			found = append(found, d)
		}
		if tag != "" {
			tags = append(tags, tag)
		}
	}
	switch {
	case len(found) == 1:
		b, err := l.small(ctx, found[0])
		return b, mediaType(b, found[0].MediaType), err
	case len(found) > 1 && l.n.tag == "" && len(tags) == 0:
		return b, types.OCIImageIndex, nil // one image, for several platforms
	case len(tags) == 0:
		return nil, "", fault("%s has no image %s", l.n.path, l.n.tag)
	}
	return nil, "", fault("%s holds several images; name one of them as oci:PATH:TAG; tags: %s", l.n.path, strings.Join(tags[:min(len(tags), 20)], ", "))
}

func (l *layout) small(_ context.Context, d v1.Descriptor) ([]byte, error) {
	if !validDigest(d.Digest.String()) {
		return nil, fault("%s names a digest that is no SHA-256", l.n.path)
	}
	b, err := l.read("blobs/sha256/" + d.Digest.Hex)
	if err == nil && digestOf(b) != d.Digest.String() {
		err = fault("the file of %s in %s is damaged: its digest is another", d.Digest, l.n.path)
	}
	return b, err
}

func (l *layout) blob(_ context.Context, layer Layer, _ int64) (io.ReadCloser, int64, error) {
	f, err := os.Open(filepath.Join(l.n.path, "blobs", "sha256", hexOf(layer.Blob)))
	if errors.Is(err, fs.ErrNotExist) {
		err = fault("%s lacks the layer %s", l.n.path, layer.Blob)
	}
	return f, 0, err
}

// archive is a docker save file.
type archive struct {
	n     Name
	where map[string]section // layers by diff id
}

type section struct{ off, size int64 }

func (a *archive) stored() bool { return true }

func (a *archive) root(context.Context) ([]byte, types.MediaType, error) {
	return nil, "", errors.ErrUnsupported
}

func (a *archive) small(context.Context, v1.Descriptor) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

func (a *archive) blob(_ context.Context, l Layer, _ int64) (io.ReadCloser, int64, error) {
	at, ok := a.where[l.Diff]
	if !ok {
		return nil, 0, fault("%s lacks the layer %s", a.n.path, l.Diff)
	}
	f, err := os.Open(a.n.path)
	if err != nil {
		return nil, 0, err
	}
	return sectionFile{io.NewSectionReader(f, at.off, at.size), f}, 0, nil
}

type sectionFile struct {
	*io.SectionReader
	f *os.File
}

func (s sectionFile) Close() error { return s.f.Close() }

// image reads the archive's table of contents.
func (a *archive) image(ctx context.Context, n Name, platform string) (*Image, error) {
	f, err := os.Open(a.n.path)
	if err != nil {
		return nil, fault("%s cannot be opened: %v", a.n.path, errors.Unwrap(err))
	}
	defer f.Close()
	type entry struct {
		section
		link string
	}
	files := map[string]entry{}
	tr := tar.NewReader(f)
	for len(files) < 100_000 {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fault("%s is no docker save file: %v; a compressed one must be unpacked first", a.n.path, err)
		}
		// The reader has read up to the entry's content and no further.
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		e := entry{section: section{off, h.Size}}
		if h.Typeflag == tar.TypeSymlink {
			e.link = path.Join(path.Dir(h.Name), h.Linkname)
		}
		files[path.Clean(h.Name)] = e
	}
	find := func(name string) (section, bool) {
		e, ok := files[path.Clean(name)]
		for range 4 {
			if !ok || e.link == "" {
				break
			}
			e, ok = files[e.link]
		}
		return e.section, ok && e.link == ""
	}
	read := func(name string) ([]byte, error) {
		at, ok := find(name)
		if !ok || at.size > maxManifest {
			return nil, fault("%s is no docker save file: %.80q is missing in it, or too large", a.n.path, name)
		}
		b := make([]byte, at.size)
		_, err := f.ReadAt(b, at.off)
		return b, err
	}
	b, err := read("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(b, &list); err != nil || len(list) == 0 {
		return nil, fault("%s is no docker save file: its manifest.json is damaged or empty", a.n.path)
	}
	if len(list) > 1 {
		return nil, fault("%s holds %d images; save the one alone (docker save -o FILE IMAGE)", a.n.path, len(list))
	}
	conf, err := read(list[0].Config)
	if err != nil {
		return nil, err
	}
	im := &Image{Name: n.Full, Digest: digestOf(conf)}
	s := &Store{o: Options{Platform: platform}}
	c, err := s.configure(im, conf)
	if err != nil {
		return nil, err
	}
	if len(list[0].Layers) != len(c.RootFS.DiffIDs) {
		return nil, fault("%s has %d layers, and its configuration names %d", a.n.path, len(list[0].Layers), len(c.RootFS.DiffIDs))
	}
	if err := s.checkLayers(n, len(list[0].Layers)); err != nil {
		return nil, err
	}
	a.where = map[string]section{}
	for i, name := range list[0].Layers {
		at, ok := find(name)
		diff := c.RootFS.DiffIDs[i].String()
		if !ok || !validDigest(diff) {
			return nil, fault("%s lacks the layer %.80q", a.n.path, name)
		}
		a.where[diff] = at
		im.Layers = append(im.Layers, Layer{Diff: diff, Size: at.size})
	}
	return im, nil
}

func (s *Store) source(ctx context.Context, n Name) (source, error) {
	switch {
	case n.archive:
		return &archive{n: n}, nil
	case n.File:
		return &layout{n}, nil
	case n.ref == nil:
		return nil, fmt.Errorf("image %q was not parsed", n.Full)
	}
	return s.remote(ctx, n)
}
