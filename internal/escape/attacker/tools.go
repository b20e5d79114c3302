//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tool runs one of the tools that the tests' scenarios are made of.
func tool(name string, args []string) error {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch name {
	case "whoami":
		fmt.Printf("uid %d effective %d capabilities %s\n", os.Getuid(), os.Geteuid(), status("CapEff"))
	case "int80":
		nr, err := strconv.ParseUint(arg(0), 10, 32)
		if err != nil {
			return err
		}
		// Where the machine has no such calls this is a fault, of which Go would make an
		// exit code like any other: have it end the program.
		var byDefault [4]uint64 // struct sigaction
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGSEGV), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0); errno != 0 {
			return errno
		}
		r := syscall32(uint32(nr), 0x10000000, bad, bad)
		if e := syscall.Errno(-r); r < 0 && (e == unix.EPERM || e == unix.ENOSYS) {
			return nil
		}
		return fmt.Errorf("answered %d, want a refusal by the filter", r)
	case "forkbomb":
		forkBomb()
	case "memory":
		return memoryHog()
	case "connections":
		connections()
	case "stopper":
		return stopper()
	case "flood":
		return flood(arg(0))
	case "killall":
		return unix.Kill(-1, unix.SIGKILL)
	case "signals":
		signalInit()
	case "ruin":
		return ruin(args)
	case "swap":
		return swapFiles(arg(0), args[1:])
	case "socket":
		return abuseSockets(arg(0))
	case "seed":
		return seed(args)
	case "swappart":
		return swapPart(arg(0), arg(1), args[2:])
	case "watchexe":
		return watchExe()
	case "plant":
		return plant(arg(0))
	default:
		return errors.New("no such tool")
	}
	return nil
}

// forkBomb starts children that do the same, until killed.
func forkBomb() {
	signal.Ignore(unix.SIGTERM, unix.SIGHUP, unix.SIGINT)
	for {
		p, err := os.StartProcess(os.Args[0], []string{os.Args[0], "tool", "forkbomb"}, &os.ProcAttr{Dir: "/", Files: []*os.File{nil, nil, nil},
			Sys: &syscall.SysProcAttr{Setsid: true}})
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		_ = p.Release()
	}
}

// stopper stops every process that is about to come, for as long as it can.
func stopper() error {
	fmt.Println("go")
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		base := os.Getpid()
		if b, err := os.ReadFile("/proc/loadavg"); err == nil { // its last field is the newest process of this namespace
			f := strings.Fields(string(b))
			base, _ = strconv.Atoi(f[len(f)-1])
		}
		for range 2000 {
			for pid := base + 1; pid < base+6; pid++ {
				if pid != os.Getpid() {
					_ = unix.Kill(pid, unix.SIGSTOP)
				}
			}
		}
	}
	return nil
}

