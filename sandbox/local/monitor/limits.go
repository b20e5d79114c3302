//go:build linux

package monitor

import (
	"encoding/json"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/disk"
	"berth/sandbox/local/wire"
)

// What nothing else limits is looked at while something runs: every so often,
// and less often where looking takes long.
const (
	lookEvery = 2 * time.Second
	lookRest  = 20 // times as long as looking takes
	diskWait  = time.Minute
)

// watchLimits begins to look at limits that are held by nothing else.
func (m *monitor) watchLimits() {
	if l := m.launch; l.Disk != nil && l.Disk.Kind == wire.DiskSoft && l.Limits.Disk > 0 {
		go m.look(m.diskLook(m.written))
	}
	if m.record.Ready.Memory.State == "soft" && m.launch.Limits.Memory > 0 {
		go m.look(m.memoryLook(m.resident))
	}
}

// relimit is OpLimit.
func (m *monitor) relimit(c *wire.LimitChange) *wire.Error {
	box, ok := m.box.(interface {
		Limit(memory, cpuMilli int64) error
	})
	if !ok {
		return &wire.Error{Code: wire.CodeUnsupported, Text: "limits are not berth's here"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := box.Limit(c.Memory, c.CPUMilli); err != nil {
		var e *wire.Error
		if errors.As(err, &e) {
			return e
		}
		return &wire.Error{Code: wire.CodeInternal, Text: err.Error()}
	}
	l := &m.launch.Limits
	if c.Memory > 0 {
		l.Memory = c.Memory
	}
	if c.CPUMilli > 0 {
		l.CPUMilli = c.CPUMilli
	}
	return nil
}

// look calls check again and again while processes run, until all is done.
func (m *monitor) look(check func()) {
	t := time.NewTimer(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-m.quit:
			return
		case <-t.C:
		}
		begin := time.Now()
		if len(m.alive()) > 0 {
			check()
		}
		t.Reset(max(lookEvery, lookRest*time.Since(begin)))
	}
}

// alive lists the processes that run or have left something running.
func (m *monitor) alive() (ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.order {
		if p.running() && !p.ending || !p.gone {
			ids = append(ids, p.info.ID)
		}
	}
	return ids
}

// strike kills a process's tree because of a limit.
func (m *monitor) strike(id, limit string) {
	m.mu.Lock()
	if p := m.procs[id]; p != nil && p.running() && !p.ending && !p.info.TimedOut {
		p.killSignal, p.killReason = unix.SIGKILL, limit
	}
	m.mu.Unlock()
	m.signal(id, unix.SIGKILL)
}

// diskLook returns a check of what lies on the disk, as used tells. Who writes
// is not known, so all are killed; but only while it grows, so that somebody
// can delete something.
func (m *monitor) diskLook(used func() int64) func() {
	var last int64
	return func() {
		now, most := used(), m.launch.Limits.Disk
		if now > most && now > last {
			for _, id := range m.alive() {
				m.strike(id, named("disk limit", most))
			}
		}
		last = now
	}
}

// memoryLook returns a check of all memory together, as resident tells of one process
// tree. The largest is killed.
func (m *monitor) memoryLook(resident func(id string) int64) func() {
	return func() {
		var sum, most int64
		largest := ""
		for _, id := range m.alive() {
			n := resident(id)
			sum += n
			if n > most {
				most, largest = n, id
			}
		}
		if sum > m.launch.Limits.Memory {
			m.strike(largest, named("memory limit", m.launch.Limits.Memory))
		}
	}
}

// resident asks init how much memory a tree has; what it shares with others
// counts for each.
func (m *monitor) resident(id string) int64 { return max(m.tree(id).Memory, 0) }

// together is what all trees use, where no cgroup counts.
func (m *monitor) together() (memory int64, processes int) {
	for _, id := range m.alive() {
		t := m.tree(id)
		memory += max(t.Memory, 0)
		processes += t.Count
	}
	return memory, processes
}

func (m *monitor) tree(id string) (t wire.Tree) {
	if f, e := m.guest.call(wire.OpTree, &wire.ProcessRef{ID: id}, treeWait); e != nil || json.Unmarshal(f.Body, &t) != nil {
		return wire.Tree{}
	}
	return t
}

// written is what the sandbox's files take. An ordinary user may not see all of
// them from outside; then init tells.
func (m *monitor) written() int64 {
	if m.launch.IDs.Mode != wire.IDsRange {
		f, e := m.guest.call(wire.OpDisk, nil, diskWait)
		var d wire.DiskUse
		if e != nil || json.Unmarshal(f.Body, &d) != nil {
			return 0
		}
		return d.Bytes
	}
	fd, err := unix.Open(m.launch.Disk.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	return disk.Written(fd)
}
