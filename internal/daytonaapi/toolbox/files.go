package toolbox

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"berth/sandbox"
)

// fileBody describes a file.
type fileBody struct {
	Name        string `json:"name"`
	Size        int64  `json:"size"`
	Mode        string `json:"mode"`
	ModTime     string `json:"modTime"`
	ModifiedAt  string `json:"modifiedAt"`
	IsDir       bool   `json:"isDir"`
	Owner       string `json:"owner"`
	Group       string `json:"group"`
	Permissions string `json:"permissions"`
	Path        string `json:"path"`
}

func fileOf(name string, i sandbox.FileInfo) fileBody {
	return fileBody{Name: path.Base(name), Size: i.Size, Mode: i.Mode.String(), ModTime: i.ModTime.UTC().String(),
		ModifiedAt: i.ModTime.UTC().Format(time.RFC3339Nano), IsDir: i.Mode.IsDir(), Owner: i.Owner, Group: i.Group,
		Permissions: fmt.Sprintf("%04o", uint32(i.Mode.Perm())), Path: name}
}

// home is where relative paths begin.
func home(i sandbox.Info) string {
	if i.Spec.WorkingDirectory != "" {
		return i.Spec.WorkingDirectory
	}
	return i.Home
}

// absolute makes a path of the caller's absolute.
func absolute(i sandbox.Info, field, p string) (string, error) {
	switch {
	case p == "":
		return "", badRequest("%s: it is missing; give a path", field)
	case len(p) > sandbox.MaxPath || !utf8.ValidString(p) || strings.ContainsRune(p, 0):
		return "", &apiError{status: http.StatusBadRequest, code: codeInvalidPath,
			text: field + ": it is too long, or holds a NUL byte or invalid UTF-8; allowed: at most 4,096 bytes of UTF-8"}
	case path.IsAbs(p):
		return path.Clean(p), nil
	}
	return path.Join(home(i), p), nil
}

// files opens the sandbox's files, and makes the query's paths absolute.
func (t *Toolbox) files(c *call, fields ...string) (sandbox.Files, []string, error) {
	f, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return nil, nil, err
	}
	q := c.r.URL.Query()
	paths := make([]string, len(fields))
	for i, field := range fields {
		if paths[i], err = absolute(info, field, q.Get(field)); err != nil {
			return nil, nil, err
		}
		c.args[field] = paths[i]
	}
	return f, paths, nil
}

// fileError says what went wrong with a file; the kind stays.
func fileError(err error, name string) error {
	e := new(apiError)
	if err == nil || errors.As(err, &e) {
		return err
	}
	text := ""
	switch {
	case errors.Is(err, sandbox.ErrNotRunning), errors.Is(err, sandbox.ErrNotFound):
		return err
	case errors.Is(err, fs.ErrNotExist):
		text = "no such file or directory"
	case errors.Is(err, sandbox.ErrReadOnly): // before fs.ErrPermission, which it is too
		text = "it is on a read-only file system; write elsewhere"
	case errors.Is(err, fs.ErrPermission):
		text = "permission denied"
	case errors.Is(err, fs.ErrExist):
		text = "it exists already"
	case errors.Is(err, sandbox.ErrIsDir):
		text = "it is a directory"
	case errors.Is(err, sandbox.ErrNotDir):
		text = "a part of the path is not a directory"
	case errors.Is(err, sandbox.ErrNotRegular):
		text = "it is a device, FIFO or socket, not a file"
	case errors.Is(err, syscall.ENOSPC):
		text = "the disk is full"
	case errors.Is(err, syscall.EBUSY):
		text = "it is in use: something is mounted there"
	default:
		return err
	}
	status, code := describe(err)
	return &apiError{status: status, code: code, text: name + ": " + text}
}

func (t *Toolbox) fileInfo(c *call) error {
	files, p, err := t.files(c, "path")
	if err != nil {
		return err
	}
	i, err := files.Stat(c.ctx, p[0])
	if err != nil {
		return fileError(err, p[0])
	}
	return c.answer(http.StatusOK, fileOf(p[0], i))
}

// Bounds of a list of files: how many, and the bytes of their names.
const (
	maxListed = 100_000
	maxNames  = 16 << 20
)

