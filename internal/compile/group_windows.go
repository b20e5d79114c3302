package compile

import (
	"os/exec"
	"syscall"
)

// setGroup gives the child a process group of its own, so that no Ctrl-C
// reaches it.
func setGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
