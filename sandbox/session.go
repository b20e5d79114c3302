package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// How transitional sandboxes are waited for.
const (
	pollEvery = 2 * time.Second
	pollMost  = 120 * time.Second
)

// recheck is for how long a running sandbox is believed to run without asking
// its provider; a Spawn that meets a dead one finds out by itself.
const recheck = time.Second

// errNeverSeen is found under ErrNotFound's UserErrors: the session has no
// sandbox and never had.
var errNeverSeen = fmt.Errorf("never seen: %w", ErrNotFound)

// mode is what a start may do about a sandbox that is not there.
type mode int

const (
	held        mode = iota - 1 // nothing: who waits for it starts by himself
	startOnly                   // start a stopped one
	freshIfGone                 // and replace one that was destroyed or is broken
	create                      // and make one for a session never seen
)

// box is a running sandbox and how a call came to it.
type box struct {
	inst    Instance
	info    Info
	outcome StartOutcome
	notice  Notice
	seen    time.Time
	// believed: it was seen running a moment ago, and not looked at since.
	believed bool
}

// flight is a start in progress, shared by all callers of its session.
type flight struct {
	mode  mode
	began time.Time
	done  chan struct{}
	box   *box  // set before done is closed
	err   error // likewise

	mu      sync.Mutex
	phase   string // how far it is, for callers that cannot wait on
	waiting map[int]func(Progress)
	waits   int
}

func (f *flight) say(format string, a ...any) {
	f.mu.Lock()
	f.phase = fmt.Sprintf(format, a...)
	f.mu.Unlock()
}

// report tells those who wait how far the provider is.
func (f *flight) report(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.phase = p.Text
	for _, tell := range f.waiting {
		tell(p)
	}
}

// join has the flight tell the call of ctx how far it is, until leave.
func (f *flight) join(ctx context.Context) (leave func()) {
	tell, ok := ctx.Value(progressKey{}).(func(Progress))
	if !ok || tell == nil {
		return func() {}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == nil {
		f.waiting = map[int]func(Progress){}
	}
	f.waits++
	id := f.waits
	f.waiting[id] = tell
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.waiting, id)
	}
}

// ready returns the key's sandbox, running, and starts it as far as want
// allows. It waits until the call's deadline; the start itself goes on.
func (m *Manager) ready(ctx context.Context, key Key, want mode, given Spec) (*box, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	deadline := callDeadline(ctx)
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, ErrClosed
		}
		if b := m.boxes[key]; b != nil && time.Since(b.seen) < recheck {
			m.mu.Unlock()
			return &box{inst: b.inst, info: b.info, outcome: Connected, seen: b.seen, believed: true}, nil
		}
		f := m.flights[key]
		if only, _ := ctx.Value(runningOnlyKey{}).(bool); only {
			m.mu.Unlock()
			return m.found(ctx, key)
		}
		if f == nil {
			f = &flight{mode: want, began: time.Now(), done: make(chan struct{}), phase: "looking it up"}
			m.flights[key] = f
			made := serverMade(ctx)
			m.wg.Go(func() { m.fly(f, key, given, made) })
		}
		m.mu.Unlock()

		leave := f.join(ctx)
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-f.done:
			timer.Stop()
			leave()
		case <-ctx.Done():
			timer.Stop()
			leave()
			return nil, ctx.Err()
		case <-timer.C:
			leave()
			f.mu.Lock()
			defer f.mu.Unlock()
			return nil, &UserError{Err: ErrStarting, Text: fmt.Sprintf(
				"the sandbox is not ready after %.0f s (%s); it goes on by itself, and the same call again waits on", time.Since(f.began).Seconds(), f.phase)}
		}
		// Somebody's start that may do less than ours has refused: try ours.
		if f.err != nil && f.mode < want && errors.Is(f.err, ErrNotFound) {
			continue
		}
		if f.err != nil {
			return nil, f.err
		}
		b := *f.box
		return &b, nil
	}
}

