//go:build linux

package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"berth/internal/dockerfile"
	"berth/sandbox"
)

// placed is a file and where it goes.
type placed struct {
	from string // in Build.Files; for errors
	to   string // inside, absolute
	file sandbox.BuildFile
}

// copy does a step that copies files, as root.
func (w *builder) copy(ctx context.Context, c *sandbox.BuildCopy) error {
	owner, err := dockerfile.Expand(c.Owner, w.vars())
	if err != nil {
		return wrong("%v", err)
	}
	if owner == "" && w.o.image == nil && w.user != "root" {
		owner = w.user // in the default root, which no Dockerfile knows
	}
	to, err := w.absolute(c.To)
	if err != nil {
		return err
	}
	found, err := w.find(c)
	if err != nil {
		return err
	}
	// What a file's place is may depend on what is there; so the key has both.
	what := []any{"copy", to, owner}
	for _, f := range found {
		mode := f.file.Mode
		if c.Mode != nil && mode&fs.ModeSymlink == 0 {
			mode = mode.Type() | *c.Mode
		}
		f.file.Mode = mode
		what = append(what, []any{f.from, f.to, mode, f.file.Digest, f.file.Link})
	}
	return w.layer(ctx, what, func(ctx context.Context) error { return w.place(ctx, c, found, to, owner) })
}

// find lists the files that a step copies, in order. Their places are relative
// to the destination; "" for a file that the destination may name itself.
func (w *builder) find(c *sandbox.BuildCopy) ([]*placed, error) {
	vars := w.vars()
	var out []*placed
	for _, word := range c.From {
		name, err := dockerfile.Expand(word, vars)
		if err != nil {
			return nil, wrong("%v", err)
		}
		clean := path.Clean("/" + name)[1:]
		if name == "" || strings.HasPrefix(path.Clean(name), "../") || path.Clean(name) == ".." {
			return nil, wrong("%.200q leads out of the files that are given", name)
		}
		got, err := w.match(name, clean)
		if err != nil {
			return nil, err
		}
		if c.Unpack {
			for _, f := range got {
				if packed(f.file) {
					return nil, wrong("ADD would unpack the archive %.200q, which is not possible here; COPY it, and unpack it in RUN", f.from)
				}
			}
		}
		out = append(out, got...)
	}
	for _, d := range c.Inline {
		text := d.Content
		if d.Expand {
			var err error
			if text, err = dockerfile.ExpandText(text, vars); err != nil {
				return nil, wrong("%s: %v", d.Name, err)
			}
		}
		out = append(out, &placed{from: d.Name, file: sandbox.TextFile(text)})
	}
	return out, nil
}

