//go:build linux

package local

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"slices"

	"berth/sandbox/local/isolate/rootfs"
)

// markedMost is the longest list of dpkg's that marks are taken out of; sandboxes
// get them into none that is longer.
const markedMost = 2 << 20

// unmarked passes a layer on to w without what stands for berth's programs in it:
// elsewhere dpkg would put a sudo that is installed beside its place, and an empty
// file would be found in it. finish takes the writer's error and waits.
func unmarked(w io.Writer) (layer io.Writer, finish func(error) error) {
	r, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := unmark(r, w)
		_ = r.CloseWithError(err)
		done <- err
	}()
	return in, func(err error) error {
		_ = in.CloseWithError(err) // nil: the end
		return <-done
	}
}

func unmark(r io.Reader, w io.Writer) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Join("/", h.Name)
		if h.Typeflag == tar.TypeReg && h.Size == 0 && slices.Contains(rootfs.Placeholders, name) {
			continue
		}
		var text io.Reader = in
		for _, f := range rootfs.DpkgFiles {
			if h.Typeflag != tar.TypeReg || h.Size > markedMost || name != path.Join(rootfs.DpkgDir, f.Name) {
				continue
			}
			list, err := io.ReadAll(in)
			if err != nil {
				return err
			}
			list = f.Untell(list)
			h.Size, text = int64(len(list)), bytes.NewReader(list)
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, text); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r) // padding
	return err
}
