package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"berth/sandbox"
)

type copyCommand struct {
	Quiet bool   `short:"q" help:"Show no progress."`
	Src   string `arg:"" help:"A path here, or ID:PATH."`
	Dst   string `arg:"" help:"A path here, or ID:PATH."`
}

// Help is shown by --help.
func (*copyCommand) Help() string {
	return "One side is ID:PATH; a relative PATH counts from the sandbox's home. Directories are copied with all that " +
		"is in them. A DST that is a directory, or ends in /, receives SRC under its own name, or, when SRC ends in /., " +
		"what is in it. Symbolic links stay " +
		"links on the way in; on the way out links to files become files, and other links are left out and named. " +
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
	b, err := a.open()
	if err != nil {
		return err
	}
	defer b.close()
	key, err := b.find(a.ctx, src.id+dst.id)
	if err != nil {
		return err
	}
	files, info, err := b.Files(a.ctx, key)
	if err != nil {
		return err
	}
	t := &transfer{contents: strings.HasSuffix(src.path, "/.") || src.path == ".", ctx: a.ctx, files: files, app: a, bench: b, key: key, progress: newProgress(a, c.Quiet)}
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
	bench    *bench
	key      sandbox.Key
	progress *progress
	left     int // entries left out
	// contents tells that what is in SRC is meant, not SRC itself.
	contents bool
}

func (t *transfer) leave(name, why string) {
	t.left++
	t.progress.clear()
	fmt.Fprintf(t.app.Stderr, "berth: left out %s: %s\n", oneLine(name), why)
}

// in copies a file or directory of ours to dst inside.
func (t *transfer) in(src, dst string) error {
	info, err := os.Stat(src)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	at, serr := t.files.Stat(t.ctx, dst)
	if serr != nil && !errors.Is(serr, fs.ErrNotExist) {
		return fmt.Errorf("copy to %s: %w", dst, serr)
	}
	if !t.contents && (strings.HasSuffix(dst, "/") || serr == nil && at.Mode.IsDir()) {
		absolute, err := filepath.Abs(src)
		if err != nil {
			return err
		}
		dst = path.Join(dst, filepath.Base(absolute))
	}
	if !info.IsDir() {
		return t.fileIn(src, dst, info)
	}
	var empty, links []string
	err = filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		target := path.Join(dst, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			entries, err := os.ReadDir(p)
			if err == nil && len(entries) == 0 {
				empty = append(empty, target)
			}
			return err
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			links = append(links, to, target)
			return nil
		case !d.Type().IsRegular():
			t.leave(p, "it is no file, directory or link")
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return t.fileIn(p, target, info)
	})
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return t.extras(empty, links)
}

// extras makes what Files cannot: empty directories and links, with the
// sandbox's own programs. links holds targets and names in turn.
func (t *transfer) extras(empty, links []string) error {
	for len(empty) > 0 {
		n := min(len(empty), 500)
		if err := t.command(append([]string{"mkdir", "-p", "--"}, empty[:n]...)); err != nil {
			return err
		}
		empty = empty[n:]
	}
	for i := 0; i < len(links); i += 2 {
		if err := t.command([]string{"mkdir", "-p", "--", path.Dir(links[i+1])}); err != nil {
			return err
		}
		if err := t.command([]string{"ln", "-sfn", "--", links[i], links[i+1]}); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) command(argv []string) error {
	r, err := t.bench.ExecuteCommand(t.ctx, t.key, sandbox.RunRequest{Argv: argv})
	if err != nil {
		return err
	}
	if code := r.Process.ExitCode; code == nil || *code != 0 {
		return fmt.Errorf("%s in the sandbox: %s", argv[0], strings.TrimSpace(r.Stderr.Head+r.Stderr.Tail))
	}
	return nil
}

func (t *transfer) fileIn(src, dst string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("copy %s: it is no regular file", src)
	}
	f, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer f.Close()
	t.progress.file(src, info.Size())
	mode := info.Mode().Perm()
	if _, err := t.files.Write(t.ctx, dst, t.progress.reader(f), sandbox.WriteOptions{Mode: &mode}); err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, err)
	}
	return nil
}

