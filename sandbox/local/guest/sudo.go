//go:build linux

package guest

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// The conversation between the sudo program inside and init, over sudoSocket:
// opSudo with three descriptors -> Started, signals, then wire.Exited.
const (
	opSudo     = "sudo"
	sudoSocket = rootfs.RunDir + "/sudo.sock"
	sudoFrame  = 1 << 20 // arguments and environment as JSON; init's memory is nobody's limit
	sudoMax    = 64      // at once
	sudoReads  = 4       // requests being read at once, each a few times its size in memory
	sudoPause  = 10 * time.Second
)

type sudoRequest struct {
	User  string   `json:"user"`
	Argv  []string `json:"argv"` // none: a shell
	Cwd   string   `json:"cwd"`
	Env   []string `json:"env"`   // the caller's
	Set   []string `json:"set"`   // NAME=value, given to sudo itself
	Home  bool     `json:"home"`  // keep HOME (-E)
	Login bool     `json:"login"` // -i
	Shell bool     `json:"shell"` // argv is for the user's shell
}

type sudoSignal struct {
	Signal int `json:"signal"`
}

func (g *guest) listenSudo() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: sudoSocket}); err != nil {
		return rootfs.Explain("make "+sudoSocket, err)
	}
	if err := unix.Chmod(sudoSocket, 0o666); err != nil {
		return err
	}
	if err := unix.Listen(fd, sudoMax); err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), sudoSocket)
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	go func() {
		for {
			var conn int
			var err error
			if raw.Read(func(fd uintptr) bool {
				conn, _, err = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				return err != unix.EAGAIN
			}) != nil {
				return
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond) // such as too many open files
				continue
			}
			g.mu.Lock()
			full := g.sudoBusy >= sudoMax
			if !full {
				g.sudoBusy++
			}
			g.mu.Unlock()
			if full {
				_ = unix.Close(conn)
				continue
			}
			go func() {
				g.sudo(conn)
				g.mu.Lock()
				g.sudoBusy--
				g.mu.Unlock()
			}()
		}
	}()
	return nil
}

// sudo serves one caller, of whom only what the kernel says is believed.
func (g *guest) sudo(fd int) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	conn, err := wire.Socket(fd, sudoFrame)
	if err != nil {
		return
	}
	defer conn.Close()
	s, ended, err := g.sudoRequest(conn, int(cred.Pid), cred.Uid)
	if err != nil {
		_ = conn.Send(wire.Header{Error: wireError(err)}, nil, nil)
		return
	}
	if s == nil {
		return // it was fusermount, and is answered
	}
	pidfd := -1
	if p, ok := readProc(s.main); ok && p.ppid == s.child.PID {
		pidfd, _ = unix.PidfdOpen(s.main, 0)
	}
	defer func() {
		if pidfd >= 0 {
			_ = unix.Close(pidfd)
		}
	}()
	go g.watch(s)
	_ = conn.File().SetWriteDeadline(time.Now().Add(sudoPause))
	_ = conn.Send(wire.Header{}, wire.Started{PID: s.main}, nil)
	signals := make(chan int)
	quit := make(chan struct{})
	defer close(quit)
	go func() {
		for {
			f, err := conn.Recv()
			var r sudoSignal
			if err == nil {
				for _, file := range f.Files {
					_ = file.Close()
				}
				err = decode(f, &r)
			}
			if err != nil || r.Signal < 1 || r.Signal > 64 {
				r.Signal = -1 // the caller is gone, or talks nonsense
			}
			select {
			case signals <- r.Signal:
			case <-quit:
				return
			}
			if r.Signal < 0 {
				return
			}
		}
	}()
	for {
		select {
		case sig := <-signals:
			if sig < 0 {
				sig = int(unix.SIGTERM)
			}
			if pidfd >= 0 {
				_ = unix.PidfdSendSignal(pidfd, unix.Signal(sig), nil, 0)
			}
		case e := <-ended:
			_ = conn.File().SetWriteDeadline(time.Now().Add(sudoPause))
			_ = conn.Send(wire.Header{}, e, nil)
			return
		}
	}
}

// sudoReading has room for the requests that are read and not yet started.
var sudoReading = make(chan struct{}, sudoReads)

