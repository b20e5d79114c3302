package daytonaapi

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"berth/sandbox"
)

// snapshotRecord is kept of each snapshot made here.
type snapshotRecord struct {
	ID        string        `json:"id"`
	Owner     sandbox.Owner `json:"owner"`
	Name      string        `json:"name"` // as the platform has it
	Created   time.Time     `json:"created"`
	ImageName string        `json:"image_name,omitempty"`
	Build     *buildInfo    `json:"build,omitempty"`
	// Source is the sandbox that it was made of.
	Source     string   `json:"source,omitempty"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	// CPU (cores), Memory and Disk (GiB) are what sandboxes of it get.
	CPU    float64 `json:"cpu,omitempty"`
	Memory float64 `json:"memory,omitempty"`
	Disk   float64 `json:"disk,omitempty"`
	Phase  phase   `json:"phase,omitempty"`
	Reason string  `json:"reason,omitempty"`
}

// plain is what the Manager calls it.
func (r snapshotRecord) plain() string { return plainName(r.Name, plainSnapshot()) }

var (
	plainSnapshot = lazily(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	snapshotName  = lazily(`^[A-Za-z0-9_.:-]+(/[A-Za-z0-9_.:-]+)*$`)
)

// hiddenPrefix begins the names of snapshots that stand behind sandboxes which
// are built; they are in no list.
const hiddenPrefix = "daytona-build-"

// generals are the platform's own snapshots. Each is the default root, with the
// limits that the operator gives every sandbox.
var generals = []string{defaultSnapshot, "daytona-medium", "daytona-large"}

func isGeneral(name string) bool { return slices.Contains(generals, name) }

func snapshotID(owner sandbox.Owner, plain string) string {
	return derivedID("snapshot", string(owner), plain)
}

type snapshotBody struct {
	ID             string     `json:"id"`
	OrganizationID string     `json:"organizationId,omitempty"`
	General        bool       `json:"general"`
	Name           string     `json:"name"`
	ImageName      string     `json:"imageName,omitempty"`
	State          string     `json:"state"`
	Size           *float64   `json:"size"` // GB
	Entrypoint     []string   `json:"entrypoint"`
	CPU            float64    `json:"cpu"`
	GPU            float64    `json:"gpu"`
	Memory         float64    `json:"mem"`
	Disk           float64    `json:"disk"`
	ErrorReason    *string    `json:"errorReason"`
	CreatedAt      string     `json:"createdAt"`
	UpdatedAt      string     `json:"updatedAt"`
	LastUsedAt     *string    `json:"lastUsedAt"`
	BuildInfo      *buildInfo `json:"buildInfo,omitempty"`
	Source         *string    `json:"sourceSandboxId"`
	RegionIDs      []string   `json:"regionIds"`
	Ref            string     `json:"ref,omitempty"`
	SandboxClass   string     `json:"sandboxClass"`
}

// snap is a snapshot and what the Manager calls it; "" for the platform's own.
type snap struct {
	snapshotBody
	plain string
	rec   snapshotRecord
}

// snapshotsOf are an owner's snapshots, those that sessions made too, and the
// platform's own.
func (s *Server) snapshotsOf(ctx context.Context, owner sandbox.Owner) ([]snap, error) {
	have := map[string]sandbox.SnapshotInfo{}
	for r := (sandbox.SnapshotListRequest{Limit: 200}); ; {
		page, err := s.m.ListSnapshots(ctx, owner, r)
		if errors.Is(err, sandbox.ErrUnsupported) {
			break
		}
		if err != nil {
			return nil, err
		}
		for _, i := range page.Snapshots {
			have[i.Name] = i
		}
		if r.Cursor = page.Next; r.Cursor == "" {
			break
		}
	}
	var list []snap
	for _, r := range s.records.snapshots.all(func(r snapshotRecord) bool { return r.Owner == owner }) {
		info, there := have[r.plain()]
		delete(have, r.plain())
		if r.Phase == phaseDone && !there { // deleted by way of MCP
			if err := s.records.snapshots.drop(r.ID); err != nil {
				return nil, err
			}
			continue
		}
		list = append(list, r.snap(info))
	}
	for plain, info := range have {
		if !strings.HasPrefix(plain, hiddenPrefix) {
			r := snapshotRecord{ID: snapshotID(owner, plain), Owner: owner, Name: plain, Created: info.Created, ImageName: info.Image, Source: string(info.From)}
			list = append(list, r.snap(info))
		}
	}
	for _, name := range generals {
		list = append(list, snap{snapshotBody: snapshotBody{ID: snapshotID("", name), General: true, Name: name, State: "active", CreatedAt: stamp(s.started), UpdatedAt: stamp(s.started), RegionIDs: []string{region}, SandboxClass: "container"}})
	}
	return list, nil
}

// snap is the record's snapshot; info is the Manager's, if it has it.
func (r snapshotRecord) snap(info sandbox.SnapshotInfo) snap {
	b := snapshotBody{ID: r.ID, OrganizationID: organization(r.Owner), Name: r.Name, ImageName: r.ImageName, Entrypoint: r.Entrypoint, CPU: r.CPU, Memory: r.Memory, Disk: r.Disk,
		CreatedAt: stamp(r.Created), UpdatedAt: stamp(cmp.Or(info.Created, r.Created)), BuildInfo: r.Build, RegionIDs: []string{region}, SandboxClass: "container"}
	switch {
	case r.Phase == phaseNoBuild:
		b.State, b.ErrorReason = "build_failed", &r.Reason
	case r.Phase == phaseFailed:
		b.State, b.ErrorReason = "error", &r.Reason
	case r.Phase == phasePending && r.Source != "":
		b.State = "snapshotting"
	case r.Phase == phasePending && r.Build == nil:
		b.State = "pulling"
	case r.Phase == phasePending, info.State == sandbox.SnapshotBuilding:
		b.State = "building"
	default:
		size := gib(info.Size)
		b.State, b.Size, b.Ref = "active", &size, info.Digest
	}
	if r.Source != "" {
		b.Source = &r.Source
	}
	return snap{b, r.plain(), r}
}

// snapshot finds one by id or else by name; its owner's wins over the
// platform's, an active one over others.
func (s *Server) snapshot(ctx context.Context, owner sandbox.Owner, name string) (snap, error) {
	list, err := s.snapshotsOf(ctx, owner)
	if err != nil {
		return snap{}, err
	}
	for _, is := range []func(snap) bool{func(x snap) bool { return x.ID == name }, func(x snap) bool { return x.Name == name }} {
		if i := slices.IndexFunc(list, is); i >= 0 {
			return list[i], nil
		}
	}
	return snap{}, refuse(http.StatusNotFound, "Snapshot with ID or name %.80s not found", name)
}

func (s *Server) getSnapshot(c *call) (any, error) {
	x, err := s.snapshot(c.ctx(), c.owner, c.r.PathValue("snapshot"))
	return x.snapshotBody, err
}

func (s *Server) listSnapshots(c *call) (any, error) {
	q := c.r.URL.Query()
	page, err := number(q, "page", 1, 1, 1<<30)
	if err != nil {
		return nil, err
	}
	limit, err := number(q, "limit", defaultPage, 1, maxPage)
	if err != nil {
		return nil, err
	}
	list, err := s.snapshotsOf(c.ctx(), c.owner)
	if err != nil {
		return nil, err
	}
	part, source := strings.ToLower(q.Get("name")), q.Get("sourceSandboxId")
	bodies := []snapshotBody{}
	for _, x := range list {
		if strings.Contains(strings.ToLower(x.Name), part) && (source == "" || x.Source != nil && *x.Source == source) {
			bodies = append(bodies, x.snapshotBody)
		}
	}
	value := func(b snapshotBody) string { return b.CreatedAt }
	switch q.Get("sort") {
	case "", "lastUsedAt", "createdAt":
	case "name":
		value = func(b snapshotBody) string { return b.Name }
	case "state":
		value = func(b snapshotBody) string { return b.State }
	default:
		return nil, refuse(http.StatusBadRequest, "sort must be one of name, state, lastUsedAt, createdAt")
	}
	slices.SortFunc(bodies, func(a, b snapshotBody) int {
		n := cmp.Or(strings.Compare(value(a), value(b)), strings.Compare(a.ID, b.ID))
		if q.Get("order") != "asc" {
			n = -n
		}
		return n
	})
	return paged(bodies, page, limit), nil
}

// own finds an owner's own snapshot by its id alone, as the platform has it
// where something is changed.
func (s *Server) own(c *call) (snap, error) {
	id := c.r.PathValue("snapshot")
	if _, err := uuid.Parse(id); err != nil {
		return snap{}, refuse(http.StatusBadRequest, "%.80q is no snapshot's id; a name is not taken here", id)
	}
	list, err := s.snapshotsOf(c.ctx(), c.owner)
	if err != nil {
		return snap{}, err
	}
	if i := slices.IndexFunc(list, func(x snap) bool { return x.ID == id && !x.General }); i >= 0 {
		return list[i], nil
	}
	return snap{}, refuse(http.StatusNotFound, "Snapshot with ID %s not found", id)
}

func (s *Server) deleteSnapshot(c *call) (any, error) {
	x, err := s.own(c)
	if err != nil {
		return nil, err
	}
	s.making.Lock()
	defer s.making.Unlock()
	// One that is being built is not built on.
	s.endJob(x.ID)
	err = s.m.DeleteSnapshot(c.ctx(), c.owner, x.plain)
	if fe := fields(err); len(fe) > 0 { // it is not there, as it was never finished
		err = nil
	}
	if errors.Is(err, sandbox.ErrLimit) {
		return nil, refuse(http.StatusConflict, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	return nil, s.records.snapshots.drop(x.ID)
}

// activateSnapshot does what can be done: there are none that are inactive.
func (s *Server) activateSnapshot(c *call) (any, error) {
	x, err := s.own(c)
	if err != nil {
		return nil, err
	}
	return nil, refuse(http.StatusBadRequest, "Snapshot %s cannot be activated: it is %s", x.Name, x.State)
}

// snapshotRequest is the body of POST /snapshots.
type snapshotRequest struct {
	Name       string     `json:"name"`
	ImageName  string     `json:"imageName"`
	BuildInfo  *buildInfo `json:"buildInfo"`
	Entrypoint []string   `json:"entrypoint"`
	CPU        float64    `json:"cpu"`
	Memory     float64    `json:"memory"`
	Disk       float64    `json:"disk"`
	GPU        float64    `json:"gpu"`
}

// check applies the platform's rules.
func (r *snapshotRequest) check() error {
	var errs []error
	bad := func(field, problem, allowed string) {
		errs = append(errs, &sandbox.FieldError{Field: field, Problem: problem, Allowed: allowed})
	}
	if !snapshotName().MatchString(r.Name) || len(r.Name) > 255 {
		bad("name", "it is no name of a snapshot", "1 to 255 letters, digits, '_', '.', ':' and '-', in parts with '/' between")
	}
	if strings.HasPrefix(r.Name, hiddenPrefix) || isGeneral(r.Name) {
		bad("name", "it is the server's own", "another name")
	}
	if (r.ImageName == "") == (r.BuildInfo == nil) {
		bad("imageName", "exactly one of imageName and buildInfo must be given", "")
	}
	if r.BuildInfo != nil && strings.TrimSpace(r.BuildInfo.Dockerfile) == "" {
		bad("buildInfo.dockerfileContent", "it is empty", "the text of a Dockerfile")
	}
	if name := r.ImageName; name != "" {
		rest := name[strings.LastIndexByte(name, '/')+1:]
		_, tag, tagged := strings.Cut(rest, ":")
		switch {
		case strings.Contains(name, "://"):
			bad("imageName", "it is an address", "a name such as debian:12")
		case strings.Contains(name, "@sha256:"):
		case !tagged || tag == "":
			bad("imageName", "it has neither tag nor digest", "a name such as debian:12")
		case tag == "latest":
			bad("imageName", "the tag latest is not taken, as what it leads to changes", "another tag, or a digest")
		}
	}
	if r.GPU != 0 {
		bad("gpu", "is not supported by this server", "")
	}
	for _, f := range []struct {
		name string
		n    float64
	}{{"cpu", r.CPU}, {"memory", r.Memory}, {"disk", r.Disk}} {
		if f.n < 0 {
			bad(f.name, "it is negative", "0 (the default) or more")
		}
	}
	return errors.Join(errs...)
}

func (s *Server) createSnapshot(c *call) (any, error) {
	var r snapshotRequest
	if err := c.decode(&r); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	rec := snapshotRecord{Owner: c.owner, Name: r.Name, Created: time.Now().UTC(), ImageName: r.ImageName, Entrypoint: r.Entrypoint, CPU: r.CPU, Memory: r.Memory, Disk: r.Disk, Phase: phasePending}
	if r.BuildInfo != nil {
		rec.Build = r.BuildInfo.stamped()
	}
	spec := sandbox.Spec{Resources: rec.resources()}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if _, err := s.buildOf(rec.Owner, rec.Build, rec.ImageName, nil); err != nil { // what is wrong with it is told at once
		return nil, err
	}
	if err := s.keepSnapshot(c.ctx(), &rec); err != nil {
		return nil, err
	}
	if err := s.makeSnapshot(rec); err != nil {
		return nil, errors.Join(err, s.records.snapshots.drop(rec.ID))
	}
	x, err := s.snapshot(c.ctx(), c.owner, rec.ID)
	return x.snapshotBody, err
}

// keepSnapshot keeps the record of a new snapshot; 409 when its name is taken.
func (s *Server) keepSnapshot(ctx context.Context, rec *snapshotRecord) error {
	s.making.Lock()
	defer s.making.Unlock()
	list, err := s.snapshotsOf(ctx, rec.Owner)
	if err != nil {
		return err
	}
	rec.ID = snapshotID(rec.Owner, rec.plain())
	if slices.ContainsFunc(list, func(x snap) bool { return x.ID == rec.ID }) {
		return refuse(http.StatusConflict, "Snapshot with name %s already exists", rec.Name)
	}
	return s.records.snapshots.put(rec.ID, *rec)
}

func (r snapshotRecord) resources() sandbox.Resources {
	return sandbox.Resources{CPU: r.CPU, Memory: sandbox.FromGiB(r.Memory), Disk: sandbox.FromGiB(r.Disk)}
}
