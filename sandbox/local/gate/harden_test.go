//go:build linux

package gate

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/sandbox/local/gate/gatetest"

	"golang.org/x/sys/unix"
)

const hardened = "BERTH_TEST_HARDENED"

// A hardened program opens, starts and signals nothing, and makes no sockets
// but those of IP.
func TestHarden(t *testing.T) {
	if os.Getenv(hardened) != "" {
		hardenedChild() // does not return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHarden$")
	// It makes a world of its own; in this one there is one already.
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, gatetest.Marker+"=") }), hardened+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "done\n" {
		t.Errorf("%v: %s", err, out)
	}
}

func hardenedChild() {
	pid := os.Getpid()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := harden(); err != nil {
		fmt.Println("harden:", err)
		os.Exit(1)
	}
	refused := func(what string, err error) {
		if err != unix.EPERM && err != unix.EACCES {
			fmt.Printf("%s: %v\n", what, err)
		}
	}
	_, err = unix.Open("/", unix.O_RDONLY, 0)
	refused("open", err)
	_, err = unix.Openat(unix.AT_FDCWD, "/etc/passwd", unix.O_RDONLY, 0)
	refused("openat", err)
	refused("stat", unix.Stat("/", new(unix.Stat_t)))
	refused("mkdir", unix.Mkdir("/tmp/x", 0o700))
	refused("exec", unix.Exec("/bin/true", []string{"true"}, nil))
	refused("kill", unix.Kill(pid, 0))
	refused("tgkill of another", unix.Tgkill(os.Getppid(), os.Getppid(), 0))
	if err := unix.Tgkill(pid, pid, 0); err != nil {
		fmt.Println("tgkill of itself:", err)
	}
	for _, cmd := range []int{unix.F_SETOWN, unix.F_SETOWN_EX, unix.F_SETSIG} {
		_, err = unix.FcntlInt(1, cmd, os.Getppid())
		refused(fmt.Sprint("fcntl ", cmd), err)
	}
	refused("ptrace", unix.PtraceAttach(1))
	_, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e == 0 {
		fmt.Println("forked")
	}
	refused("fork", e)
	if _, _, e = unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); e != unix.ENOSYS {
		fmt.Printf("clone3: %v\n", e)
	}
	for _, family := range []int{unix.AF_UNIX, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_VSOCK, unix.AF_ALG} {
		_, err = unix.Socket(family, unix.SOCK_STREAM, 0)
		refused(fmt.Sprint("socket of family ", family), err)
	}
	refused("setuid", unix.Setresuid(0, 0, 0))
	refused("mount", unix.Mount("none", "/", "tmpfs", 0, ""))
	// What it is for works, also on new threads.
	for range 8 {
		done := make(chan string)
		go func() {
			c, err := connect(addrPort(&unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}), time.Second)
			if err != nil {
				done <- "connect: " + err.Error() + "\n"
				return
			}
			_ = c.Close()
			done <- ""
		}()
		_, _ = os.Stdout.WriteString(<-done)
	}
	_, _ = os.Stdout.WriteString("done\n")
	os.Exit(0)
}