// sudoRequest reads one request and starts what it asks for. Nothing of the
// request is kept.
func (g *guest) sudoRequest(conn *wire.Conn, caller int, uid uint32) (*shim, chan wire.Exited, error) {
	sudoReading <- struct{}{}
	defer func() { <-sudoReading }()
	_ = conn.File().SetDeadline(time.Now().Add(sudoPause))
	f, err := conn.Recv()
	switch {
	case err == wire.ErrTooLarge:
		return nil, nil, errSudoTooLarge
	case err != nil:
		return nil, nil, invalid("malformed request")
	}
	_ = conn.File().SetDeadline(time.Time{})
	defer func() {
		for _, file := range f.Files {
			_ = file.Close()
		}
	}()
	if f.Op == opFuse {
		file, err := g.fusermount(f, uid)
		if err != nil {
			return nil, nil, err
		}
		_ = conn.File().SetWriteDeadline(time.Now().Add(sudoPause))
		var files []*os.File
		if file != nil {
			defer file.Close()
			files = append(files, file)
		}
		_ = conn.Send(wire.Header{}, nil, nil, files...)
		return nil, nil, nil
	}
	return g.sudoStart(f, caller)
}

var errSudoTooLarge = &wire.Error{Code: wire.CodeInvalid,
	Text: "arguments and environment are too large: at most 1 MiB together; pass the data in a file or through standard input, or use `sudo -s` and run the command in that shell"}

// owner is the tree that process pid belongs to.
func (g *guest) owner(pid int) *tree {
	for range 4096 {
		g.mu.Lock()
		s := g.shims[pid]
		g.mu.Unlock()
		if s != nil {
			return s.tree
		}
		p, ok := readProc(pid)
		if !ok || pid <= 1 {
			return nil
		}
		pid = p.ppid
	}
	return nil
}

func (g *guest) sudoStart(f *wire.Frame, caller int) (*shim, chan wire.Exited, error) {
	var r sudoRequest
	if f.Op != opSudo || len(f.Files) != 3 {
		return nil, nil, invalid("malformed request")
	}
	if err := decode(f, &r); err != nil {
		return nil, nil, err
	}
	if !strings.HasPrefix(r.Cwd, "/") {
		return nil, nil, invalid("the working directory cannot be told")
	}
	name := r.User
	if name == "" {
		name = "0"
	}
	u, err := g.user(name)
	if err != nil {
		return nil, nil, err
	}
	t := g.owner(caller)
	if t == nil {
		return nil, nil, &wire.Error{Code: wire.CodePermission, Text: "the caller belongs to no process of this sandbox"}
	}
	c := &command{user: u, argv: r.Argv, cwd: r.Cwd, env: map[string]string{}}
	if r.Login {
		c.cwd = u.Home
		c.env = g.env(u)
		if c.env["TERM"] == "" {
			c.env["TERM"] = "xterm"
		}
	} else {
		for _, kv := range r.Env {
			if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
				c.env[k] = v
			}
		}
		for k, v := range g.env(u) {
			switch k {
			case "USER", "LOGNAME", "SHELL":
				c.env[k] = v
			case "HOME":
				if !r.Home {
					c.env[k] = v
				}
			}
		}
	}
	for _, kv := range r.Set {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			c.env[k] = v
		}
	}
	// As long as other sudos make it: the kernel takes 128 KiB in one variable.
	command := strings.Join(r.Argv, " ")
	c.env["SUDO_COMMAND"] = command[:min(len(command), 4096)]
	c.env["SUDO_USER"] = g.launch.User
	if d, err := g.user(g.launch.User); err == nil {
		c.env["SUDO_UID"] = strconv.FormatUint(uint64(d.UID), 10)
		c.env["SUDO_GID"] = strconv.FormatUint(uint64(d.GID), 10)
	}
	if r.Shell || len(c.argv) == 0 {
		shell := u.Shell
		if shell == "" {
			shell = "/bin/sh"
		}
		argv := []string{shell}
		if r.Login {
			argv = append(argv, "-l")
		}
		if len(c.argv) > 0 {
			argv = append(argv, "-c", quoteAll(c.argv))
		}
		c.argv = argv
	}
	for _, s := range c.argv {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, nil, invalid("an argument holds a NUL byte")
		}
	}
	for i, file := range f.Files {
		// Not by Fd, which would change the mode of what the caller shares.
		conn, err := file.SyscallConn()
		if err != nil {
			return nil, nil, err
		}
		_ = conn.Control(func(fd uintptr) { *[]*int{&c.in, &c.out, &c.e}[i] = int(fd) })
	}
	s, err := g.spawn(t, c)
	if err != nil {
		return nil, nil, err
	}
	ended := make(chan wire.Exited, 1)
	s.ended = func(ws unix.WaitStatus, _ int64, _ bool) {
		e := wire.Exited{Code: ws.ExitStatus()}
		if ws.Signaled() {
			e.Code, e.Signal = -1, int(ws.Signal())
		}
		ended <- e
	}
	return s, ended, nil
}

// quoteAll joins arguments to one text that a shell takes apart again.
func quoteAll(argv []string) string {
	var out []string
	for _, a := range argv {
		out = append(out, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	return strings.Join(out, " ")
}
