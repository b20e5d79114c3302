//go:build linux

package guest

import (
	"encoding/json"
	"os"
	"path"
	"sort"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/wire"
)

// become is a command for a user that only sudo leads to. It goes by a file, since
// arguments are everybody's to see, and sudo takes the rest of what we could hand
// over. `box as`, run as root by sudo, removes the file when it is about to execute
// the command, and leaves an error beside it when it cannot.
type become struct {
	User  wire.User         `json:"user"`
	Shell string            `json:"shell,omitempty"`
	Argv  []string          `json:"argv,omitempty"`
	Env   map[string]string `json:"env"`
	Cwd   string            `json:"cwd"`
	Umask int               `json:"umask"`
}

func errName(name string) string { return name + ".err" }

// viaSudo makes of c a command that becomes c's user by sudo.
func (f *free) viaSudo(g *guest, t *tree, c *command) error {
	own := "uid " + strconv.FormatUint(uint64(f.uid), 10)
	if r := g.maySudo(); !r.has {
		return &wire.Error{Code: wire.CodeNoUser, Text: "commands here run as " + g.launch.User + " (" + own + "), and " + strconv.Quote(c.user.Name) +
			" is out of its reach: sudo -n says: " + r.reason + "; leave user out, or use an image whose user may use sudo without a password, or is root"}
	}
	b, err := json.Marshal(become{User: *c.user, Shell: c.shell, Argv: c.argv, Env: c.env, Cwd: c.cwd, Umask: f.Umask})
	if err != nil {
		return err
	}
	name := f.Dir + "/become-" + random()
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return pathError(name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = file.Write(b)
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	t.become = name
	if err != nil {
		t.clean()
		return pathError(name, errnoIn(err))
	}
	u, err := g.user("")
	if err != nil {
		return err
	}
	c.user, c.shell, c.argv, c.cwd = u, "", []string{"sudo", "-n", "--", f.Program, "as", name}, "/"
	c.env = map[string]string{"PATH": g.launch.Env["PATH"] + ":" + defaultPath, "TERM": c.env["TERM"]}
	return nil
}

// becomes waits until the command runs as its user.
func (g *guest) becomes(t *tree, s *shim) error {
	for end := time.Now().Add(startPatience); ; time.Sleep(time.Millisecond) {
		// First, since it may become its user and end between two looks.
		p, ok := readProc(s.main)
		dead := s.main <= 0 || !ok || p.dead()
		_, gone := os.Lstat(t.become)
		if b, err := os.ReadFile(errName(t.become)); err == nil {
			_ = os.Remove(errName(t.become))
			e := &wire.Error{}
			if json.Unmarshal(b, e) != nil {
				e = &wire.Error{Code: wire.CodeInternal, Text: "box as failed"}
			}
			return e
		}
		if os.IsNotExist(gone) {
			return nil
		}
		if dead {
			return &wire.Error{Code: wire.CodeNoUser, Text: "sudo did not run the command, and says why only to those who may read its log"}
		}
		if time.Now().After(end) {
			return errHeldUp
		}
	}
}

// BecomeMain is `box as FILE`. It returns only when there is nothing to run.
func BecomeMain(args []string) int {
	if len(args) != 1 {
		return 2
	}
	err := becomeIt(args[0])
	_ = syscall.Setresuid(0, 0, 0) // the directory is not open to the user
	b, _ := json.Marshal(wireError(err))
	temp := errName(args[0]) + "-new"
	if werr := os.WriteFile(temp, b, 0o644); werr == nil {
		_ = os.Rename(temp, errName(args[0]))
	}
	return 127
}

// becomeIt executes the command that the file tells of, or tells why it cannot.
func becomeIt(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var b become
	if err := json.Unmarshal(text, &b); err != nil {
		return invalid("malformed command")
	}
	dir, err := unix.Open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c := &command{user: &b.User, shell: b.Shell, argv: b.Argv, env: b.Env, cwd: b.Cwd}
	argv := c.argv
	if len(c.shell) > longText {
		// Its descriptor stays open in the shell: the private directory is not open to
		// the user, and nobody would remove the file elsewhere.
		file, err := longFile(path.Dir(name), c.shell, c.user, false)
		if err != nil {
			return err
		}
		fd, err := unix.Open(file, unix.O_RDONLY, 0)
		_ = unix.Unlink(file)
		if err != nil {
			return err
		}
		argv = []string{"", "/dev/fd/" + strconv.Itoa(fd)}
	} else if c.shell != "" {
		argv = append([]string{""}, shellArgs(c.shell)...)
	}
	groups := []int{int(b.User.GID)}
	for _, n := range b.User.Groups {
		groups = append(groups, int(n))
	}
	// Root stays the saved id, until the file is removed.
	if err := syscall.Setgroups(groups); err != nil {
		return err
	}
	if err := syscall.Setresgid(int(b.User.GID), int(b.User.GID), int(b.User.GID)); err != nil {
		return err
	}
	if err := syscall.Setresuid(int(b.User.UID), int(b.User.UID), 0); err != nil {
		return err
	}
	g := &guest{fuse: fuse{device: -1}}
	if err := unix.Chdir(c.cwd); err != nil {
		return g.startError(c, raw.Event{Stage: stageCwd, Value: errnoOf(err)})
	}
	unix.Umask(b.Umask)
	file, err := becomeProgram(c, argv)
	if err != nil {
		return g.startError(c, raw.Event{Stage: stageExec, Value: errnoOf(err)})
	}
	env := make([]string, 0, len(c.env))
	for k, v := range c.env {
		env = append(env, k+"="+v)
	}
	sort.Strings(env)
	uid := int(b.User.UID)
	if err := syscall.Setresuid(0, 0, 0); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, path.Base(name), 0); err != nil {
		return err
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return err
	}
	err = syscall.Exec(file, argv, env)
	_, _ = os.Stderr.WriteString(file + ": " + err.Error() + "\n")
	os.Exit(126) //nolint:forbidigo // it is as if the shell said so
	return err
}

// becomeProgram finds what is to be executed, with the user's rights.
func becomeProgram(c *command, argv []string) (string, error) {
	search := c.env["PATH"]
	if search == "" {
		search = defaultPath
	}
	found := error(unix.ENOENT)
	look := func(program, list string) string {
		for _, file := range candidates(program, list) {
			var st unix.Stat_t
			if err := unix.Stat(file, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
				continue
			}
			if err := unix.Faccessat2(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS); err != nil {
				found = err
				continue
			}
			return file
		}
		return ""
	}
	if c.shell == "" {
		if file := look(argv[0], search); file != "" {
			return file, nil
		}
		return "", found
	}
	for _, shell := range []string{"bash", "sh"} {
		if file := look(shell, "/usr/bin:/bin:"+search+":"+defaultPath); file != "" {
			argv[0] = shell
			return file, nil
		}
	}
	return "", found
}
