//go:build linux

package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep Written looks, since it holds each directory open.
const maxDepth = 400

// Written is what the files below the directory fd take, in bytes, but for
// those that the caller may not see. It follows no links, whoever changes the tree meanwhile.
// It reads fd to its end.
func Written(fd int) int64 {
	w := walker{seen: map[[2]uint64]bool{}}
	if own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		w.directory(own, 0)
	}
	return w.bytes
}

type walker struct {
	bytes int64
	seen  map[[2]uint64]bool
}

// directory takes fd over.
func (w *walker) directory(fd, depth int) {
	dir := os.NewFile(uintptr(fd), "directory")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			if st.Nlink > 1 && !isDir {
				key := [2]uint64{st.Dev, st.Ino}
				if w.seen[key] {
					continue
				}
				w.seen[key] = true
			}
			w.bytes += st.Blocks * 512
			if !isDir || depth == maxDepth {
				continue
			}
			if sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
				w.directory(sub, depth+1)
			}
		}
		if err != nil || len(names) == 0 {
			return
		}
	}
}
