//go:build linux

package guest

import (
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// user finds a user by name, in the launch and then in the sandbox's own
// passwd, or by number: UID or UID:GID. Empty is the launch's default.
func (g *guest) user(name string) (*wire.User, error) {
	if name == "" {
		name = g.launch.User
	}
	for i := range g.launch.Users {
		if u := &g.launch.Users[i]; u.Name == name || strconv.FormatUint(uint64(u.UID), 10) == name {
			return u, nil
		}
	}
	if u := passwdUser(name); u != nil {
		return u, nil
	}
	uid, gid, pair := strings.Cut(name, ":")
	if !pair {
		gid = uid
	}
	u, uerr := strconv.ParseUint(uid, 10, 32)
	v, gerr := strconv.ParseUint(gid, 10, 32)
	if uerr == nil && gerr == nil && u <= g.maxID() && v <= g.maxID() {
		return &wire.User{Name: uid, UID: uint32(u), GID: uint32(v), Home: "/", Shell: "/bin/sh"}, nil
	}
	return nil, &wire.Error{Code: wire.CodeNoUser, Text: "there is no user " + strconv.Quote(name) + " in the sandbox; use one of its /etc/passwd, or a number"}
}

func (g *guest) maxID() uint64 {
	if n := g.launch.IDs.Count; n > 0 {
		return uint64(n) - 1
	}
	if g.free != nil {
		return 1<<32 - 2
	}
	return 65535
}

// PasswdUser finds a user of this machine by name or number; nil when there is none.
func PasswdUser(name string) *wire.User { return passwdUser(name) }

// passwdUser reads files that may hold anything.
func passwdUser(name string) *wire.User {
	var found *wire.User
	for line := range strings.SplitSeq(slurp("/etc/passwd"), "\n") {
		f := strings.Split(line, ":")
		if len(f) != 7 || f[0] != name && f[2] != name {
			continue
		}
		uid, uerr := strconv.ParseUint(f[2], 10, 32)
		gid, gerr := strconv.ParseUint(f[3], 10, 32)
		if uerr != nil || gerr != nil {
			continue
		}
		found = &wire.User{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5], Shell: f[6]}
		break
	}
	if found == nil {
		return nil
	}
	for line := range strings.SplitSeq(slurp("/etc/group"), "\n") {
		f := strings.Split(line, ":")
		if len(f) != 4 || len(found.Groups) >= 64 {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && member == found.Name {
				found.Groups = append(found.Groups, uint32(gid))
			}
		}
	}
	return found
}

// slurp reads a small regular file; anything else is empty.
func slurp(path string) string {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || onProc(fd) {
		return ""
	}
	b, _ := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(b)
}
