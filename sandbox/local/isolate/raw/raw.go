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

// The kinds of a step.
const (
	kindMust   = iota // an error is reported, and the child exits
	kindTry           // errors do not matter
	kindFull          // like kindMust, and so does a result of 0
	kindSave          // like kindTry; the result becomes the saved value
	kindElse          // an error makes step a[5] the next
	kindExec          // "not found" and "denied" are kept, and the next step tried
	kindFail          // reports what kindExec kept
	kindReport        // the report descriptor has this number from here on
	kindFork          // forks; the parent goes on at step a[1]
	kindProbe         // forks a child that does nothing, to see whether it may
	kindWatch         // reports and reaps until there are no children, exits; ends the steps
)

// Saved as an argument stands for the result of the last Save.
const Saved = ^uintptr(0) - 4095 // no errno, no address

type step struct {
	kind  uint32
	stage uint32
	nr    uintptr
	a     [6]uintptr
}

// Program is what a child does. The zero value is empty; build it, then Start
// it once.
type Program struct {
	steps []step
	keep  []any
}

// Must adds a call whose failure ends the child and is reported with stage.
func (p *Program) Must(stage uint32, nr uintptr, args ...uintptr) {
	p.add(kindMust, stage, nr, args)
}

// Full is Must for calls that must not return 0 either, such as a read.
func (p *Program) Full(stage uint32, nr uintptr, args ...uintptr) {
	p.add(kindFull, stage, nr, args)
}

// Try adds a call whose failure does not matter.
func (p *Program) Try(nr uintptr, args ...uintptr) { p.add(kindTry, 0, nr, args) }

// Save is Try; later arguments that are Saved become its result.
func (p *Program) Save(nr uintptr, args ...uintptr) { p.add(kindSave, 0, nr, args) }

// Else adds a call, of at most five arguments, whose failure means that the steps
// up to where otherwise is called are left out.
func (p *Program) Else(nr uintptr, args ...uintptr) (otherwise func()) {
	p.add(kindElse, 0, nr, args)
	at := len(p.steps) - 1
	return func() { p.steps[at].a[5] = uintptr(len(p.steps)) }
}

// Exec adds an attempt to execute path; the next Exec follows when there is
// no such program.
func (p *Program) Exec(stage uint32, path, argv, envp uintptr) {
	p.add(kindExec, stage, unix.SYS_EXECVE, []uintptr{path, argv, envp})
}

// Fail ends a list of Execs: it reports why none of them worked.
func (p *Program) Fail(stage uint32) { p.add(kindFail, stage, 0, nil) }

// Report makes fd the descriptor that reports go to from here on. Every
// program starts with one.
func (p *Program) Report(fd int) { p.add(kindReport, 0, 0, []uintptr{uintptr(fd)}) }

// Fork adds the fork of the second child, which goes on with the next step;
// the first one waits until it has executed something or ended, and goes on
// where Parent is called.
func (p *Program) Fork(stage uint32) (parent func()) {
	p.add(kindFork, stage, 0, make([]uintptr, 2))
	at := len(p.steps) - 1
	return func() { p.steps[at].a[1] = uintptr(len(p.steps)) }
}

// ForkInto is Fork for a child that is born in the cgroup (v2) whose directory
// the descriptor cgroup is. To join it later costs milliseconds.
func (p *Program) ForkInto(stage uint32, cgroup int) (parent func()) {
	parent = p.Fork(stage)
	args := &cloneArgs{flags: unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(cgroup)}
	p.steps[len(p.steps)-1].a[2] = Keep(p, args)
	return parent
}

// Probe fails when no process may be forked any more: a limit that was set
// after the fork, or comes with a user id, does not show until then.
func (p *Program) Probe(stage uint32) { p.add(kindProbe, stage, 0, nil) }

// Watch reports the second child's pid, then how it ended, and exits when no
// descendant is left.
func (p *Program) Watch() { p.add(kindWatch, 0, 0, nil) }

func (p *Program) add(kind, stage uint32, nr uintptr, args []uintptr) {
	s := step{kind: kind, stage: stage, nr: nr}
	copy(s.a[:], args)
	p.steps = append(p.steps, s)
}

// Bytes is the address of a copy of b that lives as long as p.
func (p *Program) Bytes(b []byte) uintptr {
	c := append(make([]byte, 0, len(b)+1), b...)
	c = append(c, 0)
	p.keep = append(p.keep, c)
	return uintptr(unsafe.Pointer(&c[0]))
}

// String is the address of s, ended by a NUL.
func (p *Program) String(s string) uintptr { return p.Bytes([]byte(s)) }

// Strings is the address of a list of strings as execve takes it.
func (p *Program) Strings(list []string) uintptr {
	v := make([]uintptr, 0, len(list))
	for _, s := range list {
		v = append(v, p.String(s))
	}
	return p.List(v)
}

// List is the address of a list, ended by 0, of addresses.
func (p *Program) List(addresses []uintptr) uintptr {
	v := append(make([]uintptr, 0, len(addresses)+1), addresses...)
	v = append(v, 0)
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(&v[0]))
}

// Keep holds v, to whose memory arguments point, as long as p, and returns its address.
func Keep[T any](p *Program, v *T) uintptr {
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(v))
}

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

// Release lets go of what is used until the second child has executed its
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
// gives its end: the second child shares the memory too, and may be the last.
// Where the kernel has no such call, or a filter forbids it, the child is forked.
//
// Whatever the child does to its credentials makes the caller's memory
// undumpable.
func (p *Program) StartShared() (*Child, error) {
	c := &Child{program: p, scratch: &scratch{}, stack: make([]byte, stackSize)}
	c.task = &task{steps: p.steps, scratch: c.scratch}
	pid, errno := share(thread(unix.CLONE_VM|cloneClearHandlers, uint64(unix.SIGCHLD), c.stack), c.task)
	switch errno {
	case 0:
		c.PID = int(pid)
		return c, nil
	case unix.ENOSYS, unix.EPERM, unix.EINVAL:
		var err error
		c.PID, err = p.Start(0)
		return c, err
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
