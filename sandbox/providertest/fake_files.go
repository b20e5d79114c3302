//go:build unix

package providertest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"berth/sandbox"
)

type fakeFiles struct{ i *fakeInstance }

func (f fakeFiles) find(ctx context.Context, path string) (string, error) {
	if err := f.i.provider.usable(ctx); err != nil {
		return "", err
	}
	if f.i.box.info().Status != sandbox.StatusRunning {
		return "", sandbox.ErrNotRunning
	}
	return f.i.box.resolve(path)
}

func (f fakeFiles) Stat(ctx context.Context, path string) (sandbox.FileInfo, error) {
	p, err := f.find(ctx, path)
	if err != nil {
		return sandbox.FileInfo{}, fileError(err)
	}
	st, err := os.Stat(p)
	if err != nil {
		return sandbox.FileInfo{}, fileError(err)
	}
	return fileInfo(p, st), nil
}

func (f fakeFiles) Open(ctx context.Context, path string) (io.ReadCloser, sandbox.FileInfo, error) {
	info, err := f.Stat(ctx, path)
	if err != nil {
		return nil, info, err
	}
	switch {
	case info.Mode.IsDir():
		return nil, info, sandbox.ErrIsDir
	case !info.Mode.IsRegular():
		return nil, info, sandbox.ErrNotRegular
	}
	r, err := os.Open(info.Path)
	if err != nil {
		return nil, info, fileError(err)
	}
	return r, info, nil
}

func (f fakeFiles) Write(ctx context.Context, path string, r io.Reader, o sandbox.WriteOptions) (sandbox.WriteResult, error) {
	res := sandbox.WriteResult{}
	p, err := f.find(ctx, path)
	if err != nil {
		return res, fileError(err)
	}
	res.Path = p
	mode := fs.FileMode(0o644)
	st, err := os.Stat(p)
	switch {
	case err == nil && st.IsDir():
		return res, sandbox.ErrIsDir
	case err == nil && !st.Mode().IsRegular():
		return res, sandbox.ErrNotRegular
	case err == nil:
		mode = st.Mode().Perm()
	case errors.Is(err, fs.ErrNotExist):
		res.Created = true
	default:
		return res, fileError(err)
	}
	if o.Mode != nil {
		mode = *o.Mode
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return res, fileError(err)
	}
	if o.Append {
		w, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND|os.O_CREATE, mode)
		if err != nil {
			return res, fileError(err)
		}
		res.Bytes, err = io.Copy(w, r)
		if o.Mode != nil {
			err = errors.Join(err, w.Chmod(mode))
		}
		return res, errors.Join(err, w.Close())
	}
	w, err := os.CreateTemp(filepath.Dir(p), ".write-*")
	if err != nil {
		return res, fileError(err)
	}
	res.Bytes, err = io.Copy(w, r)
	err = errors.Join(err, w.Chmod(mode), w.Close())
	if err == nil {
		err = os.Rename(w.Name(), p)
	}
	if err != nil {
		return res, errors.Join(fileError(err), os.Remove(w.Name()))
	}
	return res, nil
}

func (f fakeFiles) ReadDir(ctx context.Context, path string) ([]sandbox.FileInfo, error) {
	p, err := f.find(ctx, path)
	if err != nil {
		return nil, fileError(err)
	}
	entries, err := os.ReadDir(p)
	if err != nil {
		return nil, fileError(err)
	}
	var infos []sandbox.FileInfo
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		infos = append(infos, fileInfo(filepath.Join(p, e.Name()), st))
	}
	return infos, nil
}

func (f fakeFiles) Mkdir(ctx context.Context, path string, mode fs.FileMode) error {
	path = filepath.Clean(path)
	dir, err := f.find(ctx, filepath.Dir(path))
	if err != nil {
		return fileError(err)
	}
	p := filepath.Join(dir, filepath.Base(path))
	if st, err := os.Stat(p); err == nil {
		if !st.IsDir() {
			return sandbox.ErrNotDir
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fileError(err)
	}
	if err := os.Mkdir(p, mode); err != nil {
		return fileError(err)
	}
	return os.Chmod(p, mode) // whatever the umask
}

func (f fakeFiles) Symlink(ctx context.Context, target, path string) error {
	dir, err := f.find(ctx, filepath.Dir(path))
	if err != nil {
		return fileError(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fileError(err)
	}
	p := filepath.Join(dir, filepath.Base(path))
	if st, err := os.Lstat(p); err == nil {
		if st.IsDir() {
			return sandbox.ErrIsDir
		}
		if err := os.Remove(p); err != nil { // as good as at once, for a fake
			return fileError(err)
		}
	}
	return fileError(os.Symlink(target, p))
}

func (f fakeFiles) Remove(ctx context.Context, path string, directories bool) error {
	p, err := f.name(ctx, path)
	if err != nil {
		return fileError(err)
	}
	st, err := os.Lstat(p)
	if err == nil && st.IsDir() && !directories {
		return sandbox.ErrIsDir
	}
	if err = os.Remove(p); errors.Is(err, syscall.ENOTEMPTY) {
		return sandbox.ErrNotEmpty
	}
	return fileError(err)
}

func (f fakeFiles) Rename(ctx context.Context, from, to string) error {
	a, err := f.name(ctx, from)
	if err != nil {
		return fileError(err)
	}
	b, err := f.name(ctx, to)
	if err != nil {
		return fileError(err)
	}
	if _, err := os.Lstat(a); err != nil {
		return fileError(err)
	}
	if _, err := os.Lstat(b); err == nil { // as good as at once, for a fake
		return fs.ErrExist
	}
	return fileError(os.Rename(a, b))
}

func (f fakeFiles) Permit(ctx context.Context, path string, p sandbox.Permissions) error {
	for field, name := range map[string]string{"owner": p.Owner, "group": p.Group} {
		if _, err := strconv.Atoi(name); err != nil && name != "" {
			return &sandbox.FieldError{Field: field, Problem: "there is no " + name}
		}
	}
	where, err := f.find(ctx, path)
	if err != nil {
		return fileError(err)
	}
	uid, gid := -1, -1
	if p.Owner != "" {
		uid, _ = strconv.Atoi(p.Owner)
	}
	if p.Group != "" {
		gid, _ = strconv.Atoi(p.Group)
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Chown(where, uid, gid); err != nil {
			return fileError(err)
		}
	}
	if p.Mode != nil {
		return fileError(os.Chmod(where, *p.Mode))
	}
	return nil
}

// name is where a name stands, whatever it is that has it.
func (f fakeFiles) name(ctx context.Context, path string) (string, error) {
	path = filepath.Clean(path)
	dir, err := f.find(ctx, filepath.Dir(path))
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(dir); err != nil {
		return "", err
	} else if !st.IsDir() {
		return "", sandbox.ErrNotDir
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

func fileInfo(path string, st fs.FileInfo) sandbox.FileInfo {
	i := sandbox.FileInfo{Path: path, Mode: st.Mode(), Size: st.Size(), ModTime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		i.Owner, i.Group = strconv.FormatUint(uint64(sys.Uid), 10), strconv.FormatUint(uint64(sys.Gid), 10)
	}
	return i
}

func fileError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOTDIR):
		return sandbox.ErrNotDir
	case errors.Is(err, syscall.EISDIR):
		return sandbox.ErrIsDir
	}
	return err
}