// surely is ready for who asks for a start and nothing else: no command will show
// that a sandbox which was believed to run does not.
func (m *Manager) surely(ctx context.Context, key Key, want mode, given Spec) (*box, error) {
	b, err := m.ready(ctx, key, want, given)
	if err != nil || !b.believed {
		return b, err
	}
	if info, err := glance(ctx, b.inst); err == nil && info.Status == StatusRunning {
		return b, nil
	}
	m.forget(key, b)
	return m.ready(ctx, key, want, given)
}

// fly runs one start to its end and publishes it.
func (m *Manager) fly(f *flight, key Key, given Spec, made bool) {
	b, err := m.start(WithProgress(m.ctx, f.report), f, key, given, made)
	m.mu.Lock()
	delete(m.flights, key)
	if err == nil {
		b.seen = time.Now()
		m.boxes[key] = b
	}
	m.mu.Unlock()
	f.box, f.err = b, err
	close(f.done)
}

// forget drops what is believed of a sandbox, so that it is looked up anew. b
// nil drops whatever is known; else only b itself, not its successor.
func (m *Manager) forget(key Key, b *box) {
	m.mu.Lock()
	if is := m.boxes[key]; is != nil && (b == nil || is.inst == b.inst) {
		delete(m.boxes, key)
	}
	delete(m.running, key)
	delete(m.mounted, key)
	m.mu.Unlock()
}

