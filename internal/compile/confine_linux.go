package compile

import (
	"math"

	"golang.org/x/sys/unix"
)

// keepDescriptors keeps what this process itself inherited from going on to its
// children; what Go opens does not. Kernels before 5.11 cannot.
func keepDescriptors() { _ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) }

// confine sets what the kernel holds this process to. RLIMIT_DATA and not
// RLIMIT_AS: Go reserves more addresses than it ever uses.
func confine() error {
	for _, l := range []struct {
		what int
		most uint64
	}{
		{unix.RLIMIT_DATA, maxMemory},
		{unix.RLIMIT_CPU, 2 * uint64(maxTime.Seconds())},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_FSIZE, 0},
	} {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.most, Max: l.most}); err != nil {
			return err
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
