//go:build linux

package guest

import (
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

const sudoUsage = `usage: sudo [-nEHiks] [-u user] [VAR=value ...] [--] [command [argument ...]]
This sandbox's sudo asks for no password: what it runs is root inside the sandbox, and nobody outside.
`

// Sudo is the main function of the sudo program inside. It returns the exit status.
func Sudo(args []string) int {
	r, status, err := parseSudo(args)
	if r == nil {
		if err != nil {
			complain(err.Error())
		}
		return status
	}
	code, err := askInit(r)
	if err != nil {
		complain(err.Error())
		var we *wire.Error
		if errors.As(err, &we) {
			switch we.Code {
			case wire.CodeNoProgram:
				return 127
			case wire.CodePermission:
				return 126
			}
		}
		return 1
	}
	return code
}

func complain(text string) { _, _ = os.Stderr.WriteString("sudo: " + text + "\n") }

// parseSudo reads the options that people type; a nil request means that
// there is nothing to run.
func parseSudo(args []string) (r *sudoRequest, status int, err error) {
	r = &sudoRequest{}
	list := false
	// Options that take a value, and mean nothing here.
	const valued = "CDghpRrtTU"
	for len(args) > 0 {
		a := args[0]
		if a == "--" {
			args = args[1:]
			break
		}
		if name, value, _ := strings.Cut(a, "="); !strings.HasPrefix(a, "-") || len(a) == 1 {
			if value == "" && name == a || !isName(name) {
				break
			}
			r.Set = append(r.Set, a)
			args = args[1:]
			continue
		}
		args = args[1:]
		if long, value, has := strings.Cut(a, "="); strings.HasPrefix(a, "--") {
			switch long {
			case "--user":
				if !has {
					if len(args) == 0 {
						return nil, 1, errors.New("--user needs a name")
					}
					value, args = args[0], args[1:]
				}
				r.User = value
			case "--login":
				r.Login, r.Shell = true, true
			case "--shell":
				r.Shell = true
			case "--preserve-env":
				r.Home = !has
			case "--list", "--validate", "--remove-timestamp", "--reset-timestamp":
				list = true
			case "--help":
				_, _ = os.Stdout.WriteString(sudoUsage)
				return nil, 0, nil
			case "--version":
				_, _ = os.Stdout.WriteString("sudo of the berth sandbox\n")
				return nil, 0, nil
			case "--non-interactive", "--set-home", "--stdin", "--askpass", "--background", "--preserve-groups":
			default:
				return nil, 1, errors.New("unknown option " + long + "\n" + sudoUsage)
			}
			continue
		}
		for i := 1; i < len(a); i++ {
			rest := a[i+1:]
			switch o := a[i]; {
			case o == 'u' || strings.IndexByte(valued, o) >= 0 && !(o == 'h' && rest == "" && len(args) == 0):
				if rest == "" {
					if len(args) == 0 {
						return nil, 1, errors.New("-" + string(o) + " needs a value")
					}
					rest, args = args[0], args[1:]
				}
				if o == 'u' {
					r.User = strings.TrimPrefix(rest, "#")
				}
				i = len(a)
			case o == 'h':
				_, _ = os.Stdout.WriteString(sudoUsage)
				return nil, 0, nil
			case o == 'i':
				r.Login, r.Shell = true, true
			case o == 's':
				r.Shell = true
			case o == 'E':
				r.Home = true
			case o == 'l' || o == 'v' || o == 'K' || o == 'k':
				list = true
			case o == 'V':
				_, _ = os.Stdout.WriteString("sudo of the berth sandbox\n")
				return nil, 0, nil
			case strings.IndexByte("nHSAbBP", o) >= 0:
			default:
				return nil, 1, errors.New("unknown option -" + string(o) + "\n" + sudoUsage)
			}
		}
	}
	r.Argv = args
	if len(args) == 0 && !r.Shell {
		if list {
			return nil, 0, nil
		}
		return nil, 1, errors.New("nothing to run\n" + sudoUsage) //nolint:staticcheck // shown to a person as it is
	}
	return r, 0, nil
}

func isName(s string) bool {
	for i, c := range []byte(s) {
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func askInit(r *sudoRequest) (int, error) {
	caught := make(chan os.Signal, 16)
	forwarded := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
	signal.Notify(caught, forwarded...)
	var err error
	if r.Cwd, err = os.Getwd(); err != nil {
		return 1, err
	}
	r.Env = os.Environ()
	if b, err := json.Marshal(r); err != nil || len(b) > sudoFrame-1024 { // and a header
		return 1, errSudoTooLarge
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: sudoSocket}); err != nil {
		return 1, errors.New("no sandbox to ask: " + err.Error())
	}
	conn, err := wire.Socket(fd, 1<<20)
	if err != nil {
		return 1, err
	}
	// Standard descriptors may be closed; they must not become a socket's.
	files := make([]*os.File, 3)
	for i := range files {
		dup, err := unix.FcntlInt(uintptr(i), unix.F_DUPFD_CLOEXEC, 10)
		if err != nil {
			if dup, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
				return 1, err
			}
		}
		files[i] = os.NewFile(uintptr(dup), "stdio")
	}
	if err := sendFiles(conn, r, files); err != nil {
		return 1, err
	}
	go func() {
		for s := range caught {
			if sig, ok := s.(syscall.Signal); ok {
				_ = conn.Send(wire.Header{}, sudoSignal{int(sig)}, nil)
			}
		}
	}()
	for {
		f, err := conn.Recv()
		if err != nil {
			return 1, errors.New("the sandbox's init is gone")
		}
		if f.Error != nil {
			return 1, f.Error
		}
		var e struct {
			wire.Exited
			PID int `json:"pid"`
		}
		if err := decode(f, &e); err != nil {
			return 1, err
		}
		switch {
		case e.PID != 0: // it runs
		case e.Signal != 0:
			return 128 + e.Signal, nil
		default:
			return e.Code, nil
		}
	}
}

// sendFiles keeps the shared descriptions' blocking mode, which wire's Send
// would change under every other program that holds them.
func sendFiles(conn *wire.Conn, r *sudoRequest, files []*os.File) error {
	var blocking []int
	for _, f := range files {
		fd := int(f.Fd())
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK == 0 {
			blocking = append(blocking, fd)
		}
	}
	err := conn.Send(wire.Header{Op: opSudo}, r, nil, files...)
	for _, fd := range blocking {
		_ = unix.SetNonblock(fd, false)
	}
	return err
}
