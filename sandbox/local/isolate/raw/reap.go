//go:build linux

package raw

import (
	"encoding/binary"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reaper waits for the children of this process, whoever made them. It does so on
// a thread of its own that Go's scheduler does not know: to the scheduler a wait
// is a call that may return at once, so that it takes the processor away from it
// only after a time, and by waking two threads, for each child.
type Reaper struct {
	ends *os.File // a record for each child
	born int      // an eventfd: there may be children
	work *reaping // what the thread works on
	task *task    // by which it finds that
}

// Reaped is a child that has ended, and is gone, or was stopped, and is not.
type Reaped struct {
	PID    int
	Status unix.WaitStatus
}

// reaping is what the thread has of our memory.
type reaping struct {
	record     [recordSize / 8]uint64
	count      uint64
	ends, born uintptr
	status     int32
	stack      []byte
}

// A record is a process id and a wait status, each of eight bytes.
const recordSize = 16

// NewReaper starts the thread, which stays until the process ends: so must the
// Reaper be kept, in whose memory it works.
func NewReaper() (*Reaper, error) {
	r, err := newReaper()
	if err != nil {
		return nil, err
	}
	r.task = &task{reap: r.work}
	const flags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	// With all signals blocked, as share leaves them: Go's handlers are not for it.
	if _, errno := share(thread(flags, 0, r.work.stack), r.task); errno != 0 {
		go r.work.wait() // where the kernel has no such call, or a filter forbids it
	}
	return r, nil
}

// newReaper is a Reaper for which nobody waits yet.
func newReaper() (*Reaper, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	born, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fds[0], true)
	}
	if err != nil {
		_, _, _ = unix.Close(fds[0]), unix.Close(fds[1]), unix.Close(born)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &Reaper{ends: os.NewFile(uintptr(fds[0]), "children"), born: born,
		work: &reaping{ends: uintptr(fds[1]), born: uintptr(born), stack: make([]byte, stackSize)}}, nil
}

// Born is to be called after a child was made.
func (r *Reaper) Born() {
	one := [8]byte{1}
	// Nothing of this blocks but the 2^64th child.
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(r.born), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
}

// Next waits for a child that has ended or was stopped. One goroutine calls it.
func (r *Reaper) Next() (Reaped, error) {
	var b [recordSize]byte
	if n, err := r.ends.Read(b[:]); err != nil || n != len(b) { // records are written whole
		return Reaped{}, err
	}
	return Reaped{PID: int(binary.NativeEndian.Uint64(b[:])), Status: unix.WaitStatus(binary.NativeEndian.Uint64(b[8:]))}, nil
}

// reap is all that the thread does.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func reap(w *reaping) {
	for {
		pid, _, errno := syscall.RawSyscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&w.status)), unix.WALL|unix.WUNTRACED, 0, 0, 0)
		switch {
		case errno == 0:
			w.record[0], w.record[1] = uint64(pid), uint64(uint32(w.status))
			syscall.RawSyscall6(unix.SYS_WRITE, w.ends, uintptr(unsafe.Pointer(&w.record)), recordSize, 0, 0, 0)
		case errno == unix.ECHILD:
			syscall.RawSyscall6(unix.SYS_READ, w.born, uintptr(unsafe.Pointer(&w.count)), unsafe.Sizeof(w.count), 0, 0, 0)
		}
	}
}

// wait is reap for a goroutine.
func (w *reaping) wait() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WALL|unix.WUNTRACED, nil)
		var b [recordSize]byte
		switch err {
		case nil:
			binary.NativeEndian.PutUint64(b[:], uint64(pid))
			binary.NativeEndian.PutUint64(b[8:], uint64(status))
			_, _ = unix.Write(int(w.ends), b[:])
		case unix.ECHILD:
			_, _ = unix.Read(int(w.born), b[:8])
		}
	}
}
