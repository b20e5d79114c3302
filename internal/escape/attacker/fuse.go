//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var fuseProbes = []probe{
	{name: "fuse_mounts", refused: "file systems of one's own over the system, through links, with set-user-id or devices, and unmounts of others", run: fuseMounts},
}

// fuseMounts asks init to mount, as libfuse does, where that would change what
// others run or read.
func fuseMounts(t *target) escape.Finding {
	own, err := os.MkdirTemp("", "fuse-")
	if err != nil {
		return broken("%v", err)
	}
	defer os.RemoveAll(own)
	var ways []string
	places := []string{"/", "/etc", "/usr", "/usr/bin", "/lib", "/bin", "/proc", "/proc/self", "/proc/1", "/sys", "/dev", "/dev/shm", "/dev/pts", "/run", "/tmp", "/home", "/var",
		"/proc/self/root/etc", "/proc/1/root", "/tmp/../etc", "//etc/"}
	for i, place := range []string{"/etc", "/proc", "/usr/bin"} {
		name := filepath.Join(own, fmt.Sprint("link", i))
		if err := os.Symlink(place, name); err != nil {
			return broken("%v", err)
		}
		places = append(places, name)
	}
	for _, place := range places {
		if fd, err := fuseMount(place, "rw"); err == nil {
			ways = append(ways, "a mount over "+place)
			fuseUnmount(place, fd)
		}
	}
	// What others mounted is not ours to take away.
	for _, place := range []string{"/", "/proc", "/sys", "/dev", "/tmp", "/etc/resolv.conf"} {
		for _, args := range [][]string{{"-u"}, {"-u", "-z"}} {
			if exec.Command("fusermount3", append(args, place)...).Run() == nil {
				ways = append(ways, strings.Join(args, " ")+" of "+place)
			}
		}
	}
	// One of one's own gives no rights.
	dir := filepath.Join(own, "mine")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return broken("%v", err)
	}
	detail := "none of one's own either"
	if fd, err := fuseMount(dir, "rw,suid,dev,allow_other"); err == nil {
		detail = "one of one's own has nosuid and nodev"
		entries, err := mountEntries()
		seen := false
		for _, m := range entries {
			if m.at != dir {
				continue
			}
			seen = true
			options := strings.Split(m.options, ",")
			if !contains(options, "nosuid") || !contains(options, "nodev") {
				ways = append(ways, "a mount with "+m.options)
			}
		}
		fuseUnmount(dir, fd)
		if err != nil || !seen {
			return broken("the mount on %s is not in the table: %v", dir, err)
		}
	}
	// By hand, with the device that berth's own mounts use.
	if fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, os.Getuid(), os.Getgid())
		if unix.Mount("attacker", dir, "fuse", 0, options) == nil {
			ways = append(ways, "mount of /dev/fuse")
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
		unix.Close(fd)
	}
	return found(ways, "%d places refused; %s", len(places), detail)
}

// fuseMount mounts by fusermount3 and returns the descriptor that serves it.
func fuseMount(dir, options string) (int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fds[0])
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	cmd := exec.Command("fusermount3", "-o", options, "--", dir)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	if out, err := cmd.CombinedOutput(); err != nil {
		return -1, fmt.Errorf("%w: %s", err, out)
	}
	b, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fds[0], b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("no descriptor: %w", err)
	}
	got, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(got) != 1 {
		return -1, fmt.Errorf("no descriptor: %w", err)
	}
	return got[0], nil
}

// fuseUnmount ends a mount that nobody serves.
func fuseUnmount(dir string, fd int) {
	unix.Close(fd) // it would be waited for
	_ = exec.Command("fusermount3", "-u", "-z", dir).Run()
}
