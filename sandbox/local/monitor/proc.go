//go:build linux

package monitor

import (
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/logs"
	"berth/sandbox/local/wire"
)

// proc is one process of the table. monitor.mu guards it where nothing else is
// said.
type proc struct {
	info    wire.Process // without what streams and stdin know
	gate    *gatekeeper  // knows what was refused to it; nil of an earlier monitor
	busy    bool
	started chan struct{} // closed when init has answered; nil for those of an earlier monitor
	failed  *wire.Error   // why it was not started
	early   *wire.Exited  // came before init's answer to the start
	ending  bool          // its exit is being recorded
	gone    bool          // nothing of its tree is left

	out, err *stream
	in       *stdin

	timer *time.Timer // time-out
	grace *time.Timer // KILL after another signal

	killSignal unix.Signal // the last one that we sent
	killReason string

	waiters map[*waiter]struct{}
	waiting atomic.Int32 // len(waiters)
}

// state is what is known of p now; m.mu is held.
func (p *proc) state() wire.Process {
	i := p.info
	for _, s := range []struct {
		s                    *stream
		produced, kept, lost *int64
	}{{p.out, &i.Stdout, &i.StdoutKept, &i.StdoutLost}, {p.err, &i.Stderr, &i.StderrKept, &i.StderrLost}} {
		if s.s != nil {
			*s.produced, *s.kept, *s.lost = s.s.produced.Load(), s.s.oldest.Load(), s.s.lost.Load()
		}
	}
	if p.running() && p.gate != nil {
		i.Refused = p.gate.of(&i)
	}
	if i.State == journal.Running && p.in != nil {
		i.StdinOpen, i.StdinBytes = p.in.counts()
	}
	return i
}

func (p *proc) running() bool { return p.info.State == journal.Running }

// ready reports whether a wait is over.
func (p *proc) ready(w *wire.Wait) bool {
	if !p.running() {
		return true
	}
	if w.ExitOnly {
		return false
	}
	return p.out != nil && p.out.end.Load() > w.Stdout || p.err != nil && p.err.end.Load() > w.Stderr
}

// printing reports whether something still holds p's output open, such as what
// another process was handed it by.
func (p *proc) printing() bool {
	return p.out != nil && p.out.live() || p.err != nil && p.err.live()
}

// size is what p's logs take on disk.
func (p *proc) size() (n int64) {
	for _, s := range []*stream{p.out, p.err} {
		if s != nil {
			n += s.size.Load()
		}
	}
	return n
}

// record is p's state as one of an earlier monitor left it.
func recorded(i wire.Process, dir string) *proc {
	p := &proc{info: i, gone: true}
	for _, s := range []struct {
		name logs.Stream
		to   **stream
		all  int64
	}{{logs.Stdout, &p.out, i.Stdout}, {logs.Stderr, &p.err, i.Stderr}} {
		r, err := logs.Stat(dir, i.ID, s.name)
		if err != nil {
			continue
		}
		st := &stream{done: true}
		st.oldest.Store(r.Oldest)
		st.end.Store(r.End)
		st.size.Store(r.Size)
		st.lost.Store(r.Lost)
		st.produced.Store(max(r.End, s.all))
		*s.to = st
	}
	return p
}

// signalName is such as "SIGTERM".
func signalName(n int) string {
	if s := unix.SignalName(unix.Signal(n)); s != "" {
		return s
	}
	return "signal " + strconv.Itoa(n)
}

// parseSignal understands "TERM", "SIGTERM" and "term".
func parseSignal(s string) (unix.Signal, bool) {
	n := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG"))
	return n, n > 0 && n <= 64
}

// fates fills in how p ended; m.mu is held.
func (p *proc) fates(e *wire.Exited, l *wire.Limits) {
	i := &p.info
	sig := e.Signal
	if sig < 0 || sig > 64 {
		sig = 0
	}
	if sig == 0 && p.killSignal != 0 && e.Code == 128+int(p.killSignal) {
		sig = int(p.killSignal) // its shell told so of the child that was killed with it
	}
	code := e.Code & 0xff
	if sig != 0 {
		i.Signal = signalName(sig)
		code = 128 + sig
	}
	switch {
	case i.TimedOut:
		code, i.Killed, i.Reason = 124, true, p.killReason
	case p.killSignal != 0 && sig != 0:
		code, i.Killed, i.Reason = 137, true, p.killReason
	case e.OOM && sig == int(unix.SIGKILL):
		code, i.Killed, i.Reason = 137, true, named("memory limit", l.Memory)
	case e.OOM:
		i.Struck = append(i.Struck, named("memory limit", l.Memory)+" reached: a process of the sandbox was killed")
	}
	if e.PIDs && l.PIDs > 0 {
		i.Struck = append(i.Struck, "process limit "+strconv.FormatInt(l.PIDs, 10)+" reached: no more processes or threads could be started")
	}
	if e.Full && l.Disk > 0 {
		i.Struck = append(i.Struck, named("disk limit", l.Disk)+" reached: no space is left in the sandbox")
	} else if e.Full {
		i.Struck = append(i.Struck, "no space is left on the disk that the sandbox is on")
	}
	i.ExitCode = &code
	i.State = journal.Exited
	i.CPUNS = max(e.CPUNS, -1)
	i.Memory = -1
	i.Leftovers = bounded(e.Leftovers)
	if p.gone = p.gone || len(i.Leftovers) == 0; p.gone {
		i.Leftovers = nil
	}
}

// named writes a limit of so many bytes, if any.
func named(what string, bytes int64) string {
	switch {
	case bytes <= 0:
		return what
	case bytes < 1<<30 || bytes%(1<<30) != 0:
		return what + " " + strconv.FormatInt(bytes>>20, 10) + " MiB"
	}
	return what + " " + strconv.FormatInt(bytes>>30, 10) + " GiB"
}

// bounded makes a list of commands that init sent fit to be kept.
func bounded(list []string) []string {
	if len(list) > 20 {
		list = list[:20]
	}
	var out []string
	for _, s := range list {
		out = append(out, strings.ToValidUTF8(cut(s, 200), "\uFFFD"))
	}
	return out
}

// cut shortens s to n bytes, at the end of a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
