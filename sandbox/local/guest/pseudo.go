//go:build linux

package guest

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// maxPseudo bounds the copy of a file that the kernel makes up, and maxServed
// that of one which a program inside serves.
const (
	maxPseudo = 1 << 20
	maxServed = 256 << 20
)

// pseudo tells whether fd is a file whose contents the kernel makes up as it is
// read. Many depend on the namespaces and rights of whoever reads, and the
// reader of a descriptor that we hand out is outside.
func pseudo(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) != nil || fs.Type == unix.PROC_SUPER_MAGIC || fs.Type == unix.SYSFS_MAGIC
}

// copied replaces a file that the kernel makes up by what it shows in here, to
// the thread's rights, and one that a program inside serves by what it has
// now: no reader outside is to wait for that program. It closes fd.
func copied(fd int, name string, served bool) (file *os.File, size int64, err error) {
	defer unix.Close(fd)
	most, why := int64(maxPseudo), ", and made up by the kernel"
	to := -1
	if served {
		// In the sandbox's own files, where its limits count.
		most, why = maxServed, ", and served by a program inside"
		to, err = unix.Open("/tmp", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	}
	if to < 0 {
		most = min(most, 16<<20)
		to, err = unix.MemfdCreate("copy", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, 0, pathError(name, err)
	}
	file = os.NewFile(uintptr(to), "copy")
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && size+int64(n) > most:
			err = &wire.Error{Code: wire.CodeInvalid, Path: name, Text: name + ": longer than " + strconv.FormatInt(most, 10) + " bytes" + why + "; use a command"}
		case err == nil && n > 0:
			size += int64(n)
			_, err = unix.Write(to, buf[:n])
		}
		if err != nil {
			_ = file.Close()
			return nil, 0, pathError(name, err)
		}
		if n == 0 {
			_, err = unix.Seek(to, 0, unix.SEEK_SET)
			return file, size, err
		}
	}
}
