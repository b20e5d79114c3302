//go:build linux

package resident

import (
	"encoding/json"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/guest"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/monitor"
	"berth/sandbox/local/wire"
)

const (
	startWait = 20 * time.Second // for another's start, or our own; it takes 10 ms
	maxLog    = 256 << 10        // of monitor.log
	// configVariable is for the resident alone; it is not in its commands'
	// environment.
	configVariable = "BERTH_RESIDENT"
)

// The descriptors of a resident.
const (
	fdListen = iota + 3
	fdLock
	fdReady
	fdEnd
)

// config is what a resident is started with.
type config struct {
	Base  string         `json:"base"`
	Start wire.CallStart `json:"start"`
}

// start starts the sandbox's resident, if none runs, below the first base that
// can hold one.
func start(c *wire.Call) *wire.Error {
	if e := fit(); e != nil {
		return e
	}
	if base := settled(c); base != "" {
		if _, err := startIn(base, c); err != nil {
			return notStarted(dirIn(base, c.Sandbox), err)
		}
		return nil
	}
	var reasons []string
	for _, base := range bases(c) {
		fits, err := startIn(base, c)
		if err == nil {
			return nil
		}
		if fits {
			return notStarted(dirIn(base, c.Sandbox), err)
		}
		reasons = append(reasons, err.Error())
	}
	return &wire.Error{Code: wire.CodeInternal, Text: "berth's helper finds no place to live in the sandbox: " + strings.Join(reasons, "; ")}
}

func notStarted(dir string, err error) *wire.Error {
	e := failed("berth's helper cannot be started in "+dir, err)
	if err == errDied {
		e.Code = wire.CodeDied
	}
	return e
}

// fit tells what this machine lacks.
func fit() *wire.Error {
	missing := func(what string) *wire.Error {
		var u unix.Utsname
		_ = unix.Uname(&u)
		return &wire.Error{Code: wire.CodeUnsupported, Text: "berth's helper cannot run in this sandbox: " + what + " (kernel " + unix.ByteSliceToString(u.Release[:]) + "); it needs Linux 5.9 or newer, with /proc and /dev/null"}
	}
	if err := unix.CloseRange(^uint(0)>>33, ^uint(0)>>33, 0); err == unix.ENOSYS {
		return missing("there is no close_range")
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, "/proc/self/fd", &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC})
	switch err {
	case nil:
		_ = unix.Close(fd)
	case unix.ENOSYS:
		return missing("there is no openat2")
	default:
		return missing("/proc/self/fd cannot be opened: " + err.Error())
	}
	if fd, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return missing("pidfd_open: " + err.Error())
	}
	_ = unix.Close(fd)
	return nil
}

// startIn tells whether the base can hold a resident, and why none was started.
func startIn(base string, c *wire.Call) (fits bool, err error) {
	dir := dirIn(base, c.Sandbox)
	if err := tryOut(base); err != nil {
		return false, err
	}
	for _, d := range []string{dir, dir + "/" + tempDir} {
		if err := private(d); err != nil {
			return true, err
		}
	}
	return true, startThere(base, dir, c)
}

// tryOut sees whether base can be made, and can hold files and sockets: a bucket
// that is mounted there may not.
func tryOut(base string) error {
	if err := private(base); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(base, "try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	listen, err := listenIn(dir)
	if err != nil {
		return err
	}
	return listen.Close()
}

func startThere(base, dir string, c *wire.Call) error {
	lock, err := os.OpenFile(dir+"/"+lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	for end := time.Now().Add(startWait); ; time.Sleep(2 * time.Millisecond) {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return &os.PathError{Op: "lock", Path: lock.Name(), Err: err}
		}
		// One runs, or is about to, or has been killed and is not gone altogether.
		if conn := connectIn(dir); conn != nil {
			return conn.Close()
		}
		if time.Now().After(end) {
			return &os.PathError{Op: "lock", Path: lock.Name(), Err: err}
		}
	}
	clearTemp(dir+"/"+tempDir, 0) // before anybody can be told that it serves
	listen, err := listenIn(dir)
	if err != nil {
		return err
	}
	defer listen.Close()
	return launch(base, dir, c, listen, lock)
}

func listenIn(dir string) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, &os.PathError{Op: "listen", Path: dir + "/" + journal.SocketName, Err: err}
	}
	if err := unix.Chdir(dir); err != nil {
		return fail(err)
	}
	if err := unix.Unlink(journal.SocketName); err != nil && err != unix.ENOENT {
		return fail(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	_ = unix.Fchmod(fd, 0o600)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: journal.SocketName}); err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		_ = f.Close()
		return fail(err)
	}
	return f, nil
}

// errDied is of a resident that said nothing: what it printed is in its log, and more
// likely somebody killed it.
var errDied = &wire.Error{Code: wire.CodeDied, Text: "it died at its start; " + journal.LogName + " there may say why"}

