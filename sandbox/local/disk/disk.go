//go:build linux

// Package disk mounts a sandbox's file system that lies in one file, an image
// of ext4, which is how root limits what a sandbox writes. Nothing mounted here
// has a place: it is reached by its descriptor alone, and the kernel lets go of
// it and of its loop device when the last user is gone, also after kill -9.
package disk

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/rootfs"
)

// Image is the name of the file beside the layers' directory, and Files the
// directory in it that has the layers' place.
const (
	Image = "layers.img"
	Files = "files"
)

// busyTime is how long a former user of an image may take to let go of it.
const busyTime = 10 * time.Second

// Available tells why no image can be mounted here; nil when one probably can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("only root may use loop devices")
	}
	fd, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.New("no loop devices here: /dev/loop-control: " + err.Error() + " (modprobe loop; in a container: --device /dev/loop-control and the loop devices)")
	}
	return unix.Close(fd)
}

// Mount mounts the image as a detached mount, which lives as long as the
// returned descriptor or a mount made of it.
func Mount(image string) (int, error) {
	file, err := unix.Open(image, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: image, Err: err}
	}
	defer unix.Close(file)
	// Two mounts of one image would destroy it.
	for end := time.Now().Add(busyTime); attached(file); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return -1, &os.PathError{Op: "mount", Path: image, Err: unix.EBUSY}
		}
	}
	loop, name, done, err := attach(file, image)
	if err != nil {
		return -1, err
	}
	defer done() // the mount has its own hold on the device
	defer unix.Close(loop)
	// Its inode tables are zeros as the image is sparse; discard keeps it so.
	return rootfs.NewFS("ext4", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "source", name, "discard", "", "noinit_itable", "")
}

// attached tells whether a loop device shows the file.
func attached(file int) bool {
	var st unix.Stat_t
	if unix.Fstat(file, &st) != nil {
		return false
	}
	for _, n := range loops() {
		fd, _, done, err := device(n, "")
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(fd)
		_ = unix.Close(fd)
		done()
		if err == nil && info.Inode == st.Ino && info.Device == st.Dev {
			return true
		}
	}
	return false
}

// loops lists the loop devices that show something.
func loops() []int {
	dir, err := os.Open("/sys/block")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var out []int
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, "loop")
		if n, err := strconv.Atoi(rest); ok && err == nil && unix.Access("/sys/block/"+name+"/loop", unix.F_OK) == nil {
			out = append(out, n)
		}
	}
	return out
}

// device opens a loop device. Where nothing makes nodes, it makes one of its own
// beside the image; done removes that.
func device(n int, image string) (fd int, name string, done func(), err error) {
	name, done = "/dev/loop"+strconv.Itoa(n), func() {}
	if fd, err = unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0); err != unix.ENOENT || image == "" {
		return fd, name, done, err
	}
	name = image + ".device"
	_ = unix.Unlink(name)
	const major = 7
	if err = unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(major, uint32(n)))); err != nil {
		return -1, name, done, err
	}
	done = func() { _ = unix.Unlink(name) }
	if fd, err = unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		done()
	}
	return fd, name, done, err
}

// attach finds a free loop device and shows the file on it, until its last
// user is gone.
func attach(file int, image string) (loop int, name string, done func(), err error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", nil, &os.PathError{Op: "open", Path: "/dev/loop-control", Err: err}
	}
	defer unix.Close(control)
	for range 1000 {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return -1, "", nil, os.NewSyscallError("a free loop device", err)
		}
		loop, name, done, err := device(n, image)
		if err != nil {
			return -1, "", nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		config := &unix.LoopConfig{Fd: uint32(file)}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
		if err = unix.IoctlLoopConfigure(loop, config); err == nil {
			return loop, name, done, nil
		}
		_ = unix.Close(loop)
		done()
		if !errors.Is(err, unix.EBUSY) { // else somebody was faster
			return -1, "", nil, os.NewSyscallError("configure "+name, err)
		}
	}
	return -1, "", nil, os.NewSyscallError("a free loop device", unix.EBUSY)
}

// Used tells how many bytes are used of the file system that fd is on; -1 when
// it does not say.
func Used(fd int) int64 {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return -1
	}
	return int64(st.Blocks-st.Bfree) * int64(st.Bsize)
}
