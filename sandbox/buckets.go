package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/mounts"
)

// mountWait bounds how long one mount of a start is waited for. A service that
// is away must not keep commands waiting for longer.
const mountWait = 20 * time.Second

// MountRequest of MountBucket. What is empty is the operator's default.
type MountRequest struct {
	Path                       string
	Connection, Bucket, Prefix string
	ReadOnly                   bool
	// Credentials are a connection of the caller's own; nil: the operator's.
	Credentials *mounts.Connection
}

// MountResult of MountBucket and UnmountBucket.
type MountResult struct {
	Mount  MountInfo
	Info   Info
	Notice Notice
}

// DefaultDirectory is where commands start that name no directory: the spec's,
// else the first mount of the spec that is mounted, else home.
func DefaultDirectory(info Info) string {
	if d := info.Spec.WorkingDirectory; d != "" {
		return d
	}
	for _, mt := range info.Mounts {
		if mt.OfSpec && mt.State == Mounted {
			return mt.Path
		}
	}
	return info.Home
}

// mounts checks the places of a spec's mounts. What they show, only the Manager
// can check.
func (f *faults) mounts(list []Mount, volumes []VolumeMount) {
	if len(list) > MaxMounts {
		f.add("mounts", fmt.Sprintf("there are %d", len(list)), fmt.Sprintf("at most %d", MaxMounts), "")
		return
	}
	for i, mt := range list {
		f.mountPath("mounts", mt.Path)
		for _, o := range list[:i] {
			if overlap(mt.Path, o.Path) {
				f.add("mounts", fmt.Sprintf("%.80q and %.80q lie in each other", mt.Path, o.Path), "places apart", "")
			}
		}
		for _, v := range volumes {
			if overlap(mt.Path, v.Path) {
				f.add("mounts", fmt.Sprintf("%.80q and the volume at %.80q lie in each other", mt.Path, v.Path), "places apart", "")
			}
		}
	}
}

func (f *faults) mountPath(field, p string) {
	if err := mounts.CheckPath(field, p); err != nil {
		f.problems("", err)
		return
	}
	f.place(field, p)
}

// problems adds what package mounts complains of.
func (f *faults) problems(prefix string, err error) {
	for _, p := range mounts.ProblemsOf(err) {
		f.add(prefix+p.Field, p.Text, p.Allowed, p.Hint)
	}
}

func (mt Mount) target() mounts.Target {
	return mounts.Target{Connection: mt.Connection, Bucket: mt.Bucket, Prefix: mt.Prefix, ReadOnly: mt.ReadOnly}
}

func (mt *Mount) set(t mounts.Target) {
	mt.Path = path.Clean(mt.Path)
	mt.Connection, mt.Bucket, mt.Prefix, mt.ReadOnly = t.Connection, t.Bucket, t.Prefix, t.ReadOnly
}

// complete returns list with all that the configuration says, or what is wrong.
// Those of the operator may name connections that are not there at the moment: of variables
// that only the server has.
func complete(set *mounts.Set, list []Mount, operators bool) ([]Mount, error) {
	var f faults
	out := slices.Clone(list)
	for i := range out {
		t, err := set.Complete(out[i].target(), nil)
		if p := mounts.ProblemsOf(err); operators && len(p) == 1 && p[0].Field == "connection" {
			out[i].Path = path.Clean(out[i].Path)
			continue
		}
		f.problems("mounts."+out[i].Path+".", err)
		out[i].set(t)
	}
	return out, f.err()
}

// HasMounts tells whether the provider's sandboxes show buckets at all.
func (m *Manager) HasMounts() bool {
	_, can := m.provider.(MountChecker)
	return can
}

// Connections are what sessions may mount, for those who choose.
func (m *Manager) Connections() []mounts.Offer { return m.options.Buckets.Offers() }

// InlineCredentials tells whether sessions may bring their own.
func (m *Manager) InlineCredentials() bool { return m.options.Buckets.InlineAllowed() }

// checkMounts refuses mounts where there can be none.
func (m *Manager) checkMounts(ctx context.Context) error {
	c, can := m.provider.(MountChecker)
	if !can {
		return &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("the provider %s does not show buckets as directories; copy what is needed with commands", m.provider.Name())}
	}
	return c.CheckMounts(ctx)
}

// completeMounts fills in the mounts of a spec that was given.
func (m *Manager) completeMounts(ctx context.Context, s *Spec) error {
	if len(s.Mounts) == 0 {
		return nil
	}
	list, err := complete(m.options.Buckets, s.Mounts, false)
	if err != nil {
		return err
	}
	s.Mounts = list
	return m.checkMounts(ctx)
}

