package daytonaapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/google/uuid"

	"berth/sandbox"
)

// lazily compiles a pattern when it is first used: at every start of berth it
// would cost all that need none.
func lazily(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// account is the ordinary user of sandboxes that are made here of no image.
const account = "daytona"

// languageLabel is the label in which SDKs keep the language of code-run.
const languageLabel = "code-toolbox-language"

// region is the one that there is.
const region = "local"

// ownEnv are the variables that every sandbox made here has; the API does not
// show them as its user's.
var ownEnv = map[string]bool{"DAYTONA_SANDBOX_ID": true, "DAYTONA_SANDBOX_USER": true, "DAYTONA_SANDBOX_SNAPSHOT": true, "DAYTONA_ORGANIZATION_ID": true, "DAYTONA_REGION_ID": true}

func (s *Server) createSandbox(c *call) (_ any, err error) {
	began := time.Now()
	var body createBody
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	r := body.createRequest
	rec := sandboxRecord{ID: sandbox.SessionID(uuid.NewString()), Owner: c.owner, Name: r.Name, Created: time.Now().UTC(), Target: r.Target,
		User: r.User, Snapshot: r.Snapshot, Phase: phasePending, Request: &r}
	if rec.Name == "" {
		rec.Name = string(rec.ID)
	}
	spec, err := r.spec(rec)
	if err := errors.Join(body.refused(), r.check(), err, spec.Validate()); err != nil {
		return nil, err
	}
	if err := s.prepare(c.ctx(), &rec); err != nil {
		return nil, err
	}
	if spec, err = r.spec(rec); err == nil {
		err = spec.Validate()
	}
	if err != nil {
		return nil, err
	}
	w, err := s.launch(c.ctx(), rec)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			s.record(c, rec.key(), began, map[string]any{"name": rec.Name, "snapshot": rec.Snapshot}, nil)
		}
	}()
	if rec.Build != nil { // which may take long
		v, err := s.see(c.ctx(), rec.key())
		if err != nil {
			return nil, err
		}
		if rec.From != "" && v.work != nil {
			// Work has begun, but the SDKs read a build's log only if it is still to come.
			v.work = &work{state: "pending_build", desired: "started"}
		}
		return v.body(c.base), nil
	}
	if err := w.hold(c.ctx()); err != nil {
		if c.ctx().Err() != nil || s.ctx.Err() != nil {
			return nil, err
		}
		// Who asked is told, so nothing need be kept of it.
		if derr := s.records.sandboxes.drop(string(rec.ID)); derr != nil {
			return nil, derr
		}
		return nil, err
	}
	return s.show(c, rec.key())
}

// prepare finds what the record's sandbox is to be made of, and writes it down
// as the Manager knows it.
func (s *Server) prepare(ctx context.Context, rec *sandboxRecord) error {
	r := rec.Request
	if rec.User == "" {
		rec.User = account
	}
	if list, err := s.mounts(ctx, rec.Owner, r.Volumes); err != nil {
		return err
	} else if len(list) > 0 {
		r.Volumes = nil
		rec.Volumes = list
	}
	if b := r.BuildInfo; b != nil {
		rec.Build = b.stamped()
		build, err := s.buildOf(rec.Owner, rec.Build, "", nil) // what is wrong with it is told at once
		if err != nil {
			return err
		}
		if len(build.Steps) == 0 && build.Image != "" {
			rec.Image = build.Image // nothing is to be built
		} else {
			rec.From = rec.Build.hidden()
		}
		return nil
	}
	if rec.Snapshot == "" {
		rec.Snapshot = defaultSnapshot
	}
	x, err := s.snapshot(ctx, rec.Owner, rec.Snapshot)
	switch status, _, _ := told(err); {
	case err != nil && status == http.StatusNotFound:
		return refuse(http.StatusBadRequest, "Snapshot %.80s not found", rec.Snapshot)
	case err != nil:
		return err
	case x.State != "active":
		return refuse(http.StatusBadRequest, "Snapshot %s is not active: it is %s", x.Name, x.State)
	}
	rec.Snapshot, rec.From = x.Name, x.plain
	r.CPU, r.Memory, r.Disk = x.rec.CPU, x.rec.Memory, x.rec.Disk
	return nil
}

// launch claims the record's name, keeps it, and begins to make its sandbox.
func (s *Server) launch(ctx context.Context, rec sandboxRecord) (*work, error) {
	free, err := s.claim(ctx, rec.Owner, rec.Name)
	if err != nil {
		return nil, err
	}
	defer free() // by then the record has it
	if err := s.records.sandboxes.put(string(rec.ID), rec); err != nil {
		return nil, err
	}
	w, err := s.make(rec)
	if err != nil {
		return nil, errors.Join(err, s.records.sandboxes.drop(string(rec.ID)))
	}
	return w, nil
}

