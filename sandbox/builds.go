package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"
)

// MaxBuildLog is how much of a build's log is told at once, in bytes.
const MaxBuildLog = 8 << 10

// buildKey is what one build at a time may make.
type buildKey struct {
	owner Owner
	name  string
}

// building is a build in progress, shared by all callers that ask for the same.
// One that failed while nobody waited is kept until somebody asks.
type building struct {
	digest string
	image  string
	began  time.Time
	cancel context.CancelFunc
	done   chan struct{}
	info   SnapshotInfo // set before done is closed
	err    error        // likewise
	ended  time.Time    // likewise

	mu      sync.Mutex
	phase   string
	waiting map[int]func(Progress)
	waits   int
	held    []Progress // lines that came while nobody was there
	size    int        // of held, in bytes
}

// heldMost bounds the lines that wait for a listener, in bytes; toldTime is how
// long a failure that nobody has heard of is kept.
const (
	heldMost = 64 << 10
	toldTime = time.Hour
)

// stepLine is the line of a log that says which step begins.
var stepLine = regexp.MustCompile(`^\[\d+/\d+\] `)

// report hands a line to those who wait, and keeps it when nobody does.
func (b *building) report(p Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !p.Log || stepLine.MatchString(p.Text) {
		b.phase = p.Text
	}
	for _, tell := range b.waiting {
		tell(p)
	}
	if len(b.waiting) > 0 || !p.Log {
		return
	}
	b.held, b.size = append(b.held, p), b.size+len(p.Text)
	for b.size > heldMost {
		b.size -= len(b.held[0].Text)
		b.held = b.held[1:]
	}
}

// join has the build tell the call of ctx its lines, from those on that nobody
// has seen, until leave.
func (b *building) join(ctx context.Context) (leave func()) {
	tell, ok := ctx.Value(progressKey{}).(func(Progress))
	if !ok || tell == nil {
		return func() {}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.held {
		tell(p)
	}
	b.held, b.size = nil, 0
	if b.waiting == nil {
		b.waiting = map[int]func(Progress){}
	}
	b.waits++
	id := b.waits
	b.waiting[id] = tell
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.waiting, id)
	}
}

// buildSnapshot builds, or waits for the same build that is on its way.
func (m *Manager) buildSnapshot(ctx context.Context, owner Owner, name string, b Build) (*SnapshotInfo, error) {
	maker, ok := m.provider.(SnapshotBuilder)
	if !ok {
		return nil, &UserError{Err: ErrUnsupported, Text: "provider " + m.provider.Name() + " builds no snapshots; make the changes in a sandbox with execute_command, and create_snapshot of that"}
	}
	if b.Image == "" && b.Snapshot == "" {
		b.Snapshot, b.Image = m.options.Defaults.Snapshot, m.options.Defaults.Image
		if b.Snapshot != "" {
			b.Image = ""
		}
	}
	if err := m.checkImage(Spec{Image: b.Image}); err != nil {
		return nil, err
	}
	if err := m.checkSnapshot(ctx, owner, b.Snapshot); err != nil {
		return nil, err
	}
	// Its files may be large, so they are read before anybody is held up.
	digest := b.Digest()
	f, err := m.building(buildKey{owner, name}, digest, maker, b)
	if err != nil {
		return nil, err
	}
	leave := f.join(ctx)
	defer leave()
	t := time.NewTimer(time.Until(callDeadline(ctx)))
	defer t.Stop()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		f.mu.Lock()
		defer f.mu.Unlock()
		return nil, &UserError{Err: ErrStarting, Text: fmt.Sprintf(
			"the snapshot is not built after %.0f s (%s); it goes on by itself, and the same call again waits on; delete_snapshot stops it", time.Since(f.began).Seconds(), f.phase)}
	}
	m.told(buildKey{owner, name}, f)
	switch {
	case errors.Is(f.err, ErrExists):
		return nil, &FieldError{Field: "name", Problem: fmt.Sprintf("there is a snapshot %s already, made otherwise", name), Allowed: "a new name", Hint: "snapshots never change; delete_snapshot removes one"}
	case errors.Is(f.err, context.Canceled):
		return nil, &UserError{Err: ErrUnavailable, Text: "the build was stopped; make the same call again to go on from its last finished step"}
	case f.err != nil:
		var failed *BuildError
		if errors.As(f.err, &failed) {
			return nil, failed
		}
		return nil, fmt.Errorf("build the snapshot: %w", f.err)
	}
	info := f.info
	return &info, nil
}

