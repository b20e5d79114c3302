//go:build linux

package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/client"
	"berth/sandbox/local/isolate"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
	"golang.org/x/sys/unix"
)

// clientEngine runs real monitors. It keeps one connection a sandbox.
type clientEngine struct {
	log *slog.Logger

	mu    sync.Mutex
	conns map[string]*client.Conn // by state directory; nil when closed

	starting sync.WaitGroup // processes of settle
}

func newEngine(log *slog.Logger) engine {
	return &clientEngine{log: log, conns: map[string]*client.Conn{}}
}

func (e *clientEngine) launch(ctx context.Context, l *wire.Launch, session string) error {
	box, _, err := boxProgram()
	if err != nil {
		return err
	}
	// One whose creator was killed may be on its way, in no record yet. Two
	// at once would write into the same layers. One that has written its end
	// has only its last answers to give, and Launch waits for it.
	if r, alive, _ := client.Alive(l.Dir); (r == nil || !alive || r.Stopped == 0) && client.Begun(l.Dir) {
		if err := e.kill(ctx, l.Dir); err != nil {
			return err
		}
	}
	c, _, err := client.Launch(ctx, box, l, session)
	if err != nil {
		// Killed while it was starting, it may have left something.
		_ = e.kill(context.WithoutCancel(ctx), l.Dir)
		return err
	}
	e.keep(l.Dir, c)
	return nil
}

// keep makes c the connection to dir, in place of a former monitor's.
func (e *clientEngine) keep(dir string, c *client.Conn) {
	e.mu.Lock()
	old := e.conns[dir]
	if e.conns != nil {
		e.conns[dir] = c
	} else {
		old = c
	}
	e.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (e *clientEngine) forget(dir string) {
	e.mu.Lock()
	old := e.conns[dir]
	delete(e.conns, dir)
	e.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (e *clientEngine) monitor(dir string) (wire.Record, bool, error) {
	r, alive, err := client.Alive(dir)
	if err != nil {
		return wire.Record{}, false, err
	}
	if r == nil {
		return wire.Record{}, false, fs.ErrNotExist
	}
	// One that has written its end is only just leaving; one that is not ready
	// is of use to nobody but its creator.
	return *r, alive && r.Stopped == 0 && r.Ready.InitPID != 0, nil
}

func (e *clientEngine) connect(ctx context.Context, dir string) (connection, error) {
	if c, err := e.share(dir, nil); err != nil {
		return nil, err
	} else if c != nil {
		return conn{c}, nil
	}
	// Dialled without the lock: it may take long.
	mine, err := client.Dial(ctx, dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, sandbox.ErrNotRunning
		}
		return nil, err
	}
	c, err := e.share(dir, mine)
	if c != mine {
		_ = mine.Close()
	}
	if err != nil {
		return nil, err
	}
	return conn{c}, nil
}

// share returns the connection to dir that works, which is mine when there is no
// other: calls may be under way on it.
func (e *clientEngine) share(dir string, mine *client.Conn) (*client.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil {
		return nil, sandbox.ErrClosed
	}
	old := e.conns[dir]
	if old != nil {
		select {
		case <-old.Done():
		default:
			return old, nil
		}
	}
	if mine != nil {
		e.conns[dir] = mine
		if old != nil {
			_ = old.Close()
		}
	}
	return mine, nil
}

// killTime bounds how long killed processes may take to go: they may have a file
// system to write out, on a busy disk.
const killTime = 60 * time.Second

func (e *clientEngine) kill(ctx context.Context, dir string) error {
	e.forget(dir)
	for end := time.Now().Add(killTime); ; {
		if err := e.killRecorded(ctx, dir); err != nil {
			return err
		}
		if !client.Begun(dir) {
			return isolate.RemoveStale([]string{isolate.CgroupName(dir)})
		}
		if time.Now().After(end) {
			return refuse("a process that serves %s does not end and is not in its record; look for it with `fuser %s/%s`, end it, and try again", dir, dir, journal.LogName)
		}
		time.Sleep(time.Millisecond) // it is about to write its record
	}
}

func (e *clientEngine) killRecorded(ctx context.Context, dir string) error {
	r, err := journal.ReadRecord(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		e.log.WarnContext(ctx, "monitor record cannot be read", slog.String("dir", dir), slog.Any("err", err))
	case r.Boot == bootID():
		// The monitor first, so that it does not report what follows. Then
		// init, and with it the kernel ends everything inside.
		for _, p := range []struct {
			pid   int
			start uint64
		}{{r.MonitorPID, r.MonitorStart}, {r.Ready.InitPID, r.Ready.InitStart}} {
			if err := killProcess(p.pid, p.start); err != nil {
				return err
			}
		}
	}
	return nil
}

// killProcess ends the process pid that was started at start, and waits for its
// end. Another process that has the pid by now is left alone.
func killProcess(pid int, start uint64) error {
	if pid <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if err == unix.ESRCH {
			return nil
		}
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	// The descriptor is of one process for good; so this check holds.
	if now, err := journal.StartTime(pid); err != nil || now != start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if err == unix.ESRCH {
			return nil
		}
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	end := time.Now().Add(killTime)
	for {
		left := time.Until(end)
		if left <= 0 {
			return refuse("process %d was killed and does not go away; the machine may be stuck on a file system", pid)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
	}
}

func (e *clientEngine) freeze(ctx context.Context, dir string) (still, error) {
	c, err := client.Dial(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = sandbox.ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	if err := c.Freeze(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return frozen{c}, nil
}

// frozen is the connection that holds a sandbox still.
type frozen struct{ *client.Conn }

func (f frozen) thaw(ctx context.Context) error {
	defer f.Close()
	return f.Thaw(ctx)
}

func (e *clientEngine) hold(dir string) *os.File {
	f, err := client.Hold(dir)
	if err != nil {
		e.log.Debug("mounts not held", slog.String("dir", dir), slog.Any("err", err))
		return nil
	}
	return f
}

func (e *clientEngine) settle(ctx context.Context, held *os.File, dirs ...string) {
	var namespaces []*os.File
	if held != nil {
		namespaces = append(namespaces, held)
	}
	e.starting.Go(func() {
		box, _, err := boxProgram()
		if err == nil {
			err = client.Settle(box, namespaces, dirs...)
		} else if held != nil {
			_ = held.Close()
		}
		if err != nil {
			// Nobody is told that they are on the disk, then.
			e.log.WarnContext(ctx, "files not brought to the disk at once", slog.Any("err", err))
		}
	})
}

func (e *clientEngine) history(dir string) ([]sandbox.ProcessInfo, error) {
	return client.History(dir)
}

func (e *clientEngine) historyProcess(dir string, id sandbox.ProcessID) (sandbox.Process, error) {
	return client.HistoryProcess(dir, id)
}

func (e *clientEngine) close() error {
	e.starting.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	for dir, c := range e.conns {
		_ = c.Close()
		delete(e.conns, dir)
	}
	e.conns = nil
	return nil
}

// conn makes handles of what the monitor answers.
type conn struct{ *client.Conn }

func (c conn) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	return c.Open(ctx, id)
}
