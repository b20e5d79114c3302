//go:build unix

package buckettest

import (
	"os"
	"syscall"
)

func flock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func killGroup(pid int, s syscall.Signal) error { return syscall.Kill(-pid, s) }

// Pause stops the server without ending it: it takes connections and does not
// answer.
func (p *Process) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.signal(syscall.SIGSTOP); err != nil {
		p.t.Fatal(err)
	}
}

// Resume lets a paused server go on.
func (p *Process) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.signal(syscall.SIGCONT); err != nil {
		p.t.Fatal(err)
	}
}
