package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"berth/sandbox"
)

type copyCommand struct {
	ownerFlag
	Quiet bool   `short:"q" help:"Show no progress."`
	Src   string `arg:"" help:"A path here, or ID:PATH."`
	Dst   string `arg:"" help:"A path here, or ID:PATH."`
}

// Help is shown by --help.
func (*copyCommand) Help() string {
	return "One side is ID:PATH; a relative PATH counts from the sandbox's home. Directories are copied with all that " +
		"is in them; patterns such as * are not expanded inside. DST - writes one file to stdout. A DST that is a directory, or ends in /, receives SRC under its own name, or, when SRC ends in /., " +
		"what is in it. Symbolic links stay links on the way in; on the way out links to files become files, and other links are left out and named. " +
		"Write ./a:b for a file here whose name has a colon."
}

// place is one side of a copy.
type place struct{ id, path string }

func placeOf(s string) place {
	id, p, ok := strings.Cut(s, ":")
	if !ok || strings.ContainsAny(id, `/\`) || filepath.VolumeName(s) != "" {
		return place{path: s}
	}
	return place{id: id, path: p}
}

func (c *copyCommand) Run(a *App) error {
	src, dst := placeOf(c.Src), placeOf(c.Dst)
	if (src.id == "") == (dst.id == "") {
		return usagef("cp: exactly one side is a sandbox's: berth cp FILE ID:PATH, or berth cp ID:PATH FILE")
	}
	if src.path == "-" && src.id == "" {
		return usagef("cp: - is no file to copy in; berth exec %s -- sh -c 'cat >FILE' writes stdin there", dst.id)
	}
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	key, err := b.find(a.ctx, src.id+dst.id, c.Owner)
	if err != nil {
		return err
	}
	files, info, err := b.Files(a.ctx, key)
	if err != nil {
		return err
	}
	t := &transfer{contents: strings.HasSuffix(src.path, "/.") || src.path == ".", ctx: a.ctx, files: files, app: a, key: key, progress: newProgress(a, c.Quiet)}
	inside := func(p string) string {
		trailing := strings.HasSuffix(p, "/")
		if p == "" || p == "~" || strings.HasPrefix(p, "~/") {
			p = strings.TrimPrefix(p, "~")
			p = path.Join(info.Home, p)
		} else if !path.IsAbs(p) {
			p = path.Join(info.Home, p)
		}
		if p = path.Clean(p); trailing && p != "/" {
			p += "/"
		}
		return p
	}
	if dst.id == "" && dst.path == "-" {
		return t.print(inside(src.path))
	}
	if dst.id != "" {
		err = t.in(src.path, inside(dst.path))
	} else {
		err = t.out(inside(src.path), dst.path)
	}
	t.progress.end(err == nil)
	if err != nil {
		return err
	}
	if t.left > 0 {
		fmt.Fprintf(a.Stderr, "berth: %d left out\n", t.left)
		return exit(exitFailed)
	}
	return nil
}

// transfer is one copy.
type transfer struct {
	ctx      context.Context
	files    sandbox.Files
	app      *App
	key      sandbox.Key
	progress *progress
	mu       sync.Mutex
	left     int   // entries left out
	err      error // the first
	cancel   context.CancelFunc
	work     sync.WaitGroup
	slots    chan struct{}
	// contents tells that what is in SRC is meant, not SRC itself.
	contents bool
}

// inside names a path of the sandbox as the user may write it.
func (t *transfer) inside(p string) string { return string(t.key.Session) + ":" + p }

// abreast is how many files are under way at a time: each takes some messages
// to and fro, which is most of the time of a small one.
const abreast = 8

// all does f and what f asks for with also, until all is done or one has failed.
func (t *transfer) all(f func() error) error {
	outer := t.ctx
	t.ctx, t.cancel = context.WithCancel(t.ctx)
	defer t.cancel()
	t.slots = make(chan struct{}, abreast)
	t.failed(f())
	t.work.Wait()
	if err := outer.Err(); err != nil {
		return err
	}
	return t.err
}

// also does f beside others, later if many are being done.
func (t *transfer) also(f func() error) {
	t.slots <- struct{}{}
	t.work.Go(func() {
		defer func() { <-t.slots }()
		t.failed(f())
	})
}

// failed notes the first error, and ends the others' work.
func (t *transfer) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && t.err == nil {
		t.err = err
		t.cancel()
	}
}

func (t *transfer) leave(name, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left++
	t.progress.say("berth: left out %s: %s\n", oneLine(name), why)
}

// failure says what was being done and why it did not go. It names the files as
// the user knows them, and not as the layers below do, which work with others.
func failure(doing string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &copyError{doing + ": " + because(err), err}
}

type copyError struct {
	text string
	err  error
}

func (e *copyError) Error() string { return e.text }
func (e *copyError) Unwrap() error { return e.err }

// because says in words why something could not be done to a file.
func because(err error) string {
	for _, k := range []struct {
		kind error
		text string
	}{
		{fs.ErrNotExist, "there is no such file or directory"},
		{sandbox.ErrReadOnly, "read-only file system"},
		{fs.ErrPermission, "permission denied"},
		{sandbox.ErrIsDir, "it is a directory"},
		{syscall.EISDIR, "it is a directory"},
		{sandbox.ErrNotDir, "a part of the path is no directory"},
		{syscall.ENOTDIR, "a part of the path is no directory"},
		{sandbox.ErrNotRegular, "it is a device, FIFO or socket"},
		{fs.ErrExist, "there is something of that name already"},
		{syscall.ENOSPC, "the disk is full; free some space and try again"},
	} {
		if errors.Is(err, k.kind) {
			return k.text
		}
	}
	if e, ok := errors.AsType[*copyError](err); ok {
		return e.text
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}
