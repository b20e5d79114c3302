//go:build unix

package providertest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/sandbox"
)

// treeMark is an environment variable by which the processes of one tree find
// each other again, daemons too. Walking /proc for it needs no privileges.
const treeMark = "BERTH_FAKE_TREE"

var signals = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
	"ALRM": syscall.SIGALRM, "PIPE": syscall.SIGPIPE, "ABRT": syscall.SIGABRT, "SEGV": syscall.SIGSEGV, "WINCH": syscall.SIGWINCH, "TSTP": syscall.SIGTSTP,
}

func signalName(s syscall.Signal) string {
	for n, v := range signals {
		if v == s {
			return "SIG" + n
		}
	}
	return fmt.Sprintf("SIG%d", int(s))
}

// born is when a process was started, in ticks since the boot; 0: not known.
func born(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0
	}
	ticks, _ := strconv.Atoi(f[19])
	return ticks
}

// tree lists the living processes marked with id, none of which is older than
// since: the environment of others may be slow to come.
func tree(id sandbox.ProcessID, since int) []int {
	mark := []byte(treeMark + "=" + string(id))
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || born(pid) < since {
			continue
		}
		for v := range bytes.SplitSeq(environ(pid), []byte{0}) {
			if bytes.Equal(v, mark) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// held are processes whose environment could not be read in time.
var held sync.Map

// environ reads a process's environment. Of one that waits for a file system
// that does not answer, as those of other tests may, it cannot be read.
func environ(pid int) []byte {
	if _, is := held.Load(pid); is {
		return nil
	}
	got := make(chan []byte, 1)
	go func() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		got <- b
	}()
	select {
	case b := <-got:
		return b
	case <-time.After(time.Second):
		held.Store(pid, true)
		go func() { <-got; held.Delete(pid) }()
		return nil
	}
}

// killTree sends sig to the group and, for KILL, again until nothing is left.
func killTree(id sandbox.ProcessID, group, since int, sig string) error {
	s, ok := signals[strings.TrimPrefix(sig, "SIG")]
	if !ok {
		return &sandbox.FieldError{Field: "signal", Problem: fmt.Sprintf("%q is not a signal", sig)}
	}
	for range 20 {
		pids := tree(id, since)
		for _, pid := range pids {
			_ = syscall.Kill(pid, s)
		}
		if !slices.Contains(pids, group) {
			_ = syscall.Kill(-group, s) // it cleared its environment, or ended
		}
		if s != syscall.SIGKILL || len(pids) == 0 {
			break
		}
	}
	return nil
}

// treeCommands are the processes of a tree that outlive their first.
func treeCommands(id sandbox.ProcessID, first, since int) []string {
	var left []string
	for _, pid := range tree(id, since) {
		if pid == first || len(left) == 20 {
			continue
		}
		if cl, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(cl) > 0 {
			left = append(left, fmt.Sprintf("%d %s", pid, strings.TrimSpace(string(bytes.ReplaceAll(cl, []byte{0}, []byte(" "))))))
		}
	}
	return left
}
