package toolbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"sync"

	"berth/sandbox"
)

// Bounds of searches.
const (
	maxMatches  = 50_000   // lines or names that one answer has
	maxFound    = 16 << 20 // bytes of lines and names that one answer has
	maxLine     = 64 << 10 // bytes; a longer line ends the search of its file
	sniffed     = 512      // bytes at a file's beginning in which a NUL makes it binary
	searchers   = 8        // files read at once
	maxReplaced = 1000     // files of one replace
)

// match is one line that holds the text looked for.
type match struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Content string `json:"content"`
}

var (
	errEnough  = errors.New("enough")
	errTooMuch = badRequest("pattern: more than 50,000 lines hold it, or lines of more than 16 MiB; look for a longer text, or in fewer files")
)

// matches are what is found so far.
type matches struct {
	list []match
	size int // bytes
}

// add fails when it is more than one answer has.
func (a *matches) add(found ...match) error {
	for _, m := range found {
		a.size += len(m.File) + len(m.Content)
	}
	a.list = append(a.list, found...)
	if len(a.list) > maxMatches || a.size > maxFound {
		return errTooMuch
	}
	return nil
}

// walk calls visit for what is at and below root, depth first, in order of
// names. Links are visited and not followed. What cannot be read is passed
// over: searches tell what they find.
func walk(ctx context.Context, files sandbox.Files, root string, visit func(name string, i sandbox.FileInfo) error) error {
	entries, err := files.ReadDir(ctx, root)
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, sandbox.ErrNotRunning) {
			return err
		}
		return nil // see above
	}
	for _, e := range entries {
		name := path.Join(root, path.Base(e.Path))
		if err := visit(name, e); err != nil {
			return err
		}
		if e.Mode.IsDir() {
			if err := walk(ctx, files, name, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// find searches files for a text: as it is, no pattern.
func (t *Toolbox) find(c *call) error {
	files, p, err := t.files(c, "path")
	if err != nil {
		return err
	}
	text := c.r.URL.Query().Get("pattern")
	if text == "" {
		return badRequest("pattern: it is missing; give the text to find")
	}
	c.args["pattern"] = text
	found, err := grep(c.ctx, files, p[0], []byte(text))
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, found)
}

// grep finds text in the files at and below root, in order.
func grep(ctx context.Context, files sandbox.Files, root string, text []byte) ([]match, error) {
	info, err := files.Stat(ctx, root)
	if errors.Is(err, fs.ErrNotExist) {
		return []match{}, nil
	}
	if err != nil {
		return nil, fileError(err, root)
	}
	if !info.Mode.IsDir() {
		found, err := grepFile(ctx, files, root, text)
		if err != nil {
			return nil, fileError(err, root)
		}
		return append([]match{}, found...), nil
	}
	// Files are read side by side; what they hold comes in order.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		found []match
		err   error
	}
	queue := make(chan chan result, searchers)
	var walked error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(queue)
		walked = walk(ctx, files, root, func(name string, i sandbox.FileInfo) error {
			if !i.Mode.IsRegular() {
				return nil
			}
			r := make(chan result, 1)
			select {
			case queue <- r: // its room is the bound of those at work
			case <-ctx.Done():
				return ctx.Err()
			}
			wg.Go(func() {
				found, err := grepFile(ctx, files, name, text)
				r <- result{found, err}
			})
			return nil
		})
	})
	all := matches{list: []match{}}
	for r := range queue {
		got := <-r
		switch {
		case err != nil: // the rest is not looked at
		case errors.Is(got.err, sandbox.ErrNotRunning), errors.Is(got.err, errTooMuch):
			err = got.err
		default:
			err = all.add(got.found...)
		}
		if err != nil {
			cancel()
		}
	}
	wg.Wait()
	return all.list, errors.Join(err, ignoreCancel(walked, err))
}

// ignoreCancel drops what a cancel of our own led to.
func ignoreCancel(err, cause error) error {
	if cause == nil {
		return err
	}
	return nil
}

func grepFile(ctx context.Context, files sandbox.Files, name string, text []byte) ([]match, error) {
	body, _, err := files.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	in := bufio.NewReaderSize(body, maxLine)
	if start, _ := in.Peek(sniffed); bytes.IndexByte(start, 0) >= 0 {
		return nil, nil
	}
	var found matches
	for n := 1; ctx.Err() == nil; n++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			break
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		if bytes.Contains(line, text) {
			if err := found.add(match{File: name, Line: n, Content: strings.ToValidUTF8(string(line), "\uFFFD")}); err != nil {
				return nil, err
			}
		}
		if err != nil { // the end, or all that can be read
			break
		}
	}
	return found.list, nil
}

