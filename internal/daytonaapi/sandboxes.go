package daytonaapi

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"berth/sandbox"
)

// space is the name space of ids that are derived from names.
var space = uuid.MustParse("6f6d1c5e-2f0b-5d0e-9c4a-5e8f2a7b9d10")

// derivedID is the same UUID for the same words.
func derivedID(words ...string) string {
	return uuid.NewSHA1(space, []byte(strings.Join(words, "\x00"))).String()
}

// organization is an owner's id.
func organization(o sandbox.Owner) string { return derivedID("organization", string(o)) }

// view is a sandbox at one moment.
type view struct {
	key  sandbox.Key
	info sandbox.Info // Status is pending when the Manager has none
	rec  sandboxRecord
	work *work  // nil: none is under way
	why  string // the last work failed
	size func(asked sandbox.Resources) sandbox.Resources
}

func noSandbox(name string) error {
	return refuse(http.StatusNotFound, "Sandbox with ID or name %.80s not found", name)
}

// see reads a sandbox's state, or answers 404 when there is none.
func (s *Server) see(ctx context.Context, key sandbox.Key) (view, error) {
	v := view{key: key}
	info, err := s.m.GetSandbox(ctx, key)
	if err != nil {
		return v, err
	}
	v.info = *info
	return v, s.complete(&v)
}

// complete adds what this server knows of v.info's sandbox.
func (s *Server) complete(v *view) error {
	id := string(v.key.Session)
	v.rec, _ = s.records.sandboxes.get(id)
	if v.rec.Owner != v.key.Owner {
		v.rec = sandboxRecord{}
	}
	v.work, v.why = s.underWay(v.key)
	v.size = s.m.Resources
	there := v.info.Status != sandbox.StatusPending && v.info.Status != sandbox.StatusDestroyed
	switch {
	case there, v.work != nil, v.rec.Phase != phaseDone:
		return nil
	case v.rec.ID != "": // it was deleted by itself, or by way of MCP
		if err := s.records.sandboxes.drop(id); err != nil {
			return err
		}
	}
	return noSandbox(id)
}

// find finds the owner's sandbox of that id, or else of that name.
func (s *Server) find(ctx context.Context, owner sandbox.Owner, name string) (sandbox.Key, error) {
	if id, err := sandbox.ParseSessionID(name); err == nil {
		key := sandbox.Key{Owner: owner, Session: id}
		_, err := s.see(ctx, key)
		if status, _, _ := told(err); err == nil || status != http.StatusNotFound {
			return key, err
		}
	}
	return s.named(ctx, owner, name)
}

// named finds the owner's sandbox of that name. One that is being destroyed has
// given its name up.
func (s *Server) named(ctx context.Context, owner sandbox.Owner, name string) (sandbox.Key, error) {
	for _, r := range s.records.sandboxes.all(func(r sandboxRecord) bool { return r.Owner == owner && r.Name == name }) {
		if v, err := s.see(ctx, r.key()); err == nil && v.name() == name && !v.leaving() {
			return v.key, nil
		}
	}
	all, err := s.everything(ctx, owner)
	if err != nil {
		return sandbox.Key{}, err
	}
	for _, v := range all {
		if v.name() == name && !v.leaving() {
			return v.key, nil
		}
	}
	return sandbox.Key{}, noSandbox(name)
}