// MountBucket shows a bucket, or part of one, as a directory of the session's
// sandbox, which is started or created when it must. It is kept with the sandbox:
// each start mounts it again.
func (m *Manager) MountBucket(ctx context.Context, key Key, r MountRequest) (*MountResult, error) {
	ctx = withDeadline(ctx)
	mt := Mount{Path: r.Path, Connection: r.Connection, Bucket: r.Bucket, Prefix: r.Prefix, ReadOnly: r.ReadOnly}
	var f faults
	f.mountPath("path", r.Path)
	if r.Credentials != nil && r.Connection != "" {
		f.add("credentials", "connection is given too", "one of them", "")
	}
	t, err := m.options.Buckets.Complete(mt.target(), r.Credentials)
	f.problems("", err)
	if err := f.err(); err != nil {
		return nil, err
	}
	mt.set(t)
	if err := m.checkMounts(ctx); err != nil {
		return nil, err
	}
	job, err := m.options.Buckets.Job(t, r.Credentials)
	if err != nil {
		f.problems("", err)
		return nil, f.err()
	}
	var revived string
	for {
		b, err := m.ready(ctx, key, create, Spec{})
		if err != nil {
			return nil, sayNoSession(err, key)
		}
		if err := apart(mt, b.info); err != nil {
			return nil, err
		}
		mounter, can := b.inst.(Mounter)
		if !can {
			return nil, &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("sandboxes of the provider %s do not show buckets", m.provider.Name())}
		}
		begin(ctx)
		var made MountInfo
		err = m.detached(ctx, func(ctx context.Context) error {
			made, err = mounter.Mount(ctx, MountOrder{Mount: mt, Job: job})
			if err == nil {
				m.remember(key, mt.Path, r.Credentials)
			}
			return err
		})
		switch {
		case err == nil:
		case dead(err) && revived == "":
			m.forget(key, b)
			revived = "the sandbox was found " + dying(err) + " and was brought back"
			continue
		case errors.Is(err, errGoesOn):
			return nil, &UserError{Err: ErrStarting, Text: fmt.Sprintf("the bucket is still being mounted at %s; it goes on by itself, and get_sandbox shows when it is done", mt.Path)}
		default:
			return nil, mountError(mt, err)
		}
		res := &MountResult{Mount: made, Notice: b.notice}
		res.Notice.Revived = revived
		return m.afterMount(ctx, key, b, res)
	}
}

// afterMount reads what the sandbox is after its mounts changed.
func (m *Manager) afterMount(ctx context.Context, key Key, b *box, res *MountResult) (*MountResult, error) {
	info, err := b.inst.Info(ctx)
	if err != nil {
		m.forget(key, b)
		return nil, fmt.Errorf("read the sandbox: %w", err)
	}
	m.refresh(key, b, info)
	res.Info = info
	return res, nil
}

// refresh has later calls see what was just read of a sandbox.
func (m *Manager) refresh(key Key, b *box, info Info) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if is := m.boxes[key]; is != nil && is.inst == b.inst {
		m.boxes[key] = &box{inst: is.inst, info: info, outcome: is.outcome, seen: is.seen}
	}
}

// apart refuses a mount that would lie in another thing's place, or have it
// within.
func apart(mt Mount, info Info) error {
	var f faults
	clash := func(what, at string) {
		if overlap(mt.Path, at) {
			f.add("path", fmt.Sprintf("%s and %s %s lie in each other", mt.Path, what, at), "places apart", "choose another path")
		}
	}
	n := 0
	for _, o := range info.Mounts {
		if o.Path == mt.Path {
			continue // it is replaced
		}
		n++
		clash("the bucket at", o.Path)
	}
	for _, v := range info.Spec.Volumes {
		clash("the volume at", v.Path)
	}
	for _, d := range info.HostDirs {
		clash("the folder of this machine at", d.Path)
	}
	if n >= MaxMounts {
		f.add("path", fmt.Sprintf("the sandbox has %d buckets", n), fmt.Sprintf("at most %d", MaxMounts), "unmount_bucket one that nobody needs")
	}
	return f.err()
}

