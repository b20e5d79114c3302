//go:build linux

package raw

import (
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process of its own is the reaper's, since it takes every child there is.
func TestReaper(t *testing.T) {
	for _, by := range []string{"thread", "goroutine"} {
		t.Run(by, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestReaping$", "-test.v")
			cmd.Env = append(os.Environ(), "BERTH_TEST_REAPER="+by)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
}

// TestReaping is what TestReaper runs: many children at a time, each of which is
// told of once, with how it ended, and when there was none for a time.
func TestReaping(t *testing.T) {
	var r *Reaper
	var err error
	switch os.Getenv("BERTH_TEST_REAPER") {
	case "thread":
		r, err = NewReaper()
	case "goroutine":
		if r, err = newReaper(); err == nil {
			go r.work.wait()
		}
	default:
		t.Skip("TestReaper runs this in a process of its own")
	}
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		time.Sleep(time.Duration(round) * 50 * time.Millisecond) // the thread finds no child
		var mu sync.Mutex
		want := map[int]int{}
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				for j := range 50 {
					p := &Program{}
					p.Report(2)
					p.Must(1, unix.SYS_EXIT_GROUP, uintptr(i*50+j))
					p.Watch()
					mu.Lock()
					pid, err := p.Start(0)
					if err != nil {
						t.Error(err)
					}
					want[pid] = i*50 + j
					mu.Unlock()
					r.Born()
				}
			})
		}
		all.Wait()
		for range 200 {
			c, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if code, ok := want[c.PID]; !ok || !c.Status.Exited() || c.Status.ExitStatus() != code {
				t.Fatalf("%+v; want an exit with %d of a child (%v)", c, code, ok)
			}
			delete(want, c.PID)
		}
	}

	// One that is stopped is told of, and of its end later.
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Born()
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Next(); err != nil || c.PID != cmd.Process.Pid || !c.Status.Stopped() {
		t.Fatalf("%+v, %v; want it stopped", c, err)
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Next(); err != nil || c.PID != cmd.Process.Pid || !c.Status.Signaled() || c.Status.Signal() != unix.SIGKILL {
		t.Fatalf("%+v, %v; want it killed", c, err)
	}
}