// everything are all sandboxes of owner, oldest first.
func (s *Server) everything(ctx context.Context, owner sandbox.Owner) ([]view, error) {
	var list []view
	seen := map[sandbox.SessionID]bool{}
	for r := (sandbox.ListRequest{Limit: 200}); ; {
		page, err := s.m.ListSandboxes(ctx, owner, r)
		if err != nil {
			return nil, err
		}
		for _, i := range page.Sandboxes {
			v := view{key: i.Key, info: i}
			if s.complete(&v) == nil {
				list = append(list, v)
				seen[i.Key.Session] = true
			}
		}
		if r.Cursor = page.Next; r.Cursor == "" {
			break
		}
	}
	// What is not made yet, or never will be.
	for _, r := range s.records.sandboxes.all(func(r sandboxRecord) bool { return r.Owner == owner && r.Phase != phaseDone && !seen[r.ID] }) {
		v := view{key: r.key(), rec: r, info: sandbox.Info{Key: r.key(), Status: sandbox.StatusPending, Created: r.Created}}
		v.work, v.why = s.underWay(v.key)
		v.size = s.m.Resources
		list = append(list, v)
	}
	return list, nil
}

// running finds a sandbox for the toolbox: one that does not run is refused in
// words that clients look for.
func (s *Server) running(ctx context.Context, owner sandbox.Owner, name string) (sandbox.Key, error) {
	key := sandbox.Key{Owner: owner}
	status, err := sandbox.Status(""), error(sandbox.ErrNotFound)
	if id, perr := sandbox.ParseSessionID(name); perr == nil {
		key.Session = id
		status, err = s.m.Status(ctx, key)
	}
	if errors.Is(err, sandbox.ErrNotFound) || status == sandbox.StatusDestroyed {
		if key, err = s.find(ctx, owner, name); err == nil {
			status, err = s.m.Status(ctx, key)
		}
		if errors.Is(err, sandbox.ErrNotFound) { // it is just being made
			status, err = sandbox.StatusPending, nil
		}
	}
	switch {
	case err != nil:
		return key, err
	case status != sandbox.StatusRunning:
		return key, refuse(http.StatusBadRequest, "bad request: sandbox %s is not running (%s). Is the Sandbox started?", key.Session, status)
	}
	return key, nil
}

func (v *view) name() string { return cmp.Or(v.info.Name, v.rec.Name, string(v.key.Session)) }

// leaving tells that it is being destroyed.
func (v *view) leaving() bool {
	return v.work != nil && v.work.desired == "destroyed" || v.info.Status == sandbox.StatusDestroying
}

// state and desired are those of the API.
func (v *view) state() (state, desired string) {
	if v.work != nil {
		return v.work.state, v.work.desired
	}
	switch v.rec.Phase {
	case phasePending:
		return "creating", "started"
	case phaseFailed:
		return "error", "started"
	case phaseNoBuild:
		return "build_failed", "started"
	}
	switch v.info.Status {
	case sandbox.StatusRunning:
		return "started", "started"
	case sandbox.StatusStarting:
		return "starting", "started"
	case sandbox.StatusStopping:
		if v.deletedOnStop() {
			return "destroying", "destroyed"
		}
		return "stopping", "stopped"
	case sandbox.StatusStopped:
		return "stopped", "stopped"
	case sandbox.StatusArchiving:
		return "archiving", "archived"
	case sandbox.StatusArchived:
		return "archived", "archived"
	case sandbox.StatusDestroying:
		return "destroying", "destroyed"
	case sandbox.StatusDestroyed:
		return "destroyed", "destroyed"
	case sandbox.StatusError:
		return "error", "started"
	}
	return "unknown", "started"
}

func (v *view) deletedOnStop() bool {
	d, e := v.info.Spec.AutoDelete, v.info.Spec.Ephemeral
	return d != nil && *d == 0 || e != nil && *e
}

// lastActivity is when it was last used; now while it is in use.
func (v *view) lastActivity(now time.Time) time.Time {
	i := v.info
	switch {
	case !i.IdleDeadline.IsZero() && i.Spec.AutoStop != nil:
		return i.IdleDeadline.Add(-*i.Spec.AutoStop)
	case i.Status == sandbox.StatusRunning:
		return now
	case !i.Stopped.IsZero():
		return i.Stopped
	}
	return i.Created
}

