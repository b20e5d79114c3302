//go:build linux

package guest

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// mkdir makes a directory and what is missing above it.
func (g *guest) mkdir(r *wire.Mkdir) error {
	u, err := g.user(r.User)
	if err != nil {
		return err
	}
	if err := check(r.Path); err != nil {
		return err
	}
	if r.Mode > 0o7777 {
		return invalid("mode: must be permission bits, 0 to 07777")
	}
	return g.as(u, func() error {
		fd, err := dirAt(unix.AT_FDCWD, path.Clean(r.Path), r.Mode)
		if err != nil {
			return pathError(r.Path, err)
		}
		return unix.Close(fd)
	})
}

// symlink makes a link. What has its name, if anything, is replaced at once, so
// that nobody finds the name missing.
func (g *guest) symlink(r *wire.Symlink) error {
	u, err := g.user(r.User)
	if err != nil {
		return err
	}
	if err := check(r.Path); err != nil {
		return err
	}
	if r.Target == "" || strings.IndexByte(r.Target, 0) >= 0 {
		return invalid("target: must be a path without NUL bytes")
	}
	base := path.Base(r.Path)
	if base == "/" || base == "." || base == ".." || strings.HasSuffix(r.Path, "/") {
		return pathError(r.Path, unix.EISDIR)
	}
	return g.as(u, func() error {
		dir, err := dirAt(unix.AT_FDCWD, path.Dir(r.Path), 0o755)
		if err != nil {
			return pathError(r.Path, err)
		}
		defer unix.Close(dir)
		err = unix.Symlinkat(r.Target, dir, base)
		if err == unix.EEXIST {
			temp := ".berth-" + random()
			if err = unix.Symlinkat(r.Target, dir, temp); err == nil {
				if err = unix.Renameat(dir, temp, dir, base); err != nil {
					_ = unix.Unlinkat(dir, temp, 0)
				}
			}
		}
		if err != nil {
			return pathError(r.Path, err)
		}
		return nil
	})
}
