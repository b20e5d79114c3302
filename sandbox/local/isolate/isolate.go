//go:build linux

// Package isolate builds a sandbox on this machine: namespaces, id maps, the
// root of layers and binds, and cgroups. It starts init (package guest) as
// PID 1 inside and hands the connection to it to the caller, the sandbox's
// monitor.
//
// Nothing it mounts is seen outside: mounts are made in a namespace of one
// thread's own, or inside, and end with init.
package isolate

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/disk"
	"berth/sandbox/local/guest"
	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// Sandbox is a running sandbox. Its methods may be called concurrently.
type Sandbox struct {
	// Conn leads to init: OpStart, OpSignal, OpTree, OpHalt and the file ops
	// go in, OpExited and OpGone come out. The caller alone receives on it, and
	// closes it. What comes out was written beside hostile programs.
	Conn *wire.Conn
	// Ready is what holds in this sandbox.
	Ready wire.Ready
	// Gate are the sockets of the egress gate, in the order of package inside;
	// none without one. The caller closes them.
	Gate []*os.File
	// PID of init, as seen outside.
	PID int

	cgroups *cgroups
	disk    int           // a descriptor of the limited file system; -1: none
	done    chan struct{} // closed when init is gone
	err     error
	close   sync.Once
	mu      sync.Mutex // guards disk
}

// startTime bounds how long init may take to be ready.
const startTime = 30 * time.Second

// Start builds the sandbox of l and returns when commands can run in it. Its
// errors are *wire.Error; the text says what is missing and how to get it, and
// then nothing is left behind.
//
// The program that calls it must run entry.Main when it is started under the
// name init: /proc/self/exe becomes PID 1 inside, and /usr/bin/sudo.
func Start(l *wire.Launch) (*Sandbox, error) {
	type result struct {
		s   *Sandbox
		err error
	}
	c := make(chan result)
	go func() {
		// The thread gets a mount namespace of its own, and ends with this goroutine.
		runtime.LockOSThread()
		b := &builder{launch: l}
		s, err := b.start()
		c <- result{s, err}
	}()
	r := <-c
	if r.err != nil {
		return nil, rootfs.Explain("start the sandbox", r.err)
	}
	return r.s, nil
}

type builder struct {
	launch *wire.Launch
	conn   *wire.Conn
	pid    int
	init   *raw.Child // at work in our memory until it has executed its program
	kinds  []string
	files  []*os.File
}

func (b *builder) start() (_ *Sandbox, err error) {
	l := b.launch
	if err := checkIDs(l); err != nil {
		return nil, err
	}
	s := &Sandbox{disk: -1, done: make(chan struct{})}
	var gate int
	defer func() {
		for _, f := range b.files {
			_ = f.Close()
		}
		if err == nil {
			return
		}
		if b.pid > 0 {
			_ = unix.Kill(b.pid, unix.SIGKILL)
			_, _ = unix.Wait4(b.pid, nil, unix.WALL, nil)
		}
		if b.conn != nil {
			_ = b.conn.Close()
		}
		if s.cgroups != nil {
			for _, f := range s.cgroups.hand() {
				_ = unix.Close(f.fd)
			}
			_ = s.cgroups.remove()
		}
		s.letGo()
	}()
	setup := &guest.Setup{Launch: *l}
	if l.Network != nil {
		setup.Launch.Network = &wire.Network{} // the policy, and a proxy's password, stay outside
	}
	owner := -1
	if l.IDs.Mode == wire.IDsRange {
		owner = int(l.IDs.Base)
	}
	s.cgroups = newCgroups(CgroupName(l.Dir), owner, l.Limits, setup)
	trees := found()
	s.cgroups.each(trees, true)
	if more := s.cgroups.delegated(trees); more != nil {
		trees = more
		s.cgroups.each(trees, true)
	}
	// Init's process takes it from this one, whose memory it shares, when it gets
	// its ids; then /proc/self would be root's.
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if gate, err = b.fork(s.cgroups); err != nil {
		return nil, err
	}
	if err = b.mapIDs(); err != nil {
		_ = unix.Close(gate)
		return nil, err
	}
	_, err = unix.Write(gate, []byte{1})
	_ = unix.Close(gate)
	if err != nil {
		return nil, errors.New("init ended before it began")
	}
	// From here on init's program loads while its root is being made.
	s.cgroups.each(trees, false)
	s.cgroups.report()
	setup.Disk = diskHeld(l)
	for _, f := range s.cgroups.hand() {
		b.add(f.kind, f.fd)
	}
	if err = refuse(l.Limits.Must, setup); err != nil {
		return nil, err
	}
	if err = b.programs(setup); err != nil {
		return nil, err
	}
	if l.IDs.Mode == wire.IDsRange {
		if s.disk, err = b.mounts(); err != nil {
			return nil, err
		}
	}
	_ = b.conn.File().SetDeadline(time.Now().Add(startTime))
	ready, gateFiles, err := b.setup(setup)
	if err != nil {
		return nil, err
	}
	_ = b.conn.File().SetDeadline(time.Time{})
	if dumpable == 1 {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	}
	s.Conn, s.PID, s.Ready, s.Gate = b.conn, b.pid, *ready, gateFiles
	s.Ready.InitPID = b.pid
	s.Ready.InitStart = startTicks(b.pid)
	go s.wait()
	return s, nil
}

