//go:build unix

package compile

import (
	"os/exec"
	"syscall"
)

// setGroup gives the child a process group of its own, so that no signal of a
// terminal reaches it, and has the whole group ended.
func setGroup(cmd *exec.Cmd) {
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