// claim keeps others of this owner from taking a name until free is called;
// 409 when some sandbox has it.
func (s *Server) claim(ctx context.Context, owner sandbox.Owner, name string) (free func(), err error) {
	taken := refuse(http.StatusConflict, "Sandbox with name %.80s already exists", name)
	s.mu.Lock()
	if s.names[owner][name] {
		s.mu.Unlock()
		return nil, taken
	}
	if s.names[owner] == nil {
		s.names[owner] = map[string]bool{}
	}
	s.names[owner][name] = true
	s.mu.Unlock()
	free = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.names[owner], name)
	}
	_, err = s.find(ctx, owner, name)
	if status, _, _ := told(err); err != nil && status == http.StatusNotFound {
		return free, nil
	}
	free()
	if err != nil {
		return nil, err
	}
	return nil, taken
}

// make begins to make the sandbox that rec asks for.
func (s *Server) make(rec sandboxRecord) (*work, error) {
	state := "creating"
	if rec.Build != nil {
		state = "pending_build"
	}
	return s.begin(rec.key(), state, "started", func(ctx context.Context) error {
		err := s.create(ctx, rec)
		if ctx.Err() != nil {
			return err // it goes on when the next server starts
		}
		var why string
		failed := errors.Is(err, sandbox.ErrBuildFailed)
		if err != nil {
			status, _, _ := told(err)
			why = s.say(ctx, err)
			err = refuse(status, "%s", why)
		}
		kerr := s.records.sandboxes.change(string(rec.ID), func(r *sandboxRecord) {
			switch {
			case err == nil:
				r.Phase, r.Request = phaseDone, nil
			case failed:
				r.Phase, r.Reason = phaseNoBuild, why
			default:
				r.Phase, r.Reason = phaseFailed, why
			}
		})
		return errors.Join(err, kerr)
	})
}

func (s *Server) create(ctx context.Context, rec sandboxRecord) error {
	spec, err := rec.Request.spec(rec)
	if err != nil {
		return err
	}
	if rec.Build != nil && rec.From != "" {
		if err := s.buildFor(ctx, rec); err != nil {
			return err
		}
	}
	s.advance(rec.key(), "creating")
	return patiently(ctx, func(ctx context.Context) error {
		_, err := s.m.StartSandbox(ctx, rec.key(), spec)
		return err
	})
}

// resume goes on with what a former server was asked for.
func (s *Server) resume() {
	for _, rec := range s.records.sandboxes.all(func(r sandboxRecord) bool { return r.Phase == phasePending }) {
		_, _ = s.make(rec) // it fails when the server ends already
	}
	for _, rec := range s.records.snapshots.all(func(r snapshotRecord) bool { return r.Phase == phasePending }) {
		_ = s.makeSnapshot(rec) // likewise
	}
}

// refused names what was asked for and cannot be held here.
func (u unsupportedCreate) refused() error {
	var errs []error
	for _, f := range []struct {
		name  string
		given bool
	}{{"gpu", u.GPU != 0}, {"gpuType", len(u.GPUType) > 0}, {"spot", u.Spot}, {"autoPauseInterval", u.AutoPause != 0}, {"ttlMinutes", u.TTL != 0},
		{"secrets", len(u.Secrets) > 0}, {"linkedSandbox", u.LinkedSandbox != ""}, {"outboundProxyUrl", u.OutboundProxy != ""}, {"otelEndpointOverride", u.Otel != ""}} {
		if f.given {
			errs = append(errs, &sandbox.FieldError{Field: f.name, Problem: "is not supported by this server", Hint: "leave it out"})
		}
	}
	return errors.Join(errs...)
}

var markup = lazily(`<[^>]*>|[a-zA-Z][a-zA-Z0-9+.-]*://|(?i)\bwww\.`)

// checkName is the platform's rule for names that are shown to people.
func checkName(field, name string) error {
	switch {
	case strings.ContainsFunc(name, unicode.IsControl):
		return &sandbox.FieldError{Field: field, Problem: "it holds control characters", Allowed: "printable text"}
	case markup().MatchString(name):
		return &sandbox.FieldError{Field: field, Problem: fmt.Sprintf("%.80q holds markup or an address", name), Allowed: "plain text without HTML tags and URLs"}
	}
	return nil
}

// check applies the platform's rules of what goes together.
func (r *createRequest) check() error {
	errs := []error{checkName("name", r.Name)}
	if b := r.BuildInfo; b != nil {
		if strings.TrimSpace(b.Dockerfile) == "" {
			errs = append(errs, &sandbox.FieldError{Field: "buildInfo.dockerfileContent", Problem: "it is empty", Allowed: "the text of a Dockerfile"})
		}
		if r.Snapshot != "" {
			errs = append(errs, &sandbox.FieldError{Field: "snapshot", Problem: "buildInfo is given too", Allowed: "one of them"})
		}
	} else if r.CPU != 0 || r.Memory != 0 || r.Disk != 0 {
		errs = append(errs, &sandbox.FieldError{Field: "cpu, memory, disk", Problem: "resources come from the snapshot", Allowed: "with an image, or buildInfo here", Hint: "leave them out, or create the sandbox from an image, such as image in the SDKs"})
	}
	for _, f := range []struct {
		name string
		n    float64
	}{{"cpu", r.CPU}, {"memory", r.Memory}, {"disk", r.Disk}} {
		if f.n < 0 {
			errs = append(errs, &sandbox.FieldError{Field: f.name, Problem: fmt.Sprintf("%v does not fit", f.n), Allowed: "0 (the default) or more"})
		}
	}
	return errors.Join(errs...)
}

