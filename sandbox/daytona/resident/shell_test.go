//go:build linux

package resident_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/daytona/api"
	"berth/sandbox/daytona/resident"
)

// built is the helper, built for these tests.
var built []byte

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "berth-box-")
	if err != nil {
		panic(err)
	}
	// As it is uploaded, also under the race detector: each call starts one.
	cmd := exec.Command("go", "build", "-o", dir+"/box", "-trimpath", "-ldflags", "-s -w", "berth/sandbox/local/box")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build the helper: %v: %s", err, out))
	}
	if built, err = os.ReadFile(dir + "/box"); err != nil {
		panic(err)
	}
	_ = os.RemoveAll(dir)
	os.Exit(m.Run())
}

// program is Options.Program of these tests.
func program(goarch string) []byte {
	if goarch != runtime.GOARCH {
		return nil
	}
	return built
}

// shell is a transport that runs commands on this machine as the platform runs them
// in a sandbox, with all that it does to what they print.
type shell struct {
	shell string // the program that reads commands
	home  string
	cred  *syscall.Credential // nil: ourselves
	path  string              // PATH

	mu    sync.Mutex
	n     int
	execs []string // what was run
	// fault, when set, is asked about each command before it is run.
	fault func(n int, command string) fault
}

// fault is what goes wrong with one command.
type fault struct {
	unsent  bool          // it never gets there
	lost    bool          // it is run, and the answer is lost
	cut     int           // its answer ends after so many bytes, when > 0
	twice   bool          // it is delivered twice at once
	late    time.Duration // it is delivered once more, later
	kill    time.Duration // it is killed after so long
	garbage string        // is printed before and after
}

var _ resident.Transport = (*shell)(nil)

// openDir is t.TempDir for what other users are to enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-resident-") //nolint:usetesting // what t.TempDir makes lies in a directory that is closed to others
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newShell makes a place for a sandbox that cred lives in, in a home of its own,
// and ends all that is left in it at the end.
func newShell(t *testing.T, cred *syscall.Credential) *shell {
	t.Helper()
	home := filepath.Join(openDir(t), "ho'me") // a name that must be quoted
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if cred != nil {
		if err := os.Chown(home, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	s := &shell{shell: "bash", home: home, cred: cred, path: os.Getenv("PATH")}
	t.Cleanup(func() { s.killAll(t) })
	return s
}

// pids are the processes that have the home among their arguments: the resident and
// its shims.
func (s *shell) pids() (list []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if bytes.Contains(b, []byte("box\x00resident\x00"+s.home+"/")) {
			list = append(list, pid)
		}
	}
	return list
}

// killAll ends the resident in order, so that it ends its commands, and then what is
// left.
func (s *shell) killAll(t *testing.T) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		list := s.pids()
		if len(list) == 0 {
			return
		}
		for _, pid := range list {
			_ = unix.Kill(pid, unix.SIGTERM)
		}
	}
	t.Errorf("processes %v of the helper are left", s.pids())
	for _, pid := range s.pids() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

func (s *shell) command(text string) *exec.Cmd {
	cmd := exec.Command(s.shell)
	cmd.Stdin = strings.NewReader(text)
	cmd.Dir = s.home
	cmd.Env = []string{"HOME=" + s.home, "PATH=" + s.path, "PLATFORM=yes"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.cred}
	return cmd
}

func (s *shell) Exec(ctx context.Context, text string, timeout time.Duration) (string, int, error) {
	s.mu.Lock()
	s.n++
	s.execs = append(s.execs, text)
	var f fault
	if s.fault != nil {
		f = s.fault(s.n, text)
	}
	s.mu.Unlock()
	if f.unsent {
		return "", 0, fmt.Errorf("%w: the test did not send it", api.ErrUnavailable)
	}
	type result struct {
		out  string
		code int
		err  error
	}
	done := make(chan result, 1)
	run := func() result {
		out, code, err := s.run(text, timeout, f)
		return result{out, code, err}
	}
	// A client that leaves ends nothing inside.
	go func() {
		if f.twice {
			go run()
		}
		r := run()
		if f.late > 0 {
			time.AfterFunc(f.late, func() { run() })
		}
		done <- r
	}()
	select {
	case r := <-done:
		if f.lost {
			return "", 0, fmt.Errorf("%w: the test lost the answer", api.ErrMaybeDone)
		}
		if f.cut > 0 && f.cut < len(r.out) {
			r.out = r.out[:f.cut]
		}
		return r.out, r.code, r.err
	case <-ctx.Done():
		return "", 0, fmt.Errorf("%w: %w", api.ErrMaybeDone, ctx.Err())
	}
}

func (s *shell) run(text string, timeout time.Duration, f fault) (string, int, error) {
	cmd := s.command(text)
	var out bytes.Buffer
	out.WriteString(f.garbage)
	cmd.Stdout, cmd.Stderr = &out, &out // and Wait waits until all have closed it
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	var timedOut bool
	if timeout > 0 {
		stop := time.AfterFunc(timeout, func() { timedOut = true; _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
		defer stop.Stop()
	}
	if f.kill > 0 {
		stop := time.AfterFunc(f.kill, func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
		defer stop.Stop()
	}
	err := cmd.Wait()
	if timedOut {
		return "", 0, api.ErrTimeout
	}
	out.WriteString(f.garbage)
	code := cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", 0, err
	}
	return platform(out.String()), code, nil
}

// platform does to a text what the platform does: NULs are gone, what is no UTF-8 is
// mangled, a newline is added, and it all goes through JSON.
func platform(text string) string {
	b, err := json.Marshal(map[string]string{"result": strings.ReplaceAll(text, "\x00", "") + "\n"})
	if err != nil {
		panic(err)
	}
	var v map[string]string
	if err := json.Unmarshal(b, &v); err != nil {
		panic(err)
	}
	return v["result"]
}

func (s *shell) Upload(ctx context.Context, path string, _ fs.FileMode, r io.Reader, _ int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var made []string
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		made = append(made, dir)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644) // the mode is the platform's own
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if s.cred != nil {
		for _, p := range append(made, path) {
			_ = os.Chown(p, int(s.cred.Uid), int(s.cred.Gid))
		}
	}
	return err
}

// Session runs a text beside, and then ends the session that it ran in, as the
// platform does when a session is deleted.
func (s *shell) Session(_ context.Context, text string) error {
	cmd := s.command(text)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait()
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	}()
	return nil
}