// item is v as the API lists it.
func (v *view) item(base string) listItem {
	spec, now := v.info.Spec, time.Now()
	if v.info.Status == sandbox.StatusPending && v.rec.Request != nil {
		spec, _ = v.rec.Request.spec(v.rec) // its faults were told when it was asked for
		spec.Resources = v.size(spec.Resources)
	}
	state, desired := v.state()
	item := listItem{
		ID: string(v.key.Session), OrganizationID: organization(v.key.Owner), Name: v.name(),
		Snapshot: cmp.Or(v.rec.Snapshot, spec.Snapshot), User: cmp.Or(v.rec.User, v.info.User, spec.User),
		Labels: maps.Clone(spec.Labels), Public: spec.Public != nil && *spec.Public, Target: cmp.Or(v.rec.Target, region),
		CPU: spec.Resources.CPU, Memory: gib(spec.Resources.Memory), Disk: gib(spec.Resources.Disk),
		State: state, DesiredState: desired, BackupState: "None", SandboxClass: "container",
		AutoStop: minutes(spec.AutoStop, sandbox.DefaultAutoStop), AutoArchive: minutes(spec.AutoArchive, sandbox.DefaultAutoArchive), AutoDelete: minutes(spec.AutoDelete, sandbox.Never),
		CreatedAt: stamp(v.info.Created), LastActivityAt: stamp(v.lastActivity(now)), UpdatedAt: stamp(v.lastActivity(now)),
		ToolboxProxyURL: base + "/toolbox",
	}
	if v.rec.Build != nil {
		item.Snapshot = ""
	}
	if item.Labels == nil {
		item.Labels = map[string]string{}
	}
	if n := spec.Network; n != nil {
		item.NetworkBlockAll = n.BlockAll && len(n.AllowCIDRs) == 0 && len(n.AllowDomains) == 0
		var cidrs []string
		for _, c := range n.AllowCIDRs {
			cidrs = append(cidrs, c.String())
		}
		item.NetworkAllow, item.DomainAllow = strings.Join(cidrs, ","), strings.Join(n.AllowDomains, ",")
	}
	if v.info.Status == sandbox.StatusArchived {
		item.BackupState = "Completed"
	}
	switch {
	case v.work != nil:
	case v.info.Status == sandbox.StatusError:
		item.ErrorReason, item.Recoverable = v.info.Reason, true
	default:
		item.ErrorReason = cmp.Or(v.rec.Reason, v.why)
	}
	return item
}

// body is v with all that is known of it.
func (v *view) body(base string) sandboxBody {
	spec := v.info.Spec
	if v.info.Status == sandbox.StatusPending && v.rec.Request != nil {
		spec, _ = v.rec.Request.spec(v.rec)
	}
	b := sandboxBody{listItem: v.item(base), Env: map[string]string{}, Volumes: []volumeMount{}, BuildInfo: v.rec.Build}
	for k, val := range spec.Env {
		if !ownEnv[k] {
			b.Env[k] = val
		}
	}
	for _, m := range spec.Volumes {
		b.Volumes = append(b.Volumes, volumeMount{VolumeID: volumeID(v.key.Owner, m.Volume), MountPath: m.Path, Subpath: m.Subpath})
	}
	return b
}

// gib is a number of bytes in GiB, to the hundredth.
func gib(n int64) float64 { return math.Round(float64(n)/(1<<30)*100) / 100 }

// minutes rounds up, so that what is not zero stays that; -1 is never.
func minutes(d *time.Duration, absent time.Duration) int {
	if d == nil {
		d = &absent
	}
	if *d < 0 {
		return -1
	}
	return int((*d + time.Minute - 1) / time.Minute)
}

// show answers with the sandbox's state now.
func (s *Server) show(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	return v.body(c.base), nil
}

func (s *Server) getSandbox(c *call, key sandbox.Key) (any, error) { return s.show(c, key) }

func (s *Server) toolboxURL(c *call, _ sandbox.Key) (any, error) {
	return urlBody{c.base + "/toolbox"}, nil
}
