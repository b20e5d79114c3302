package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"berth/sandbox"
)

// out copies a file or directory inside to dst here. The sandbox is not
// trusted: what it names is only ever made beneath dst.
func (t *transfer) out(src, dst string) error {
	info, err := t.files.Stat(t.ctx, src)
	if err != nil {
		return t.noPattern(src, failure("copy "+t.inside(src), err))
	}
	trailing := strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, string(filepath.Separator))
	if at, err := os.Stat(dst); !t.contents && (trailing || err == nil && at.IsDir()) {
		name := path.Base(src)
		if name == "/" || name == "." {
			name = "root"
		}
		dst = filepath.Join(dst, filepath.FromSlash(name))
	}
	beneath := dst
	if !info.Mode.IsDir() {
		beneath = filepath.Dir(dst)
	} else if err := os.MkdirAll(dst, 0o755); err != nil {
		return failure("copy to "+dst, err)
	}
	root, err := os.OpenRoot(beneath)
	if err != nil {
		return failure("copy to "+beneath, err)
	}
	defer root.Close()
	if !info.Mode.IsDir() {
		return t.fileOut(src, root, filepath.Base(dst))
	}
	return t.all(func() error { return t.directoryOut(src, root, ".", 0) })
}

// print writes one file to stdout.
func (t *transfer) print(src string) error {
	r, _, err := t.files.Open(t.ctx, src)
	if err != nil {
		err = failure("copy "+t.inside(src)+" to stdout", err)
		if errors.Is(err, sandbox.ErrIsDir) {
			return fmt.Errorf("%w; berth exec %s -- tar c DIRECTORY packs one", err, t.key.Session)
		}
		return t.noPattern(src, err)
	}
	defer r.Close()
	from := &source{r: contextReader{t.ctx, r}}
	if _, err = io.Copy(t.app.Stdout, from); from.err != nil {
		return failure("copy "+t.inside(src), from.err)
	}
	if err != nil {
		return exit(128 + int(syscall.SIGPIPE)) // our reader is gone, as after "| head"
	}
	return nil
}

// noPattern says, of a path that is not there and looks like a pattern, that
// there are none.
func (t *transfer) noPattern(src string, err error) error {
	if errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(src, "*?[") {
		return fmt.Errorf("%w; patterns are not expanded inside: copy the directory, or one file at a time", err)
	}
	return err
}

// maxDepth bounds directories in directories.
const maxDepth = 200

func (t *transfer) directoryOut(src string, root *os.Root, rel string, depth int) error {
	if depth > maxDepth {
		t.leave(src, fmt.Sprintf("more than %d directories deep", maxDepth))
		return nil
	}
	entries, err := t.files.ReadDir(t.ctx, src)
	if err != nil {
		return failure("copy "+t.inside(src), err)
	}
	for _, e := range entries {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		name := path.Base(e.Path)
		if !filepath.IsLocal(name) || strings.ContainsAny(name, `/`+string(filepath.Separator)) {
			t.leave(e.Path, "its name cannot be used here")
			continue
		}
		from, to := path.Join(src, name), filepath.Join(rel, name)
		switch {
		case e.Mode.IsDir():
			if err := root.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return failure("copy to "+filepath.Join(root.Name(), to), err)
			}
			if err := t.directoryOut(from, root, to, depth+1); err != nil {
				return err
			}
		case e.Mode.IsRegular():
			t.also(func() error { return t.fileOut(from, root, to) })
		case e.Mode&fs.ModeSymlink != 0:
			t.also(func() error { return t.linkOut(from, root, to) })
		default:
			t.leave(from, "it is no file, directory or link")
		}
	}
	return nil
}

// linkOut makes a file of what a link leads to.
func (t *transfer) linkOut(src string, root *os.Root, name string) error {
	err := t.fileOut(src, root, name)
	switch {
	case err == nil:
	case t.ctx.Err() != nil:
		return err
	case errors.Is(err, sandbox.ErrIsDir):
		t.leave(src, "it is a link to a directory")
	case errors.Is(err, fs.ErrNotExist):
		t.leave(src, "it is a link to nothing")
	default:
		t.leave(src, because(err))
	}
	return nil
}

// fileOut writes a file beneath root, and puts it in its place when it is whole.
func (t *transfer) fileOut(src string, root *os.Root, name string) error {
	r, info, err := t.files.Open(t.ctx, src)
	if err != nil {
		return failure("copy "+t.inside(src), err)
	}
	defer r.Close()
	// Not longer than many a name, and nobody's: a second berth may copy the same.
	part := filepath.Join(filepath.Dir(name), ".berth-"+rand.Text()[:12])
	f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode.Perm()|0o600)
	if err != nil {
		return failure("copy to "+filepath.Join(root.Name(), name), err)
	}
	from := &source{r: t.progress.file(src, info.Size, contextReader{t.ctx, r})}
	_, err = io.Copy(f, from)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(part, name)
	}
	if err == nil {
		return nil
	}
	_ = root.Remove(part) // the first error tells more
	if from.err != nil {
		return failure("copy "+t.inside(src), from.err)
	}
	return failure("copy "+t.inside(src)+" to "+filepath.Join(root.Name(), name), err)
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