// fork starts init's process, in all its namespaces and in its cgroup, and
// leaves it waiting for a byte on gate.
func (b *builder) fork(c *cgroups) (gate int, err error) {
	defer c.atBirth()
	var pair, pipe [2]int
	if pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	defer unix.Close(pair[1])
	if b.conn, err = wire.Socket(pair[0], 0); err != nil {
		return -1, err
	}
	if err = unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	defer unix.Close(pipe[0])
	exe, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(exe)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(null)

	p := &raw.Program{}
	p.Report(pair[1]) // an error ends the connection, with bytes that are no frame
	p.Try(unix.SYS_CLOSE, uintptr(pipe[1]))
	p.Full(1, unix.SYS_READ, uintptr(pipe[0]), raw.Keep(p, &[8]byte{}), 1)
	// newuidmap had no say in this, so until now the process has no ids.
	p.Must(2, unix.SYS_SETRESGID, 0, 0, 0)
	p.Must(2, unix.SYS_SETRESUID, 0, 0, 0)
	if b.launch.IDs.Mode != wire.IDsSingle {
		p.Must(2, unix.SYS_SETGROUPS, 0, 0)
	}
	guest.Bound(p, 3)
	p.Must(3, unix.SYS_SETSID)
	p.Must(3, unix.SYS_DUP3, uintptr(null), 0, 0)
	p.Must(3, unix.SYS_DUP3, uintptr(null), 1, 0)
	// All descriptors are above 2, where Go's own programs have them, so each
	// of these is intact until it is used.
	high := uintptr(200)
	p.Must(3, unix.SYS_DUP3, uintptr(exe), high, unix.O_CLOEXEC)
	// What runs inside can reach the file of a running program by
	// /proc/PID/exe. Where root inside owns it, a read-only mount is what keeps
	// its mode from being changed. A memory file cannot be mounted: it is sealed.
	if name, err := os.Readlink("/proc/self/exe"); err == nil && unix.Access(name, unix.X_OK) == nil {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		p.Save(unix.SYS_OPEN_TREE, ^uintptr(99), p.String(name), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		p.Try(unix.SYS_MOUNT_SETATTR, raw.Saved, p.String(""), unix.AT_EMPTY_PATH, raw.Keep(p, attr), unsafe.Sizeof(*attr))
		p.Try(unix.SYS_DUP3, raw.Saved, high, unix.O_CLOEXEC)
	}
	if pair[1] != 3 {
		p.Must(3, unix.SYS_DUP3, uintptr(pair[1]), 3, 0)
	} else {
		p.Must(3, unix.SYS_FCNTL, 3, unix.F_SETFD, 0)
	}
	p.Must(3, unix.SYS_CLOSE_RANGE, 4, high-1, 0)
	p.Must(3, unix.SYS_CLOSE_RANGE, high+1, ^uintptr(0)>>32, 0)
	p.Must(3, unix.SYS_CHDIR, p.String("/"))
	var none [4]uint64
	actions := raw.Keep(p, &none)
	for sig := uintptr(1); sig <= 64; sig++ {
		p.Try(unix.SYS_RT_SIGACTION, sig, actions, 0, 8)
	}
	p.Must(3, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, raw.Keep(p, new(uint64)), 0, 8)
	p.Must(4, unix.SYS_EXECVEAT, high, p.String(""), p.Strings([]string{"berth-init", "init"}), p.Strings([]string{"GOMAXPROCS=1", "GOTRACEBACK=single", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}), unix.AT_EMPTY_PATH)
	const flags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if c.born >= 0 {
		// Without a cgroup namespace: its root would be the monitor's cgroup, from
		// where init could not reach the commands'. Each command has one of its own.
		if b.init, err = p.StartSharedInto(flags, c.born); err != nil {
			c.unborn()
		}
	}
	if b.init == nil {
		if b.init, err = p.StartShared(flags | unix.CLONE_NEWCGROUP); err != nil {
			_ = unix.Close(pipe[1])
			return -1, explainClone(err)
		}
	}
	b.pid = b.init.PID
	return pipe[1], nil
}

// add takes over fd, to be handed to init.
func (b *builder) add(kind string, fd int) {
	b.kinds = append(b.kinds, kind)
	b.files = append(b.files, os.NewFile(uintptr(fd), kind))
}

// programs adds what stands at /usr/bin/sudo and /dev/fuse inside: in the
// range mode as mounts made here, else as paths that init looks up.
func (b *builder) programs(setup *guest.Setup) error {
	exe := b.launch.Helper
	if exe == "" {
		var err error
		if exe, err = os.Readlink("/proc/self/exe"); err != nil {
			return err
		}
	}
	fuse := fuseNode(b.launch)
	if b.launch.IDs.Mode != wire.IDsRange {
		setup.Sudo, setup.FUSE = exe, fuse
		return nil
	}
	for _, p := range [][2]string{{guest.FileSudo, exe}, {guest.FileFUSE, fuse}} {
		if p[1] == "" {
			continue
		}
		// Without a program (deleted since it was started, say) there is no sudo.
		if fd, err := rootfs.CloneFile(p[1], p[0] == guest.FileSudo); err == nil {
			b.add(p[0], fd)
		}
	}
	return nil
}

// fuseNode is a /dev/fuse that the sandbox may use: as root a node of its own
// in the state directory, else the host's when everyone may open it.
func fuseNode(l *wire.Launch) string {
	var st unix.Stat_t
	if unix.Stat("/dev/fuse", &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return ""
	}
	if l.IDs.Mode != wire.IDsRange {
		if st.Mode&0o006 == 0o006 {
			return "/dev/fuse"
		}
		return ""
	}
	node := filepath.Join(l.Dir, "fuse")
	err := unix.Mknod(node, unix.S_IFCHR|0o666, int(st.Rdev))
	if err == nil || err == unix.EEXIST {
		err = unix.Chmod(node, 0o666)
	}
	if err != nil { // in a container, say
		if node = ""; st.Mode&0o006 == 0o006 {
			node = "/dev/fuse"
		}
	}
	return node
}

// setup sends everything to init and waits for its answer.
func (b *builder) setup(setup *guest.Setup) (*wire.Ready, []*os.File, error) {
	for at := 0; at < len(b.files); at += wire.MaxFiles {
		end := min(at+wire.MaxFiles, len(b.files))
		if err := b.conn.Send(wire.Header{Op: guest.OpFiles}, guest.Files{Kinds: b.kinds[at:end]}, nil, b.files[at:end]...); err != nil {
			return nil, nil, b.died(err)
		}
	}
	if err := b.conn.Send(wire.Header{ID: 1, Op: wire.OpSetup}, setup, nil); err != nil {
		return nil, nil, b.died(err)
	}
	f, err := b.conn.Recv()
	if err != nil {
		return nil, nil, b.died(err)
	}
	ready := &wire.Ready{}
	if f.Error != nil {
		err = explainInside(b.launch, f.Error)
	} else {
		ready, err = decodeReady(f)
	}
	if err != nil {
		for _, file := range f.Files {
			_ = file.Close()
		}
		return nil, nil, err
	}
	return ready, f.Files, nil
}

// died says why init did not answer.
func (b *builder) died(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &wire.Error{Code: wire.CodeInternal, Text: "the sandbox's init was not ready within " + startTime.String()}
	}
	var ws unix.WaitStatus
	for range 100 {
		pid, werr := unix.Wait4(b.pid, &ws, unix.WALL|unix.WNOHANG, nil)
		if werr != nil {
			break
		}
		if pid == b.pid {
			b.pid = 0
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	text := "the sandbox's init ended before it was ready: " + err.Error()
	switch {
	case b.pid == 0 && ws.Signaled():
		text += ", signal " + strconv.Itoa(int(ws.Signal()))
	case b.pid == 0:
		text += ", exit " + strconv.Itoa(ws.ExitStatus())
	}
	return &wire.Error{Code: wire.CodeInternal, Text: text}
}

// wait collects init, without a thread that waits for it.
func (s *Sandbox) wait() {
	defer close(s.done)
	var ws unix.WaitStatus
	collect := func(flags int) bool {
		for {
			pid, err := unix.Wait4(s.PID, &ws, unix.WALL|flags, nil)
			if err == unix.EINTR {
				continue
			}
			return err != nil || pid == s.PID
		}
	}
	fd, err := unix.PidfdOpen(s.PID, unix.PIDFD_NONBLOCK)
	if err == nil {
		f := os.NewFile(uintptr(fd), "init")
		if conn, cerr := f.SyscallConn(); cerr == nil {
			_ = conn.Read(func(uintptr) bool { return collect(unix.WNOHANG) })
		} else {
			collect(0)
		}
		_ = f.Close()
	} else {
		collect(0)
	}
	switch {
	case ws.Signaled() && ws.Signal() != unix.SIGKILL:
		s.err = errors.New("init ended by signal " + strconv.Itoa(int(ws.Signal())))
	case ws.Exited() && ws.ExitStatus() != 0:
		s.err = errors.New("init ended with status " + strconv.Itoa(ws.ExitStatus()))
	}
}

// Wait returns when init is gone, and with it every process inside. An error
// tells that init ended by a fault of its own.
func (s *Sandbox) Wait() error {
	<-s.done
	return s.err
}

// Usage of all commands together; -1 where not known. IdleSince is not set.
func (s *Sandbox) Usage() wire.Usage {
	u := s.cgroups.usage()
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.Disk = -1; s.disk >= 0 {
		u.Disk = disk.Used(s.disk)
	}
	return u
}

// letGo closes what would keep the limited file system.
func (s *Sandbox) letGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.disk >= 0 {
		_ = unix.Close(s.disk)
		s.disk = -1
	}
}

// Close ends init, when it has not ended, and removes what the sandbox has outside. It may be
// repeated.
func (s *Sandbox) Close() error {
	var err error
	s.close.Do(func() {
		select {
		case <-s.done:
		default:
			_ = unix.Kill(s.PID, unix.SIGKILL)
			<-s.done
		}
		_ = s.Conn.Close()
		s.letGo()
		err = s.cgroups.remove()
	})
	return err
}