// out copies a file or directory inside to dst here. The sandbox is not
// trusted: what it names is only ever made beneath dst.
func (t *transfer) out(src, dst string) error {
	info, err := t.files.Stat(t.ctx, src)
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	trailing := strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, string(filepath.Separator))
	if at, err := os.Stat(dst); !t.contents && (trailing || err == nil && at.IsDir()) {
		name := path.Base(src)
		if name == "/" || name == "." {
			name = "root"
		}
		dst = filepath.Join(dst, filepath.FromSlash(name))
	}
	if !info.Mode.IsDir() {
		parent := filepath.Dir(dst)
		root, err := os.OpenRoot(parent)
		if err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		defer root.Close()
		return t.fileOut(src, root, filepath.Base(dst))
	}
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	root, err := os.OpenRoot(dst)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer root.Close()
	return t.directoryOut(src, root, ".", 0)
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
		return fmt.Errorf("copy %s: %w", src, err)
	}
	for _, e := range entries {
		name := path.Base(e.Path)
		if !filepath.IsLocal(name) || strings.ContainsAny(name, `/`+string(filepath.Separator)) {
			t.leave(e.Path, "its name cannot be used here")
			continue
		}
		from, to := path.Join(src, name), filepath.Join(rel, name)
		switch {
		case e.Mode.IsDir():
			if err := root.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("copy %s: %w", from, err)
			}
			if err := t.directoryOut(from, root, to, depth+1); err != nil {
				return err
			}
		case e.Mode.IsRegular(), e.Mode&fs.ModeSymlink != 0:
			err := t.fileOut(from, root, to)
			switch {
			case e.Mode.IsRegular() || err == nil:
				if err != nil {
					return err
				}
			case errors.Is(err, sandbox.ErrIsDir):
				t.leave(from, "it is a link to a directory")
			case errors.Is(err, fs.ErrNotExist):
				t.leave(from, "it is a link to nothing")
			default:
				t.leave(from, err.Error())
			}
		default:
			t.leave(from, "it is no file, directory or link")
		}
	}
	return nil
}

// fileOut writes a file beneath root, and puts it in its place when it is whole.
func (t *transfer) fileOut(src string, root *os.Root, name string) error {
	r, info, err := t.files.Open(t.ctx, src)
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	defer r.Close()
	t.progress.file(src, info.Size)
	part := fmt.Sprintf("%s.part-%d", name, os.Getpid())
	f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode.Perm()|0o600)
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	_, err = io.Copy(f, t.progress.reader(contextReader{t.ctx, r}))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(part, name)
	}
	if err != nil {
		_ = root.Remove(part) // the first error tells more
		return fmt.Errorf("copy %s: %w", src, err)
	}
	return nil
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

// progress draws one line on a terminal; elsewhere it is silent.
type progress struct {
	app           *App
	on, drawn     bool
	started, last time.Time
	files         int
	bytes         int64 // in all
	name          string
	done, size    int64 // of the present file
}

func newProgress(a *App, quiet bool) *progress {
	return &progress{app: a, on: !quiet && a.terminal(a.Stderr), started: time.Now()}
}

func (p *progress) file(name string, size int64) {
	p.files++
	p.name, p.done, p.size = name, 0, size
}

func (p *progress) reader(r io.Reader) io.Reader { return progressReader{p, r} }

type progressReader struct {
	p *progress
	r io.Reader
}

func (r progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.p.done += int64(n)
	r.p.bytes += int64(n)
	if now := time.Now(); r.p.on && now.Sub(r.p.last) > 50*time.Millisecond && now.Sub(r.p.started) > 200*time.Millisecond {
		r.p.last = now
		r.p.draw()
	}
	return n, err
}

func (p *progress) draw() {
	const cells = 24
	filled := cells
	if p.size > 0 {
		filled = int(min(p.done, p.size) * cells / p.size)
	}
	bar := strings.Repeat("█", filled) + strings.Repeat("░", cells-filled)
	name := oneLine(p.name)
	if r := []rune(name); len(r) > 30 {
		name = "…" + string(r[len(r)-29:])
	}
	p.drawn = true
	fmt.Fprintf(p.app.Stderr, "\r\x1b[K%s %s  %s of %s  %s/s", p.app.paint(p.app.Stderr, "36", bar), name, size(p.done), size(p.size), size(p.rate()))
}

func (p *progress) rate() int64 {
	return int64(float64(p.bytes) / max(time.Since(p.started).Seconds(), 0.001))
}

func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.app.Stderr, "\r\x1b[K")
	}
}

func (p *progress) end(ok bool) {
	p.clear()
	if p.on && ok {
		files := "1 file"
		if p.files != 1 {
			files = fmt.Sprintf("%d files", p.files)
		}
		fmt.Fprintf(p.app.Stderr, "%s, %s, %s/s\n", files, size(p.bytes), size(p.rate()))
	}
}
