package dockerfile

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"berth/sandbox"
)

// Context finds the files of the directory dir that b's copy steps may name, but
// for those that .dockerignore leaves out; ignore, if it is there, counts
// instead. Every file is read once, for its digest. Links are kept as they are.
func Context(b sandbox.Build, dir, ignore string) (map[string]sandbox.BuildFile, error) {
	named := sources(b)
	files := map[string]sandbox.BuildFile{}
	if len(named) == 0 {
		return files, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	skip, err := ignored(root, ignore)
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == "." {
			return nil
		}
		out, err := skip.MatchesOrParentMatches(filepath.FromSlash(name))
		if err != nil {
			return fmt.Errorf(".dockerignore: %w", err)
		}
		if d.IsDir() && (out && !skip.Exclusions() || !leads(named, name)) {
			return fs.SkipDir
		}
		if out || !wanted(named, name) {
			return nil
		}
		if len(files) == sandbox.MaxBuildFiles {
			return fmt.Errorf("there are more than %d files to copy; name fewer in COPY, or leave some out in .dockerignore", sandbox.MaxBuildFiles)
		}
		files[name], err = contextFile(dir, root, name)
		return err
	})
	return files, err
}

func contextFile(dir string, root *os.Root, name string) (sandbox.BuildFile, error) {
	fi, err := root.Lstat(name)
	if err != nil {
		return sandbox.BuildFile{}, err
	}
	f := sandbox.BuildFile{Mode: fi.Mode() & (fs.ModePerm | fs.ModeDir | fs.ModeSymlink), Size: fi.Size()}
	switch {
	case fi.IsDir():
		return f, nil
	case fi.Mode()&fs.ModeSymlink != 0:
		f.Link, err = root.Readlink(name)
		return f, err
	case !fi.Mode().IsRegular():
		return f, fmt.Errorf("%s is neither file, directory nor link; leave it out in .dockerignore", name)
	}
	f.Open = func() (io.ReadCloser, error) {
		r, err := os.OpenRoot(dir) // a link that came since leads nowhere outside
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return r.Open(name)
	}
	r, err := f.Open()
	if err != nil {
		return f, err
	}
	defer r.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, r)
	f.Digest = hex.EncodeToString(sum.Sum(nil))
	return f, err
}

// ignored reads what is left out.
func ignored(root *os.Root, file string) (*patternmatcher.PatternMatcher, error) {
	var f io.ReadCloser
	err := fs.ErrNotExist
	if file != "" {
		f, err = os.Open(file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		f, err = root.Open(".dockerignore")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return patternmatcher.New(nil)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := ignorefile.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf(".dockerignore: %w", err)
	}
	return patternmatcher.New(list)
}

// sources are what copy steps may name: paths, up to the first sign that is
// more than text. "" is everything.
func sources(b sandbox.Build) []string {
	var list []string
	for _, s := range b.Steps {
		for _, w := range s.Copy.From {
			text := strings.Trim(w, `"`)
			cut := strings.IndexAny(text, "$*?['\"\\")
			if cut >= 0 {
				text = path.Dir("/" + text[:cut] + "x")
			}
			list = append(list, path.Clean("/" + text)[1:])
		}
	}
	return list
}

// wanted tells whether one of the named paths is name, or has it within.
func wanted(named []string, name string) bool {
	for _, n := range named {
		if n == "" || n == name || strings.HasPrefix(name, n+"/") {
			return true
		}
	}
	return false
}

// leads tells whether a directory is wanted or has what is.
func leads(named []string, dir string) bool {
	for _, n := range named {
		if strings.HasPrefix(n, dir+"/") {
			return true
		}
	}
	return wanted(named, dir)
}
