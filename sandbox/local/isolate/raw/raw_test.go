//go:build linux

package raw

import (
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// ways are the two in which a program is started.
var ways = map[string]func(p *Program) (pid int, keep any, err error){
	"forked": func(p *Program) (int, any, error) {
		pid, err := p.Start(0)
		return pid, nil, err
	},
	"shared": func(p *Program) (int, any, error) {
		c, err := p.StartShared(0)
		if err != nil {
			return 0, nil, err
		}
		return c.PID, c, nil
	},
}

// play starts what build makes of a program with w as report descriptor, and
// returns its reports and how the first child ended.
func play(t *testing.T, start func(p *Program) (int, any, error), build func(p *Program)) ([]Event, unix.WaitStatus) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := &Program{}
	p.Report(int(w.Fd()))
	build(p)
	pid, keep, err := start(p)
	w.Close()
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(keep)
	var out []Event
	for ; len(b) >= EventSize; b = b[EventSize:] {
		out = append(out, Decode(b))
	}
	return out, ws
}

// watched builds a watcher of shell text.
func watched(text string) func(p *Program) {
	return func(p *Program) {
		p.Must(1, unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1)
		parent := p.Fork(2)
		p.Must(1, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, Keep(p, new(uint64)), 0, 8)
		argv := p.Strings([]string{"sh", "-c", text})
		env := p.Strings([]string{"PATH=/bin:/usr/bin"})
		p.Exec(4, p.String("/nonexistent/sh"), argv, env)
		p.Exec(4, p.String("/bin/sh"), argv, env)
		p.Fail(4)
		parent()
		p.Watch()
	}
}

// A watcher reports its child's end, and whether orphans are left; it ends
// only after them.
func TestWatcher(t *testing.T) {
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			for i := range 50 {
				text, left := "exit 7", uint32(0)
				if i%2 == 1 {
					text, left = "(sleep 0.1; exit 3) & exit 7", 1
				}
				got, ws := play(t, start, watched(text))
				if len(got) != 2 || got[0].Kind != Started || got[1].Kind != Ended || unix.WaitStatus(got[1].Value).ExitStatus() != 7 ||
					got[1].Stage != left || ws.ExitStatus() != 0 {
					t.Fatalf("%s: events %+v, watcher %v; want started, ended with 7, left %d", text, got, ws, left)
				}
			}
		})
	}
}

// A program that is not there is reported with its stage and errno.
func TestFailure(t *testing.T) {
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			got, _ := play(t, start, func(p *Program) {
				p.Exec(9, p.String("/nonexistent/sh"), p.Strings(nil), p.Strings(nil))
				p.Fail(9)
			})
			if len(got) != 1 || got[0] != (Event{Kind: Failed, Stage: 9, Value: int64(unix.ENOENT)}) {
				t.Fatalf("events %+v, want failed at 9 with ENOENT", got)
			}
		})
	}
}

// Where a call fails, the steps up to its otherwise are left out, and no others.
func TestElse(t *testing.T) {
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			got, _ := play(t, start, func(p *Program) {
				works := p.Else(unix.SYS_GETPID)
				fails := p.Else(^uintptr(0))
				p.Must(5, ^uintptr(0))
				works()
				p.Must(6, ^uintptr(0))
				fails()
				p.Must(7, ^uintptr(0))
			})
			if len(got) != 1 || got[0] != (Event{Kind: Failed, Stage: 7, Value: int64(unix.ENOSYS)}) {
				t.Fatalf("events %+v, want failed at 7 with ENOSYS", got)
			}
		})
	}
}

// When the second child does not come to execute anything, nobody touches the
// steps after its report: they may be gone by then.
func TestFailureOfTheSecond(t *testing.T) {
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				got, ws := play(t, start, func(p *Program) {
					parent := p.Fork(2)
					p.Exec(4, p.String("/nonexistent/sh"), p.Strings(nil), p.Strings(nil))
					p.Fail(4)
					parent()
					p.Must(5, ^uintptr(0)) // would be reported
					p.Watch()
				})
				if len(got) != 1 || got[0] != (Event{Kind: Failed, Stage: 4, Value: int64(unix.ENOENT)}) || ws.ExitStatus() != 127 {
					t.Fatalf("events %+v, %v; want failed at 4 with ENOENT, and an exit with 127", got, ws)
				}
			}
		})
	}
}

// A probe tells whether another process may be forked, and leaves nothing.
func TestProbe(t *testing.T) {
	probed := func(limit uint64) func(p *Program) {
		return func(p *Program) {
			parent := p.Fork(2)
			p.Must(1, unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NPROC, Keep(p, &unix.Rlimit{Cur: limit, Max: limit}), 0)
			const nobody = 65534
			p.Try(unix.SYS_SETRESUID, nobody, nobody, nobody) // root has no such limit
			p.Probe(6)
			p.Exec(4, p.String("/bin/sh"), p.Strings([]string{"sh", "-c", "exit 7"}), p.Strings(nil))
			p.Fail(4)
			parent()
			p.Watch()
		}
	}
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				if got, _ := play(t, start, probed(1000)); len(got) != 2 || got[1].Kind != Ended || unix.WaitStatus(got[1].Value).ExitStatus() != 7 || got[1].Stage != 0 {
					t.Fatalf("events %+v, want started, ended with 7, nothing left", got)
				}
				if got, _ := play(t, start, probed(0)); len(got) != 1 || got[0] != (Event{Kind: Failed, Stage: 6, Value: int64(unix.EAGAIN)}) {
					t.Fatalf("events %+v, want failed at 6 with EAGAIN", got)
				}
			}
		})
	}
}

// Children that share our memory leave it as it is, however much we allocate
// and collect meanwhile, and are not hurt by it.
func TestSharedMemory(t *testing.T) {
	stop := make(chan struct{})
	var busy, work sync.WaitGroup
	for range 2 {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				held := map[string][]byte{}
				for i := range 2000 {
					held[strconv.Itoa(i)] = make([]byte, i%700)
				}
				for k, v := range held {
					for i, b := range v {
						if b != 0 {
							t.Errorf("byte %d of the fresh %s is %d", i, k, b)
							return
						}
					}
				}
				runtime.GC()
			}
		})
	}
	for range 8 {
		work.Go(func() {
			for i := range 60 {
				got, ws := play(t, ways["shared"], watched("exit "+strconv.Itoa(i)))
				if len(got) != 2 || unix.WaitStatus(got[1].Value).ExitStatus() != i || ws.ExitStatus() != 0 {
					t.Errorf("events %+v, watcher %v; want an exit with %d", got, ws, i)
					return
				}
			}
		})
	}
	work.Wait()
	close(stop)
	busy.Wait()
}

// A signal that hits the watcher ends it and does not reach us.
func TestSharedSignal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := &Program{}
	p.Report(int(w.Fd()))
	watched("exec sleep 100")(p)
	c, err := p.StartShared(0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	var b [EventSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		t.Fatal(err)
	}
	c.Release()
	if err := unix.Kill(c.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(c.PID, &ws, 0, nil); err != nil || ws.Signal() != unix.SIGKILL {
		t.Fatalf("the watcher ended with %v, %v; want KILL", ws, err)
	}
	if err := unix.Kill(int(Decode(b[:]).Value), unix.SIGKILL); err != nil {
		t.Fatal(err) // its child is not ours to wait for
	}
}
