//go:build linux

package raw

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func events(t *testing.T, p *Program, pid int, r *os.File) []Event {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	var out []Event
	for ; len(b) >= EventSize; b = b[EventSize:] {
		out = append(out, Decode(b))
	}
	return out
}

// A watcher reports its child's end, and ends only after the orphans.
func TestWatcher(t *testing.T) {
	for range 50 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var p Program
		p.Report(int(w.Fd()))
		p.Must(1, unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1)
		parent := p.Fork(2)
		argv := p.Strings([]string{"sh", "-c", "(sleep 0.02; exit 3) & exit 7"})
		env := p.Strings([]string{"PATH=/bin:/usr/bin"})
		p.Exec(4, p.String("/nonexistent/sh"), argv, env)
		p.Exec(4, p.String("/bin/sh"), argv, env)
		p.Fail(4)
		parent()
		p.Watch()
		pid, err := p.Start(0, -1)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := events(t, &p, pid, r)
		r.Close()
		if len(got) != 2 || got[0].Kind != Started || got[1].Kind != Ended || unix.WaitStatus(got[1].Value).ExitStatus() != 7 {
			t.Fatalf("events %+v, want started, ended with 7", got)
		}
	}
}

// A program that is not there is reported with its stage and errno.
func TestFailure(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var p Program
	p.Report(int(w.Fd()))
	p.Exec(9, p.String("/nonexistent/sh"), p.Strings(nil), p.Strings(nil))
	p.Fail(9)
	pid, err := p.Start(0, -1)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	got := events(t, &p, pid, r)
	if len(got) != 1 || got[0] != (Event{Kind: Failed, Stage: 9, Value: int64(unix.ENOENT)}) {
		t.Fatalf("events %+v, want failed at 9 with ENOENT", got)
	}
}
