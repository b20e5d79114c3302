//go:build linux

package monitor

import (
	"time"

	"berth/sandbox/local/wire"
)

// freezeWait is for init to stop everything, or to let it go on.
const freezeWait = 20 * time.Second // init gives up long before

// makeWay ends the sandbox in order, for another to be started on the same
// files in its stead, if nothing is alive in it that would notice.
func (m *monitor) makeWay(answer func(busy bool, e *wire.Error)) {
	m.mu.Lock()
	if m.stopping {
		m.mu.Unlock()
		answer(false, &wire.Error{Code: wire.CodeStopping, Text: "the sandbox is being stopped"})
		return
	}
	busy := m.freezer != nil
	for _, p := range m.order {
		busy = busy || p.failed == nil && (p.running() || p.ending || !p.gone)
	}
	for p := range m.peers {
		busy = busy || len(p.tokens) > 0
	}
	if busy {
		m.mu.Unlock()
		answer(true, nil)
		return
	}
	m.stopping, m.kept = true, true
	m.stopWaits = append(m.stopWaits, func(e *wire.Error) { answer(false, e) })
	m.mu.Unlock()
	go m.halt("it made way for a restart on the same files")
}

// freeze has everything inside stand still until thaw, for at most
// wire.FreezeMost. One connection at a time has that.
func (p *peer) freeze() *wire.Error {
	m := p.m
	m.mu.Lock()
	switch {
	case m.stopping:
		m.mu.Unlock()
		return &wire.Error{Code: wire.CodeStopping, Text: "the sandbox is being stopped"}
	case m.freezer != nil:
		m.mu.Unlock()
		return &wire.Error{Code: wire.CodeLimit, Text: "the sandbox is being copied already; try again when that is done"}
	}
	m.freezer, m.freezing = p, true
	m.mu.Unlock()
	_, e := m.guest.call(wire.OpFreeze, nil, freezeWait)
	m.mu.Lock()
	m.freezing = false
	left := p.closed
	if e == nil && !left {
		m.melts = time.AfterFunc(wire.FreezeMost*time.Millisecond, func() { _ = p.thaw() })
	}
	m.mu.Unlock()
	if e != nil || left {
		_ = p.thaw() // init may have been late only
	}
	return e
}

// thaw ends p's freeze; an error means that it had ended before.
func (p *peer) thaw() *wire.Error {
	m := p.m
	m.mu.Lock()
	if m.freezer != p || m.freezing { // freeze itself sees whether p has left
		m.mu.Unlock()
		return &wire.Error{Code: wire.CodeLimit, Text: "the sandbox was let go on before, after 60 s"}
	}
	if m.melts != nil {
		m.melts.Stop()
		m.melts = nil
	}
	m.mu.Unlock()
	_, e := m.guest.call(wire.OpThaw, nil, freezeWait)
	m.mu.Lock()
	m.freezer = nil
	m.mu.Unlock()
	return e
}
