//go:build linux

package entry

import (
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// settle waits until its input ends, lets go of the mounts that it was given,
// writes all file systems of the directories that it was given to the disk, and
// then marks them. It is a process of its own because each of that may take as
// long as the disk has work, and nobody must wait.
//
// args are how many directories and how many descriptors of namespaces follow
// the standard ones.
func settle(args []string) int {
	if len(args) != 2 {
		return 2
	}
	dirs, err1 := strconv.Atoi(args[0])
	namespaces, err2 := strconv.Atoi(args[1])
	if err1 != nil || err2 != nil {
		return 2
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	for fd := 3 + dirs; fd < 3+dirs+namespaces; fd++ {
		_ = unix.Close(fd) // an overlay's end writes what lies below it
	}
	code := 0
	for fd := 3; fd < 3+dirs; fd++ {
		if err := unix.Syncfs(fd); err != nil {
			code = 1
			continue
		}
		mark, err := unix.Openat(fd, wire.SyncedName, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			code = 1 // removed meanwhile, perhaps
			continue
		}
		_ = unix.Close(mark)
	}
	return code
}
