//go:build linux

package tree

import (
	"bufio"
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
)

// IDs is an id map that the calling user gets from newuidmap and newgidmap:
// inside, 0 is the caller and 1 to Count-1 are SubUID… and SubGID….
type IDs struct {
	SubUID, SubGID uint32
	Count          uint32
}

// As does the package's operations. With Map it does them as the root of that
// map, in a process of its own: this program started again, which init below
// turns into a helper. Without Map it does them in this process.
type As struct {
	Map *IDs
	// Shift is handed to Pack and Unpack.
	Shift IDShift
}

// helperName is argv[0] of the helper. It holds a space, so that nobody starts
// it by accident.
const helperName = "berth tree-helper"

// Remove is the function Remove.
func (a As) Remove(ctx context.Context, path string) error {
	if a.Map == nil {
		return Remove(path)
	}
	// Most trees can be removed without help once what is ours is gone; but a
	// half-removed tree is not worse than a whole one.
	if err := Remove(path); err == nil {
		return nil
	}
	_, err := a.help(ctx, nil, nil, "remove", path)
	return err
}

// Chown gives each path, which must not be a link, to the inside's uid and gid.
func (a As) Chown(ctx context.Context, uid, gid int, paths ...string) error {
	if a.Map == nil {
		return chown(uid, gid, paths)
	}
	_, err := a.help(ctx, nil, nil, append([]string{"chown", strconv.Itoa(uid), strconv.Itoa(gid)}, paths...)...)
	return err
}

