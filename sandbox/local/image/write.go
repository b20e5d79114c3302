//go:build linux

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"berth/internal/imagename"
)

// Writer writes an image as an OCI layout, into a tar file or a directory. What
// is under its path comes to be there whole, by Finish, or not at all.
//
// A tar file is one of docker save, too: it holds the manifest.json of those, so
// that docker load of any age takes it. Only the caller may read either.
type Writer struct {
	to   string
	tmp  string
	dir  bool
	f    *os.File // the tar file
	done bool

	layers  []v1.Descriptor
	diffs   []v1.Hash
	history []v1.History
	blobs   map[string]bool
}

// NewWriter begins to write to path, as a directory or a tar file. An ErrExist
// is returned for a path where something is, but for an empty directory in the
// place of a directory, and a file with replace. Close must be called.
func NewWriter(to string, dir, replace bool) (*Writer, error) {
	w := &Writer{to: filepath.Clean(to), dir: dir, blobs: map[string]bool{}}
	exists := &fs.PathError{Op: "write", Path: to, Err: fs.ErrExist}
	switch fi, err := os.Lstat(w.to); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case dir && fi.IsDir():
		if list, err := os.ReadDir(w.to); err != nil || len(list) > 0 {
			return nil, errors.Join(err, exists)
		}
	case dir || fi.IsDir() || !replace || !fi.Mode().IsRegular():
		return nil, exists
	}
	above, base := filepath.Split(w.to)
	if above == "" {
		above = "."
	}
	var err error
	if dir {
		if w.tmp, err = os.MkdirTemp(above, "."+base+".part-"); err != nil {
			return nil, err
		}
		if err = os.MkdirAll(filepath.Join(w.tmp, "blobs", "sha256"), 0o755); err != nil {
			_ = w.Close()
			return nil, err
		}
		return w, nil
	}
	// Without a name, so that nothing is left of it whatever becomes of this
	// process; where the file system has no such files, with one.
	if fd, oerr := unix.Open(above, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); oerr == nil {
		w.f = os.NewFile(uintptr(fd), w.to)
	} else if w.f, err = os.CreateTemp(above, "."+base+".part-"); err != nil {
		return nil, err
	} else {
		w.tmp = w.f.Name()
	}
	for _, d := range []string{"blobs/", "blobs/sha256/"} {
		if err := w.header(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			_ = w.Close()
			return nil, err
		}
	}
	return w, nil
}

// Close removes what was not finished.
func (w *Writer) Close() error {
	if w.f != nil {
		_ = w.f.Close()
		w.f = nil
	}
	if w.done || w.tmp == "" {
		return nil
	}
	return os.RemoveAll(w.tmp)
}

// header writes an entry's header in the archive, one block.
func (w *Writer) header(h *tar.Header) error {
	b, err := headerBlock(h)
	if err == nil {
		_, err = w.f.Write(b)
	}
	return err
}

func headerBlock(h *tar.Header) ([]byte, error) {
	h.Format = tar.FormatGNU // which has no bound for sizes
	h.ModTime = time.Unix(0, 0)
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func (w *Writer) pad() error {
	at, err := w.f.Seek(0, io.SeekCurrent)
	if err == nil && at%512 != 0 {
		_, err = w.f.Write(make([]byte, 512-at%512))
	}
	return err
}

// file writes a small file.
func (w *Writer) file(name string, b []byte) error {
	if w.dir {
		return os.WriteFile(filepath.Join(w.tmp, filepath.FromSlash(name)), b, 0o644)
	}
	if err := w.header(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(b))}); err != nil {
		return err
	}
	if _, err := w.f.Write(b); err != nil {
		return err
	}
	return w.pad()
}

func blobName(digest string) string { return "blobs/sha256/" + hexOf(digest) }

// counting counts and hashes what passes.
type counting struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	_, _ = c.sum.Write(p[:n])
	return n, err
}

func (c *counting) digest() string { return "sha256:" + hex.EncodeToString(c.sum.Sum(nil)) }

// AddLayer adds the tar stream that write gives as the next layer up. How it
// was made is told in the image's history.
func (w *Writer) AddLayer(made string, write func(io.Writer) error) error {
	var out *os.File
	var at int64
	if w.dir {
		f, err := os.CreateTemp(filepath.Join(w.tmp, "blobs"), "layer-")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name()) // nothing there after the rename
		defer f.Close()
		out = f
	} else {
		// Its name and size are known afterwards, and written into this place.
		var err error
		if at, err = w.f.Seek(0, io.SeekCurrent); err != nil {
			return err
		}
		if _, err := w.f.Write(make([]byte, 512)); err != nil {
			return err
		}
		out = w.f
	}
	packed := &counting{w: out, sum: sha256.New()}
	buffered := bufio.NewWriterSize(packed, 1<<20)
	z, err := gzip.NewWriterLevel(buffered, 3)
	if err != nil {
		return err
	}
	plain := &counting{w: z, sum: sha256.New()}
	if err := write(plain); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	d := v1.Descriptor{MediaType: types.OCILayer, Size: packed.n}
	if d.Digest, err = v1.NewHash(packed.digest()); err != nil {
		return err
	}
	diff, err := v1.NewHash(plain.digest())
	if err != nil {
		return err
	}
	name := blobName(packed.digest())
	switch again := w.blobs[name]; {
	case w.dir && !again:
		err = os.Rename(out.Name(), filepath.Join(w.tmp, filepath.FromSlash(name)))
	case w.dir:
	case again:
		if err = w.f.Truncate(at); err == nil {
			_, err = w.f.Seek(at, io.SeekStart)
		}
	default:
		var b []byte
		if b, err = headerBlock(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: packed.n}); err == nil {
			_, err = w.f.WriteAt(b, at)
		}
		if err == nil {
			err = w.pad()
		}
	}
	if err != nil {
		return err
	}
	w.blobs[name] = true
	w.layers, w.diffs = append(w.layers, d), append(w.diffs, diff)
	w.history = append(w.history, v1.History{CreatedBy: made})
	return nil
}

