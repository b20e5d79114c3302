package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"berth/sandbox"
)

// in copies a file or directory of ours to dst inside.
func (t *transfer) in(src, dst string) error {
	info, err := os.Stat(src)
	if err != nil {
		return failure("copy "+src, err)
	}
	at, err := t.files.Stat(t.ctx, strings.TrimSuffix(dst, "/"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure("copy to "+t.inside(dst), err)
	}
	if !t.contents && (strings.HasSuffix(dst, "/") || err == nil && at.Mode.IsDir()) {
		absolute, err := filepath.Abs(src)
		if err != nil {
			return err
		}
		dst = path.Join(dst, filepath.Base(absolute))
	}
	if !info.IsDir() {
		return t.fileIn(src, dst, info)
	}
	return t.all(func() error { return t.directoryIn(src, dst, info.Mode()) })
}

// directoryIn copies a directory with all that is in it. The sandbox's user can
// write in every directory made: a mode that forbids it would stop the copy.
func (t *transfer) directoryIn(src, dst string, mode fs.FileMode) error {
	if err := t.files.Mkdir(t.ctx, dst, mode.Perm()|0o700); err != nil {
		return failure("copy to "+t.inside(dst), err)
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return failure("copy "+src, err)
	}
	for _, d := range entries {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		from, to := filepath.Join(src, d.Name()), path.Join(dst, d.Name())
		if !utf8.ValidString(d.Name()) {
			t.leave(from, "its name is not UTF-8")
			continue
		}
		switch {
		case d.IsDir():
			info, err := d.Info()
			if err != nil {
				return failure("copy "+from, err)
			}
			if err := t.directoryIn(from, to, info.Mode()); err != nil {
				return err
			}
		case d.Type()&fs.ModeSymlink != 0:
			t.also(func() error { return t.linkIn(from, to) })
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return failure("copy "+from, err)
			}
			t.also(func() error { return t.fileIn(from, to, info) })
		default:
			t.leave(from, "it is no file, directory or link")
		}
	}
	return nil
}

// linkIn makes the same link inside, wherever it leads.
func (t *transfer) linkIn(src, dst string) error {
	target, err := os.Readlink(src)
	if err != nil {
		return failure("copy "+src, err)
	}
	if target = filepath.ToSlash(target); !utf8.ValidString(target) {
		t.leave(src, "what it links to is not UTF-8")
		return nil
	}
	if err := t.files.Symlink(t.ctx, target, dst); err != nil {
		return failure("copy "+src+" to "+t.inside(dst), err)
	}
	return nil
}

func (t *transfer) fileIn(src, dst string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("copy %s: it is no file, directory or link", src)
	}
	f, err := os.Open(src)
	if err != nil {
		return failure("copy "+src, err)
	}
	defer f.Close()
	mode := info.Mode().Perm()
	r := &source{r: t.progress.file(src, info.Size(), f)}
	if _, err := t.files.Write(t.ctx, dst, r, sandbox.WriteOptions{Mode: &mode}); r.err != nil {
		return failure("copy "+src, r.err)
	} else if err != nil {
		return failure("copy "+src+" to "+t.inside(dst), err)
	}
	return nil
}

// source remembers an error of reading, so that it is not taken for one of writing.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
