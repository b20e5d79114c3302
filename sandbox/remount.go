package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/mounts"
)

// mountWait bounds how long one mount of a start is waited for. A service that
// is away must not keep commands waiting for longer.
const mountWait = 20 * time.Second

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

// order makes the order of a mount that is wanted, with the keys of now. away
// tells that this server has no keys for it, while another may: a call brought
// them, or its settings know the connection.
func (m *Manager) order(key Key, mt Mount) (o MountOrder, away bool) {
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
	return o, slices.ContainsFunc(mounts.ProblemsOf(err), func(p *mounts.Problem) bool { return p.Field == "connection" })
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
		o, away := m.order(key, mt.Mount)
		if !all && mt.State != MountPending || mt.State == MountError && mt.Reason == o.Refused && o.Refused != "" {
			continue
		}
		if away && mt.State == Mounted {
			continue // it stays as it is
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
	if info, err := glance(ctx, b.inst); err == nil {
		b.info = info
	}
	for i, err := range failed {
		if err == nil {
			continue
		}
		text := "the bucket at " + list[i].Path + " is not mounted: "
		if slices.ContainsFunc(b.info.Mounts, func(mt MountInfo) bool { return mt.Path == list[i].Path && mt.State == Mounted }) {
			text = "the bucket at " + list[i].Path + " stays mounted as it was; as it is to be it cannot: "
		}
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
	if info, err := glance(ctx, inst); err == nil && info.Status == StatusRunning {
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
