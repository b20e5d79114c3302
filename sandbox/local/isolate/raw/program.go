//go:build linux

package raw

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

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