// launch runs the resident, which has nothing of ours but what it is given, and
// waits until it serves.
func launch(base, dir string, c *wire.Call, listen, lock *os.File) error {
	text, err := json.Marshal(config{Base: base, Start: *c.Start})
	if err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(dir+"/"+journal.LogName, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if st, err := log.Stat(); err == nil && st.Size() > maxLog {
		_ = log.Truncate(0)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	p, err := os.StartProcess(program(), []string{"box", "resident", dir}, &os.ProcAttr{
		Dir: "/", Env: append(os.Environ(), configVariable+"="+string(text)),
		Files: []*os.File{null, log, log, listen, lock, theirs}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = theirs.Close()
	if err != nil {
		return err
	}
	_ = p.Release()
	_ = ready.SetReadDeadline(time.Now().Add(startWait))
	answer, err := io.ReadAll(io.LimitReader(ready, 4096))
	if err != nil {
		_ = unix.Kill(p.Pid, unix.SIGKILL)
		return err
	}
	if string(answer) == "ready" {
		return nil
	}
	if len(answer) == 0 {
		return errDied
	}
	return &wire.Error{Text: string(answer)}
}

// Main is `box resident DIR`, the resident itself. It returns when it has been
// stopped.
func Main(args []string) int {
	if len(args) != 1 {
		return 2
	}
	dir := args[0]
	var conf config
	if err := json.Unmarshal([]byte(os.Getenv(configVariable)), &conf); err != nil {
		return 2
	}
	_ = os.Unsetenv(configVariable)
	_ = os.Unsetenv(wire.CallVariable)
	for fd := fdListen; fd < fdEnd; fd++ {
		unix.CloseOnExec(fd)
	}
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	umask := unix.Umask(0o022)
	ready := os.NewFile(fdReady, "ready")
	say := func(err error) {
		text := "ready"
		if err != nil {
			text = err.Error()
		}
		_, _ = ready.WriteString(text)
		_ = ready.Close()
	}
	_ = unix.SetNonblock(fdListen, true)
	record := &wire.Resident{Version: wire.CallVersion, Build: conf.Start.Build, Program: program(), Base: conf.Base, PID: os.Getpid(), Started: time.Now().UnixNano()}
	if err := writeRecord(dir, record); err != nil {
		say(err)
		return 1
	}
	l := launchOf(dir, &conf)
	monitor.Serve(l, os.NewFile(fdListen, "listener"), func(l *wire.Launch) (monitor.Sandbox, error) {
		return open(l, guest.Free{Program: record.Program, Dir: dir + "/" + tempDir, Umask: umask})
	}, say)
	return 0
}

// clearTemp removes what was left in dir so long ago: texts of commands, and
// uploads that came to nothing.
func clearTemp(dir string, ago time.Duration) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if i, err := e.Info(); err == nil && time.Since(i.ModTime()) >= ago {
			_ = os.Remove(dir + "/" + e.Name())
		}
	}
}

func launchOf(dir string, conf *config) *wire.Launch {
	u := user()
	l := &wire.Launch{Version: wire.Version, Dir: dir, Env: map[string]string{}, Users: []wire.User{u}, User: u.Name, Limits: guest.FreeLimits(),
		LogBytes: conf.Start.LogBytes, KeepLogBytes: conf.Start.KeepLogBytes, KeepProcesses: conf.Start.Keep}
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			l.Env[k] = v
		}
	}
	for _, k := range []string{"_", "PWD", "OLDPWD", "SHLVL"} { // the shell's own, of which ours was the last command
		delete(l.Env, k)
	}
	if t := l.Env["TERM"]; t == "" || t == "dumb" {
		l.Env["TERM"] = "xterm-256color"
	}
	if l.Env["LANG"] == "" && l.Env["LC_ALL"] == "" && l.Env["LC_CTYPE"] == "" {
		l.Env["LC_CTYPE"] = "C.UTF-8"
	}
	return l
}

// user is whom this program runs as.
func user() wire.User {
	uid, gid := os.Geteuid(), os.Getegid()
	u := wire.User{Name: strconv.Itoa(uid), UID: uint32(uid), GID: uint32(gid), Home: "/", Shell: "/bin/sh"}
	if known := guest.PasswdUser(strconv.Itoa(uid)); known != nil && known.UID == u.UID {
		u.Name, u.Home, u.Shell = known.Name, known.Home, known.Shell
	}
	if h := home(); h != "" {
		u.Home = h
	}
	return u
}

// here is the sandbox as the monitor sees it: a guest in this very program.
type here struct {
	conn, guests *wire.Conn
	done         chan struct{}
}

func open(l *wire.Launch, o guest.Free) (*here, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	h := &here{done: make(chan struct{})}
	if h.conn, err = wire.Socket(pair[0], 0); err != nil {
		return nil, err
	}
	if h.guests, err = wire.Socket(pair[1], 0); err != nil {
		return nil, err
	}
	serve, err := guest.OpenFree(h.guests, l, o)
	if err != nil {
		return nil, err
	}
	go func() {
		serve()
		_ = h.guests.Close()
		close(h.done)
	}()
	return h, nil
}

func (h *here) Conn() *wire.Conn { return h.conn }
func (h *here) Gate() []*os.File { return nil }
func (h *here) Kill()            { _ = h.guests.Close() }
func (h *here) Wait() error      { <-h.done; return nil }
func (h *here) Close() error     { return nil }

func (h *here) Ready() wire.Ready {
	return wire.Ready{Tree: wire.Held{State: "enforced", Detail: "a subreaper for each process"}}
}

func (h *here) Usage() wire.Usage { return wire.Usage{CPUNS: -1, Memory: -1, Processes: -1, Disk: -1} }
