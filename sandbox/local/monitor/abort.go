//go:build linux

package monitor

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/rootfs"
)

// abortWait is for killed processes to go, and again when what they wait for was
// aborted.
const abortWait = 20 * time.Second

// gone waits for init's end, which comes after that of every process inside. One
// of them may wait for a file system that it serves itself; the kernel lets it
// go when that is aborted.
func (m *monitor) gone() bool {
	done := make(chan struct{})
	go func() { _ = m.box.Wait(); close(done) }()
	for range 2 {
		t := time.NewTimer(abortWait)
		select {
		case <-done:
			t.Stop()
			return true
		case <-t.C:
			abortFUSE(m.pidSpace)
		}
	}
	select {
	case <-done:
		return true
	case <-time.After(abortWait):
		return false
	}
}

// pidSpaceOf names the process namespace of a process; "" when it cannot be told.
func pidSpaceOf(pid int) string {
	name, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
	if err != nil {
		return ""
	}
	return name
}

// abortFUSE aborts all FUSE file systems that processes of a namespace see, as
// far as this user may.
func abortFUSE(space string) {
	entries, err := os.ReadDir("/proc")
	if err != nil || space == "" {
		return
	}
	devices := map[string]bool{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pidSpaceOf(pid) != space {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/mountinfo")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			head, kind, ok := strings.Cut(line, " - fuse")
			f := strings.Fields(head)
			if !ok || len(f) < 3 || strings.HasPrefix(kind, "ctl") {
				continue
			}
			if _, minor, ok := strings.Cut(f[2], ":"); ok {
				devices[minor] = true
			}
		}
	}
	if len(devices) == 0 {
		return
	}
	control, err := unix.Open("/sys/fs/fuse/connections", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if fd, ferr := rootfs.NewFS("fusectl", 0); ferr == nil { // as root
		if err == nil {
			_ = unix.Close(control)
		}
		control, err = fd, nil
	}
	if err != nil {
		return
	}
	defer unix.Close(control)
	for minor := range devices {
		if fd, err := unix.Openat(control, minor+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			_, _ = unix.Write(fd, []byte("1"))
			_ = unix.Close(fd)
		}
	}
}

// giveUp lets the program exit without a word in the record.
func (m *monitor) giveUp() {
	m.mu.Lock()
	_ = m.journal.Close()
	m.mu.Unlock()
	close(m.quit)
}
