//go:build linux

package local

import (
	"context"
	"io"
	"io/fs"

	"berth/sandbox"
)

// files connects anew at every call, since a handle may outlive many starts.
type files struct{ in *Instance }

func (f files) conn(ctx context.Context) (sandbox.Files, error) {
	c, err := f.in.p.engine.connect(ctx, f.in.dir())
	if err != nil {
		return nil, f.in.notRunning(err)
	}
	return c.Files(), nil
}

func (f files) Stat(ctx context.Context, path string) (sandbox.FileInfo, error) {
	c, err := f.conn(ctx)
	if err != nil {
		return sandbox.FileInfo{}, err
	}
	return c.Stat(ctx, path)
}

func (f files) Open(ctx context.Context, path string) (io.ReadCloser, sandbox.FileInfo, error) {
	c, err := f.conn(ctx)
	if err != nil {
		return nil, sandbox.FileInfo{}, err
	}
	return c.Open(ctx, path)
}

func (f files) Write(ctx context.Context, path string, r io.Reader, o sandbox.WriteOptions) (sandbox.WriteResult, error) {
	c, err := f.conn(ctx)
	if err != nil {
		return sandbox.WriteResult{}, err
	}
	return c.Write(ctx, path, r, o)
}

func (f files) ReadDir(ctx context.Context, path string) ([]sandbox.FileInfo, error) {
	c, err := f.conn(ctx)
	if err != nil {
		return nil, err
	}
	return c.ReadDir(ctx, path)
}

func (f files) Mkdir(ctx context.Context, path string, mode fs.FileMode) error {
	c, err := f.conn(ctx)
	if err != nil {
		return err
	}
	return c.Mkdir(ctx, path, mode)
}

func (f files) Remove(ctx context.Context, path string, directories bool) error {
	c, err := f.conn(ctx)
	if err != nil {
		return err
	}
	return c.(sandbox.FileRemover).Remove(ctx, path, directories)
}

func (f files) Rename(ctx context.Context, from, to string) error {
	c, err := f.conn(ctx)
	if err != nil {
		return err
	}
	return c.(sandbox.FileRenamer).Rename(ctx, from, to)
}

func (f files) Permit(ctx context.Context, path string, p sandbox.Permissions) error {
	c, err := f.conn(ctx)
	if err != nil {
		return err
	}
	return c.(sandbox.FilePermitter).Permit(ctx, path, p)
}

func (f files) Symlink(ctx context.Context, target, path string) error {
	c, err := f.conn(ctx)
	if err != nil {
		return err
	}
	return c.Symlink(ctx, target, path)
}
