//go:build linux

package monitor

import (
	"encoding/json"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// Serve is a monitor inside of a foreign sandbox, which is all that start has to
// answer for: it watches over the processes that it starts, and of the sandbox
// itself it knows nothing. It calls ready once it serves the socket listen, or
// when that cannot be, and returns when it has been stopped. Nobody else serves
// l.Dir.
func Serve(l *wire.Launch, listen *os.File, start Starter, ready func(error)) {
	closeStrays()
	debug.SetGCPercent(20)
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT) // as Run
	m := newMonitor(l)
	m.foreign = true
	err := m.open(listen, start)
	ready(err)
	if err != nil {
		return
	}
	m.heedTerm()
	m.rest()
	<-m.quit
}

// lostReason says why what ran under the last monitor is lost.
func (m *monitor) lostReason(old *wire.Record) string {
	switch {
	case !m.foreign:
		return journal.LostReason(old)
	case old != nil && old.Stopped != 0 && old.Reason != "":
		return "the sandbox ended: " + old.Reason
	}
	return "the sandbox was stopped, or berth's helper in it was killed"
}

// ring remembers the last ids that were added.
type ring struct {
	ids  map[string]bool
	list []string
	next int
}

const ringSize = 4096

func (r *ring) add(id string) {
	if r.ids == nil {
		r.ids = map[string]bool{}
	}
	if len(r.list) < ringSize {
		r.list = append(r.list, id)
	} else {
		delete(r.ids, r.list[r.next])
		r.list[r.next] = id
		r.next = (r.next + 1) % ringSize
	}
	r.ids[id] = true
}

func (r *ring) has(id string) bool { return r.ids[id] }

// onces are the requests that may be sent again and must be carried out once, by
// Header.Once.
type onces struct {
	mu   sync.Mutex
	by   map[string]*once
	list []*once // those that are answered, oldest first
}

const maxOnces = 4096

// once is one such request. Its fields are onces.mu's.
type once struct {
	name  string
	done  bool
	body  json.RawMessage
	err   *wire.Error
	waits []func(*once)
}

// first tells whether f is to be carried out. Otherwise it is answered as the
// request of that name was, or will be.
func (o *onces) first(p *peer, f *wire.Frame) bool {
	o.mu.Lock()
	e := o.by[f.Once]
	if e == nil && f.Op != wire.OpRecall {
		e = &once{name: f.Once}
		if o.by == nil {
			o.by = map[string]*once{}
		}
		o.by[f.Once] = e
		o.mu.Unlock()
		p.mu.Lock()
		if p.onces == nil {
			p.onces = map[uint64]*once{}
		}
		p.onces[f.ID] = e
		p.mu.Unlock()
		return true
	}
	closeFiles(f.Files)
	again := func(e *once) { p.answer(f.ID, e.body, e.err) }
	switch {
	case e == nil:
		o.mu.Unlock()
		p.answer(f.ID, nil, &wire.Error{Code: wire.CodeNotExist, Text: "there was no such request"})
	case e.done:
		o.mu.Unlock()
		again(e)
	default:
		e.waits = append(e.waits, again)
		o.mu.Unlock()
	}
	return false
}

// settle keeps what e was answered.
func (o *onces) settle(e *once, body any, raw json.RawMessage, err *wire.Error) {
	if body != nil {
		raw, _ = json.Marshal(body)
	}
	o.mu.Lock()
	e.done, e.body, e.err = true, raw, err
	waits := e.waits
	e.waits = nil
	if err != nil && err.Code == wire.CodeStdinMoved {
		delete(o.by, e.name) // it was not carried out, and comes again with what it is told
	} else {
		if len(o.list) >= maxOnces {
			delete(o.by, o.list[0].name)
			o.list = o.list[1:]
		}
		o.list = append(o.list, e)
	}
	o.mu.Unlock()
	for _, again := range waits {
		again(e)
	}
}

// keeper holds open files between calls.
type keeper struct {
	mu    sync.Mutex
	files map[string]*keptFile
}

type keptFile struct {
	file  *os.File
	timer *time.Timer
}

const (
	maxKept = 256
	keptFor = 10 * time.Minute // since it was last used
)

func (k *keeper) keep(f *wire.Frame) *wire.Error {
	var want wire.Kept
	if json.Unmarshal(f.Body, &want) != nil || want.Token == "" || len(f.Files) != 1 {
		closeFiles(f.Files)
		return &wire.Error{Code: wire.CodeInvalid, Text: "a file to be kept has a token"}
	}
	k.drop(want.Token)
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.files) >= maxKept {
		closeFiles(f.Files)
		return &wire.Error{Code: wire.CodeLimit, Text: "256 files are being read already; read some of them to their end, or close them"}
	}
	if k.files == nil {
		k.files = map[string]*keptFile{}
	}
	k.files[want.Token] = &keptFile{file: f.Files[0], timer: time.AfterFunc(keptFor, func() { k.drop(want.Token) })}
	return nil
}

// find returns a descriptor of its own.
func (k *keeper) find(token string) (*os.File, *wire.Error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	kept := k.files[token]
	if kept == nil {
		return nil, &wire.Error{Code: wire.CodeNotExist, Text: "the file was not read for 10 minutes, or berth's helper was started anew; read it from its beginning"}
	}
	kept.timer.Reset(keptFor)
	fd, err := unix.FcntlInt(kept.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeLimit, Text: "too many open files"}
	}
	return os.NewFile(uintptr(fd), "kept"), nil
}

func (k *keeper) drop(token string) {
	k.mu.Lock()
	kept := k.files[token]
	delete(k.files, token)
	k.mu.Unlock()
	if kept != nil {
		kept.timer.Stop()
		_ = kept.file.Close()
	}
}
