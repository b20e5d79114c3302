//go:build linux

// Package raw starts child processes that run a prepared list of system calls
// between fork and exec, where Go code cannot run: no allocation, no stack
// growth, no other thread. All that a child does is thus decided, and all
// memory it needs is laid out, before the fork.
//
// A child may fork once more and stay as a watcher: it then reports how that
// second child ended, reaps every orphan that falls to it, and exits when it
// has no child left.
package raw

import (
	"encoding/binary"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// The kinds of a report.
const (
	Failed  = 1 // Value is the errno
	Started = 2 // Value is the second child's pid
	Ended   = 3 // Value is its wait status, CPUNS its processor time; Stage is 1 when descendants are left
)

// Event is one report.
type Event struct {
	Kind  uint32
	Stage uint32
	Value int64
	CPUNS int64
}

// EventSize is the length of a report in bytes; reports are written whole.
const EventSize = 24

// Decode reads a report.
func Decode(b []byte) Event {
	return Event{
		Kind: binary.NativeEndian.Uint32(b), Stage: binary.NativeEndian.Uint32(b[4:]),
		Value: int64(binary.NativeEndian.Uint64(b[8:])), CPUNS: int64(binary.NativeEndian.Uint64(b[16:])),
	}
}

type scratch struct {
	event  Event
	report uintptr
	status int32
	failed int32 // the second child ended before it executed anything, and has said so
	usage  syscall.Rusage
}

// Start forks the first child, with clone's flags. It returns at once.
func (p *Program) Start(flags uintptr) (pid int, err error) {
	return p.start(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0)
}

// StartInto is Start for a child that is born in the cgroup (v2) whose directory
// the descriptor cgroup is.
func (p *Program) StartInto(flags uintptr, cgroup int) (pid int, err error) {
	args := &cloneArgs{flags: uint64(flags) | unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(cgroup)}
	return p.start(unix.SYS_CLONE3, Keep(p, args), unsafe.Sizeof(*args))
}

func (p *Program) start(nr, a, b uintptr) (pid int, err error) {
	r, errno := fork(p.steps, &scratch{}, nr, a, b)
	runtime.KeepAlive(p)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// Child is a first child that runs in its starter's memory.
type Child struct {
	PID int

	// What it runs on. Only references from here keep that in place.
	program *Program
	scratch *scratch
	task    *task
	stack   []byte
}

// Release lets go of what is used until the last child has executed its
// program, which the report Started tells, and no other does: after Failed
// both children are still there for a moment, and it lasts as long as somebody
// inside likes who can stop them.
func (c *Child) Release() { c.program, c.task = nil, nil }

// task is what the child finds its work by.
type task struct {
	steps   []step
	scratch *scratch
	reap    *reaping // instead
}

// cloneArgs is struct clone_args of linux/sched.h.
type cloneArgs struct {
	flags, _, _, _, exitSignal, stack, stackSize, _, _, _, cgroup uint64
}

const (
	cloneClearHandlers = 0x100000000
	// All functions that run on it are nosplit, so that the linker has checked
	// that they take less than a kilobyte.
	stackSize = 4 << 10
	// A function may put what it was called with into its caller's frame, which
	// child's caller has not.
	stackTop = 64
)

// thread is what clone3 takes for a child with flags that runs on stack, which has
// stackSize bytes.
func thread(flags, exitSignal uint64, stack []byte) *cloneArgs {
	return &cloneArgs{flags: flags, exitSignal: exitSignal, stack: uint64(uintptr(unsafe.Pointer(&stack[0]))), stackSize: stackSize - stackTop}
}

// StartShared is Start for a child that shares the caller's memory, which
// spares the copy of its page tables and all faults that follow from it. The
// Child must be kept until it has been waited for and the report descriptor
// gives its end, or it has executed a program: the second child shares the memory
// too, and may be the last. Where the kernel has no such call, or a filter forbids
// it, the child is forked.
//
// Whatever the child does to its credentials makes the caller's memory
// undumpable.
func (p *Program) StartShared(flags uintptr) (*Child, error) {
	return p.startShared(flags, 0, func() (int, error) { return p.Start(flags) })
}

// StartSharedInto is StartShared for a child that is born in the cgroup (v2) whose
// directory the descriptor cgroup is.
func (p *Program) StartSharedInto(flags uintptr, cgroup int) (*Child, error) {
	return p.startShared(flags|unix.CLONE_INTO_CGROUP, uint64(cgroup), func() (int, error) { return p.StartInto(flags, cgroup) })
}

func (p *Program) startShared(flags uintptr, cgroup uint64, otherwise func() (int, error)) (*Child, error) {
	c := &Child{program: p, scratch: &scratch{}, stack: make([]byte, stackSize)}
	c.task = &task{steps: p.steps, scratch: c.scratch}
	args := thread(uint64(flags)|unix.CLONE_VM|cloneClearHandlers, uint64(unix.SIGCHLD), c.stack)
	args.cgroup = cgroup
	pid, errno := share(args, c.task)
	switch errno {
	case 0:
		c.PID = int(pid)
		return c, nil
	case unix.ENOSYS, unix.EPERM, unix.EINVAL:
		var err error
		if c.PID, err = otherwise(); err != nil {
			return nil, err
		}
		return c, nil
	}
	return nil, errno
}

//go:norace
//go:nocheckptr
func share(args *cloneArgs, t *task) (pid uintptr, errno syscall.Errno) {
	start := child
	beforeFork()
	pid, errno = clone3(args, unsafe.Sizeof(*args), **(**uintptr)(unsafe.Pointer(&start)), t)
	afterFork()
	return pid, errno
}

// clone3 makes a child that jumps to start, the address of child, with t, on
// the stack that args names.
//
//go:noescape
func clone3(args *cloneArgs, size, start uintptr, t *task) (pid uintptr, errno syscall.Errno)

// child is where clone3's child begins.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func child(t *task) {
	if t.reap != nil {
		reap(t.reap)
	}
	work(t.steps, t.scratch)
}

// vfork makes a child that shares the caller's memory, stack included, and
// returns in the caller when the child has executed something or has ended.
// The child must not return from the function that called vfork.
//
//go:noescape
func vfork(flags uintptr) (pid uintptr, errno syscall.Errno)

// probe is vfork with a child that exits at once. It touches no memory: who may
// signal it can keep it from running and kill its parent meanwhile, and the first
// child then goes on with the stack that all three have.
//
//go:noescape
func probe(flags uintptr) (pid uintptr, errno syscall.Errno)

// vfork3 is vfork with all of clone3's arguments, which lie at args; they name no
// stack.
//
//go:noescape
func vfork3(args, size uintptr) (pid uintptr, errno syscall.Errno)

// fork forks by the call nr, clone or clone3, with its first two arguments; the
// child never returns. It calls nothing but RawSyscall6, which does not split the
// stack, and what is here.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(steps []step, s *scratch, nr, a, b uintptr) (pid uintptr, errno syscall.Errno) {
	beforeFork()
	pid, _, errno = syscall.RawSyscall6(nr, a, b, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		work(steps, s)
	}
	afterFork()
	return pid, errno
}

