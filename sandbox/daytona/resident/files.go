package resident

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"syscall"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Bounds of files.
const (
	// firstBytes of a file come with its opening, and nextBytes with each other call.
	firstBytes = 256 << 10
	nextBytes  = 2 << 20
)

// Files reaches the sandbox's files, with the rights of Options.User.
func (b *Box) Files() sandbox.Files { return files{b} }

type files struct{ b *Box }

var (
	_ sandbox.Files         = files{}
	_ sandbox.FileRemover   = files{}
	_ sandbox.FileRenamer   = files{}
	_ sandbox.FilePermitter = files{}
)

// ask does one operation.
func (f files) ask(ctx context.Context, o *wire.CallFile, data []byte) (*wire.Answer, []byte, error) {
	o.User = f.b.o.User
	a, out, err := f.b.ask(ctx, &wire.Call{File: o}, data, 0)
	if err != nil {
		return nil, nil, at(o.Kind, o.Path, plain(err))
	}
	return a, out, nil
}

func (f files) Stat(ctx context.Context, name string) (sandbox.FileInfo, error) {
	a, _, err := f.ask(ctx, &wire.CallFile{Kind: wire.FileStat, Path: name}, nil)
	if err != nil {
		return sandbox.FileInfo{}, err
	}
	return terms.File(a.File), nil
}

func (f files) ReadDir(ctx context.Context, name string) ([]sandbox.FileInfo, error) {
	a, _, err := f.ask(ctx, &wire.CallFile{Kind: wire.FileReadDir, Path: name}, nil)
	if err != nil {
		return nil, err
	}
	if a.Files.Truncated {
		return nil, at("readdir", name, fmt.Errorf("it has more than %d entries, too many to list: %w", len(a.Files.Files), sandbox.ErrLimit))
	}
	list := make([]sandbox.FileInfo, len(a.Files.Files))
	for i := range a.Files.Files {
		list[i] = terms.File(&a.Files.Files[i])
	}
	return list, nil
}

func (f files) Mkdir(ctx context.Context, name string, mode fs.FileMode) error {
	_, _, err := f.ask(ctx, &wire.CallFile{Kind: wire.FileMkdir, Path: name, Mode: int64(terms.UnixMode(mode))}, nil)
	return err
}

func (f files) Symlink(ctx context.Context, target, name string) error {
	_, _, err := f.ask(ctx, &wire.CallFile{Kind: wire.FileSymlink, Path: name, Target: target}, nil)
	return err
}

// change does what is done once, and tells nothing.
func (f files) change(ctx context.Context, op, name string, c *wire.Call) error {
	_, _, err := f.b.ask(ctx, c, nil, 0)
	return at(op, name, plain(err))
}

func (f files) Remove(ctx context.Context, name string, directories bool) error {
	return f.change(ctx, "remove", name, &wire.Call{Remove: &wire.Remove{Path: name, User: f.b.o.User, Directories: directories}})
}

func (f files) Rename(ctx context.Context, from, to string) error {
	return f.change(ctx, "rename", from, &wire.Call{Rename: &wire.Rename{From: from, To: to, User: f.b.o.User}})
}

func (f files) Permit(ctx context.Context, name string, p sandbox.Permissions) error {
	r := &wire.Permit{Path: name, User: f.b.o.User, Mode: -1, Owner: p.Owner, Group: p.Group}
	if p.Mode != nil {
		r.Mode = int64(terms.UnixMode(*p.Mode))
	}
	return f.change(ctx, "permit", name, &wire.Call{Permit: r})
}

// Open's reader gives the file that was there then, whatever becomes of its name. It
// ends with ctx.
func (f files) Open(ctx context.Context, name string) (io.ReadCloser, sandbox.FileInfo, error) {
	r := &reader{ctx: ctx, f: f, token: newID()}
	a, out, err := f.ask(ctx, &wire.CallFile{Kind: wire.FileRead, Path: name, Token: r.token, Most: firstBytes}, nil)
	if err != nil {
		return nil, sandbox.FileInfo{}, err
	}
	r.buf, r.at, r.more, r.kept = out, int64(len(out)), a.More, a.More
	return r, terms.File(a.File), nil
}

