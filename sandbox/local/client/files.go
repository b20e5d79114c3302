//go:build linux

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Files reaches the sandbox's files as its user.
func (c *Conn) Files() sandbox.Files { return files{c} }

// files asks init, which resolves every path inside. Only descriptors come
// out, and they are checked, since init may lie.
type files struct{ c *Conn }

var (
	_ sandbox.Files         = files{}
	_ sandbox.FileRemover   = files{}
	_ sandbox.FileRenamer   = files{}
	_ sandbox.FilePermitter = files{}
)

func (f files) Stat(ctx context.Context, name string) (sandbox.FileInfo, error) {
	var i wire.File
	if _, err := f.c.call(ctx, wire.OpStat, wire.Path{Path: name}, &i); err != nil {
		return sandbox.FileInfo{}, at("stat", name, err)
	}
	return terms.File(&i), nil
}

func (f files) Open(ctx context.Context, name string) (io.ReadCloser, sandbox.FileInfo, error) {
	var i wire.File
	fr, err := f.c.call(ctx, wire.OpOpen, wire.Path{Path: name}, &i)
	if err != nil {
		return nil, sandbox.FileInfo{}, at("open", name, err)
	}
	file, err := regular(fr)
	if err != nil {
		return nil, sandbox.FileInfo{}, at("open", name, err)
	}
	return file, terms.File(&i), nil
}

// regular takes the one descriptor out of fr, which must be a regular file's:
// reading anything else could wait for ever.
func regular(fr *wire.Frame) (*os.File, error) {
	if len(fr.Files) != 1 {
		closeFiles(fr.Files)
		return nil, errors.New("the sandbox sent no file")
	}
	file := fr.Files[0]
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = sandbox.ErrNotRegular
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func (f files) ReadDir(ctx context.Context, name string) ([]sandbox.FileInfo, error) {
	var all wire.Files
	if _, err := f.c.call(ctx, wire.OpReadDir, wire.Path{Path: name}, &all); err != nil {
		return nil, at("readdir", name, err)
	}
	if all.Truncated {
		return nil, at("readdir", name, fmt.Errorf("it has more than %d entries, too many to list: %w", len(all.Files), sandbox.ErrLimit))
	}
	list := make([]sandbox.FileInfo, len(all.Files))
	for i := range all.Files {
		list[i] = terms.File(&all.Files[i])
	}
	return list, nil
}

func (f files) Write(ctx context.Context, name string, r io.Reader, o sandbox.WriteOptions) (sandbox.WriteResult, error) {
	req := wire.Create{Path: name, Append: o.Append, Mode: -1}
	if o.Mode != nil {
		req.Mode = int64(terms.UnixMode(*o.Mode))
	}
	// The write belongs to one connection: its token ends with it.
	l, err := f.c.current(ctx)
	if err != nil {
		return sandbox.WriteResult{}, at("write", name, err)
	}
	var made wire.Created
	fr, err := l.call(ctx, wire.OpCreate, req, nil, &made)
	if err != nil {
		return sandbox.WriteResult{}, at("write", name, f.gone(err))
	}
	file, err := regular(fr)
	var n int64
	if err == nil {
		n, err = io.Copy(file, &ctxReader{ctx, r})
		if cerr := file.Close(); err == nil {
			err = cerr
		}
	}
	if err == nil {
		err = ctx.Err() // r may have ended because its caller left
	}
	if err != nil {
		// The name at the end is not changed; the caller's end must not keep
		// the temporary file from being removed.
		abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = l.call(abort, wire.OpCommit, wire.Commit{Token: made.Token, Abort: true}, nil, nil)
		return sandbox.WriteResult{}, at("write", name, err)
	}
	var i wire.File
	if _, err := l.call(ctx, wire.OpCommit, wire.Commit{Token: made.Token}, nil, &i); err != nil {
		return sandbox.WriteResult{}, at("write", name, f.gone(err))
	}
	return sandbox.WriteResult{Path: path.Clean("/" + i.Path), Bytes: n, Created: made.Fresh}, nil
}

func (f files) Mkdir(ctx context.Context, name string, mode fs.FileMode) error {
	_, err := f.c.call(ctx, wire.OpMkdir, wire.Mkdir{Path: name, Mode: terms.UnixMode(mode)}, nil)
	return at("mkdir", name, err)
}

func (f files) Symlink(ctx context.Context, target, name string) error {
	_, err := f.c.call(ctx, wire.OpSymlink, wire.Symlink{Path: name, Target: target}, nil)
	return at("symlink", name, err)
}

func (f files) Remove(ctx context.Context, name string, directories bool) error {
	_, err := f.c.call(ctx, wire.OpRemove, wire.Remove{Path: name, Directories: directories}, nil)
	return at("remove", name, err)
}

func (f files) Rename(ctx context.Context, from, to string) error {
	_, err := f.c.call(ctx, wire.OpRename, wire.Rename{From: from, To: to}, nil)
	return at("rename", from, err)
}

func (f files) Permit(ctx context.Context, name string, p sandbox.Permissions) error {
	r := wire.Permit{Path: name, Mode: -1, Owner: p.Owner, Group: p.Group}
	if p.Mode != nil {
		r.Mode = int64(terms.UnixMode(*p.Mode))
	}
	_, err := f.c.call(ctx, wire.OpPermit, r, nil)
	return at("chmod", name, err)
}

// gone makes ErrGone of a connection that broke since the monitor has ended.
func (f files) gone(err error) error {
	if errors.Is(err, errBroken) {
		if _, alive, aerr := Alive(f.c.dir); aerr == nil && !alive {
			return ErrGone
		}
	}
	return err
}

// ctxReader stops a copy when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// at names the path, unless the text is the sandbox's own and does already.
func at(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var k *terms.KindError
	if errors.As(err, &k) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var pe *fs.PathError
	if errors.As(err, &pe) { // of a descriptor, whose name is none
		err = pe.Err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s %s: the disk is full; free some space and try again: %w", op, name, err)
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}
