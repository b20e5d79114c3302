//go:build linux

package monitor

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// touch counts as activity; m.mu is held.
func (m *monitor) touch() {
	m.active = time.Now()
	m.watchIdle()
}

// watchIdle sees that the idle timer runs when it must; m.mu is held. The
// timer is not moved at each request: when it fires early it is set anew.
func (m *monitor) watchIdle() {
	if m.intervals.AutoStopMS <= 0 || m.busy > 0 || m.stopping || m.idle != nil {
		return
	}
	m.idle = time.AfterFunc(max(0, time.Until(m.deadline())), m.idled)
}

func (m *monitor) deadline() time.Time {
	return m.active.Add(time.Duration(min(m.intervals.AutoStopMS, 1<<40)) * time.Millisecond)
}

func (m *monitor) idled() {
	m.mu.Lock()
	m.idle = nil
	if m.intervals.AutoStopMS <= 0 || m.busy > 0 || m.stopping {
		m.mu.Unlock() // watched again when the last busy process ends
		return
	}
	if time.Until(m.deadline()) > 0 {
		m.watchIdle()
		m.mu.Unlock()
		return
	}
	m.stopping = true // before anything can start that would be killed
	after := time.Duration(m.intervals.AutoStopMS) * time.Millisecond
	m.mu.Unlock()
	m.halt("idle for " + span(after))
}

// span writes d as people do: "15 minutes".
func span(d time.Duration) string {
	n, unit := int64(d/time.Second), "second"
	switch {
	case d%time.Hour == 0:
		n, unit = int64(d/time.Hour), "hour"
	case d%time.Minute == 0:
		n, unit = int64(d/time.Minute), "minute"
	case d < time.Second:
		n, unit = d.Milliseconds(), "millisecond"
	}
	if n != 1 {
		unit += "s"
	}
	return strconv.FormatInt(n, 10) + " " + unit
}

// configure is OpConfigure.
func (m *monitor) configure(i wire.Intervals) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.intervals = i
	if m.idle != nil {
		m.idle.Stop()
		m.idle = nil
	}
	m.touch()
}

// stop ends the sandbox in order; done is called before the monitor exits.
// Several stops are one.
func (m *monitor) stop(reason string, done func(*wire.Error)) {
	m.mu.Lock()
	if done != nil {
		m.stopWaits = append(m.stopWaits, done)
	}
	if m.stopping {
		m.mu.Unlock()
		return
	}
	m.stopping = true
	m.mu.Unlock()
	go m.halt(reason)
}

// halt ends what runs and then the monitor; m.stopping is set.
func (m *monitor) halt(reason string) {
	m.record.Stopping = time.Now().UnixNano()
	_ = journal.WriteRecord(m.dir, &m.record) // else a start may come too early, and be refused
	m.mu.Lock()
	for _, p := range m.order {
		if p.running() && !p.ending && !p.info.TimedOut {
			p.killSignal, p.killReason = unix.SIGTERM, "the sandbox was stopped: "+reason
		}
	}
	m.mu.Unlock()
	// Whatever comes of it, init is killed after it. Exits are told before
	// the answer.
	_, _ = m.guest.call(wire.OpHalt, &wire.Halt{GraceMS: stopGrace.Milliseconds()}, stopGrace+killWait)
	if lost := m.endBuckets(); lost != "" {
		reason += "; " + lost
	}
	recorded := make(chan struct{})
	go func() { m.ending.Wait(); close(recorded) }()
	select {
	case <-recorded:
	case <-time.After(killWait):
	}
	m.end(reason)
}

// died is called when init is gone, asked for or not.
func (m *monitor) died() {
	m.mu.Lock()
	asked := m.stopping
	m.stopping = true
	m.mu.Unlock()
	if asked {
		return // halt or Run's failure goes on by itself
	}
	m.box.Kill()
	reason := "the sandbox's first process ended unexpectedly"
	if err := m.box.Wait(); err != nil {
		reason += " (" + cut(err.Error(), 200) + ")"
	}
	m.end(reason)
}

// end removes the sandbox, writes down what is known, answers everyone, and
// lets the program exit.
func (m *monitor) end(reason string) {
	m.killBuckets() // whoever still waits for one gets an error
	m.box.Kill()
	if !m.gone() {
		// Its record stays that of one that was not ended: whoever comes next
		// tries again, and is told.
		_, _ = os.Stderr.WriteString("the sandbox's processes do not end: they wait for a file system that one of them serves\n")
		m.giveUp()
		return
	}
	closeErr := m.box.Close()
	m.mu.Lock()
	for _, p := range m.order {
		if p.running() {
			m.lose(p, "how it ended is not known: "+reason)
		}
	}
	_ = m.journal.Close()
	remove := m.intervals.DeleteOnStop && !m.kept
	m.mu.Unlock()
	if closeErr != nil {
		_, _ = os.Stderr.WriteString("remove the sandbox's cgroups and mounts: " + closeErr.Error() + "\n")
	}
	// From here on nothing of the sandbox is left. The socket goes before
	// the record says so, for after that a new monitor may make its own.
	_ = os.Remove(m.dir + "/" + journal.SocketName)
	if remove {
		m.clear()
	}
	m.record.Stopped, m.record.Reason = time.Now().UnixNano(), reason
	recordErr := journal.WriteRecord(m.dir, &m.record)

	m.mu.Lock()
	waits := m.stopWaits
	m.stopWaits = nil
	peers := make([]*peer, 0, len(m.peers))
	for p := range m.peers {
		peers = append(peers, p)
	}
	m.mu.Unlock()
	for _, done := range waits {
		if recordErr != nil {
			done(&wire.Error{Code: wire.CodeInternal, Text: "the sandbox has stopped, but that could not be recorded: " + recordErr.Error()})
			continue
		}
		done(nil)
	}
	late := time.Now().Add(time.Second)
	for _, p := range peers {
		p.flush(late)
	}
	close(m.quit)
}

// lose records that how p ends will never be known; m.mu is held.
func (m *monitor) lose(p *proc, reason string) {
	p.info.State, p.info.Reason, p.info.Killed, p.info.TimedOut = journal.Lost, reason, false, false
	p.gone = true
	m.finish(p)
}

// clear deletes what a sandbox that is deleted on its stop leaves: its layers,
// its output and its journal. The mark comes first, and the records of others
// stay: they finish the work, and keep the tombstone.
func (m *monitor) clear() {
	if err := os.WriteFile(m.dir+"/"+journal.DeleteName, nil, 0o600); err != nil {
		_, _ = os.Stderr.WriteString("mark the sandbox for deletion: " + err.Error() + "\n")
		return
	}
	below := func(path string) bool { return strings.HasPrefix(path, m.dir+"/") && !strings.Contains(path, "/../") }
	var paths []string
	for _, mount := range m.launch.Mounts {
		for _, path := range []string{mount.Upper, mount.Work} {
			if path != "" && below(path) {
				paths = append(paths, path)
			}
		}
	}
	if d := m.launch.Disk; d != nil && d.Image != "" && below(d.Image) {
		paths = append(paths, d.Image)
	}
	paths = append(paths, m.logDir, m.dir+"/"+journal.FileName, m.dir+"/"+journal.StagingDir)
	for _, path := range paths {
		// An ordinary user may not delete files of ids that are mapped for it;
		// whoever finds the mark can.
		_ = os.RemoveAll(path)
	}
}
