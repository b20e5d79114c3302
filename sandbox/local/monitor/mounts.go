//go:build linux

package monitor

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/sandbox/local/wire"
)

// Bounds of a bucket's life.
const (
	maxBuckets  = 64
	bucketCheck = 35 * time.Second // for bucketd to check the bucket, and to be ready
	bucketInit  = 10 * time.Second // for init
	// bucketEnd is for bucketd to bring in what is written, when its mount is gone.
	// A dead service gives it errors within 10 s.
	bucketEnd   = 20 * time.Second
	bucketAgain = 100 * time.Millisecond // before the first try to serve it anew
	bucketSlow  = 10 * time.Second       // and between later ones at the most
)

// buckets are those of one sandbox, by path.
type buckets struct {
	mu   sync.Mutex
	list map[string]*bucket
	over bool // no more are mounted
}

// bucket is a bucket that is, or is to be, a directory inside. The job, with its
// keys, is in memory alone: it is needed when bucketd dies.
type bucket struct {
	m    *monitor
	path string

	op sync.Mutex // held by whoever mounts or unmounts it

	mu      sync.Mutex
	order   wire.MountOrder
	job     []byte
	exe     *os.File // bucketd
	served  *served  // nil when it is not mounted
	state   wire.MountState
	quit    chan struct{} // closed to end the attempts to serve it anew
	trying  bool
	restart int
	ids     wire.Placed // of whom it is inside
}

// mount is OpMount.
func (p *peer) mount(f *wire.Frame) {
	var o wire.MountOrder
	if !p.decode(f, &o) {
		closeFiles(f.Files)
		return
	}
	var exe *os.File
	if len(f.Files) == 1 && o.Refused == "" {
		exe = f.Files[0]
	} else {
		closeFiles(f.Files)
		if o.Refused == "" {
			p.answer(f.ID, nil, &wire.Error{Code: wire.CodeInvalid, Text: "the request mount cannot be understood: it has no program"})
			return
		}
	}
	go func() {
		done, e := p.m.mount(&o, f.Data, exe)
		p.answer(f.ID, done, e)
	}()
}

// mount has a bucket at o.Path as o says. It takes over exe.
func (m *monitor) mount(o *wire.MountOrder, job []byte, exe *os.File) (*wire.Mounted, *wire.Error) {
	b, e := m.bucketAt(o.Path)
	if e != nil {
		closeFile(exe)
		return nil, e
	}
	b.op.Lock()
	defer b.op.Unlock()
	m.mu.Lock()
	stopping := m.stopping
	m.mu.Unlock()
	if stopping {
		closeFile(exe)
		m.forgetBucket(b)
		return nil, &wire.Error{Code: wire.CodeStopping, Text: "the sandbox is being stopped; nothing was mounted"}
	}
	if o.Refused == "" {
		if done := b.same(o); done != nil {
			closeFile(exe)
			return done, nil
		}
	}
	if o.Refused == "" && b.works() {
		if fault, e := b.try(o, job, exe); fault != nil || e != nil {
			closeFile(exe)
			return &wire.Mounted{Entries: -1, Fault: fault}, e
		}
	}
	b.stopTrying()
	if e := b.take(true, o.Refused != ""); e != nil {
		closeFile(exe)
		return nil, e
	}
	fail := func(reason string) {
		b.mu.Lock()
		b.state = wire.MountState{Path: b.path, Print: o.Print, Reason: cut(reason, 1000), Entries: -1}
		b.mu.Unlock()
		b.drop()
		if !o.Wanted {
			b.leave()
			m.forgetBucket(b)
		}
	}
	if o.Refused != "" {
		if o.Wanted {
			_, _ = m.guest.call(wire.OpPlace, &wire.Place{Path: b.path}, bucketInit) // nothing is written there meanwhile
		}
		fail(o.Refused)
		return &wire.Mounted{Entries: -1}, nil
	}
	b.drop()
	b.mu.Lock()
	b.restart = 0
	b.order, b.job, b.exe = *o, bytes.Clone(job), exe
	b.state = wire.MountState{Path: b.path, Print: o.Print, Entries: -1, Reason: "it is being mounted"}
	b.mu.Unlock()
	done, fault, e := b.serve()
	switch {
	case e != nil:
		fail(e.Text)
		return nil, e
	case fault != nil:
		fail(fault.Message)
		return &wire.Mounted{Entries: -1, Fault: fault}, nil
	}
	return done, nil
}

// same is the answer when the mount is there already, and answers.
func (b *bucket) same(o *wire.MountOrder) *wire.Mounted {
	b.mu.Lock()
	same := b.served != nil && b.order.Print == o.Print && b.state.Mounted
	done := &wire.Mounted{Entries: b.state.Entries, More: b.state.More}
	if same {
		b.order.Wanted = b.order.Wanted || o.Wanted
	}
	b.mu.Unlock()
	if !same || b.m.answers(b.path) != nil {
		return nil
	}
	return done
}

func (b *bucket) works() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.served != nil && b.state.Mounted
}

// try finds out whether the bucket can be served as o says, before what works goes.
// b.op is held.
func (b *bucket) try(o *wire.MountOrder, job []byte, exe *os.File) (*wire.Fault, *wire.Error) {
	s, err := (&bucket{m: b.m, path: b.path, order: *o, job: job, exe: exe}).start(&b.ids)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "start the program that serves the bucket: " + err.Error()}
	}
	defer s.end()
	r, e := s.report(bucketCheck)
	return r.Fault, e
}

// answers stats the mount from inside, as the sandbox's user.
func (m *monitor) answers(path string) *wire.Error {
	_, e := m.guest.call(wire.OpStat, &wire.Path{Path: path}, bucketInit+5*time.Second)
	return e
}

