//go:build linux

package local

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// fakeEngine's monitors are `sleep` processes that outlive their parent.
type fakeEngine struct{}

func (fakeEngine) launch(_ context.Context, l *wire.Launch, _ string) error {
	for _, m := range l.Mounts {
		if m.Upper != "" {
			for _, d := range []string{m.Upper, m.Work} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					return err
				}
			}
		}
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	start, _ := startTime(cmd.Process.Pid)
	return writeJSON(filepath.Join(l.Dir, "monitor.json"), wire.Record{Version: 1, Boot: bootID(), MonitorPID: cmd.Process.Pid, MonitorStart: start, Started: time.Now().UnixNano()}, false)
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if f[0] == "Z" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(f[19], 10, 64)
}

func (fakeEngine) monitor(dir string) (rec wire.Record, alive bool, err error) {
	if err = readJSON(filepath.Join(dir, "monitor.json"), &rec); err != nil {
		return rec, false, err
	}
	start, err := startTime(rec.MonitorPID)
	return rec, err == nil && start == rec.MonitorStart && rec.Boot == bootID() && rec.Stopped == 0, nil
}

func (e fakeEngine) connect(_ context.Context, dir string) (connection, error) {
	if _, alive, _ := e.monitor(dir); !alive {
		return nil, sandbox.ErrNotRunning
	}
	return fakeConn{dir}, nil
}

func (e fakeEngine) kill(_ context.Context, dir string) error {
	rec, alive, err := e.monitor(dir)
	if errors.Is(err, fs.ErrNotExist) || !alive {
		return nil
	}
	if err := syscall.Kill(rec.MonitorPID, syscall.SIGKILL); err != nil {
		return err
	}
	for alive {
		_, alive, _ = e.monitor(dir)
	}
	return nil
}

func (fakeEngine) history(dir string) ([]sandbox.ProcessInfo, error) {
	var list []sandbox.ProcessInfo
	err := readJSON(filepath.Join(dir, "history.json"), &list)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return list, err
}

func (fakeEngine) historyProcess(string, sandbox.ProcessID) (sandbox.Process, error) {
	return nil, sandbox.ErrNoProcess
}
func (fakeEngine) close() error { return nil }

type fakeConn struct{ dir string }

func (fakeConn) Spawn(context.Context, sandbox.Command) (sandbox.Process, error) {
	return nil, sandbox.ErrUnsupported
}
func (fakeConn) Process(context.Context, sandbox.ProcessID) (sandbox.Process, error) {
	return nil, sandbox.ErrNoProcess
}
func (fakeConn) Processes(context.Context) ([]sandbox.ProcessInfo, error) { return nil, nil }

func (fakeConn) Forget(context.Context, sandbox.ProcessID) error { return sandbox.ErrNoProcess }
func (fakeConn) Usage(context.Context) (wire.Usage, error) {
	return wire.Usage{CPUNS: -1, Memory: -1, Processes: -1}, nil
}

// Network keeps in network.json what it is told, unless there is a directory.
func (c fakeConn) Network(_ context.Context, set *wire.Network) (wire.NetworkState, error) {
	if set == nil {
		return wire.NetworkState{}, nil
	}
	return wire.NetworkState{}, writeJSON(filepath.Join(c.dir, "network.json"), set, false)
}
func (fakeConn) Configure(context.Context, wire.Intervals) error { return nil }
func (fakeConn) Limit(context.Context, wire.LimitChange) error   { return nil }
func (c fakeConn) Stop(ctx context.Context, reason string) error {
	rec, _, err := fakeEngine{}.monitor(c.dir)
	if err != nil {
		return err
	}
	if err := (fakeEngine{}).kill(ctx, c.dir); err != nil {
		return err
	}
	rec.Stopped, rec.Reason = time.Now().UnixNano(), reason
	return writeJSON(filepath.Join(c.dir, "monitor.json"), rec, false)
}
func (fakeConn) Files() sandbox.Files { return nil }

func (fakeConn) Mount(context.Context, wire.MountOrder, []byte, *os.File) (wire.Mounted, error) {
	return wire.Mounted{}, sandbox.ErrUnsupported
}
func (fakeConn) Unmount(context.Context, string) error             { return nil }
func (fakeConn) Mounts(context.Context) ([]wire.MountState, error) { return nil, nil }

func (fakeConn) Touch(context.Context) error { return nil }

func (fakeConn) DialPort(context.Context, uint16) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
func (c fakeConn) MakeWay(ctx context.Context) (bool, error) {
	return false, c.Stop(ctx, "made way")
}
func (fakeEngine) hold(string) *os.File                          { return nil }
func (fakeEngine) settle(context.Context, *os.File, ...string)   {}
func (fakeEngine) freeze(context.Context, string) (still, error) { return nil, sandbox.ErrUnsupported }
