//go:build linux

package entry

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors that `box bucket` has beside the standard ones: bucketd's socket,
// its directory for what is on its way, and its program.
const (
	stagingFD = 4
	bucketdFD = 5
)

// maxBucketData is the memory that a bucketd may have. It keeps itself far below.
const maxBucketData = 512 << 20

// bucket gives up what bucketd does not need and becomes it: rights to be had by
// running programs, memory without bound, and all files but those that tell
// names, certificates and zones, and the directory for what is on its way. args
// may hold "ambient": the identity of this machine may lie in any file.
func bucket(args []string) int {
	runtime.LockOSThread()
	fail := func(what string, err error) int {
		_, _ = os.Stderr.WriteString(what + ": " + err.Error() + "\n")
		return 1
	}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: maxBucketData, Max: maxBucketData})
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fail("no_new_privs", err)
	}
	if len(args) == 0 {
		fence()
	}
	unix.CloseOnExec(bucketdFD)
	empty := [1]byte{}
	var argv, envv []*byte
	for _, a := range []string{"bucketd", "serve"} {
		p, err := unix.BytePtrFromString(a)
		if err != nil {
			return fail("arguments", err)
		}
		argv = append(argv, p)
	}
	for _, e := range os.Environ() {
		p, err := unix.BytePtrFromString(e)
		if err != nil {
			return fail("environment", err)
		}
		envv = append(envv, p)
	}
	argv, envv = append(argv, nil), append(envv, nil)
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, bucketdFD, uintptr(unsafe.Pointer(&empty[0])), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	return fail("run bucketd", errno)
}

// Rights of Landlock's first version.
const (
	mayExecute   = 1 << 0
	mayWriteFile = 1 << 1
	mayReadFile  = 1 << 2
	mayReadDir   = 1 << 3
	mayAll       = 1<<13 - 1
)

// fence closes files to this thread, and to the program that it becomes, where
// the kernel has Landlock.
func fence() {
	attr := struct{ fs uint64 }{mayAll}
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return
	}
	defer unix.Close(int(set))
	allow := func(fd int, rights uint64) {
		rule := struct {
			rights uint64
			fd     int32
		}{rights, int32(fd)}
		const beneath = 1
		_, _, _ = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, set, beneath, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	}
	allow(bucketdFD, mayExecute|mayReadFile)
	allow(stagingFD, mayAll&^mayExecute)
	for _, dir := range []string{"/etc", "/usr/share", "/usr/lib/ssl", "/usr/local/share", "/var/lib/ca-certificates", "/run/systemd/resolve", "/proc", "/sys", "/dev"} {
		rights := uint64(mayReadFile | mayReadDir)
		if dir == "/dev" {
			rights |= mayWriteFile
		}
		if fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
			allow(fd, rights)
			_ = unix.Close(fd)
		}
	}
	_, _, _ = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0)
}