// building finds the build that is on its way, or begins it.
func (m *Manager) building(k buildKey, digest string, maker SnapshotBuilder, b Build) (*building, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	for k, f := range m.builds {
		if !f.ended.IsZero() && time.Since(f.ended) > toldTime {
			delete(m.builds, k)
		}
	}
	if f := m.builds[k]; f != nil {
		switch {
		case f.digest == digest:
			return f, nil
		case f.ended.IsZero():
			return nil, &FieldError{Field: "name", Problem: fmt.Sprintf("a snapshot %s is being built in another way", k.name), Allowed: "another name", Hint: "or stop that build with delete_snapshot"}
		}
	}
	ctx, cancel := context.WithCancel(m.ctx)
	f := &building{digest: digest, image: b.Image, began: time.Now(), cancel: cancel, done: make(chan struct{}), phase: "it begins"}
	m.builds[k] = f
	m.wg.Go(func() {
		defer cancel()
		info, err := m.runBuild(WithProgress(ctx, f.report), k, maker, b)
		m.mu.Lock()
		f.info, f.err, f.ended = info, err, time.Now()
		f.mu.Lock()
		// What went well is in the list; what failed is told to somebody.
		if m.builds[k] == f && (err == nil || len(f.waiting) > 0) {
			delete(m.builds, k)
		}
		f.mu.Unlock()
		m.mu.Unlock()
		close(f.done)
	})
	return f, nil
}

// told forgets a build whose end somebody has heard.
func (m *Manager) told(k buildKey, f *building) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.builds[k] == f {
		delete(m.builds, k)
	}
}

// runBuild has the provider build, in sandboxes as the operator has them.
func (m *Manager) runBuild(ctx context.Context, k buildKey, maker SnapshotBuilder, b Build) (SnapshotInfo, error) {
	d := m.options.Defaults
	// Neither the operator's variables, which may be secrets, nor volumes:
	// what is built is for everybody who starts from it.
	spec := Spec{Resources: d.Resources, Network: d.Network, Account: b.Account}.WithDefaults(Spec{})
	spec.Resources = spec.Resources.within(m.options.Limits.Resources)
	spec.Network = networkOf(spec.Network, m.options.Limits.Network)
	done, err := m.makeRoom(ctx, Key{Owner: k.owner, Session: SessionID("build " + k.name)}) // no session has a space
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer func() {
		done()
		m.mu.Lock()
		delete(m.owned, k.owner) // its sandboxes are gone
		m.mu.Unlock()
	}()
	return maker.BuildSnapshot(ctx, k.owner, k.name, b, spec)
}

// stopBuild ends a build in progress and waits for that; false: there is none.
func (m *Manager) stopBuild(ctx context.Context, owner Owner, name string) bool {
	k := buildKey{owner, name}
	m.mu.Lock()
	f := m.builds[k]
	m.mu.Unlock()
	if f == nil {
		return false
	}
	f.cancel()
	select {
	case <-f.done:
	case <-ctx.Done():
		return true
	}
	m.told(k, f)
	return errors.Is(f.err, context.Canceled)
}

// withBuilding adds what is being built to a list.
func (m *Manager) withBuilding(owner Owner, all []SnapshotInfo) []SnapshotInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, f := range m.builds {
		if k.owner == owner && f.ended.IsZero() {
			all = append(all, SnapshotInfo{Owner: owner, Name: k.name, State: SnapshotBuilding, Created: f.began, Image: f.image, Built: true})
		}
	}
	return all
}

// buildLog is the end of a build's log; "" when none is kept.
func (m *Manager) buildLog(ctx context.Context, owner Owner, name string) (string, error) {
	k, ok := m.provider.(BuildLogKeeper)
	if !ok {
		return "", nil
	}
	text, err := k.BuildLog(ctx, owner, name, MaxBuildLog)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return text, err
}

// build checks what of a build no provider need see.
func (f *faults) build(b *Build) {
	f.account(b.Account)
	f.image(b.Image)
	if b.Snapshot != "" {
		f.snapshot("snapshot", b.Snapshot)
	}
	if b.Image != "" && b.Snapshot != "" {
		f.add("image", "a snapshot is given too", "one of them", "")
	}
	if len(b.Steps) > MaxBuildSteps {
		f.add("steps", fmt.Sprintf("there are %d", len(b.Steps)), fmt.Sprintf("at most %d", MaxBuildSteps), "join commands with && in one step")
	}
	if len(b.Files) > MaxBuildFiles {
		f.add("files", fmt.Sprintf("there are %d", len(b.Files)), fmt.Sprintf("at most %d", MaxBuildFiles), "")
	}
	for name := range b.Files {
		if name == "" || name == "." || !plainPath(name) || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") {
			f.add("files", fmt.Sprintf("%.80q is not a path of a file", name), "a relative path without '.' and '..', such as app/main.py", "")
		}
	}
}
