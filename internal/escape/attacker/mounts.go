//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var mountProbes = []probe{
	{name: "mount", refused: "mounts, binds, remounts, unmounts, propagation", run: mounts},
	{name: "mount_table", refused: "writable system mounts, shared propagation, host paths that open", run: mountTable},
	{name: "chroot", refused: "the classic ways out of a changed root, and chroot by the user", run: chroots},
	{name: "passed_directory", refused: "leaving a changed root through a passed directory, into the host", user: "root", run: passedDirectory},
}

func mounts(t *target) escape.Finding {
	dir, err := os.MkdirTemp("", "mount-")
	if err != nil {
		return broken("%v", err)
	}
	defer os.RemoveAll(dir)
	tries := []struct {
		name, source, target, kind string
		flags                      uintptr
	}{
		{"tmpfs", "tmpfs", dir, "tmpfs", 0},
		{"proc", "proc", dir, "proc", 0},
		{"sysfs", "sysfs", dir, "sysfs", 0},
		{"cgroup", "cgroup", dir, "cgroup", 0},
		{"cgroup2", "cgroup2", dir, "cgroup2", 0},
		{"devpts", "devpts", dir, "devpts", 0},
		{"devtmpfs", "devtmpfs", dir, "devtmpfs", 0},
		{"securityfs", "securityfs", dir, "securityfs", 0},
		{"bind of /", "/", dir, "", unix.MS_BIND | unix.MS_REC},
		{"bind of /proc/1/root", "/proc/1/root", dir, "", unix.MS_BIND},
		{"remount of / read-write", "none", "/", "", unix.MS_REMOUNT | unix.MS_BIND},
		{"remount of /proc/sys read-write", "none", "/proc/sys", "", unix.MS_REMOUNT | unix.MS_BIND},
		{"remount of /sys read-write", "none", "/sys", "", unix.MS_REMOUNT | unix.MS_BIND},
		{"remount of / with setuid", "none", "/", "", unix.MS_REMOUNT},
		{"making / shared", "none", "/", "", unix.MS_SHARED | unix.MS_REC},
		{"move of /proc", "/proc", dir, "", unix.MS_MOVE},
	}
	var ways []string
	for _, m := range tries {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err == nil {
			ways = append(ways, m.name)
			_ = unix.Unmount(m.target, unix.MNT_DETACH)
		}
	}
	for _, p := range []string{"/proc/kcore", "/proc/sys", "/proc", "/sys/firmware", "/sys", "/dev", "/dev/pts", "/tmp", "/"} {
		if err := unix.Unmount(p, unix.MNT_DETACH); err == nil {
			ways = append(ways, "unmount of "+p)
		}
	}
	if fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE); err == nil {
		ways = append(ways, "open_tree "+link(fd))
	}
	if err := unix.PivotRoot(dir, dir); err == nil {
		ways = append(ways, "pivot_root")
	}
	return found(ways, "%d tries refused", len(tries)+11)
}

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct{ root, at, options, optional, kind, source, super string }

func mountEntries() ([]mountEntry, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []mountEntry
	for line := range strings.Lines(string(b)) {
		left, right, _ := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 6 || len(r) < 3 {
			continue
		}
		all = append(all, mountEntry{l[3], l[4], l[5], strings.Join(l[6:], " "), r[0], r[1], r[2]})
	}
	return all, nil
}