// Config is what the written image says of itself.
type Config struct {
	// Name and Tag by which it is loaded: "berth/name" and "latest".
	Name, Tag string
	Created   time.Time
	Platform  string // "linux/amd64"
	Env       []string
	User      string
	WorkDir   string
	Labels    map[string]string
}

// Finish writes the manifest, puts all in place and returns the manifest's
// digest. It is on the disk then.
func (w *Writer) Finish(c Config) (digest string, size int64, err error) {
	p, err := v1.ParsePlatform(c.Platform)
	if err != nil {
		return "", 0, err
	}
	created := v1.Time{Time: c.Created.UTC().Truncate(time.Second)}
	for i := range w.history {
		w.history[i].Created = created
	}
	conf := v1.ConfigFile{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, Created: created, History: w.history,
		RootFS: v1.RootFS{Type: "layers", DiffIDs: w.diffs},
		Config: v1.Config{Env: c.Env, User: c.User, WorkingDir: c.WorkDir, Labels: c.Labels}}
	confBlob, err := w.blob(conf, types.OCIConfigJSON)
	if err != nil {
		return "", 0, err
	}
	manifest, err := w.blob(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: confBlob, Layers: w.layers}, types.OCIManifestSchema1)
	if err != nil {
		return "", 0, err
	}
	manifest.Platform = &v1.Platform{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant}
	manifest.Annotations = map[string]string{refName: c.Tag, "io.containerd.image.name": imagename.Hub + "/" + c.Name + ":" + c.Tag}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		return "", 0, err
	}
	if err := w.file("index.json", index); err != nil {
		return "", 0, err
	}
	if err := w.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return "", 0, err
	}
	if w.dir {
		err = w.finishDir()
	} else {
		err = w.finishTar(confBlob, c)
	}
	if err != nil {
		return "", 0, err
	}
	for _, l := range w.layers {
		size += l.Size
	}
	return manifest.Digest.String(), size, nil
}

func (w *Writer) blob(v any, kind types.MediaType) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	digest := digestOf(b)
	h, err := v1.NewHash(digest)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: kind, Size: int64(len(b)), Digest: h}, w.file(blobName(digest), b)
}

func (w *Writer) finishDir() error {
	d, err := os.Open(w.tmp)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(d.Fd()))
	_ = d.Close()
	if err != nil {
		return err
	}
	if err := os.Rename(w.tmp, w.to); err != nil { // over an empty directory, too
		return err
	}
	w.done = true
	return syncDir(filepath.Dir(w.to))
}

func (w *Writer) finishTar(conf v1.Descriptor, c Config) error {
	saved := []map[string]any{{"Config": blobName(conf.Digest.String()), "RepoTags": []string{c.Name + ":" + c.Tag}, "Layers": w.names()}}
	b, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	if err := w.file("manifest.json", b); err != nil {
		return err
	}
	if _, err := w.f.Write(make([]byte, 1024)); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	if w.tmp == "" {
		// A link takes no place that is taken; a rename does.
		above, base := filepath.Split(w.to)
		w.tmp = filepath.Join(above, "."+base+".part-"+strconv.FormatInt(time.Now().UnixNano(), 36))
		if err := unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(w.f.Fd())), unix.AT_FDCWD, w.tmp, unix.AT_SYMLINK_FOLLOW); err != nil {
			w.tmp = ""
			return &os.LinkError{Op: "link", Old: "the written file", New: w.to, Err: err}
		}
	}
	if err := os.Rename(w.tmp, w.to); err != nil {
		return err
	}
	w.done = true
	return syncDir(filepath.Dir(w.to))
}

func (w *Writer) names() []string {
	list := []string{}
	for _, l := range w.layers {
		list = append(list, blobName(l.Digest.String()))
	}
	return list
}

// PlainName makes of any text a name that a registry would take: "berth/" and
// the text in lower case.
func PlainName(text string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(text))
	// Separators stand alone and between letters.
	for _, pair := range [][2]string{{"..", "."}, {"---", "--"}, {"___", "__"}, {"._", "_"}, {"_.", "_"}, {"-.", "-"}, {".-", "-"}, {"_-", "-"}, {"-_", "-"}} {
		for strings.Contains(name, pair[0]) {
			name = strings.ReplaceAll(name, pair[0], pair[1])
		}
	}
	name = strings.Trim(name, "._-")
	if name == "" {
		name = "snapshot"
	}
	return path.Join("berth", name)
}