// memoryHog takes memory until killed.
func memoryHog() error {
	var keep [][]byte
	for {
		b, err := unix.Mmap(-1, 0, 16<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return fmt.Errorf("after %d MiB: %w", len(keep)*16, err)
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
}

// flood writes so many bytes to stdout.
func flood(size string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	line := []byte(strings.Repeat("0123456789abcdef", 4096))
	for n > 0 {
		if n < int64(len(line)) {
			line = line[:n]
		}
		w, err := os.Stdout.Write(line)
		if err != nil {
			return err
		}
		n -= int64(w)
	}
	return nil
}

// signalInit sends every signal to PID 1 and to each of its threads, in every
// way there is.
func signalInit() {
	threads, _ := os.ReadDir("/proc/1/task")
	for round := range 3 {
		for s := syscall.Signal(1); s <= 64; s++ {
			_ = unix.Kill(1, s)
			for _, th := range threads {
				tid, _ := strconv.Atoi(th.Name())
				_ = unix.Tgkill(1, tid, s)
			}
			if fd, err := unix.PidfdOpen(1, 0); err == nil {
				_ = unix.PidfdSendSignal(fd, s, nil, 0)
				_ = unix.Close(fd)
			}
		}
		time.Sleep(time.Duration(round) * 20 * time.Millisecond)
	}
	fmt.Println("sent")
}

// ruin does to each file whatever it can, and prints what it could.
func ruin(paths []string) error {
	for _, p := range paths {
		could := []string{}
		try := func(what string, err error) {
			if err == nil {
				could = append(could, what)
			}
		}
		try("chmod", os.Chmod(p, 0o4777))
		try("chown", os.Chown(p, 1000, 1000))
		try("xattr", unix.Setxattr(p, "user.escape", []byte("x"), 0))
		try("times", unix.Utimes(p, []unix.Timeval{{Sec: 1}, {Sec: 1}}))
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err == nil {
			_, werr := f.WriteString("overwritten")
			try("write", werr)
			try("truncate", f.Truncate(3))
			_ = f.Close()
		}
		if f, err := os.Open(p); err == nil {
			g, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
			try("reopen", err)
			if err == nil {
				_, _ = g.WriteString("again")
				_ = g.Close()
			}
			_ = f.Close()
		}
		try("link", os.Link(p, filepath.Join("/tmp", filepath.Base(p)+".hard")))
		try("rename", os.Rename(p, p+".moved"))
		try("replace", os.WriteFile(p, []byte("replaced"), 0o755))
		try("remove", os.Remove(p))
		try("mkdir", os.Mkdir(p, 0o777))
		fmt.Printf("%s: %s\n", p, strings.Join(could, " "))
	}
	return nil
}

// swapFiles makes dir/file and dir/sub/file change their nature all the time,
// until killed: regular file, link to each of others, FIFO, directory. It
// prints "ready" when it began.
func swapFiles(dir string, others []string) error {
	if err := os.MkdirAll(filepath.Join(dir, "real"), 0o755); err != nil {
		return err
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		other := others[i%len(others)]
		tmp := filepath.Join(dir, "."+strconv.Itoa(i%7))
		file, sub := filepath.Join(dir, "file"), filepath.Join(dir, "sub")
		_ = os.RemoveAll(tmp)
		switch i % 5 {
		case 0:
			_ = os.WriteFile(tmp, []byte("harmless\n"), 0o644)
		case 1, 2:
			_ = os.Symlink(other, tmp)
		case 3:
			_ = unix.Mkfifo(tmp, 0o666)
		case 4:
			_ = os.Mkdir(tmp, 0o755)
		}
		if err := os.Rename(tmp, file); err != nil {
			_ = os.RemoveAll(file)
			_ = os.Rename(tmp, file)
		}
		// The directory above is a directory, or a link to others' directory.
		_ = os.RemoveAll(tmp)
		if i%2 == 0 {
			_ = os.Symlink(filepath.Dir(other), tmp)
		} else {
			_ = os.Symlink(filepath.Join(dir, "real"), tmp)
		}
		if err := os.Rename(tmp, sub); err != nil {
			_ = os.RemoveAll(sub)
		}
		if i%3 == 0 {
			_ = os.WriteFile(filepath.Join(dir, "real", "file"), []byte("harmless\n"), 0o644)
		}
	}
}

// abuseSockets torments every unix socket below dir.
func abuseSockets(dir string) error {
	var sockets []string
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 {
			sockets = append(sockets, path)
		}
		return nil
	})
	for line := range strings.Lines(readAll("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) > 7 && strings.HasPrefix(f[7], "@") {
			sockets = append(sockets, f[7])
		}
	}
	fmt.Printf("%d sockets: %v\n", len(sockets), sockets)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	frame := func(size, head uint32, rest string) string {
		b := []byte{byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size), byte(head >> 24), byte(head >> 16), byte(head >> 8), byte(head)}
		return string(b) + rest
	}
	header := func(s string) string { return frame(uint32(4+len(s)), uint32(len(s)), s) }
	inputs := []string{"", "\x00", "GET / HTTP/1.1\r\n\r\n", frame(0xffffffff, 4, "x"), frame(0, 0, ""), frame(4, 0xffffffff, ""), frame(100, 50, "{}"),
		frame(20<<20, 20<<20-4, strings.Repeat("[", 1<<20)), header("{"), header("null"), header("[]"), header(`{"id":1,"op":"halt"}`),
		header(`{"id":1,"op":"setup","body":{}}`), header(`{"id":1,"op":"start","body":{"id":"x","argv":["/bin/true"],"user":"root"}}`),
		header(`{"id":1,"op":"signal","body":{"id":"x","signal":9}}`), header(`{"id":18446744073709551615,"op":"` + strings.Repeat("a", 100000) + `"}`),
		header(strings.Repeat("[", 60000)), header(`{"op":"exited","body":{"id":"x","code":0}}`), strings.Repeat("\xff", 1<<20)}
	for _, s := range sockets {
		for _, in := range inputs {
			c, err := net.DialTimeout("unix", s, time.Second)
			if err != nil {
				fmt.Printf("%s: %v\n", s, err)
				continue
			}
			_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
			_, _ = c.Write([]byte(in))
			_, _ = c.Read(make([]byte, 4096))
			_ = c.Close()
		}
		// Descriptors by the hundred, and of odd kinds.
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		for n := range 20 {
			c, err := net.DialTimeout("unix", s, time.Second)
			if err != nil {
				break
			}
			uc := c.(*net.UnixConn)
			fds := make([]int, 0, 250)
			for range 50 * (n%5 + 1) {
				fds = append(fds, int(null.Fd()))
			}
			fds[0] = pair[n%2]
			_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
			_, _, _ = uc.WriteMsgUnix([]byte(frame(1000, 900, "{")), unix.UnixRights(fds...), nil)
			if n%2 == 0 {
				_, _ = c.Read(make([]byte, 16))
			}
			_ = c.Close()
		}
		// Idle connections, as many as there may be.
		var open []net.Conn
		for range 2000 {
			c, err := net.DialTimeout("unix", s, 50*time.Millisecond)
			if err != nil {
				break
			}
			open = append(open, c)
		}
		fmt.Printf("%s: %d idle connections\n", s, len(open))
		var wg sync.WaitGroup
		for _, c := range open {
			wg.Go(func() {
				_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
				_, _ = c.Write([]byte("\x00\x00\x00\x10"))
				_ = c.Close()
			})
		}
		wg.Wait()
	}
	fmt.Println("done")
	return nil
}

