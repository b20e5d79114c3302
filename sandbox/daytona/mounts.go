package daytona

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"berth/mounts"
	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

var (
	_ sandbox.MountChecker = (*Provider)(nil)
	_ sandbox.Mounter      = (*Instance)(nil)
)

// mountRecord is a mount that a sandbox is to have, as labels keep it. It holds no
// keys.
type mountRecord struct {
	Path       string `json:"path"`
	Connection string `json:"connection"`
	Bucket     string `json:"bucket"`
	Prefix     string `json:"prefix,omitempty"`
	ReadOnly   bool   `json:"read_only,omitempty"`
}

func fromMounts(list []sandbox.Mount) (out []mountRecord) {
	for _, m := range list {
		out = append(out, mountRecord(m))
	}
	return out
}

func toMounts(list []mountRecord) (out []sandbox.Mount) {
	for _, m := range list {
		out = append(out, sandbox.Mount(m))
	}
	return out
}

// added are the mounts that Mount added to those of the spec.
func added(labels map[string]string) (out []mountRecord) {
	if json.Unmarshal([]byte(take(labels, labelMounts)), &out) != nil {
		return nil
	}
	return out
}

// putAdded writes them into labels, in the place of others.
func putAdded(labels map[string]string, list []mountRecord) error {
	for k := range labels {
		if strings.HasPrefix(k, labelMounts) {
			delete(labels, k)
		}
	}
	if len(list) == 0 {
		return nil
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if !put(labels, labelMounts, ascii(b)) {
		return &sandbox.FieldError{Field: "path", Problem: "the session's buckets are more than what can be kept with a sandbox at Daytona",
			Allowed: fmt.Sprintf("%d bytes in all", labelMost*partsMost), Hint: "unmount_bucket others, or use shorter paths"}
	}
	return nil
}

// wanted lists what a sandbox is to have, nothing of it mounted.
func wanted(sb *api.Sandbox) (list []sandbox.MountInfo) {
	r, _ := readRecord(sb)
	for i, records := range [][]mountRecord{r.Mounts, added(sb.Labels)} {
		for _, m := range records {
			list = append(list, sandbox.MountInfo{Mount: sandbox.Mount(m), OfSpec: i == 0, State: sandbox.MountPending, Entries: -1})
		}
	}
	return list
}

// CheckMounts looks for the program that sandboxes are brought. Whether one of them
// can mount, its first mount tells.
func (p *Provider) CheckMounts(context.Context) error {
	if err := p.mountable(); err != nil {
		return &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "buckets cannot be mounted: " + err.Error()}
	}
	return nil
}

// mountTime bounds one order: bringing the program, the check of the bucket, and
// what an unmount brings into it.
const mountTime = 5 * time.Minute

// Mount shows a bucket.
func (i *Instance) Mount(ctx context.Context, o sandbox.MountOrder) (sandbox.MountInfo, error) {
	info := sandbox.MountInfo{Mount: o.Mount, State: sandbox.MountError, Entries: -1}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mountTime) // half a mount helps nobody
	defer cancel()
	defer i.p.mounting(i.id)()
	sb, err := i.look(ctx)
	if err != nil {
		return info, err
	}
	if statusOf(sb) != sandbox.StatusRunning {
		return info, fmt.Errorf("session %s: %w", i.key.Session, sandbox.ErrNotRunning)
	}
	list := wanted(sb)
	n := slices.IndexFunc(list, func(m sandbox.MountInfo) bool { return m.Path == o.Path })
	order := mounts.Order{Path: o.Path, Wanted: n >= 0, Refused: o.Refused}
	if o.Refused == "" {
		order.Print, order.Job = o.Job.Fingerprint(), o.Job
	}
	standings, err := i.p.boxOf(sb).order(ctx, order)
	if err != nil {
		return info, err
	}
	if n < 0 && o.Refused == "" || n >= 0 && list[n].Mount != o.Mount {
		if err := i.keepMount(ctx, sb, o.Mount); err != nil {
			_, uerr := i.p.boxOf(sb).order(ctx, mounts.Order{Path: o.Path, Remove: true})
			return info, errors.Join(err, uerr)
		}
	}
	info.OfSpec = n >= 0 && list[n].OfSpec
	stand(&info, standings)
	return info, nil
}

// stand puts how a mount stands into info; pending where nothing is said.
func stand(info *sandbox.MountInfo, standings []mounts.Standing) {
	info.State, info.Reason, info.Entries = sandbox.MountPending, "", -1
	for _, s := range standings {
		switch {
		case s.Path != info.Path:
		case s.Mounted:
			info.State, info.Entries, info.More = sandbox.Mounted, s.Entries, s.More
		case s.Reason != "":
			info.State, info.Reason = sandbox.MountError, s.Reason
		}
	}
}

