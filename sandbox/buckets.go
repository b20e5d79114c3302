package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"berth/mounts"
)

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
	Mount MountInfo
	// Replaced is what was at the same path before, when it was another mount.
	Replaced *Mount
	Info     Info
	Notice   Notice
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
		for _, was := range b.info.Mounts {
			if was.Path == mt.Path && was.Mount != mt {
				res.Replaced = &was.Mount
			}
		}
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
	inst, info, err := m.existing(ctx, key)
	if err != nil {
		return nil, err
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

// bucketName is the bucket with what is shown of it.
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
		mounts.FaultRegion:     who + ": its region", // a FaultNoBucket's message tells what to check
		mounts.FaultListDenied: "a prefix that the keys may list could be mounted", mounts.FaultReadDenied: who + ": what its keys may do",
		mounts.FaultWriteDenied: "read_only mounts it for reading", mounts.FaultClock: "the operator sets this machine's clock",
	}[fault.Kind]
	if hint == "" {
		return fault.Message
	}
	return fault.Message + "; " + hint
}