// work is all that a first child does.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func work(steps []step, s *scratch) {
	var (
		main, report, pc uintptr
		errno            syscall.Errno
	)
	pc = interpret(steps, s, 0)
	if steps[pc].kind == kindFork {
		report = s.report
		// The second child takes this memory as it is, since to copy it for
		// the few calls before it executes something would cost the most of a start.
		if steps[pc].a[2] != 0 {
			main, errno = vfork3(steps[pc].a[2], unsafe.Sizeof(cloneArgs{}))
		} else {
			main, errno = vfork(unix.CLONE_VM | unix.CLONE_VFORK | uintptr(unix.SIGCHLD))
		}
		if main == 0 && errno == 0 {
			interpret(steps, s, pc+1)
			exit(127) // programs end with Fail
		}
		if s.failed != 0 {
			exit(127)
		}
		s.report = report
		if errno != 0 {
			fail(s, steps[pc].stage, errno)
		}
		interpret(steps, s, steps[pc].a[1]) // up to the watch
	}
	s.event.Kind = Started
	s.event.Value = int64(main)
	syscall.RawSyscall6(unix.SYS_WRITE, s.report, uintptr(unsafe.Pointer(&s.event)), EventSize, 0, 0, 0)
	watch(s, main)
}

// watch reaps until there is no child, and exits.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func watch(s *scratch, main uintptr) {
	var (
		r       uintptr
		options uintptr = unix.WALL
		errno   syscall.Errno
	)
	for {
		r, _, errno = syscall.RawSyscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&s.status)), options, uintptr(unsafe.Pointer(&s.usage)), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if options&unix.WNOHANG != 0 && (errno != 0 || r == 0) {
			// All that has ended by now is reaped, and was the main child.
			if errno == 0 {
				s.event.Stage = 1
			}
			options = unix.WALL
			syscall.RawSyscall6(unix.SYS_WRITE, s.report, uintptr(unsafe.Pointer(&s.event)), EventSize, 0, 0, 0)
			if errno == 0 {
				continue
			}
		}
		if errno != 0 {
			exit(0)
		}
		if r == main {
			main = 0
			s.event.Kind = Ended
			s.event.Value = int64(s.status)
			s.event.CPUNS = (int64(s.usage.Utime.Sec)+int64(s.usage.Stime.Sec))*1e9 + (int64(s.usage.Utime.Usec)+int64(s.usage.Stime.Usec))*1e3
			options |= unix.WNOHANG
		}
	}
}