func (m *monitor) bucketAt(path string) (*bucket, *wire.Error) {
	if !strings.HasPrefix(path, "/") || len(path) > 4096 {
		return nil, &wire.Error{Code: wire.CodeInvalid, Text: "path: it must be absolute"}
	}
	m.buckets.mu.Lock()
	defer m.buckets.mu.Unlock()
	if b := m.buckets.list[path]; b != nil {
		return b, nil
	}
	switch {
	case m.buckets.over:
		return nil, &wire.Error{Code: wire.CodeStopping, Text: "the sandbox is being stopped; nothing was mounted"}
	case len(m.buckets.list) >= maxBuckets:
		return nil, &wire.Error{Code: wire.CodeLimit, Text: "the sandbox has " + strconv.Itoa(maxBuckets) + " buckets, which is the most"}
	}
	b := &bucket{m: m, path: path, state: wire.MountState{Path: path, Entries: -1}}
	if m.buckets.list == nil {
		m.buckets.list = map[string]*bucket{}
	}
	m.buckets.list[path] = b
	return b, nil
}

func (m *monitor) forgetBucket(b *bucket) {
	m.buckets.mu.Lock()
	defer m.buckets.mu.Unlock()
	if m.buckets.list[b.path] == b {
		delete(m.buckets.list, b.path)
	}
}

// mountStates is OpMounts.
func (m *monitor) mountStates() *wire.Mounts {
	m.buckets.mu.Lock()
	defer m.buckets.mu.Unlock()
	out := &wire.Mounts{Mounts: []wire.MountState{}}
	for _, b := range m.buckets.list {
		b.mu.Lock()
		if b.state.Print != "" || b.state.Reason != "" {
			out.Mounts = append(out.Mounts, b.state)
		}
		b.mu.Unlock()
	}
	return out
}

func (b *bucket) stopTrying() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.trying {
		b.trying = false
		close(b.quit)
	}
}

// take unmounts what is mounted and waits until all of it is in the bucket. force
// also takes what is in use. With keep the place stays, closed. b.op is held.
func (b *bucket) take(keep, force bool) *wire.Error {
	b.mu.Lock()
	s := b.served
	if s != nil {
		s.expected = true
	}
	b.mu.Unlock()
	if s == nil {
		if !keep {
			b.leave()
		}
		return nil
	}
	_, e := b.m.guest.call(wire.OpFUSEDetach, &wire.FUSEDetach{Path: b.path, Force: force, Keep: keep}, bucketInit)
	if e != nil && e.Code == wire.CodeMountpoint {
		b.mu.Lock()
		s.expected = false
		b.mu.Unlock()
		select {
		case <-s.gone:
			go b.watch(s) // it died just now
		default:
		}
		return e
	}
	select {
	case <-s.gone:
	case <-time.After(bucketEnd):
		s.end()
	}
	b.mu.Lock()
	b.served = nil
	b.mu.Unlock()
	return nil
}

// leave gives the directory back.
func (b *bucket) leave() {
	_, _ = b.m.guest.call(wire.OpFUSEDetach, &wire.FUSEDetach{Path: b.path, Force: true}, bucketInit)
}

// drop forgets the keys.
func (b *bucket) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.job)
	b.job = nil
	closeFile(b.exe)
	b.exe = nil
}

func closeFile(f *os.File) {
	if f != nil {
		_ = f.Close()
	}
}

// unmount is OpUnmount.
func (m *monitor) unmount(path string) *wire.Error {
	m.buckets.mu.Lock()
	b := m.buckets.list[path]
	m.buckets.mu.Unlock()
	if b == nil {
		return nil
	}
	b.op.Lock()
	defer b.op.Unlock()
	b.stopTrying()
	b.mu.Lock()
	s := b.served
	b.mu.Unlock()
	if e := b.take(false, false); e != nil {
		return e
	}
	b.drop()
	m.forgetBucket(b)
	if s != nil {
		if lost := s.loss(); lost != "" {
			return &wire.Error{Code: wire.CodeInternal, Text: "it is unmounted; " + lost}
		}
	}
	return nil
}

// endBuckets unmounts all buckets when everything inside has ended, and tells
// what could not be brought into them.
func (m *monitor) endBuckets() string {
	m.buckets.mu.Lock()
	m.buckets.over = true
	var list []*bucket
	for _, b := range m.buckets.list {
		list = append(list, b)
	}
	m.buckets.mu.Unlock()
	var wg sync.WaitGroup
	lost := make([]string, len(list))
	for i, b := range list {
		wg.Go(func() {
			b.stopTrying()
			done := make(chan string, 1)
			go func() { done <- b.finish() }() // whoever is just mounting it may take longer than we wait
			select {
			case lost[i] = <-done:
			case <-time.After(bucketEnd + bucketInit):
			}
		})
	}
	wg.Wait()
	var told []string
	for i, l := range lost {
		if l != "" {
			told = append(told, list[i].path+": "+l)
		}
	}
	return strings.Join(told, "; ")
}

// finish unmounts for good, whoever uses it, and tells what was lost.
func (b *bucket) finish() string {
	b.op.Lock()
	defer b.op.Unlock()
	defer b.drop()
	b.mu.Lock()
	s := b.served
	b.mu.Unlock()
	_ = b.take(false, true)
	if s == nil {
		return ""
	}
	return s.loss()
}

// killBuckets ends every bucketd at once; who waits for one gets an error.
func (m *monitor) killBuckets() {
	m.buckets.mu.Lock()
	defer m.buckets.mu.Unlock()
	m.buckets.over = true
	for _, b := range m.buckets.list {
		b.stopTrying()
		b.mu.Lock()
		if s := b.served; s != nil {
			s.expected = true
			_ = s.process.Kill()
		}
		b.mu.Unlock()
	}
}
