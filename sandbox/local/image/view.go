//go:build linux

package image

import (
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// View reads files of layers as an overlay of them would show them, without
// mounting anything. Its paths are absolute; links are followed as inside.
type View struct {
	// Dirs are the layers, the topmost first.
	Dirs []string
}

// links bounds how many links a path may lead through.
const links = 40

// find resolves name to a file of one of the layers; ok tells whether there is
// one. It follows links itself, so that none leads out of the layers.
func (v View) find(name string) (file string, st unix.Stat_t, ok bool) {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "/"
	from := len(v.Dirs) // how many layers show the directory at
	depth := []int{}
	hops := 0
	if rest[0] == "" {
		return "", st, false
	}
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if at != "/" {
				at = path.Dir(at)
				from, depth = depth[len(depth)-1], depth[:len(depth)-1]
			}
			continue
		}
		next := path.Join(at, part)
		found := -1
		for i := range from {
			p := filepath.Join(v.Dirs[i], next)
			if !v.plain(i, at) {
				continue
			}
			if unix.Lstat(p, &st) != nil {
				if v.hides(i, at) {
					break
				}
				continue
			}
			if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
				break // removed
			}
			found = i
			break
		}
		if found < 0 {
			return "", st, false
		}
		file = filepath.Join(v.Dirs[found], next)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if hops++; hops > links {
				return "", st, false
			}
			to, err := os.Readlink(file)
			if err != nil {
				return "", st, false
			}
			if path.IsAbs(to) {
				at, from, depth = "/", len(v.Dirs), nil
			}
			rest = append(strings.Split(to, "/"), rest...)
		case unix.S_IFDIR:
			depth = append(depth, from)
			at = next
			// Layers below one that hides do not count any more.
			for i := range from {
				if v.plain(i, next) && v.hides(i, next) {
					from = i + 1
					break
				}
			}
		default:
			if len(rest) > 0 {
				return "", st, false
			}
		}
	}
	if at != "/" && file == "" {
		return "", st, false
	}
	return file, st, file != ""
}

// plain tells whether dir is a directory of layer i, and no link on the way.
func (v View) plain(i int, dir string) bool {
	var st unix.Stat_t
	p := v.Dirs[i]
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if p = filepath.Join(p, part); unix.Lstat(p, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false
		}
	}
	return true
}

// hides tells whether dir hides what lies below it.
func (v View) hides(i int, dir string) bool {
	if dir == "/" {
		return false
	}
	var b [1]byte
	for _, attr := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Lgetxattr(filepath.Join(v.Dirs[i], dir), attr, b[:]); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}

// Plain tells that no layer has a link on the way to name, name included.
func (v View) Plain(name string) bool {
	at := "/"
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		at = path.Join(at, part)
		for _, d := range v.Dirs {
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(d, at), &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR && !(st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0) {
				return false
			}
		}
	}
	return true
}

// Dir tells whether name is a directory.
func (v View) Dir(name string) bool {
	_, st, ok := v.find(name)
	return ok && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// Program tells whether name is a file that can be executed.
func (v View) Program(name string) bool {
	_, st, ok := v.find(name)
	return ok && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0
}

// read reads a small file; what cannot be read is empty.
func (v View) read(name string) string {
	file, st, ok := v.find(name)
	if !ok || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(b)
}

// Account is a user of an image.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32
	Home     string
	Shell    string
}

// Account finds a user as an image's configuration names them: "name", "uid",
// either with ":group". Empty is root. A number needs no entry in passwd; ok is
// false when a name has none.
func (v View) Account(text string) (a Account, ok bool) {
	user, group, given := strings.Cut(text, ":")
	if user == "" {
		user = "0"
	}
	passwd, groups := v.read("/etc/passwd"), v.read("/etc/group")
	a, ok = lookUser(passwd, user)
	if !ok {
		n, err := strconv.ParseUint(user, 10, 31)
		if err != nil {
			return Account{}, false
		}
		a = Account{Name: user, UID: uint32(n), Home: "/", Shell: ""}
		if n == 0 {
			a.Name, a.Home = "root", "/root"
		}
	}
	for line := range strings.Lines(groups) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 4 || len(a.Groups) == 64 {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil {
			continue
		}
		if given && (f[0] == group || f[2] == group) {
			a.GID, given = uint32(gid), false
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member == a.Name {
				a.Groups = append(a.Groups, uint32(gid))
			}
		}
	}
	if given && group != "" {
		n, err := strconv.ParseUint(group, 10, 31)
		if err != nil {
			return Account{}, false
		}
		a.GID = uint32(n)
	}
	if !path.IsAbs(a.Home) {
		a.Home = "/"
	}
	a.Home = path.Clean(a.Home)
	return a, true
}

func lookUser(passwd, user string) (Account, bool) {
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 7 || f[0] == "" || f[0] != user && f[2] != user {
			continue
		}
		uid, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(f[3], 10, 31)
		if err != nil {
			continue
		}
		return Account{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5], Shell: f[6]}, true
	}
	return Account{}, false
}
