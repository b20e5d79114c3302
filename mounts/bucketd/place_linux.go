package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/mounts"
)

// canMount tells what is missing for a mount.
func canMount() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return nil
	}
	text := "the sandbox cannot mount buckets: "
	switch {
	case errors.Is(err, fs.ErrNotExist):
		text += "it has no /dev/fuse"
	case errors.Is(err, fs.ErrPermission):
		text += "its user may not open /dev/fuse, and has no sudo without a password; use an image with sudo, or one whose user is root"
	default:
		text += err.Error()
	}
	return &answerError{mounts.AnswerUnsupported, text}
}

// ids of a user; of an empty name, of who began this.
func ids(name string) (uid, gid int, err error) {
	if name == "" {
		uid, gid = os.Getuid(), os.Getgid()
		if u, uerr := strconv.Atoi(os.Getenv("SUDO_UID")); uerr == nil && uid == 0 {
			if g, gerr := strconv.Atoi(os.Getenv("SUDO_GID")); gerr == nil {
				uid, gid = u, g
			}
		}
		return uid, gid, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, &answerError{mounts.AnswerUnsupported, "the sandbox has no user " + name}
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	return uid, gid, errors.Join(uerr, gerr)
}

// makeDirs makes a directory and its parents, and returns those that were not there.
func makeDirs(name string, uid, gid int) ([]string, error) {
	fi, err := os.Stat(name)
	switch {
	case err == nil && fi.IsDir():
		return nil, nil
	case err == nil, errors.Is(err, syscall.ENOTDIR):
		return nil, noPlace(name, "is no directory, or leads through something that is none")
	case !errors.Is(err, fs.ErrNotExist):
		return nil, noPlace(name, "cannot be looked at: "+err.Error())
	}
	made, err := makeDirs(path.Dir(name), uid, gid)
	if err != nil {
		return made, err
	}
	switch err := os.Mkdir(name, 0o755); {
	case errors.Is(err, fs.ErrExist):
		return made, noPlace(name, "is a link that leads nowhere")
	case errors.Is(err, fs.ErrPermission):
		return made, noPlace(name, "cannot be made: the user may not write to "+path.Dir(name)+", and has no sudo without a password; choose a directory of the user's")
	case err != nil:
		return made, noPlace(name, "cannot be made: "+err.Error())
	}
	made = append(made, name)
	if os.Geteuid() == 0 {
		return made, os.Lchown(name, uid, gid)
	}
	return made, nil
}

// unmake removes directories that are empty.
func unmake(made []string) {
	for _, d := range slices.Backward(made) {
		_ = unix.Rmdir(d) // what has something in it stays
	}
}

// free tells whether a bucket can be mounted on a directory.
func free(name string) error {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return noPlace(name, "cannot be looked at: "+err.Error())
	}
	table, err := mountTable()
	if err != nil {
		return err
	}
	on, kind := covering(table, real)
	switch {
	case kind == "fuse.bucket":
		return noPlace(name, "lies in another bucket")
	case strings.HasPrefix(kind, "fuse") && kind != "fuse.fuse-overlayfs":
		return noPlace(name, "lies in a file system that a program inside serves")
	case on == real && real != "/", kind == "proc", kind == "sysfs", kind == "devpts", strings.HasPrefix(kind, "cgroup"):
		return noPlace(name, "has something mounted on it that is not berth's")
	}
	d, err := os.Open(real)
	if err != nil {
		return noPlace(name, "cannot be looked at: "+err.Error())
	}
	defer d.Close()
	if names, err := d.Readdirnames(1); len(names) > 0 {
		return noPlace(name, "is not empty, and a bucket would hide what is in it; move that away, or choose another path")
	} else if err != nil && !errors.Is(err, io.EOF) {
		return noPlace(name, "cannot be looked at: "+err.Error())
	}
	return nil
}

// unmountAt unmounts as root, or by the program that ordinary users have for it.
func unmountAt(name string, detach bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if detach {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(name, flags)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	return fusermountAway(name, detach)
}

// fusermountAway asks the program that may for it, which tells no more than a text.
func fusermountAway(name string, detach bool) error {
	program, err := exec.LookPath("fusermount3")
	if err != nil {
		if program, err = exec.LookPath("fusermount"); err != nil {
			return unix.EPERM
		}
	}
	flags := "-u"
	if detach {
		flags = "-uz"
	}
	text, err := exec.CommandContext(context.Background(), program, flags, name).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case strings.Contains(string(text), "busy"), strings.Contains(string(text), "in use"):
		return unix.EBUSY
	}
	return fmt.Errorf("%s: %s", filepath.Base(program), strings.TrimSpace(string(text)))
}

// mountLine is a mount in /proc/self/mountinfo.
type mountLine struct{ on, kind string }

func mountTable() ([]mountLine, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mountLine
	for lines := bufio.NewScanner(f); lines.Scan(); {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 1 {
			continue
		}
		out = append(out, mountLine{on: octal.Replace(l[4]), kind: r[0]})
	}
	return out, nil
}

// octal undoes how the kernel writes names in mount tables.
var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// covering finds the mount that a name is in, the last of those on one directory.
func covering(table []mountLine, name string) (on, kind string) {
	for _, m := range table {
		if (name == m.on || m.on == "/" || strings.HasPrefix(name, m.on+"/")) && len(m.on) >= len(on) {
			on, kind = m.on, m.kind
		}
	}
	return on, kind
}

// usersOf names processes that are in a directory or have something open in it, at
// most three.
func usersOf(dir string) []string {
	found := make(chan []string)
	go func() {
		runtime.LockOSThread() // for good: it ends with what it has been
		found <- findUsers(dir)
	}()
	return <-found
}

// findUsers is usersOf, on a thread of its own. Root in a container may not look at
// what others have open, but each user may look at its own: so it looks as these.
func findUsers(dir string) []string {
	in := func(name string) bool {
		to, err := os.Readlink(name)
		return err == nil && (to == dir || strings.HasPrefix(to, dir+"/"))
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	var out []string
	root := os.Geteuid() == 0
	for _, proc := range procs {
		if st := (unix.Stat_t{}); root && unix.Stat(proc, &st) == nil {
			_ = unix.Setfsgid(int(st.Gid)) // what that may not see is left out
			_ = unix.Setfsuid(int(st.Uid))
		}
		uses := in(proc+"/cwd") || in(proc+"/root") || in(proc+"/exe")
		fds, _ := filepath.Glob(proc + "/fd/*")
		if !uses && !slices.ContainsFunc(fds, in) {
			continue
		}
		name, _ := os.ReadFile(proc + "/comm")
		out = append(out, fmt.Sprintf("process %s (%s)", filepath.Base(proc), strings.TrimSpace(string(name))))
		if len(out) == 3 {
			break
		}
	}
	return out
}
