//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// files are those of a layout: of a directory, or in a tar file.
type files interface {
	// open opens a file by its path in the layout; fs.ErrNotExist.
	open(name string) (io.ReadCloser, error)
}

// folder is a directory with files.
type folder string

func (d folder) open(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
}

// tarFiles are the files in a tar file that is not compressed.
type tarFiles struct {
	path    string
	entries map[string]tarEntry
}

type tarEntry struct {
	section
	link string // where a symbolic link leads, in the archive
}

type section struct{ off, size int64 }

// maxFiles bounds what is noted of an archive's table of contents.
const maxFiles = 100_000

// readTar reads where the files of an archive are.
func readTar(ctx context.Context, name string) (*tarFiles, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fault("%s cannot be opened: %v", name, errors.Unwrap(err))
	}
	defer f.Close()
	t := &tarFiles{name, map[string]tarEntry{}}
	tr := tar.NewReader(f)
	for len(t.entries) < maxFiles {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fault("%s is no docker save file and no OCI layout: %v; a compressed one must be unpacked first", name, err)
		}
		// The reader has read up to the entry's content and no further.
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		e := tarEntry{section: section{off, h.Size}}
		if h.Typeflag == tar.TypeSymlink {
			e.link = path.Join(path.Dir(h.Name), h.Linkname)
		}
		t.entries[path.Clean(h.Name)] = e
	}
	return t, nil
}

// find looks a file up, through links.
func (t *tarFiles) find(name string) (section, bool) {
	e, ok := t.entries[path.Clean(name)]
	for range 4 {
		if !ok || e.link == "" {
			break
		}
		e, ok = t.entries[e.link]
	}
	return e.section, ok && e.link == ""
}

func (t *tarFiles) has(name string) bool {
	_, ok := t.find(name)
	return ok
}

func (t *tarFiles) open(name string) (io.ReadCloser, error) {
	at, ok := t.find(name)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return t.at(at)
}

func (t *tarFiles) at(s section) (io.ReadCloser, error) {
	f, err := os.Open(t.path)
	if err != nil {
		return nil, err
	}
	return sectionFile{io.NewSectionReader(f, s.off, s.size), f}, nil
}

type sectionFile struct {
	*io.SectionReader
	f *os.File
}

func (s sectionFile) Close() error { return s.f.Close() }

// readFile reads a small file whole.
func readFile(from files, name string) ([]byte, error) {
	f, err := from.open(name)
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

// layout is an OCI layout: a directory, or an archive of one.
type layout struct {
	n     Name
	files files
}

func (l *layout) stored() bool { return true }

func (l *layout) read(name string) ([]byte, error) {
	b, err := readFile(l.files, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault("%s is no OCI layout: %s is missing in it", l.n.path, name)
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
	case len(found) == 0:
		return nil, "", fault("%s has no image %s; tags: %s", l.n.path, l.n.tag, strings.Join(tags[:min(len(tags), 20)], ", "))
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
	f, err := l.files.open("blobs/sha256/" + hexOf(layer.Blob))
	if errors.Is(err, fs.ErrNotExist) {
		err = fault("%s lacks the layer %s", l.n.path, layer.Blob)
	}
	return f, 0, err
}

// archive is a docker save file.
type archive struct {
	n     Name
	files *tarFiles
	where map[string]section // layers by diff id
}

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
	f, err := a.files.at(at)
	return f, 0, err
}

func (a *archive) read(name string) ([]byte, error) {
	b, err := readFile(a.files, name)
	if err != nil {
		return nil, fault("%s is no docker save file: %.80q is missing in it, or too large", a.n.path, name)
	}
	return b, nil
}

// image reads the archive's table of contents.
func (a *archive) image(n Name, platform string) (*Image, error) {
	b, err := a.read("manifest.json")
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
	conf, err := a.read(list[0].Config)
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
		at, ok := a.files.find(name)
		diff := c.RootFS.DiffIDs[i].String()
		if !ok || !validDigest(diff) {
			return nil, fault("%s lacks the layer %.80q", a.n.path, name)
		}
		a.where[diff] = at
		im.Layers = append(im.Layers, Layer{Diff: diff, Size: at.size})
	}
	return im, nil
}