// Unmount takes a bucket away and forgets it.
func (i *Instance) Unmount(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mountTime)
	defer cancel()
	defer i.p.mounting(i.id)()
	sb, err := i.look(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(wanted(sb), func(m sandbox.MountInfo) bool { return m.Path == path }) {
		return fmt.Errorf("no bucket at %s: %w", path, sandbox.ErrNotFound)
	}
	if statusOf(sb) == sandbox.StatusRunning {
		if _, err := i.p.boxOf(sb).order(ctx, mounts.Order{Path: path, Remove: true}); err != nil {
			return err
		}
	}
	return i.changeMounts(ctx, sb, func(ofSpec, extra []mountRecord) ([]mountRecord, []mountRecord) {
		at := func(m mountRecord) bool { return m.Path == path }
		return slices.DeleteFunc(ofSpec, at), slices.DeleteFunc(extra, at)
	})
}

// keepMount keeps that the sandbox is to have m, in the place of another at its path.
func (i *Instance) keepMount(ctx context.Context, sb *api.Sandbox, m sandbox.Mount) error {
	return i.changeMounts(ctx, sb, func(ofSpec, extra []mountRecord) ([]mountRecord, []mountRecord) {
		for _, list := range [][]mountRecord{ofSpec, extra} {
			for n := range list {
				if list[n].Path == m.Path {
					list[n] = mountRecord(m)
					return ofSpec, extra
				}
			}
		}
		return ofSpec, append(extra, mountRecord(m))
	})
}

// changeMounts changes what the labels keep of mounts. Labels are written as a
// whole: it looks whether another server has written over what is changed here.
func (i *Instance) changeMounts(ctx context.Context, sb *api.Sandbox, change func(ofSpec, extra []mountRecord) ([]mountRecord, []mountRecord)) error {
	for try := 0; ; try++ {
		spec := i.p.infoOf(i.key, sb).Spec
		r, _ := readRecord(sb)
		ofSpec, extra := change(r.Mounts, added(sb.Labels))
		spec.Mounts = toMounts(ofSpec)
		if err := i.keepWith(ctx, sb, spec, r.Network != nil && r.Network.Late, extra); err != nil {
			return err
		}
		i.p.note(i.id)
		now, err := i.look(ctx)
		if err != nil {
			return err
		}
		nr, _ := readRecord(now)
		again, more := change(slices.Clone(nr.Mounts), added(now.Labels))
		if slices.Equal(again, nr.Mounts) && slices.Equal(more, added(now.Labels)) || try == 5 {
			return nil
		}
		sb = now
	}
}

// mounts tells what the sandbox is to have, and how it stands.
func (i *Instance) mounts(ctx context.Context, sb *api.Sandbox) []sandbox.MountInfo {
	list := wanted(sb)
	if statusOf(sb) != sandbox.StatusRunning || len(list) == 0 {
		return list
	}
	standings, err := i.p.boxOf(sb).standings(ctx)
	if err != nil {
		i.p.log.Debug("how buckets stand is not known", slog.String("sandbox", sb.ID), slog.Any("err", err))
		return list
	}
	for n := range list {
		stand(&list[n], standings)
	}
	return list
}

// leaving prepares to unmount before a sandbox stops: leave, which is called when no
// process of ours has files open any more, has what is written get into the buckets.
func (i *Instance) leaving(ctx context.Context, sb *api.Sandbox) (leave func()) {
	if len(wanted(sb)) == 0 {
		return func() {}
	}
	b := i.p.boxOf(sb)
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	s, err := b.server(ctx, false) // while the helper is there to ask
	return func() {
		defer cancel()
		if err == nil && s != nil {
			_, err = b.bucketd(ctx, true, s, "leave", s.mounts())
		}
		if err != nil {
			i.p.log.Warn("buckets not unmounted before the stop", slog.String("sandbox", sb.ID), slog.Any("err", err))
		}
	}
}

// leaveTime is what a service that is away may hold a stop up.
const leaveTime = 60 * time.Second

// mounting has one order at a time for a sandbox; free lets go.
func (p *Provider) mounting(id string) (free func()) {
	p.mu.Lock()
	l := p.mounts[id]
	if l == nil {
		l = make(chan struct{}, 1)
		p.mounts[id] = l
	}
	p.mu.Unlock()
	l <- struct{}{}
	return func() { <-l }
}