// listFiles lists a directory, and with depth what is below. Links are shown as
// what they lead to; those that lead nowhere are left out.
func (t *Toolbox) listFiles(c *call) error {
	files, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return err
	}
	q := c.r.URL.Query()
	root := home(info)
	if q.Has("path") && q.Get("path") != "" {
		if root, err = absolute(info, "path", q.Get("path")); err != nil {
			return err
		}
	}
	depth := 1
	if d := q.Get("depth"); d != "" {
		if depth, err = strconv.Atoi(d); err != nil || depth < 1 {
			return badRequest("depth: %.40q does not fit; allowed: 1 or more", d)
		}
	}
	list, size := []fileBody{}, 0
	dirs := []string{root}
	for ; depth > 0 && len(dirs) > 0; depth-- {
		var below []string
		for _, dir := range dirs {
			entries, err := files.ReadDir(c.ctx, dir)
			if err != nil {
				if dir != root && statusOf(fileError(err, dir)) < 500 {
					continue // gone, or closed to the user
				}
				return fileError(err, dir)
			}
			for _, e := range entries {
				name := path.Join(dir, path.Base(e.Path))
				link := e.Mode&fs.ModeSymlink != 0
				if link {
					if e, err = files.Stat(c.ctx, name); err != nil {
						continue
					}
				} else if e.Mode.IsDir() {
					below = append(below, name)
				}
				list = append(list, fileOf(name, e))
				size += len(name)
			}
			if len(list) > maxListed || size > maxNames {
				return badRequest("path: there are more than 100,000 files below %s, or their names have more than 16 MiB; list a part of it, or with less depth", root)
			}
		}
		dirs = below
	}
	return c.answer(http.StatusOK, list)
}

// parseMode reads permission bits in octal digits.
func parseMode(s string) (fs.FileMode, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, badRequest("mode: %.40q does not fit; allowed: permission bits in octal digits, such as 0755", s)
	}
	m := fs.FileMode(n & 0o777)
	for bit, go1 := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if n&bit != 0 {
			m |= go1
		}
	}
	return m, nil
}

func (t *Toolbox) createFolder(c *call) error {
	mode := fs.FileMode(0o755)
	if s := c.r.URL.Query().Get("mode"); s != "" {
		var err error
		if mode, err = parseMode(s); err != nil {
			return err
		}
	}
	files, p, err := t.files(c, "path")
	if err != nil {
		return err
	}
	if err := files.Mkdir(c.ctx, p[0], mode); err != nil {
		return fileError(err, p[0])
	}
	return c.empty(http.StatusCreated)
}

// deleteFile removes a file or a link, and with recursive a directory.
func (t *Toolbox) deleteFile(c *call) error {
	files, p, err := t.files(c, "path")
	if err != nil {
		return err
	}
	recursive, _ := strconv.ParseBool(c.r.URL.Query().Get("recursive"))
	remover, can := files.(sandbox.FileRemover)
	if !can {
		return unsupported("removing files")
	}
	err = remover.Remove(c.ctx, p[0], recursive)
	switch {
	case errors.Is(err, sandbox.ErrIsDir):
		return &apiError{status: http.StatusBadRequest, code: codeInvalidPath, text: p[0] + ": it is a directory; recursive=true removes it with all in it"}
	case errors.Is(err, sandbox.ErrNotEmpty):
		err = t.tool(c, nil, "rm", "-rf", "--", p[0])
	}
	if err != nil {
		return fileError(err, p[0])
	}
	return c.empty(http.StatusNoContent)
}

func unsupported(what string) error {
	return &apiError{status: http.StatusNotImplemented, code: codeNotImplemented, text: "the sandbox's provider does not support " + what}
}

// moveFile gives a file or directory another name. It replaces nothing.
func (t *Toolbox) moveFile(c *call) error {
	files, p, err := t.files(c, "source", "destination")
	if err != nil {
		return err
	}
	renamer, can := files.(sandbox.FileRenamer)
	if !can {
		return unsupported("moving files")
	}
	err = renamer.Rename(c.ctx, p[0], p[1])
	switch {
	case errors.Is(err, syscall.EXDEV):
		// Other file systems, or a directory of a lower layer: by copying.
		err = t.tool(c, nil, "mv", "-T", "--", p[0], p[1])
	case errors.Is(err, fs.ErrExist):
		return &apiError{status: http.StatusConflict, code: codeConflict, text: p[1] + ": it exists already; remove it first, or give another destination"}
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := files.Stat(c.ctx, p[0]); serr == nil {
			return fileError(err, path.Dir(p[1]))
		}
	}
	if err != nil {
		return fileError(err, p[0])
	}
	return c.empty(http.StatusOK)
}

func (t *Toolbox) setPermissions(c *call) error {
	q := c.r.URL.Query()
	want := sandbox.Permissions{Owner: q.Get("owner"), Group: q.Get("group")}
	if s := q.Get("mode"); s != "" {
		mode, err := parseMode(s)
		if err != nil {
			return err
		}
		want.Mode = &mode
	}
	files, p, err := t.files(c, "path")
	if err != nil {
		return err
	}
	permitter, can := files.(sandbox.FilePermitter)
	if !can {
		return unsupported("changing permissions")
	}
	if err := permitter.Permit(c.ctx, p[0], want); err != nil {
		return fileError(err, p[0])
	}
	return c.empty(http.StatusOK)
}