// UnmountBucket takes a mount away, when all that was written to it is in the
// bucket, and forgets it. It starts nothing: a stopped sandbox does not mount
// it again.
func (m *Manager) UnmountBucket(ctx context.Context, key Key, p string) (*MountResult, error) {
	ctx = withDeadline(ctx)
	if err := mounts.CheckPath("path", p); err != nil {
		var f faults
		f.problems("", err)
		return nil, f.err()
	}
	p = path.Clean(p)
	if err := m.landed(ctx, key); err != nil {
		return nil, err
	}
	inst, err := m.peek(ctx, key)
	if err != nil {
		return nil, sayNoSession(err, key)
	}
	info, err := inst.Info(ctx)
	if errors.Is(err, ErrNotFound) || err == nil && info.Status == StatusDestroyed {
		return nil, noSession(key)
	}
	if err != nil {
		return nil, fmt.Errorf("read the sandbox: %w", err)
	}
	res := &MountResult{}
	i := slices.IndexFunc(info.Mounts, func(mt MountInfo) bool { return mt.Path == p })
	mounter, can := inst.(Mounter)
	if i < 0 || !can {
		return nil, noMount(p, info)
	}
	res.Mount = info.Mounts[i]
	begin(ctx)
	err = m.detached(ctx, func(ctx context.Context) error {
		err := mounter.Unmount(ctx, p)
		if err == nil {
			m.remember(key, p, nil)
		}
		return err
	})
	switch {
	case errors.Is(err, errGoesOn):
		return nil, &UserError{Err: ErrStarting, Text: fmt.Sprintf("what was written to %s is still on its way into the bucket; it goes on by itself, and the same call again waits on", p)}
	case errors.Is(err, ErrNotFound):
		return nil, noMount(p, info)
	case err != nil:
		return nil, mountError(res.Mount.Mount, err)
	}
	return m.afterMount(ctx, key, &box{inst: inst}, res)
}

func noMount(p string, info Info) error {
	var at []string
	for _, mt := range info.Mounts {
		at = append(at, mt.Path)
	}
	allowed := strings.Join(at, ", ")
	if allowed == "" {
		allowed = "the sandbox has none"
	}
	return &FieldError{Field: "path", Problem: "there is no bucket of mount_bucket or start_sandbox at " + p, Allowed: allowed, Hint: "what was mounted by a command is unmounted by one: fusermount3 -u PATH"}
}

// mountError says in words why there is no mount.
func mountError(mt Mount, err error) error {
	var user *UserError
	var field *FieldError
	if errors.As(err, &user) || errors.As(err, &field) {
		return err
	}
	var fault *mounts.Fault
	if errors.As(err, &fault) {
		return &UserError{Err: ErrUnavailable, Text: fmt.Sprintf("the bucket %s cannot be mounted at %s: %s", mt.bucketName(), mt.Path, faultText(mt, fault))}
	}
	return fmt.Errorf("mount the bucket at %s: %w", mt.Path, err)
}

func (mt Mount) bucketName() string {
	if mt.Prefix == "" {
		return mt.Bucket
	}
	return mt.Bucket + "/" + mt.Prefix
}

// faultText is the fault with what to do about it.
func faultText(mt Mount, fault *mounts.Fault) string {
	who := "the operator checks the connection " + mt.Connection
	if mt.Connection == InlineConnection {
		who = "check the credentials"
	}
	hint := map[mounts.FaultKind]string{
		mounts.FaultResolve: who + ": its endpoint", mounts.FaultEndpoint: who + ": its endpoint",
		mounts.FaultUnreachable: "try again later; if it stays so, " + who + ": its endpoint", mounts.FaultCredentials: who + ": its keys",
		mounts.FaultRegion: who + ": its region", mounts.FaultNoBucket: "check the bucket's name",
		mounts.FaultListDenied: "a prefix that the keys may list could be mounted", mounts.FaultReadDenied: who + ": what its keys may do",
		mounts.FaultWriteDenied: "read_only mounts it for reading", mounts.FaultClock: "the operator sets this machine's clock",
	}[fault.Kind]
	if hint == "" {
		return fault.Message
	}
	return fault.Message + "; " + hint
}

// remember keeps credentials that came with a call, in memory alone, for as
// long as the sandbox wants the mount; nil forgets them.
func (m *Manager) remember(key Key, at string, c *mounts.Connection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case c != nil && m.inline[key] == nil:
		m.inline[key] = map[string]*mounts.Connection{at: c}
	case c != nil:
		m.inline[key][at] = c
	default:
		if delete(m.inline[key], at); len(m.inline[key]) == 0 {
			delete(m.inline, key)
		}
	}
}