// match finds what a name or pattern means: a file, or what is in a directory.
func (w *builder) match(name, clean string) ([]*placed, error) {
	var out []*placed
	under := func(dir string) {
		for _, f := range slices.Sorted(maps.Keys(w.b.Files)) {
			if rest, ok := strings.CutPrefix(f, dir); ok && rest != "" {
				out = append(out, &placed{from: f, to: rest, file: w.b.Files[f]})
			}
		}
	}
	if clean == "" {
		under("")
	} else if f, ok := w.b.Files[clean]; ok && !f.Mode.IsDir() {
		return []*placed{{from: clean, file: f}}, nil
	} else if under(clean + "/"); len(out) == 0 && ok {
		return nil, nil // an empty directory
	} else if len(out) == 0 && strings.ContainsAny(clean, "*?[") {
		// A pattern matches whole paths, of files and of directories.
		seen := map[string]bool{}
		depth := strings.Count(clean, "/")
		for _, f := range slices.Sorted(maps.Keys(w.b.Files)) {
			parts := strings.Split(f, "/")
			if len(parts) <= depth {
				continue
			}
			at := strings.Join(parts[:depth+1], "/")
			ok, err := path.Match(clean, at)
			if err != nil {
				return nil, wrong("%.200q is no pattern", name)
			}
			if !ok || seen[at] {
				continue
			}
			seen[at] = true
			if got := w.b.Files[f]; at == f && !got.Mode.IsDir() {
				out = append(out, &placed{from: f, file: got})
			} else {
				under(at + "/")
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if len(w.b.Files) == 0 {
		return nil, wrong("there is no file %.200q: no file for COPY is given; create_snapshot takes them as files {path: content}, berth snapshot create from the directory of --context", name)
	}
	names := slices.Sorted(maps.Keys(w.b.Files))
	more := ""
	if len(names) > 10 {
		names, more = names[:10], ", …"
	}
	return nil, wrong("there is no file %.200q among those that are given: %s%s", name, strings.Join(names, ", "), more)
}

// place puts the files where they belong in the step's sandbox.
func (w *builder) place(ctx context.Context, c *sandbox.BuildCopy, found []*placed, to, owner string) error {
	files := w.in.Files()
	dir := strings.HasSuffix(to, "/") || to == "/" || len(found) != 1 || found[0].to != ""
	if !dir {
		if i, err := files.Stat(ctx, to); err == nil && i.Mode.IsDir() {
			dir = true
		}
	}
	var given, replaced []string // what was made, and what was there
	mkdir := func(p string) error {
		made, err := w.mkdir(ctx, p, 0o755)
		given = append(given, made...)
		return err
	}
	if dir {
		if err := mkdir(to); err != nil {
			return err
		}
	}
	for _, f := range found {
		at := to
		if dir {
			rest := f.to
			if rest == "" {
				rest = path.Base(f.from)
			}
			at = path.Join(to, rest)
		}
		if f.file.Mode.IsDir() {
			if err := mkdir(at); err != nil {
				return err
			}
			continue
		}
		if err := mkdir(path.Dir(at)); err != nil {
			return err
		}
		if f.file.Mode&fs.ModeSymlink != 0 {
			if err := files.Symlink(ctx, f.file.Link, at); err != nil {
				return placeFault(at, err)
			}
			given = append(given, at)
			continue
		}
		res, err := w.write(ctx, files, at, f)
		if err != nil {
			return err
		}
		if given = append(given, res.Path); !res.Created {
			replaced = append(replaced, res.Path)
		}
	}
	switch {
	case single(w.ids): // everybody is one
		return nil
	case owner != "":
		return w.chown(ctx, owner, given)
	case len(replaced) == 0:
		return nil
	}
	var exit *exitFault
	if err := w.chown(ctx, "0:0", replaced); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// write copies one file, and finds out whether it is still the one that was
// counted on.
func (w *builder) write(ctx context.Context, files sandbox.Files, at string, f *placed) (sandbox.WriteResult, error) {
	r, err := f.file.Open()
	if err != nil {
		return sandbox.WriteResult{}, wrong("the file %.200q cannot be read: %v", f.from, reason(err))
	}
	defer r.Close()
	sum := sha256.New()
	mode := f.file.Mode.Perm()
	res, err := files.Write(ctx, at, io.TeeReader(r, sum), sandbox.WriteOptions{Mode: &mode})
	if err != nil {
		return res, placeFault(at, err)
	}
	if f.file.Digest != "" && hex.EncodeToString(sum.Sum(nil)) != f.file.Digest {
		return res, wrong("the file %.200q changed while it was copied; build again", f.from)
	}
	return res, nil
}

func placeFault(at string, err error) error {
	switch {
	case errors.Is(err, sandbox.ErrIsDir):
		return wrong("%.200s is a directory in the sandbox, and a file would take its place", at)
	case errors.Is(err, sandbox.ErrNotDir):
		return wrong("%.200s leads through something that is no directory in the sandbox", at)
	case errors.Is(err, sandbox.ErrNotRegular):
		return wrong("%.200s is a device, pipe or socket in the sandbox", at)
	case errors.Is(err, fs.ErrPermission):
		return wrong("%.200s cannot be written in the sandbox", at)
	}
	return fmt.Errorf("copy to %s: %w", at, err)
}

// mkdir makes a directory and what is missing above it, and tells what it made.
func (w *builder) mkdir(ctx context.Context, p string, mode fs.FileMode) ([]string, error) {
	files := w.in.Files()
	p = path.Clean(p)
	var made []string
	for at := p; at != "/"; at = path.Dir(at) {
		i, err := files.Stat(ctx, at)
		if err == nil && i.Mode.IsDir() {
			break
		}
		if err == nil {
			return nil, wrong("%.200s is no directory in the sandbox", at)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, placeFault(at, err)
		}
		made = append(made, at)
	}
	if len(made) == 0 {
		return nil, nil
	}
	slices.Reverse(made)
	if err := files.Mkdir(ctx, p, mode); err != nil {
		return nil, placeFault(p, err)
	}
	return made, nil
}

// chown gives files to a user by the sandbox's own program, which knows its
// names.
func (w *builder) chown(ctx context.Context, owner string, paths []string) error {
	for list := range slices.Chunk(paths, 500) {
		c := sandbox.Command{Argv: append([]string{"chown", "-h", "--", owner}, list...), Display: "chown", Cwd: "/", User: "root", Env: map[string]string{}, Timeout: buildStepTime, Busy: true}
		if err := w.exec(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// enter makes a directory the working directory; a new one belongs to the user
// whose commands run there.
func (w *builder) enter(ctx context.Context, word string) error {
	dir, err := w.absolute(word)
	if err != nil {
		return err
	}
	dir = path.Clean(dir)
	if !utf8.ValidString(dir) {
		return wrong("%.200q is not UTF-8", dir)
	}
	err = w.layer(ctx, []any{"workdir", dir, w.user}, func(ctx context.Context) error {
		made, err := w.mkdir(ctx, dir, 0o755)
		if err != nil || len(made) == 0 || w.user == "" || w.user == "root" || w.user == "0" {
			return err
		}
		// Without that program it is root's, as docker build makes it.
		var exit *exitFault
		if err := w.chown(ctx, w.user, made[len(made)-1:]); err != nil && !(errors.As(err, &exit) && exit.code == nil) {
			return err
		}
		return nil
	})
	if err == nil {
		w.workDir = dir
	}
	return err
}

// packed tells whether ADD would unpack a file.
func packed(f sandbox.BuildFile) bool {
	if !f.Mode.IsRegular() || f.Open == nil {
		return false
	}
	r, err := f.Open()
	if err != nil {
		return false // said when it is copied
	}
	defer r.Close()
	b := make([]byte, 262)
	n, _ := io.ReadFull(r, b)
	b = b[:n]
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(b, []byte(magic)) {
			return true
		}
	}
	return n == 262 && string(b[257:]) == "ustar"
}