func chown(uid, gid int, paths []string) error {
	for _, p := range paths {
		if err := os.Lchown(p, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// CheckDepth is the function CheckDepth.
func (a As) CheckDepth(ctx context.Context, dir string) error {
	if a.Map == nil {
		return CheckDepth(dir)
	}
	_, err := a.help(ctx, nil, nil, "depth", dir)
	return err
}

// Pack is the function Pack.
func (a As) Pack(ctx context.Context, w io.Writer, dir string) (Summary, error) {
	if a.Map == nil {
		return Pack(ctxWriter{ctx, w}, dir, a.Shift)
	}
	return a.help(ctx, nil, w, "pack", dir)
}

// Unpack is the function Unpack.
func (a As) Unpack(ctx context.Context, r io.Reader, dir string) (Summary, error) {
	if a.Map == nil {
		return Unpack(ctxReader{ctx, r}, dir, a.Shift)
	}
	return a.help(ctx, r, nil, "unpack", dir)
}

type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c ctxWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// answer is what the helper writes to its descriptor 3 at the end.
type answer struct {
	Summary Summary `json:"summary"`
	Error   string  `json:"error,omitempty"`
	Errno   int     `json:"errno,omitempty"`
	TooDeep bool    `json:"too_deep,omitempty"`

	Layer LayerSummary `json:"layer"`
	Stack StackSummary `json:"stack"`
	// Bad: the error is a *LayerError.
	Bad bool `json:"bad,omitempty"`
}

// help runs the helper in a new user namespace. The helper waits for the map on
// descriptor 4, starts itself once more (a program gains the namespace's
// rights by being executed as its root), and works.
func (a As) help(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) (Summary, error) {
	ans, err := a.ask(ctx, stdin, stdout, args...)
	return ans.Summary, err
}

func (a As) ask(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) (answer, error) {
	var ans answer
	result, resultW, err := os.Pipe()
	if err != nil {
		return ans, err
	}
	defer result.Close()
	gate, gateW, err := os.Pipe()
	if err != nil {
		_ = resultW.Close()
		return ans, err
	}
	defer gateW.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = helperName
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout = stdin, stdout
	cmd.ExtraFiles = []*os.File{resultW, gate}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Start()
	_ = resultW.Close()
	_ = gate.Close()
	if err != nil {
		return ans, fmt.Errorf("user namespace: %w", err)
	}
	if err = a.Map.apply(ctx, cmd.Process.Pid); err == nil {
		_, err = gateW.Write([]byte{1})
	}
	if err != nil {
		_ = cmd.Process.Kill()
	}
	_ = gateW.Close()
	// The answer is small: it fits the pipe, so that waiting first is safe.
	werr := cmd.Wait()
	if err != nil {
		return ans, err
	}
	if derr := json.NewDecoder(io.LimitReader(result, 64<<10)).Decode(&ans); derr != nil {
		if ctx.Err() != nil {
			return ans, ctx.Err()
		}
		return ans, fmt.Errorf("helper for %s ended early: %w", args[0], errors.Join(werr, derr))
	}
	switch {
	case ans.TooDeep:
		return ans, fmt.Errorf("%s: %w", ans.Error, ErrTooDeep)
	case ans.Bad:
		return ans, &LayerError{ans.Error}
	case ans.Error != "":
		return ans, &helpError{ans.Error, syscall.Errno(ans.Errno)}
	}
	return ans, werr
}

type helpError struct {
	text  string
	errno syscall.Errno
}

func (e *helpError) Error() string { return e.text }
func (e *helpError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// apply has newuidmap and newgidmap write the maps of process pid.
func (m *IDs) apply(ctx context.Context, pid int) error {
	for _, tool := range []struct {
		name     string
		own, sub uint32
	}{{"newuidmap", uint32(os.Getuid()), m.SubUID}, {"newgidmap", uint32(os.Getgid()), m.SubGID}} {
		cmd := exec.CommandContext(ctx, tool.name, strconv.Itoa(pid), "0", u(tool.own), "1", "1", u(tool.sub), u(m.Count-1))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %.200s", tool.name, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func u(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// The helper must begin before anything else of the program does, wherever the
// program's main is: hence an init.
func init() {
	if len(os.Args) == 0 || !strings.HasPrefix(os.Args[0], helperName) {
		return
	}
	if os.Args[0] == helperName {
		var b [1]byte
		if n, err := os.NewFile(4, "gate").Read(b[:]); n != 1 || err != nil {
			os.Exit(1) //nolint:forbidigo // a process of its own
		}
		unix.CloseOnExec(4)
		args := append([]string{helperName + " mapped"}, os.Args[1:]...)
		_ = syscall.Exec("/proc/self/exe", args, os.Environ())
		os.Exit(1) //nolint:forbidigo // as above
	}
	helper(os.Args[1:])
	os.Exit(0) //nolint:forbidigo // as above
}

func helper(args []string) {
	unix.Umask(0o077)
	unix.CloseOnExec(3)
	var ans answer
	err := errors.New("unknown operation")
	switch {
	case len(args) == 2 && args[0] == "remove":
		err = Remove(args[1])
	case len(args) == 2 && args[0] == "depth":
		err = CheckDepth(args[1])
	case len(args) == 2 && args[0] == "pack":
		w := bufio.NewWriterSize(os.Stdout, 256<<10)
		if ans.Summary, err = Pack(w, args[1], IDShift{}); err == nil {
			err = w.Flush()
		}
	case len(args) == 2 && args[0] == "unpack":
		ans.Summary, err = Unpack(bufio.NewReaderSize(os.Stdin, 256<<10), args[1], IDShift{})
		if err == nil {
			_, err = io.Copy(io.Discard, os.Stdin)
		}
	case len(args) == 3 && args[0] == "copy":
		ans.Summary, err = Copy(context.Background(), args[1], args[2])
	case len(args) == 2 && args[0] == "stack":
		w := bufio.NewWriterSize(os.Stdout, 256<<10)
		if ans.Stack, err = stackHelper(w, args[1]); err == nil {
			err = w.Flush()
		}
	case len(args) == 3 && args[0] == "layer":
		ans.Layer, err = layerHelper(args[1], args[2])
	case len(args) >= 3 && args[0] == "chown":
		var uid, gid int
		if uid, err = strconv.Atoi(args[1]); err == nil {
			if gid, err = strconv.Atoi(args[2]); err == nil {
				err = chown(uid, gid, args[3:])
			}
		}
	}
	if err != nil {
		ans.Error = fmt.Sprintf("%.1000s", err.Error())
		ans.TooDeep = errors.Is(err, ErrTooDeep)
		var le *LayerError
		ans.Bad = errors.As(err, &le)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			ans.Errno = int(errno)
		}
	}
	_ = json.NewEncoder(os.NewFile(3, "result")).Encode(ans)
}
