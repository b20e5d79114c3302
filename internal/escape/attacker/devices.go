//go:build linux

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var deviceProbes = []probe{
	{name: "make_devices", refused: "device nodes that open", run: makeDevices},
	{name: "devices", refused: "devices beyond null, zero, full, random, urandom, tty and the terminals", run: devices},
	{name: "device_files", refused: "device nodes anywhere else in the tree", run: deviceFiles},
	{name: "terminals", refused: "typing into another process's terminal, and the host's terminals", run: terminals},
}

func pointer(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

func makeDevices(t *target) escape.Finding {
	var ways []string
	made := 0
	for _, dir := range append([]string{"/tmp", "/dev", "/dev/shm", "/home/agent", "/workspace", "/run", "/var/tmp", "/"}, t.Writable...) {
		for _, d := range []struct {
			name         string
			mode         uint32
			major, minor uint32
		}{{"mem", unix.S_IFCHR, 1, 1}, {"kmsg", unix.S_IFCHR, 1, 11}, {"disk", unix.S_IFBLK, 254, 0}, {"sda", unix.S_IFBLK, 8, 0}, {"loop", unix.S_IFBLK, 7, 0},
			{"fuse", unix.S_IFCHR, 10, 229}, {"kvm", unix.S_IFCHR, 10, 232}, {"tun", unix.S_IFCHR, 10, 200}, {"null", unix.S_IFCHR, 1, 3}} {
			path := filepath.Join(dir, "made-"+d.name)
			if err := unix.Mknod(path, d.mode|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
				continue
			}
			made++
			if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
				ways = append(ways, "made and opened "+path)
				_ = unix.Close(fd)
			}
			_ = os.Remove(path)
		}
	}
	return found(ways, "%d nodes could be made, none opened", made)
}

// harmless tells whether a device is on the allow-list.
func harmless(rdev uint64) bool {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	switch major {
	case 1:
		return minor == 3 || minor == 5 || minor == 7 || minor == 8 || minor == 9
	case 5:
		return minor == 0 || minor == 2
	case 136, 137, 138, 139, 140, 141, 142, 143:
		return true
	}
	return false
}

func devices(t *target) escape.Finding {
	var ways []string
	seen := 0
	_ = filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFBLK:
			ways = append(ways, "block device "+path)
		case unix.S_IFCHR:
			seen++
			// Mounting is refused; the node is there for berth's own buckets.
			if !harmless(st.Rdev) && !(path == "/dev/fuse" && st.Rdev == unix.Mkdev(10, 229)) {
				ways = append(ways, fmt.Sprintf("%s is device %d:%d", path, unix.Major(st.Rdev), unix.Minor(st.Rdev)))
			}
		case unix.S_IFSOCK:
			ways = append(ways, "socket "+path)
		}
		return nil
	})
	for _, p := range []string{"/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/kvm", "/dev/sda", "/dev/vda", "/dev/loop-control", "/dev/loop0", "/dev/mapper/control",
		"/dev/net/tun", "/dev/vhost-net", "/dev/vsock", "/dev/uinput", "/dev/snd", "/dev/dri", "/dev/userfaultfd", "/dev/console", "/dev/tty0", "/dev/vcs", "/dev/rtc0", "/dev/hpet", "/dev/log"} {
		if _, err := os.Lstat(p); err == nil && p != "/dev/console" {
			ways = append(ways, p+" is there")
		}
	}
	return found(ways, "%d devices, all on the list", seen)
}

func deviceFiles(t *target) escape.Finding {
	var ways []string
	seen := 0
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if path == "/proc" || path == "/sys" || path == "/dev" {
			return filepath.SkipDir
		}
		seen++
		if d.Type()&fs.ModeDevice != 0 {
			if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
				ways = append(ways, path+" opens")
				_ = unix.Close(fd)
			}
		}
		if d.Type()&fs.ModeSocket != 0 && !strings.HasPrefix(path, "/run/berth/") && !strings.HasPrefix(path, "/tmp/") {
			ways = append(ways, path+" is a socket")
		}
		return nil
	})
	return found(ways, "none in %d files", seen)
}

func terminals(t *target) escape.Finding {
	var ways []string
	own, _ := os.Readlink("/proc/self/fd/0")
	paths := []string{"/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1", "/dev/ttyS0"}
	entries, _ := os.ReadDir("/dev/pts")
	for _, e := range entries {
		if e.Name() != "ptmx" {
			paths = append(paths, "/dev/pts/"+e.Name())
		}
	}
	opened := 0
	for _, p := range paths {
		if p == own {
			continue
		}
		fd, err := unix.Open(p, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		opened++
		c := byte('x')
		if err := ioctl(fd, unix.TIOCSTI, unsafe.Pointer(&c)); err == nil {
			ways = append(ways, "typed into "+p)
		}
		sub := byte(2) // paste the selection
		if err := ioctl(fd, 0x541C /* TIOCLINUX */, unsafe.Pointer(&sub)); err == nil {
			ways = append(ways, "TIOCLINUX on "+p)
		}
		_ = unix.Close(fd)
	}
	return found(ways, "%d terminals there, %d opened, nothing typed", len(entries), opened)
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
	if e != 0 {
		return e
	}
	return nil
}
