// Package bucketbin embeds the program bucketd for Linux, compressed. It builds
// on every system, because a berth on any of them may hand bucketd to a Linux
// machine.
//
// The programs are built by go generate and never committed. In a checkout
// where that did not run, Bytes knows none, and Find looks for one elsewhere.
package bucketbin

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

//go:generate go run gen.go

// bucketds.txt keeps the pattern valid when nothing was generated.
//
//go:embed bucketd*
var files embed.FS

// Has tells whether a bucketd for goarch is embedded.
func Has(goarch string) bool {
	_, err := fs.Stat(files, "bucketd-linux-"+goarch+".zst")
	return err == nil
}

// Bytes returns bucketd, a static ELF executable for Linux on goarch ("amd64" or
// "arm64"), or nil when it was not generated or there is none for goarch.
func Bytes(goarch string) ([]byte, error) {
	packed, err := files.ReadFile("bucketd-linux-" + goarch + ".zst")
	if err != nil {
		return nil, nil // not there, which is no error
	}
	d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("unpack bucketd: %w", err)
	}
	defer d.Close()
	b, err := io.ReadAll(d)
	if err != nil {
		return nil, fmt.Errorf("unpack bucketd: %w", err)
	}
	return b, nil
}

// ErrNone says that there is no bucketd anywhere.
var ErrNone = errors.New("the program bucketd is missing: build berth with make, or put bucketd beside it or in PATH")

// Find returns the path of a bucketd for this machine's architecture. The
// embedded one is written below dir, which must be private, under a name that
// holds its hash, so that a new berth uses its own and old mounts keep theirs.
// Without an embedded one, it is the bucketd beside this program or in PATH, or
// else ErrNone.
func Find(dir, goarch string) (string, error) {
	b, err := Bytes(goarch)
	if err != nil {
		return "", err
	}
	if b != nil {
		return write(dir, b)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "bucketd")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath("bucketd")
	if err != nil {
		return "", ErrNone
	}
	return filepath.Abs(path)
}

// Name is the file name of a program by its content.
func Name(b []byte) string {
	sum := sha256.Sum256(b)
	return "bucketd-" + hex.EncodeToString(sum[:8])
}

// write keeps b below dir; several processes may do so at once.
func write(dir string, b []byte) (string, error) {
	path := filepath.Join(dir, Name(b))
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, ".bucketd-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name()) // it is not there any more when all went well
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(0o755)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", err
	}
	return path, nil
}