func readAll(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

// watchExe waits for a process whose program is none of the sandbox's files,
// as berth's helper is, and tries to write to that program through its open
// descriptor once the process has ended. It runs until killed or for 6 s.
func watchExe() error {
	fmt.Println("watching")
	caught, changed, seen := 0, map[string]bool{}, map[string]int{}
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
		for _, pid := range pids() {
			path := "/proc/" + pid + "/exe"
			to, err := os.Readlink(path)
			if err != nil || sameFile(path, to) && !strings.Contains(to, "sudo") {
				continue
			}
			fd, err := unix.Open(path, unix.O_RDONLY, 0)
			if err != nil {
				continue
			}
			// By now the process may run another program.
			again := fmt.Sprintf("/proc/self/fd/%d", fd)
			if to = link(fd); sameFile(again, to) && !strings.Contains(to, "sudo") {
				_ = unix.Close(fd)
				continue
			}
			caught++
			seen[to]++
			// Whoever owns it could take away that it can be executed. A sealed
			// memory file refuses just that.
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && unix.Fchmod(fd, st.Mode&0o7777&^0o111) == nil && !changed[to] {
				_ = unix.Fchmod(fd, st.Mode&0o7777)
				changed[to] = true
				fmt.Printf("ESCAPED: the mode of %s can be changed\n", to)
			}
			for range 200 {
				w, err := unix.Open(again, unix.O_WRONLY, 0)
				if err == nil {
					// Truncation would be the attack; asking whether writing is allowed is enough.
					seals, serr := unix.FcntlInt(uintptr(w), unix.F_GET_SEALS, 0)
					if serr != nil || seals&unix.F_SEAL_WRITE == 0 {
						fmt.Printf("ESCAPED: %s opened for writing\n", to)
					}
					_ = unix.Close(w)
					break
				}
				if err != unix.ETXTBSY {
					break
				}
				time.Sleep(time.Millisecond)
			}
			_ = unix.Close(fd)
		}
	}
	fmt.Printf("caught %d: %v\n", caught, seen)
	return nil
}

// connections opens them without end: to what is refused, and to what is let
// out and answers nobody.
func connections() {
	for {
		var open []int
		for i := range 500 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				break
			}
			open = append(open, fd)
			to := &unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 9, 8, byte(i)}}
			if i%2 == 0 {
				to.Addr = [4]byte{203, 0, 113, byte(i)}
			}
			_ = unix.Connect(fd, to)
		}
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}
}

// plant puts one of everything into this sandbox that another must not find,
// says "planted", and waits.
func plant(name string) error {
	for _, dir := range []string{"/tmp", "/home/agent", "/dev/shm", "/var/tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("planted"), 0o666); err != nil {
			return err
		}
	}
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		return err
	}
	defer l.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer udp.Close()
	go func() {
		b := make([]byte, 16)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(b[:n], from)
		}
	}()
	key := 0x5e5c0000 + os.Getpid()
	if _, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|0o666); err != nil {
		return fmt.Errorf("shmget: %w", err)
	}
	fmt.Printf("planted %s %s %d\n", tcp.Addr(), udp.LocalAddr(), key)
	time.Sleep(time.Hour)
	return nil
}
