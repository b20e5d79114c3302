//go:build linux

package guest

import (
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// nameAt opens the directory that name stands in.
func nameAt(name string) (dir int, base string, err error) {
	clean := path.Clean(name)
	base = path.Base(clean)
	if base == "/" || base == "." || base == ".." {
		return -1, "", unix.EBUSY // the root, which nobody removes or moves
	}
	dir, err = at(unix.AT_FDCWD, path.Dir(clean), unix.O_PATH|unix.O_DIRECTORY)
	if err == nil && onProc(dir) {
		_ = unix.Close(dir)
		return -1, "", errProc
	}
	return dir, base, err
}

// remove removes a file or a link (and not what it leads to), or an empty
// directory.
func (g *guest) remove(r *wire.Remove) error {
	u, err := g.user(r.User)
	if err != nil {
		return err
	}
	if err := check(r.Path); err != nil {
		return err
	}
	return g.as(u, func() error {
		dir, base, err := nameAt(r.Path)
		if err != nil {
			return pathError(r.Path, err)
		}
		defer unix.Close(dir)
		err = unix.Unlinkat(dir, base, 0)
		if err == unix.EISDIR && r.Directories {
			err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
		}
		if err != nil {
			return pathError(r.Path, err)
		}
		return nil
	})
}

// rename moves a name. What has the new one already stays as it is.
func (g *guest) rename(r *wire.Rename) error {
	u, err := g.user(r.User)
	if err != nil {
		return err
	}
	for _, name := range []string{r.From, r.To} {
		if err := check(name); err != nil {
			return err
		}
	}
	return g.as(u, func() error {
		from, fromBase, err := nameAt(r.From)
		if err != nil {
			return pathError(r.From, err)
		}
		defer unix.Close(from)
		var st unix.Stat_t
		if err := unix.Fstatat(from, fromBase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError(r.From, err)
		}
		to, toBase, err := nameAt(r.To)
		if err != nil {
			return pathError(r.To, err)
		}
		defer unix.Close(to)
		err = unix.Renameat2(from, fromBase, to, toBase, unix.RENAME_NOREPLACE)
		if err == unix.EINVAL {
			// A file system that cannot do it in one step.
			if err = unix.Fstatat(to, toBase, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
				err = unix.EEXIST
			} else if err == unix.ENOENT {
				err = unix.Renameat(from, fromBase, to, toBase)
			}
		}
		if err != nil {
			return pathError(r.To, err)
		}
		return nil
	})
}

// permit changes mode and owner, through links.
func (g *guest) permit(r *wire.Permit) error {
	u, err := g.user(r.User)
	if err != nil {
		return err
	}
	if err := check(r.Path); err != nil {
		return err
	}
	if r.Mode < -1 || r.Mode > 0o7777 {
		return invalid("mode: must be permission bits, 0 to 07777, or -1")
	}
	uid, gid := -1, -1
	if r.Owner != "" {
		owner, err := g.user(r.Owner)
		if err != nil {
			return err
		}
		uid = int(owner.UID)
	}
	if r.Group != "" {
		if gid, err = g.groupID(r.Group); err != nil {
			return err
		}
	}
	return g.as(u, func() error {
		fd, st, err := g.resolve(r.Path)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		name := strconv.Itoa(fd)
		// Owners first: a change of them clears set-id bits.
		if uid == int(st.Uid) {
			uid = -1
		}
		if gid == int(st.Gid) {
			gid = -1
		}
		if uid >= 0 || gid >= 0 {
			if err := unix.Fchownat(g.self, name, uid, gid, 0); err != nil {
				return pathError(r.Path, err)
			}
		}
		if r.Mode >= 0 {
			if err := unix.Fchmodat(g.self, name, uint32(r.Mode), 0); err != nil {
				return pathError(r.Path, err)
			}
		}
		return nil
	})
}

// groupID finds a group by name, in the sandbox's own file, or by number.
func (g *guest) groupID(name string) (int, error) {
	for line := range strings.SplitSeq(slurp("/etc/group"), "\n") {
		f := strings.Split(line, ":")
		if len(f) != 4 || f[0] != name {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			return int(gid), nil
		}
	}
	if gid, err := strconv.ParseUint(name, 10, 32); err == nil && gid <= g.maxID() {
		return int(gid), nil
	}
	return 0, &wire.Error{Code: wire.CodeNoUser, Text: "there is no group " + strconv.Quote(name) + " in the sandbox; use one of its /etc/group, or a number"}
}