func mountTable(t *target) escape.Finding {
	entries, err := mountEntries()
	if err != nil {
		return broken("%v", err)
	}
	var ways []string
	paths := 0
	for _, m := range entries {
		if strings.Contains(m.optional, "shared:") || strings.Contains(m.optional, "master:") {
			ways = append(ways, m.at+" is propagated: "+m.optional)
		}
		has := func(option string) bool { return contains(strings.Split(m.options, ","), option) }
		if !has("nosuid") {
			ways = append(ways, m.at+" without nosuid")
		}
		// Single device files are those of the allow-list, and /dev/null as
		// the cover of what is hidden.
		if !has("nodev") && !strings.HasPrefix(m.at, "/dev") && !isNull(m.at) {
			ways = append(ways, m.at+" without nodev")
		}
		if !has("ro") && (m.at == "/sys" || m.at == "/proc/sys" || m.at == "/proc/sysrq-trigger" || m.kind == "cgroup" || m.kind == "cgroup2") {
			ways = append(ways, m.at+" is writable")
		}
		// Host paths may stand in the table, but must lead nowhere.
		for _, word := range append(strings.FieldsFunc(m.super, func(r rune) bool { return r == ',' || r == '=' || r == ':' }), m.root) {
			if !strings.HasPrefix(word, "/") || word == "/" || (word == m.root && (m.kind == "proc" || m.kind == "sysfs" || m.kind == "devpts")) {
				continue
			}
			paths++
			for _, dir := range t.Dirs {
				if strings.HasPrefix(word, dir) {
					if _, err := os.Stat(word); err == nil {
						ways = append(ways, word+", named by the mount at "+m.at+", opens")
					}
				}
			}
		}
	}
	return found(ways, "%d mounts, naming %d paths", len(entries), paths)
}

func isNull(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}

func sameFile(a, b string) bool {
	var x, y unix.Stat_t
	if unix.Stat(a, &x) != nil || unix.Stat(b, &y) != nil {
		return false
	}
	return x.Dev == y.Dev && x.Ino == y.Ino
}

func identity(path string) (dev, ino uint64, err error) {
	var st unix.Stat_t
	err = unix.Stat(path, &st)
	return st.Dev, st.Ino, err
}

// chroots climbs out of a changed root, which root may make. It must come out
// at the sandbox's root and nowhere else.
func chroots(t *target) escape.Finding {
	dev, ino, err := identity("/")
	if err != nil {
		return broken("%v", err)
	}
	dir, err := os.MkdirTemp("", "chroot-")
	if err != nil {
		return broken("%v", err)
	}
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		return broken("%v", err)
	}
	top, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return broken("%v", err)
	}
	err = unix.Chroot(filepath.Join(dir, "a"))
	if t.user != "root" {
		if err == nil {
			return escaped("the user may change the root")
		}
		return held("refused: %v", err)
	}
	if err != nil {
		return held("chroot refused: %v", err)
	}
	// The working directory stays outside of the new root: climb.
	if err := unix.Fchdir(top); err != nil {
		return broken("%v", err)
	}
	for range 64 {
		_ = unix.Chdir("..")
	}
	if err := unix.Chroot("."); err != nil {
		return held("climbed, but no second chroot: %v", err)
	}
	d, i, err := identity("/")
	if err != nil {
		return broken("%v", err)
	}
	if d != dev || i != ino {
		return escaped("climbed to %d:%d, which is not the sandbox's root", d, i)
	}
	return outsideFiles(t, "")
}

func passedDirectory(t *target) escape.Finding {
	dev, ino, err := identity("/")
	if err != nil {
		return broken("%v", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return broken("%v", err)
	}
	top, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return broken("%v", err)
	}
	if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(top), nil, 0); err != nil {
		return broken("%v", err)
	}
	_ = unix.Close(top)
	dir, err := os.MkdirTemp("", "passed-")
	if err != nil {
		return broken("%v", err)
	}
	if err := unix.Chroot(dir); err != nil {
		return held("chroot refused: %v", err)
	}
	oob := make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, 0)
	if err != nil {
		return broken("%v", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return broken("%v", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return broken("%v", err)
	}
	if err := unix.Fchdir(fds[0]); err != nil {
		return held("fchdir refused: %v", err)
	}
	for range 64 {
		_ = unix.Chdir("..")
	}
	d, i, err := identity(".")
	if err != nil {
		return broken("%v", err)
	}
	if d != dev || i != ino {
		return escaped("came out at %d:%d, which is not the sandbox's root", d, i)
	}
	_ = unix.Chroot(".")
	return outsideFiles(t, "")
}
