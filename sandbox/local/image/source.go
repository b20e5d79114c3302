//go:build linux

package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
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
		return a.image(n, s.o.Platform)
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
	if err := s.checkLayers(n, len(m.Layers)); err != nil {
		return nil, err
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
	for i, l := range m.Layers {
		if !l.MediaType.IsLayer() || len(l.URLs) > 0 && !l.MediaType.IsDistributable() {
			return nil, fault("%s is no image of a system: its layer %d is %.80q", n.Full, i+1, l.MediaType)
		}
		layer := Layer{Diff: c.RootFS.DiffIDs[i].String(), Blob: l.Digest.String(), Size: l.Size}
		if !validDigest(layer.Diff) || !validDigest(layer.Blob) || l.Size < 0 {
			return nil, fault("%s has a layer with a digest that is no SHA-256", n.Full)
		}
		if l.Size > s.limit() {
			return nil, fault("%s has a layer of %d MiB; an image may unpack to %d MiB here (local.images.max_gib)", n.Full, l.Size>>20, s.o.MaxBytes>>20)
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
	for _, step := range c.Config.OnBuild[:min(len(c.Config.OnBuild), 16)] { // to be named, not done
		im.OnBuild = append(im.OnBuild, step[:min(len(step), 256)])
	}
	if im.WorkDir != "" {
		im.WorkDir = path.Clean("/" + im.WorkDir)
	}
	return c, nil
}

func (s *Store) source(ctx context.Context, n Name) (source, error) {
	switch {
	case n.archive:
		t, err := readTar(ctx, n.path)
		if err != nil {
			return nil, err
		}
		if _, saved := t.find("manifest.json"); !saved && t.has("oci-layout") {
			return &layout{n, t}, nil
		}
		return &archive{n: n, files: t}, nil
	case n.File:
		return &layout{n, folder(n.path)}, nil
	case n.ref == nil:
		return nil, fmt.Errorf("image %q was not parsed", n.Full)
	}
	return s.remote(ctx, n)
}
