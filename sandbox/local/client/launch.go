//go:build linux

package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Bounds of a launch.
const (
	oldMonitorWait = 10 * time.Second // for the last monitor to be gone
	readyWait      = 2 * time.Minute  // for a sandbox to be up; it takes 20 ms
	maxLog         = 256 << 10        // of monitor.log, kept over launches
)

// Launch starts a monitor with the program box, and returns when the sandbox
// is ready. The caller holds the sandbox's lock: two launches at once are not
// told apart here. A monitor that is just ending is waited for; one that runs
// is an error. A failed start's error is the monitor's own text.
func Launch(ctx context.Context, box *os.File, l *wire.Launch, session string) (*Conn, *wire.Ready, error) {
	old, cancel := context.WithTimeout(ctx, oldMonitorWait)
	err := waitDead(old, l.Dir)
	cancel()
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			return nil, nil, errors.New("start the sandbox: its monitor runs already")
		}
		return nil, nil, fmt.Errorf("start the sandbox: %w", err)
	}
	cmd, ready, err := spawnMonitor(box, l, session)
	if err != nil {
		return nil, nil, fmt.Errorf("start the sandbox's monitor: %w", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // reaped while this berth lives
	r, err := awaitReady(ctx, ready, cmd, l.Dir)
	if err != nil {
		_ = cmd.Process.Kill() // it has failed, or nobody waits for it
		<-exited
		_ = os.Remove(l.Dir + "/" + journal.SocketName)
		return nil, nil, err
	}
	c, err := Dial(ctx, l.Dir)
	return c, r, err
}

// spawnMonitor runs the box and gives it its descriptors.
func spawnMonitor(box *os.File, l *wire.Launch, session string) (*exec.Cmd, *wire.Conn, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	defer func() { closeFiles(files) }()
	keep := func(f *os.File, err error) (*os.File, error) {
		if err == nil {
			files = append(files, f)
		}
		return f, err
	}
	launch, err := keep(memfile("launch", text))
	if err != nil {
		return nil, nil, err
	}
	socket, err := keep(listen(l.Dir))
	if err != nil {
		return nil, nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs, _ := keep(os.NewFile(uintptr(pair[1]), "ready"), nil)
	ready, err := wire.Socket(pair[0], 1<<20)
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*exec.Cmd, *wire.Conn, error) {
		_ = ready.Close()
		_ = os.Remove(l.Dir + "/" + journal.SocketName)
		return nil, nil, err
	}
	log, err := keep(openLog(l.Dir))
	if err != nil {
		return fail(err)
	}
	cmd, program, err := boxCommand(box, []*os.File{launch, socket, theirs}, "monitor", session)
	if err != nil {
		return fail(err)
	}
	defer program.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(cmd.Env, "GODEBUG=containermaxprocs=0,updatemaxprocs=0")
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	return cmd, ready, nil
}

// boxCommand is a command of box, with files from descriptor 3 on. The caller
// closes program when the command has started.
//
// The child finds the program by its descriptor. On its way there it overwrites
// the descriptors that it is given, and moves others above the highest of all it
// is given (package syscall); so the program is given too, as the last.
func boxCommand(box *os.File, files []*os.File, args ...string) (cmd *exec.Cmd, program *os.File, err error) {
	fd, err := unix.FcntlInt(box.Fd(), unix.F_DUPFD_CLOEXEC, len(files)+64)
	if err != nil {
		return nil, nil, os.NewSyscallError("dup", err)
	}
	program = os.NewFile(uintptr(fd), "box")
	return &exec.Cmd{
		Path:        "/proc/self/fd/" + strconv.Itoa(fd),
		Args:        append([]string{"box"}, args...),
		Env:         []string{"GOMAXPROCS=1"},
		Dir:         "/",
		ExtraFiles:  append(files[:len(files):len(files)], program),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}, program, nil
}

func memfile(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(b)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// listen makes the monitor's socket, in place of one that a dead monitor left.
func listen(dir string) (*os.File, error) {
	if err := os.Remove(dir + "/" + journal.SocketName); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(d)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// The socket file's mode is this one less the umask; the directory is
	// private besides.
	_ = unix.Fchmod(fd, 0o600)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: socketPath(d)}); err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("listen", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// openLog opens monitor.log for a new monitor, whose output it is: the lock on
// it lasts as long as that process, from before there is a record of it.
func openLog(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir+"/"+journal.LogName, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	// A killed monitor holds it until the last of its threads is gone, a moment
	// after it counts as dead.
	err = lockLog(f)
	for end := time.Now().Add(2 * time.Second); errors.Is(err, errLocked) && time.Now().Before(end); err = lockLog(f) {
		time.Sleep(2 * time.Millisecond)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.Size() > maxLog {
		_ = f.Truncate(0)
	}
	return f, nil
}

var errLocked = errors.New("another monitor of this sandbox runs or is being started")

func lockLog(f *os.File) error {
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case unix.EINTR:
		case unix.EWOULDBLOCK:
			return errLocked
		default:
			return os.NewSyscallError("flock", err)
		}
	}
}

// Begun reports whether a monitor of the sandbox with state directory dir
// exists, even one that has only just been started and is in no record yet.
func Begun(dir string) bool {
	f, err := os.OpenFile(dir+"/"+journal.LogName, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(lockLog(f), errLocked)
}

// awaitReady waits for the one frame that the monitor sends, or its death.
func awaitReady(ctx context.Context, ready *wire.Conn, cmd *exec.Cmd, dir string) (*wire.Ready, error) {
	// Nobody is to wait for ever for one that hangs.
	bound, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	stop := context.AfterFunc(bound, func() { _ = ready.Close() })
	defer stop()
	f, err := ready.Recv()
	_ = ready.Close()
	switch {
	case ctx.Err() == nil && bound.Err() != nil:
		if f != nil {
			closeFiles(f.Files)
		}
		return nil, fmt.Errorf("the sandbox was not up within %s, and was ended; its monitor's last words: %s", readyWait, tail(dir))
	case ctx.Err() != nil:
		if f != nil {
			closeFiles(f.Files)
		}
		return nil, fmt.Errorf("start the sandbox: %w", ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("the sandbox's monitor (pid %d) died before it was ready; its last words: %s", cmd.Process.Pid, tail(dir))
	}
	closeFiles(f.Files)
	if f.Error != nil {
		return nil, terms.Error(f.Error)
	}
	r := &wire.Ready{}
	if err := json.Unmarshal(f.Body, r); err != nil {
		return nil, fmt.Errorf("the monitor's ready message cannot be understood: %w", err)
	}
	return r, nil
}

// tail is the end of monitor.log.
func tail(dir string) string {
	f, err := os.Open(dir + "/" + journal.LogName)
	if err != nil {
		return "none"
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "none"
	}
	b := make([]byte, 2048)
	n, _ := f.ReadAt(b, max(0, st.Size()-int64(len(b))))
	if s := strings.TrimSpace(strings.ToValidUTF8(string(b[:n]), "?")); s != "" {
		return s
	}
	return "none"
}
