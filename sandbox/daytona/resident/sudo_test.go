//go:build linux

package resident_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"berth/sandbox"
	"berth/sandbox/daytona/resident"
)

// A sudo that asks nobody, for tests: the part of the real one that matters.
const sudoProgram = `package main

import (
	"os"
	"os/exec"
	"syscall"
)

func main() {
	a := os.Args[1:]
	for len(a) > 0 && (a[0] == "-n" || a[0] == "--") {
		a = a[1:]
	}
	for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(0), syscall.Setuid(0)} {
		if err != nil {
			os.Stderr.WriteString("sudo: a password is required\n")
			os.Exit(1)
		}
	}
	p, err := exec.LookPath(a[0])
	if err == nil {
		err = syscall.Exec(p, a, []string{"PATH=" + os.Getenv("PATH")})
	}
	os.Stderr.WriteString(err.Error() + "\n")
	os.Exit(1)
}
`

// withSudo puts the test's sudo first on the PATH of s.
func withSudo(t *testing.T, s *shell, mode fs.FileMode) {
	t.Helper()
	dir := openDir(t)
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte(sudoProgram), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", dir+"/sudo", src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test's sudo: %v: %s", err, out)
	}
	if err := os.Chmod(dir+"/sudo", mode); err != nil {
		t.Fatal(err)
	}
	s.path = dir + ":" + s.path
}

// TestOtherUsers runs commands as users that the helper becomes by sudo.
func TestOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a setuid program, and runs the helper as nobody")
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(os.TempDir(), &st); err != nil || st.Flags&2 != 0 {
		t.Skip("needs a temporary directory that is not mounted nosuid")
	}
	s := newShell(t, credential(t, "nobody"))
	withSudo(t, s, fs.ModeSetuid|0o755)
	b := newBox(s, "users")
	ctx := limited(t)
	as := func(user, shell string) sandbox.Command {
		c := s.text(shell)
		c.User = user
		return c
	}
	if out := run(t, b, as("root", "id -u; id -un; echo $HOME; pwd; echo \"$KEY\"; cat")); out != "0\nroot\n/root\n"+s.home+"\n\n" {
		t.Errorf("as root: got %q", out)
	}
	c := as("daemon", "id -un; echo \"$KEY\"; wc -c; umask; env | grep -c -e SUDO -e BERTH")
	c.Env, c.Stdin = map[string]string{"KEY": "a b'\n$x"}, []byte("12345")
	if i, out := end(t, spawn(t, b, c)); out != "daemon\na b'\n$x\n5\n0022\n0\n" {
		t.Errorf("as daemon: got %+v, %q", i, out)
	}
	c = as("daemon", "echo begin; true "+strings.Repeat("x", 300<<10)+"; id -un")
	if out := run(t, b, c); out != "begin\ndaemon\n" {
		t.Errorf("a long command as daemon: got %.100q", out)
	}
	if _, err := b.Spawn(ctx, as("no-such-user", "true")); err == nil || !strings.Contains(err.Error(), "no-such-user") {
		t.Errorf("an unknown user: %v", err)
	}
	c = as("root", "true")
	c.Cwd = s.home + "/missing"
	if _, err := b.Spawn(ctx, c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
	c = as("root", "")
	c.Argv = []string{"no-such-program-at-all"}
	if _, err := b.Spawn(ctx, c); !errors.Is(err, sandbox.ErrNoProgram) {
		t.Errorf("a missing program: %v", err)
	}
	// Its tree is root's, and is ended all the same.
	p := spawn(t, b, as("root", "(setsid sleep 8765432 &); echo ready; exec sleep 8765432"))
	if err := p.Wait(ctx, sandbox.Cursor{}, false); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(ctx, "KILL", 0, "the test is over"); err != nil {
		t.Fatal(err)
	}
	if i, _ := end(t, p); code(i) != 137 || !i.Killed {
		t.Errorf("killed: got %+v", i)
	}
	until(t, "root's tree is gone", func() bool {
		return !strings.Contains(run(t, b, s.text("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true")), "sleep 8765432")
	})

	// Without the right to sudo, it is the user that is refused, by name.
	q := newShell(t, credential(t, "nobody"))
	withSudo(t, q, 0o755)
	_, err := resident.New(q, resident.Options{ID: "x", Program: program, User: "root"}).Spawn(ctx, q.text("true"))
	var field *sandbox.FieldError
	if !errors.As(err, &field) || field.Field != "user" || !strings.Contains(err.Error(), "a password is required") {
		t.Errorf("without the right to sudo: %v", err)
	}
}
