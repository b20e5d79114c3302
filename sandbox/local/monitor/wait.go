//go:build linux

package monitor

import (
	"time"

	"berth/sandbox/local/wire"
)

// waiter is a pending OpWait, or the answer to an OpSpawn that waits for the end.
type waiter struct {
	peer *peer
	id   uint64
	want wire.Wait
	p    *proc
	late *time.Timer // ends it; may be nil
}

// wake answers the waits that p's new output ends.
func (m *monitor) wake(p *proc) {
	if p.waiting.Load() == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range p.waiters {
		if p.ready(&w.want) {
			m.endWait(w)
		}
	}
}

// answerWaiters ends all waits for p; m.mu is held.
func (m *monitor) answerWaiters(p *proc) {
	for w := range p.waiters {
		m.endWait(w)
	}
}

// endWait answers w; m.mu is held.
func (m *monitor) endWait(w *waiter) {
	delete(w.p.waiters, w)
	w.p.waiting.Store(int32(len(w.p.waiters)))
	delete(w.peer.waits, w.id)
	if w.late != nil {
		w.late.Stop()
	}
	i := w.p.state()
	w.peer.answer(w.id, &i, nil)
}

// wait is OpWait.
func (m *monitor) wait(peer *peer, id uint64, want *wire.Wait) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.procs[want.ID]
	if p == nil {
		peer.answer(id, nil, noProcess(want.ID))
		return
	}
	if p.waiters == nil { // of an earlier monitor
		i := p.state()
		peer.answer(id, &i, nil)
		return
	}
	m.beginWait(&waiter{peer: peer, id: id, want: *want, p: p})
}

// beginWait notes w, and ends it at once when there is nothing to wait for; m.mu is
// held.
func (m *monitor) beginWait(w *waiter) (ended bool) {
	w.p.waiters[w] = struct{}{}
	w.p.waiting.Store(int32(len(w.p.waiters))) // before looking: see wake
	w.peer.waits[w.id] = w
	if !w.p.ready(&w.want) {
		return false
	}
	m.endWait(w)
	return true
}

// await answers the start of c, which runs, when it has ended or c's patience has.
// It returns false when there is nothing to wait for.
func (m *monitor) await(peer *peer, id uint64, c *wire.Command) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.procs[c.ID]
	if c.AwaitMS <= 0 || p == nil || p.waiters == nil {
		return false
	}
	w := &waiter{peer: peer, id: id, want: wire.Wait{ID: c.ID, ExitOnly: !c.AwaitOutput}, p: p}
	if m.beginWait(w) {
		return true
	}
	w.late = time.AfterFunc(time.Duration(min(c.AwaitMS, 60_000))*time.Millisecond, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if peer.waits[id] == w {
			m.endWait(w)
		}
	})
	return true
}