// spec is what rec asks for, as the domain has it.
func (r *createRequest) spec(rec sandboxRecord) (sandbox.Spec, error) {
	spec := sandbox.Spec{Name: rec.Name, Snapshot: rec.From, Image: rec.Image, Volumes: rec.Volumes, Labels: maps.Clone(r.Labels), Env: maps.Clone(r.Env), Public: r.Public,
		Resources: sandbox.Resources{CPU: r.CPU, Memory: sandbox.FromGiB(r.Memory), Disk: sandbox.FromGiB(r.Disk)}}
	switch l := sandbox.Language(r.Labels[languageLabel]); l {
	case sandbox.Python, sandbox.JavaScript, sandbox.TypeScript:
		spec.Language = l
	}
	if spec.Env == nil {
		spec.Env = map[string]string{}
	}
	for k, v := range map[string]string{"DAYTONA_SANDBOX_ID": string(rec.ID), "DAYTONA_ORGANIZATION_ID": organization(rec.Owner), "DAYTONA_REGION_ID": region,
		"DAYTONA_SANDBOX_USER": rec.User, "DAYTONA_SANDBOX_SNAPSHOT": rec.Snapshot} {
		if v != "" {
			spec.Env[k] = v
		}
	}
	if rec.From == "" && rec.Image == "" && r.BuildInfo == nil {
		spec.Account = account
	}
	if r.User != account { // what everybody has, and an image may not
		spec.User = r.User
	}
	var errs []error
	span := func(field string, n *int, most time.Duration, never bool) *time.Duration {
		if n == nil {
			return nil
		}
		if *n < 0 && !never {
			errs = append(errs, &sandbox.FieldError{Field: field, Problem: fmt.Sprintf("%d does not fit", *n), Allowed: "0 or more minutes"})
			return nil
		}
		d := sandbox.Never
		if *n >= 0 {
			d = min(time.Duration(min(*n, int(most/time.Minute)))*time.Minute, most)
		}
		return &d
	}
	spec.AutoStop = span("autoStopInterval", r.AutoStop, sandbox.MaxInterval, false)
	spec.AutoArchive = span("autoArchiveInterval", r.AutoArchive, sandbox.MaxAutoArchive, false)
	spec.AutoDelete = span("autoDeleteInterval", r.AutoDelete, sandbox.MaxInterval, true)
	net, err := r.network()
	errs = append(errs, err)
	spec.Network = net
	return spec, errors.Join(errs...)
}

// network is the policy that is asked for; nil: none is. Blocking everything
// wins over the lists.
func (r *createRequest) network() (*sandbox.NetworkPolicy, error) {
	if r.NetworkBlockAll != nil && *r.NetworkBlockAll {
		return &sandbox.NetworkPolicy{BlockAll: true}, nil
	}
	var p sandbox.NetworkPolicy
	var err1, err2 error
	if r.NetworkAllowList != nil {
		p.AllowCIDRs, err1 = allowList(*r.NetworkAllowList)
	}
	if r.DomainAllowList != nil {
		p.AllowDomains, err2 = domainList(*r.DomainAllowList)
	}
	if err := errors.Join(err1, err2); err != nil || !p.Limited() {
		return nil, err
	}
	return &p, nil
}

// maxAllowed bounds the platform's lists.
const maxAllowed = 10

func splitList(field, text string) ([]string, error) {
	parts := strings.Split(text, ",")
	if len(parts) > maxAllowed {
		return nil, &sandbox.FieldError{Field: field, Problem: fmt.Sprintf("there are %d", len(parts)), Allowed: fmt.Sprintf("at most %d, with commas between", maxAllowed)}
	}
	var list []string
	for _, p := range parts {
		if p = strings.TrimSpace(p); p != "" {
			list = append(list, p)
		}
	}
	return list, nil
}

// allowList parses networkAllowList: IPv4 ranges, each with its prefix.
func allowList(text string) ([]netip.Prefix, error) {
	list, err := splitList("networkAllowList", text)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() {
			return nil, &sandbox.FieldError{Field: "networkAllowList", Problem: fmt.Sprintf("%.80q is no IPv4 range", s), Allowed: "ranges such as 10.0.0.0/8 or 1.2.3.4/32, with commas between", Hint: "names go in domainAllowList"}
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// domainList parses domainAllowList; the Manager checks the names.
func domainList(text string) ([]string, error) {
	list, err := splitList("domainAllowList", text)
	for i := range list {
		list[i] = strings.ToLower(list[i])
	}
	return list, err
}