// start is the algorithm: find by id, then do what the status asks for.
func (m *Manager) start(ctx context.Context, f *flight, key Key, given Spec, made bool) (*box, error) {
	var (
		notice    Notice
		seen      bool // it was there in this start
		recovered bool
		starts    int
		lost      int
		base      = m.options.Defaults
		deadline  = time.Now().Add(pollMost)
	)
	for {
		inst, err := m.provider.Lookup(ctx, key)
		var info Info
		if err == nil {
			info, err = glance(ctx, inst)
		}
		switch {
		case errors.Is(err, ErrNotFound):
			if seen && notice.Replaced == "" {
				notice.Replaced = "the former one went away while it was being waited for"
			}
			info.Status = StatusPending
		case err != nil:
			return nil, fmt.Errorf("look up the sandbox: %w", err)
		default:
			seen = true
		}
		if s := info.Status; s == StatusRunning || s == StatusStopped || s == StatusArchived {
			if err := m.narrow(ctx, inst, &info, &notice); err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
		}

		switch {
		case info.Status == StatusRunning:
			b := &box{inst: inst, info: info, outcome: Connected, notice: notice}
			m.remount(ctx, key, b, false)
			return b, nil

		case info.Status == StatusStopped || info.Status == StatusArchived:
			if starts++; starts > 3 {
				return nil, &UserError{Err: ErrUnavailable, Text: "the sandbox stops again right after its start" + because(info.Reason) + "; make the same call again, or destroy_sandbox to begin afresh, without its files"}
			}
			f.say("starting the %s sandbox", info.Status)
			if err := inst.Start(ctx); err != nil && !errors.Is(err, ErrNotFound) {
				return nil, fmt.Errorf("start the sandbox: %w", err)
			}
			notice.Started = true
			if info.Reason != "" {
				notice.Warnings = append(notice.Warnings, info.Reason)
			}
			continue

		case err == nil && (info.Status.Transitional() || info.Status == StatusPending):
			f.say("it is %s", info.Status)
			if err := m.poll(ctx, deadline, pollEvery); err != nil {
				return nil, transitionError(err, info)
			}
			continue

		case info.Status == StatusDestroyed:
			if f.mode < freshIfGone {
				return nil, &UserError{Err: ErrNotFound, Text: "the session's sandbox was destroyed; start_sandbox or a command makes a fresh one"}
			}
			if notice.Replaced == "" {
				notice.Replaced = "the former one was destroyed"
				if info.Reason != "" {
					notice.Replaced += " (" + info.Reason + ")"
				}
			}

		case info.Status == StatusError:
			if r, ok := inst.(Recoverer); ok && !recovered {
				recovered = true
				f.say("recovering it from an error")
				if rerr := r.Recover(ctx); rerr == nil {
					notice.Warnings = append(notice.Warnings, "the sandbox was recovered from an error"+because(info.Reason))
					continue
				}
			}
			if f.mode < freshIfGone {
				return nil, &UserError{Err: ErrUnavailable, Text: "the sandbox is broken" + because(info.Reason) + "; start_sandbox or a command sets it aside and makes a fresh one"}
			}
			f.say("setting the broken sandbox aside")
			why, rerr := m.setAside(ctx, inst, info)
			if errors.Is(rerr, ErrNotFound) {
				continue
			}
			if rerr != nil {
				return nil, rerr
			}
			notice.Replaced = why
			// What the session had asked for holds for its successor.
			base = info.Spec.over(base)

		case err == nil:
			return nil, fmt.Errorf("the provider tells an unknown status %q", info.Status)
		}

		if !seen && f.mode < create || f.mode < freshIfGone {
			return nil, errNeverSeen
		}
		f.say("creating it")
		inst, err = m.create(ctx, key, given, base, made)
		if errors.Is(err, ErrExists) {
			// Another process was faster: use its sandbox, once it can be seen.
			notice.Replaced = ""
			if lost++; lost == 1 {
				deadline = time.Now().Add(pollMost) // making ours may have taken long
			}
			if err := m.poll(ctx, deadline, min(10*time.Millisecond<<min(lost, 8), pollEvery)); err != nil {
				return nil, transitionError(err, Info{Status: StatusStarting})
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err = glance(ctx, inst)
		if err != nil {
			return nil, fmt.Errorf("read the new sandbox: %w", err)
		}
		notice.Created = notice.Replaced == ""
		notice.Warnings = append(notice.Warnings, info.Spec.Resources.missed(info.Guarantees)...)
		notice.Started = false
		b := &box{inst: inst, info: info, outcome: Created, notice: notice}
		if notice.Replaced != "" {
			b.outcome = Replaced
		}
		m.remount(ctx, key, b, true)
		return b, nil
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

var errStillMoving = errors.New("it does not get on")

// poll waits before the next look, unless the time is up.
func (m *Manager) poll(ctx context.Context, deadline time.Time, d time.Duration) error {
	if time.Now().Add(d).After(deadline) {
		return errStillMoving
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ErrClosed
	}
}

func transitionError(err error, info Info) error {
	if !errors.Is(err, errStillMoving) {
		return err
	}
	return &UserError{Err: ErrUnavailable, Text: fmt.Sprintf("the sandbox has been %s for more than %.0f s%s; try again later, or destroy_sandbox",
		info.Status, pollMost.Seconds(), because(info.Reason))}
}

// setAside makes room for a fresh sandbox and tells why and where the old is.
func (m *Manager) setAside(ctx context.Context, inst Instance, info Info) (string, error) {
	reason := info.Reason
	if reason == "" {
		reason = "no reason is known"
	}
	why := "the former one was broken (" + reason + ") and "
	if r, ok := inst.(Retirer); ok {
		kept, err := r.Retire(ctx, reason)
		if err != nil {
			return "", fmt.Errorf("set the broken sandbox aside: %w", err)
		}
		if kept != "" {
			return why + "is kept at " + kept, nil
		}
		return why + "was deleted", nil
	}
	if err := inst.Destroy(ctx); err != nil {
		return "", fmt.Errorf("delete the broken sandbox: %w", err)
	}
	return why + "was deleted", nil
}

// create makes the key's sandbox within the operator's limits.
func (m *Manager) create(ctx context.Context, key Key, given, base Spec, made bool) (Instance, error) {
	spec := given.over(base)
	if made && spec.AutoDelete == nil {
		spec.AutoDelete = ptr(ServerMadeAutoDelete)
	}
	spec = spec.WithDefaults(Spec{})
	spec.Resources = spec.Resources.within(m.options.Limits.Resources)
	spec.Network = networkOf(spec.Network, m.options.Limits.Network)
	if spec.Name == "" {
		spec.Name = string(key.Session)
	}
	if err := m.checkSnapshot(ctx, key.Owner, spec.Snapshot); err != nil {
		return nil, err
	}
	done, err := m.makeRoom(ctx, key)
	if err != nil {
		return nil, err
	}
	defer done()
	inst, err := m.provider.Create(ctx, key, spec)
	if err != nil {
		return nil, fmt.Errorf("create the sandbox: %w", err)
	}
	return inst, nil
}

// makeRoom holds the operator's limit of sandboxes an owner. Listing is dear,
// so the manager counts upwards and lists only when the count says that the
// limit may be reached. Sandboxes that are just being made count too, so the
// figure holds within this process; across processes it is a ceiling against
// runaway use. The caller calls done when the sandbox is made or not.
func (m *Manager) makeRoom(ctx context.Context, key Key) (done func(), err error) {
	most := m.options.Limits.MaxSandboxes
	done = func() {
		m.mu.Lock()
		delete(m.creating, key)
		m.mu.Unlock()
	}
	m.mu.Lock()
	if n, known := m.owned[key.Owner]; known && n < most {
		m.owned[key.Owner] = n + 1
		m.creating[key] = true
		m.mu.Unlock()
		return done, nil
	}
	m.mu.Unlock()
	infos, err := m.provider.List(ctx, key.Owner)
	if err != nil {
		return nil, fmt.Errorf("count the sandboxes: %w", err)
	}
	counted := map[Key]bool{}
	for _, i := range infos {
		counted[i.Key] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.creating {
		if k.Owner == key.Owner {
			counted[k] = true
		}
	}
	if len(counted) >= most {
		return nil, &UserError{Err: ErrLimit, Text: fmt.Sprintf(
			"there are %d sandboxes, the operator's limit is %d; destroy_sandbox one that list_sandboxes shows and nobody needs", len(counted), most)}
	}
	m.owned[key.Owner] = len(counted) + 1
	m.creating[key] = true
	return done, nil
}

// found returns the key's sandbox if it runs.
func (m *Manager) found(ctx context.Context, key Key) (*box, error) {
	inst, err := m.provider.Lookup(ctx, key)
	var info Info
	if err == nil {
		info, err = glance(ctx, inst)
	}
	switch {
	case errors.Is(err, ErrNotFound), err == nil && info.Status == StatusDestroyed:
		return nil, noSession(key)
	case err != nil:
		return nil, fmt.Errorf("look up the sandbox: %w", err)
	case info.Status != StatusRunning:
		return nil, &UserError{Err: ErrNotRunning, Text: fmt.Sprintf("the sandbox is %s, not running%s; start it first", info.Status, because(info.Reason))}
	}
	b := &box{inst: inst, info: info, outcome: Connected, seen: time.Now()}
	m.mu.Lock()
	if !m.closed {
		m.boxes[key] = b
	}
	m.mu.Unlock()
	return b, nil
}

// peek finds a sandbox without starting it. A destroyed one is found too.
func (m *Manager) peek(ctx context.Context, key Key) (Instance, error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, ErrClosed
	}
	b := m.boxes[key]
	m.mu.Unlock()
	if b != nil && time.Since(b.seen) < recheck {
		return b.inst, nil
	}
	inst, err := m.provider.Lookup(ctx, key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("look up the sandbox: %w", err)
	}
	return inst, err
}

func noSession(key Key) error {
	return &UserError{Err: ErrNotFound, Text: fmt.Sprintf(
		"session %s has no sandbox; list_sandboxes shows those there are, start_sandbox or a command makes one", key.Session)}
}