// search finds files by the pattern of their names.
func (t *Toolbox) search(c *call) error {
	files, p, err := t.files(c, "path")
	if err != nil {
		return err
	}
	pattern := c.r.URL.Query().Get("pattern")
	if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
		return badRequest("pattern: %.80q is no pattern of file names; allowed: such as *.txt or [ab]?.go", pattern)
	}
	c.args["pattern"] = pattern
	if _, err := files.Stat(c.ctx, p[0]); err != nil {
		return fileError(err, p[0])
	}
	found, size := []string{}, 0
	err = walk(c.ctx, files, p[0], func(name string, _ sandbox.FileInfo) error {
		if ok, _ := path.Match(pattern, path.Base(name)); ok {
			size += len(name)
			if found = append(found, name); len(found) > maxMatches || size > maxFound {
				return errEnough
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return badRequest("pattern: more than 50,000 names match it, or names of more than 16 MiB; give a narrower one")
	}
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string][]string{"files": found})
}

// replace replaces a text in files by another, everywhere. Each file is
// rewritten at once or not at all, and as it is when it does not hold the text.
func (t *Toolbox) replace(c *call) error {
	var q struct {
		Files    []string `json:"files"`
		Pattern  string   `json:"pattern"`
		NewValue *string  `json:"newValue"`
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	c.args["files"], c.args["pattern"] = q.Files, q.Pattern
	switch {
	case len(q.Files) == 0:
		return badRequest("files: it is missing; give the paths of files")
	case len(q.Files) > maxReplaced:
		return badRequest("files: there are %d; at most 1,000 fit", len(q.Files))
	case q.Pattern == "":
		return badRequest("pattern: it is missing; give the text to be replaced")
	case q.NewValue == nil:
		return badRequest("newValue: it is missing; give the text to put there, which may be empty")
	}
	files, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return err
	}
	type result struct {
		File    string `json:"file"`
		Success bool   `json:"success"`
		Error   string `json:"error,omitempty"`
	}
	results := make([]result, len(q.Files))
	for i, name := range q.Files {
		results[i] = result{File: name, Success: true}
		p, err := absolute(info, "files", name)
		if err == nil {
			err = fileError(replaceIn(c.ctx, files, p, []byte(q.Pattern), []byte(*q.NewValue)), p)
		}
		if err != nil {
			if c.ctx.Err() != nil {
				return err
			}
			results[i].Success, results[i].Error = false, publicText(err, "")
		}
	}
	return c.answer(http.StatusOK, results)
}

// replaceIn streams a file through replacer, unless it does not hold old.
func replaceIn(ctx context.Context, files sandbox.Files, name string, old, replacement []byte) error {
	body, _, err := files.Open(ctx, name)
	if err != nil {
		return err
	}
	first := newReplacer(body, old, nil)
	_, err = io.Copy(io.Discard, first)
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	if err != nil || first.count == 0 {
		return err
	}
	if body, _, err = files.Open(ctx, name); err != nil {
		return err
	}
	defer body.Close()
	if _, err = files.Write(ctx, name, newReplacer(body, old, replacement), sandbox.WriteOptions{}); err != nil {
		return fmt.Errorf("write it: %w", err)
	}
	return nil
}

// replacer reads what r gives, with every old replaced, from the left. It holds
// no more than a piece of either, however often old is in it.
type replacer struct {
	r                io.Reader
	old, replacement []byte
	in               []byte // read and not yet looked through
	out, then        []byte // to be given, one after the other
	err              error
	count            int
}

func newReplacer(r io.Reader, old, replacement []byte) *replacer {
	return &replacer{r: r, old: old, replacement: replacement}
}

func (r *replacer) Read(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		if len(r.out) == 0 {
			err = r.next()
		}
		m := copy(p[n:], r.out)
		r.out, n = r.out[m:], n+m
	}
	if n > 0 {
		err = nil // it comes again
	}
	return n, err
}

// next finds what is to be given next, perhaps nothing yet.
func (r *replacer) next() error {
	if len(r.then) > 0 {
		r.out, r.then = r.then, nil
		return nil
	}
	if i := bytes.Index(r.in, r.old); i >= 0 {
		r.out, r.then, r.in = r.in[:i], r.replacement, r.in[i+len(r.old):]
		r.count++
		return nil
	}
	if r.err != nil {
		r.out, r.in = r.in, nil
		if len(r.out) == 0 {
			return r.err
		}
		return nil
	}
	keep := min(len(r.old)-1, len(r.in)) // what may be the beginning of another
	chunk := make([]byte, keep+max(64<<10, 2*len(r.old)))
	copy(chunk, r.in[len(r.in)-keep:])
	n, err := r.r.Read(chunk[keep:])
	r.out, r.in, r.err = r.in[:len(r.in)-keep], chunk[:keep+n], err
	return nil
}