// interpret does steps from number pc on, and returns at one that is run's:
// a fork or the watch. Where the steps end it exits.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func interpret(steps []step, s *scratch, pc uintptr) uintptr {
	var (
		r     uintptr
		errno syscall.Errno
		kept  syscall.Errno
		saved uintptr
		i     int
		a     [6]uintptr
		st    *step
	)
	for ; pc < uintptr(len(steps)); pc++ {
		st = &steps[pc]
		for i = 0; i < 6; i++ {
			a[i] = st.a[i]
			if a[i] == Saved {
				a[i] = saved
			}
		}
		switch st.kind {
		case kindFork, kindWatch:
			return pc
		case kindReport:
			s.report = a[0]
			continue
		case kindFail:
			fail(s, st.stage, kept)
		case kindProbe:
			r, errno = probe(unix.CLONE_VM | unix.CLONE_VFORK | uintptr(unix.SIGCHLD))
			if errno != 0 {
				fail(s, st.stage, errno)
			}
			syscall.RawSyscall6(unix.SYS_WAIT4, r, 0, unix.WALL, 0, 0, 0)
			continue
		}
		r, _, errno = syscall.RawSyscall6(st.nr, a[0], a[1], a[2], a[3], a[4], a[5])
		switch st.kind {
		case kindSave:
			saved = r
		case kindElse:
			if errno != 0 {
				pc = st.a[5] - 1
			}
		case kindExec:
			if errno != unix.ENOENT && errno != unix.ENOTDIR && errno != unix.EACCES {
				fail(s, st.stage, errno)
			}
			if kept != unix.EACCES {
				kept = errno
			}
		case kindMust:
			if errno != 0 {
				fail(s, st.stage, errno)
			}
		case kindFull:
			if errno != 0 || r == 0 {
				fail(s, st.stage, errno)
			}
		}
	}
	exit(0)
	return 0
}

//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func fail(s *scratch, stage uint32, errno syscall.Errno) {
	s.failed = 1
	s.event.Kind = Failed
	s.event.Stage = stage
	s.event.Value = int64(errno)
	syscall.RawSyscall6(unix.SYS_WRITE, s.report, uintptr(unsafe.Pointer(&s.event)), EventSize, 0, 0, 0)
	exit(127)
}

//go:nosplit
//go:noinline
//go:norace
func exit(code uintptr) {
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
