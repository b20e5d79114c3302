package daytonaapi

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"

	"berth/sandbox"
)

// contextFiles are the files that an owner's uploads of those hashes hold, for
// the copy steps of a build. Names are as they stand in the archives, from the
// root on.
func (s *Server) contextFiles(owner sandbox.Owner, hashes []string) (map[string]sandbox.BuildFile, error) {
	files := map[string]sandbox.BuildFile{}
	for i, hash := range hashes {
		if slices.Contains(hashes[:i], hash) {
			continue // read already, and perhaps named a million times
		}
		if !contextHash().MatchString(hash) {
			return nil, refuse(http.StatusBadRequest, "contextHashes: %.80q is no hash", hash)
		}
		at := s.storage.path(owner, hash)
		err := readContext(at, files)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, refuse(http.StatusBadRequest, "contextHashes: nothing was uploaded of hash %.80s; upload it by way of GET /object-storage/push-access", hash)
		case err != nil:
			return nil, refuse(http.StatusBadRequest, "contextHashes: the archive of hash %.80s cannot be read: %v", hash, err)
		}
		s.storage.use(at)
	}
	return files, nil
}

// counter tells how far a reader is.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// readContext adds what the archive at file holds. Contents stay there.
func readContext(file string, files map[string]sandbox.BuildFile) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	at := &counter{r: f}
	t := tar.NewReader(at)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if len(files) >= sandbox.MaxBuildFiles {
			return errors.New("there are more files than a build takes")
		}
		if len(name) > sandbox.MaxPath || len(h.Linkname) > sandbox.MaxPath {
			return fmt.Errorf("%.80q has a name, or leads to one, of more than %d bytes", name, sandbox.MaxPath)
		}
		b := sandbox.BuildFile{Mode: h.FileInfo().Mode().Perm()}
		switch h.Typeflag {
		case tar.TypeDir:
			b.Mode |= fs.ModeDir
		case tar.TypeSymlink:
			b.Mode, b.Link = b.Mode|fs.ModeSymlink, h.Linkname
		case tar.TypeReg:
			from := at.n
			sum := sha256.New()
			if h.Size <= fi.Size() { // else holes of any size would be read
				if b.Size, err = io.Copy(sum, t); err != nil {
					return err
				}
			}
			if h.Size != b.Size || at.n-from != b.Size {
				return fmt.Errorf("%.80q is stored with holes", name)
			}
			b.Digest = hex.EncodeToString(sum.Sum(nil))
			b.Open = func() (io.ReadCloser, error) { return openPart(file, from, b.Size) }
		default:
			continue // links between files, devices: not of a build
		}
		files[name] = b
	}
}

// part is a piece of a file.
type part struct {
	io.Reader
	io.Closer
}

func openPart(file string, from, size int64) (io.ReadCloser, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	return part{io.NewSectionReader(f, from, size), f}, nil
}