// order makes the order of a mount that is wanted, with the keys of now. lost
// tells that its keys were a call's, and are not here.
func (m *Manager) order(key Key, mt Mount) (o MountOrder, lost bool) {
	o.Mount = mt
	if t, err := m.options.Buckets.Complete(mt.target(), nil); err == nil && mt.Bucket == "" {
		o.set(t) // the operator's defaults were not complete when the sandbox was made
	}
	var inline *mounts.Connection
	if mt.Connection == InlineConnection {
		m.mu.Lock()
		inline = m.inline[key][mt.Path]
		m.mu.Unlock()
		if inline == nil && m.options.Buckets.InlineAllowed() {
			o.Refused = "its credentials came with mount_bucket, and are kept no longer than the server runs; mount_bucket it again with them"
			return o, true
		}
	}
	var err error
	if o.Job, err = m.options.Buckets.Job(o.target(), inline); err != nil {
		o.Refused = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return o, false
}

// remount makes what a running sandbox is to have mounted so: what is pending, or with all
// everything, so that what has changed is mounted anew and what failed is tried again. What
// fails is told in the notice, and stops nothing.
func (m *Manager) remount(ctx context.Context, key Key, b *box, all bool) {
	list := b.info.Mounts
	if len(list) == 0 {
		return
	}
	mounter, can := b.inst.(Mounter)
	if !can {
		return
	}
	m.mu.Lock()
	all = all || !m.mounted[key]
	m.mounted[key] = true
	m.mu.Unlock()
	if err := m.checkMounts(ctx); err != nil {
		b.notice.Warnings = append(b.notice.Warnings, "buckets are not mounted: "+err.Error())
		return
	}
	failed := make([]error, len(list))
	var wg sync.WaitGroup
	changed := false
	for i, mt := range list {
		o, lost := m.order(key, mt.Mount)
		if !all && mt.State != MountPending || mt.State == MountError && mt.Reason == o.Refused && o.Refused != "" {
			continue
		}
		if lost && mt.State == Mounted {
			continue // another server has its credentials, or had; it stays as it is
		}
		changed = true
		Report(ctx, Progress{Text: "mounting " + mt.Path})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, mountWait)
			defer cancel()
			_, failed[i] = mounter.Mount(ctx, o)
			if o.Refused != "" && failed[i] == nil {
				failed[i] = errors.New(o.Refused)
			}
		})
	}
	wg.Wait()
	if !changed {
		return
	}
	for i, err := range failed {
		if err == nil {
			continue
		}
		text := "the bucket at " + list[i].Path + " is not mounted: "
		var fault *mounts.Fault
		switch {
		case errors.As(err, &fault):
			text += faultText(list[i].Mount, fault)
		case errors.Is(err, context.DeadlineExceeded):
			text += fmt.Sprintf("its service does not answer within %.0f s", mountWait.Seconds())
		default:
			text += err.Error()
		}
		m.log.Warn("bucket not mounted", slog.String("session", string(key.Session)), slog.String("path", list[i].Path), slog.String("err", err.Error()))
		b.notice.Warnings = append(b.notice.Warnings, text)
	}
	if info, err := b.inst.Info(ctx); err == nil {
		b.info = info
	}
}

// remountNow has all mounts as they are to be for a call that asks for its
// sandbox by name.
func (m *Manager) remountNow(ctx context.Context, key Key, b *box, res *StartResult) {
	if len(b.info.Mounts) == 0 {
		return
	}
	b = &box{inst: b.inst, info: b.info}
	m.remount(ctx, key, b, true)
	for _, w := range b.notice.Warnings {
		if !slices.Contains(res.Notice.Warnings, w) {
			res.Notice.Warnings = append(res.Notice.Warnings, w)
		}
	}
}

// unwanted unmounts what the spec in force has and want has not, before want is
// kept.
func (m *Manager) unwanted(ctx context.Context, key Key, b *box, want Spec) error {
	mounter, can := b.inst.(Mounter)
	if !can {
		return nil
	}
	for _, mt := range b.info.Spec.Mounts {
		if slices.ContainsFunc(want.Mounts, func(o Mount) bool { return o.Path == mt.Path }) {
			continue
		}
		if err := mounter.Unmount(ctx, mt.Path); err != nil && !errors.Is(err, ErrNotFound) {
			return mountError(mt, err)
		}
		m.remember(key, mt.Path, nil)
	}
	return nil
}

// pendingMounts tells what a sandbox that is not there yet would have.
func pendingMounts(s Spec) []MountInfo {
	var list []MountInfo
	for _, mt := range s.Mounts {
		list = append(list, MountInfo{Mount: mt, OfSpec: true, State: MountPending, Entries: -1})
	}
	return list
}

// restored mounts anew what a sandbox has lost that was restarted on the way to
// a copy of it.
func (m *Manager) restored(ctx context.Context, key Key, inst Instance) {
	if info, err := inst.Info(ctx); err == nil && info.Status == StatusRunning {
		m.remount(ctx, key, &box{inst: inst, info: info}, false)
	}
}

// inherit gives a fork the credentials of the mounts that it has taken over.
func (m *Manager) inherit(from, to Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.inline[from]; c != nil {
		m.inline[to] = maps.Clone(c)
	}
}
