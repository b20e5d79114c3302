//go:build linux

package guest

import "golang.org/x/sys/unix"

// madeProcess are the calls that may wait for a child to start a program.
var madeProcess = map[int]bool{unix.SYS_CLONE: true, unix.SYS_CLONE3: true}
