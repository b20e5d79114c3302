package monitor

import (
	"os"
	"strconv"
	"strings"
)

// readAhead is how far the kernel reads ahead in a bucket, in KiB: as much as one
// request holds. Of file systems of programs it reads an eighth of that.
const readAhead = "1024"

// connection tells the number of the mount that a descriptor of /dev/fuse serves,
// which newer kernels know; -1: it is not known.
func connection(f *os.File) int {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1
	}
	n := -1
	_ = raw.Control(func(fd uintptr) {
		text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(fd)))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
				if k, err := strconv.Atoi(strings.TrimSpace(rest)); err == nil {
					n = k
				}
			}
		}
	})
	return n
}

// widen sets readAhead for a mount, once it is served: the answer to the kernel's
// hello sets a bound of its own. Where that may not be, as by an ordinary user,
// reads are just shorter.
func widen(connection int) {
	if connection < 0 {
		return
	}
	name := "/sys/class/bdi/" + strconv.Itoa(connection>>20) + ":" + strconv.Itoa(connection&(1<<20-1)) + "/read_ahead_kb"
	_ = os.WriteFile(name, []byte(readAhead), 0)
}