type reader struct {
	ctx   context.Context // of the Open that this is the rest of
	f     files
	token string
	buf   []byte
	at    int64 // of what follows buf
	more  bool  // something may follow
	kept  bool  // the helper holds the file
}

func (r *reader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if !r.more {
			return 0, io.EOF
		}
		a, out, err := r.f.ask(r.ctx, &wire.CallFile{Kind: wire.FileRead, Token: r.token, At: r.at, Most: nextBytes}, nil)
		if err != nil {
			return 0, err
		}
		r.buf, r.at, r.more = out, r.at+int64(len(out)), a.More
		if len(out) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// Close lets the helper let go of the file, which it does after ten minutes anyway.
func (r *reader) Close() error {
	r.buf, r.more = nil, false
	if !r.kept {
		return nil
	}
	r.kept = false
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 5*time.Second)
	defer cancel()
	_, _, _ = r.f.ask(ctx, &wire.CallFile{Kind: wire.FileRead, Token: r.token}, nil)
	return nil
}

func (f files) Write(ctx context.Context, name string, r io.Reader, o sandbox.WriteOptions) (sandbox.WriteResult, error) {
	w := &wire.CallFile{Kind: wire.FileWrite, Path: name, Append: o.Append, Mode: -1}
	if o.Mode != nil {
		w.Mode = int64(terms.UnixMode(*o.Mode))
	}
	// What is short goes with the call; more is uploaded first.
	head, err := io.ReadAll(io.LimitReader(r, inlineBytes+1))
	if err == nil {
		err = ctx.Err() // r may have ended because its caller left
	}
	if err != nil {
		return sandbox.WriteResult{}, at("write", name, err)
	}
	var data []byte
	if len(head) <= inlineBytes {
		w.Size, data = int64(len(head)), head
	} else if err := f.stage(ctx, w, io.MultiReader(bytes.NewReader(head), r)); err != nil {
		return sandbox.WriteResult{}, at("write", name, err)
	}
	a, _, err := f.ask(ctx, w, data)
	if err != nil {
		return sandbox.WriteResult{}, err
	}
	return sandbox.WriteResult{Path: path.Clean("/" + a.File.Path), Bytes: a.Bytes, Created: a.Fresh}, nil
}

// stage uploads what r gives to a file of the helper's own. The write itself makes
// sure that it came whole.
func (f files) stage(ctx context.Context, w *wire.CallFile, r io.Reader) error {
	place, err := f.b.ready(ctx)
	if err != nil {
		return plain(err)
	}
	w.Staged = f.b.temp(place, "write")
	s := &summer{ctx: ctx, r: r}
	if err := f.b.t.Upload(ctx, w.Staged, 0o600, s, -1); err != nil {
		if s.err != nil {
			err = s.err
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return kind(err)
	}
	if s.err != nil {
		return s.err
	}
	if !s.ended {
		return fmt.Errorf("%w: the upload ended early; nothing was written", sandbox.ErrUnavailable)
	}
	w.Size, w.Sum = s.size, s.sum
	return nil
}

// summer counts what passes.
type summer struct {
	ctx   context.Context // of the upload
	r     io.Reader
	size  int64
	sum   uint32
	ended bool
	err   error
}

func (s *summer) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		s.err = err
		return 0, err
	}
	n, err := s.r.Read(p)
	s.size, s.sum = s.size+int64(n), wire.Sum(s.sum, p[:n])
	switch {
	case err == io.EOF:
		s.ended = true
	case err != nil:
		s.err = err
	}
	return n, err
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
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s %s: the disk is full; free some space and try again: %w", op, name, err)
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}
