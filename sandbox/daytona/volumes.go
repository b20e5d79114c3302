package daytona

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// volume is the id of the owner's volume of that name, which is made when there
// is none.
func (p *Provider) volume(ctx context.Context, owner sandbox.Owner, name string) (string, error) {
	at, err := p.at()
	if err != nil {
		return "", err
	}
	full := p.prefixOf(owner) + name
	end := p.now().Add(p.o.Times.Change)
	made := false
	for wait := p.o.Times.Look / 8; ; wait = min(2*wait, p.o.Times.Look) {
		v, err := at.VolumeByName(ctx, full)
		switch {
		case errors.Is(err, api.ErrNotFound) && !made:
			// Another may be making it at the same time, of which the platform says
			// 400: then it is there at the next look.
			made = true
			_, err := at.CreateVolume(ctx, full)
			var e *api.Error
			taken := errors.As(err, &e) && (e.Status == 400 || e.Status == 409) && !api.OverQuota(err)
			if err != nil && !taken && !errors.Is(err, api.ErrMaybeDone) {
				return "", p.fail("make volume "+name, err)
			}
		case errors.Is(err, api.ErrNotFound):
		case err != nil:
			return "", p.fail("look for volume "+name, err)
		case v.State == "ready":
			return v.ID, nil
		case v.State == "error":
			return "", &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf("volume %s is broken at Daytona (%s); delete_volume makes way for another", name, v.Reason)}
		}
		if p.now().After(end) {
			return "", &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona does not get volume " + name + " ready; make the same call again later"}
		}
		if err := pause(ctx, wait); err != nil {
			return "", err
		}
	}
}

// Volumes lists the owner's volumes by name. Whose those of tenants are cannot be
// told from the platform's names: of all, it lists the local owner's.
func (p *Provider) Volumes(ctx context.Context, owner sandbox.Owner) ([]sandbox.Volume, error) {
	owner = cmp.Or(owner, sandbox.LocalOwner)
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	list, err := at.Volumes(ctx)
	if err != nil {
		return nil, p.fail("list the volumes", err)
	}
	used, err := p.users(ctx, owner)
	if err != nil {
		return nil, err
	}
	var out []sandbox.Volume
	for _, v := range list {
		name, mine, _ := p.ownName(owner, v.Name)
		if mine && v.State != "deleted" && v.State != "deleting" && v.State != "pending_delete" {
			out = append(out, sandbox.Volume{Owner: owner, Name: name, Created: v.Created, Size: -1, UsedBy: used.volumes[name]})
		}
	}
	slices.SortFunc(out, func(a, b sandbox.Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// DeleteVolume deletes an owner's volume and waits until its name is free.
func (p *Provider) DeleteVolume(ctx context.Context, owner sandbox.Owner, name string) error {
	at, err := p.at()
	if err != nil {
		return err
	}
	full := p.prefixOf(owner) + name
	if tenant.MatchString(name) && p.prefixOf(owner) == "" {
		return sandbox.ErrNotFound // another's
	}
	used, err := p.users(ctx, owner)
	if err != nil {
		return err
	}
	inUse := func(by string) error {
		return &sandbox.UserError{Err: sandbox.ErrLimit, Text: fmt.Sprintf("volume %s is attached to %s; destroy_sandbox those first", name, by)}
	}
	if list := used.volumes[name]; len(list) > 0 {
		return inUse("the sandboxes of sessions " + join(list))
	}
	end, asked := p.now().Add(p.o.Times.Change), false
	for wait := p.o.Times.Look / 8; ; wait = min(2*wait, p.o.Times.Look) {
		v, err := at.VolumeByName(ctx, full)
		switch {
		case errors.Is(err, api.ErrNotFound) && asked:
			return nil
		case errors.Is(err, api.ErrNotFound):
			return sandbox.ErrNotFound
		case err != nil:
			return p.fail("look for volume "+name, err)
		case v.State == "ready" || v.State == "error":
			switch err := at.DeleteVolume(ctx, v.ID); {
			case err == nil, errors.Is(err, api.ErrNotFound):
				asked = true
			case errors.Is(err, api.ErrConflict) && p.now().After(end):
				return inUse("a sandbox that berth does not know")
			case !errors.Is(err, api.ErrConflict): // a sandbox that had it may be going away
				return p.fail("delete volume "+name, err)
			}
		}
		if p.now().After(end) {
			return &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona has not deleted volume " + name + " yet (" + v.State + "); list_volumes shows when it is gone"}
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

func join(list []sandbox.SessionID) string {
	texts := make([]string, len(list))
	for i, s := range list {
		texts[i] = string(s)
	}
	return strings.Join(texts, ", ")
}

// uses tells what sandboxes stand on.
type uses struct {
	sessions  map[string]sandbox.SessionID   // by native id
	volumes   map[string][]sandbox.SessionID // by the owner's name
	snapshots map[string][]sandbox.SessionID // likewise
}

// users looks through the owner's sandboxes.
func (p *Provider) users(ctx context.Context, owner sandbox.Owner) (uses, error) {
	u := uses{map[string]sandbox.SessionID{}, map[string][]sandbox.SessionID{}, map[string][]sandbox.SessionID{}}
	all, err := p.sandboxes(ctx, owner)
	if err != nil {
		return u, err
	}
	for _, sb := range all {
		_, session := ownerOf(sb)
		u.sessions[sb.ID] = session
		r, _ := readRecord(sb)
		for _, v := range r.Volumes {
			u.volumes[v.Volume] = append(u.volumes[v.Volume], session)
		}
		if r.Snapshot != "" {
			u.snapshots[r.Snapshot] = append(u.snapshots[r.Snapshot], session)
		}
	}
	return u, nil
}
