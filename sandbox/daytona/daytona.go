// Package daytona makes sandboxes in a Daytona cloud, or in a self-hosted
// Daytona, through package api.
//
// Nothing is kept on this machine: any number of servers with keys of one
// account work on the same sandboxes. Which session a sandbox belongs to, and
// what of its spec the platform does not hold itself, is in its labels (see
// record); its name at the platform follows from its key, so that looking a
// session up needs no list, which lags behind, and two servers that race make
// one. Processes and files are those of package resident, whose helper runs
// inside.
package daytona

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// Name is the provider's name.
const Name = "daytona"

// Provider makes sandboxes at one Daytona server. It is safe for concurrent use.
type Provider struct {
	o    Options
	log  *slog.Logger
	have platform // nil without a credential
	now  func() time.Time

	// ctx is the life of what runs by itself; Close ends it.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	boxes   map[string]*box      // by native id
	changed map[string]time.Time // native ids that this process changed, and when
	keeping bool                 // see keepAwake
	logs    map[string]string    // of builds, by the snapshot's name at the platform
	mounts  map[string]chan struct{}

	// mountable looks for bucketd once: it is unpacked for that.
	mountable func() error
}

var (
	_ sandbox.Provider = (*Provider)(nil)
	_ sandbox.Instance = (*Instance)(nil)

	_ sandbox.ProcessForgetter = (*Instance)(nil)
)

// New checks o. It connects to nothing yet, and without a credential every call
// fails and says so.
func New(o Options) (*Provider, error) {
	o.Times = o.Times.withDefaults()
	if !o.Probe.IsValid() {
		o.Probe = defaultProbe
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := o.connect()
	if err != nil {
		return nil, &sandbox.UserError{Text: "daytona: " + err.Error()}
	}
	p := &Provider{o: o, log: o.Logger, have: c, now: time.Now, boxes: map[string]*box{}, changed: map[string]time.Time{}, logs: map[string]string{}, mounts: map[string]chan struct{}{}}
	p.mountable = sync.OnceValue(func() error { _, err := p.o.program("amd64"); return err })
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Name is "daytona".
func (p *Provider) Name() string { return Name }

// Close lets go of connections. Sandboxes live on, by their own intervals.
func (p *Provider) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
	if p.have != nil {
		p.have.Close()
	}
	return nil
}

// at is the platform, where there is a way to it.
func (p *Provider) at() (platform, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, sandbox.ErrClosed
	case p.have == nil:
		return nil, noKey
	}
	return p.have, nil
}

// Lookup finds the key's sandbox: by the name that follows from the key and, if
// the operator lets sandboxes be adopted, by the session's id as native id or
// name.
func (p *Provider) Lookup(ctx context.Context, key sandbox.Key) (sandbox.Instance, error) {
	sb, err := p.find(ctx, key)
	if err != nil {
		return nil, err
	}
	return p.instance(key, sb), nil
}

func (p *Provider) find(ctx context.Context, key sandbox.Key) (*api.Sandbox, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	sb, err := at.Sandbox(ctx, p.nameOf(key))
	if err == nil && !gone(sb) {
		return sb, nil
	}
	if err != nil && !errors.Is(err, api.ErrNotFound) {
		return nil, p.fail("look the sandbox up", err)
	}
	if !p.o.Adopt {
		return nil, sandbox.ErrNotFound
	}
	sb, err = at.Sandbox(ctx, string(key.Session))
	switch {
	case errors.Is(err, api.ErrNotFound):
		return nil, sandbox.ErrNotFound
	case err != nil:
		return nil, p.fail("look the sandbox up", err)
	case gone(sb):
		return nil, sandbox.ErrNotFound
	}
	owner, session := ownerOf(sb)
	switch {
	case session == "": // nobody's yet
	case owner != key.Owner:
		return nil, sandbox.ErrNotFound
	case session != key.Session:
		return nil, &sandbox.UserError{Text: fmt.Sprintf("session_id: %s is Daytona's name for the sandbox of session %s; give session_id %s", key.Session, session, session)}
	}
	return sb, nil
}

// gone tells that a sandbox is there in name only.
func gone(sb *api.Sandbox) bool { return sb.State == api.Destroyed }

// List lists the sandboxes that berth made or adopted.
func (p *Provider) List(ctx context.Context, owner sandbox.Owner) ([]sandbox.Info, error) {
	all, err := p.sandboxes(ctx, owner)
	if err != nil {
		return nil, err
	}
	var out []sandbox.Info
	for _, sb := range all {
		o, session := ownerOf(sb)
		out = append(out, p.infoOf(sandbox.Key{Owner: o, Session: session}, sb))
	}
	slices.SortFunc(out, func(a, b sandbox.Info) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(string(a.Key.Owner), string(b.Key.Owner)), strings.Compare(string(a.Key.Session), string(b.Key.Session)))
	})
	return out, nil
}

// sandboxes are the owner's, or everybody's, but for those that are going away.
// The platform's own list lags behind: those that this process changed of late
// are looked up.
func (p *Provider) sandboxes(ctx context.Context, owner sandbox.Owner) ([]*api.Sandbox, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	filter := api.Filter{Labels: p.ours()}
	if owner != "" {
		filter.Labels[labelOwner] = string(owner)
	}
	late := p.lately()
	var all []*api.Sandbox
	for sb, err := range at.Sandboxes(ctx, filter) {
		if err != nil {
			return nil, p.fail("list the sandboxes", err)
		}
		if !late[sb.ID] {
			all = append(all, sb)
		}
	}
	for id := range late {
		sb, err := at.Sandbox(ctx, id)
		switch {
		case err == nil:
			all = append(all, sb)
		case !errors.Is(err, api.ErrNotFound):
			return nil, p.fail("list the sandboxes", err)
		}
	}
	return slices.DeleteFunc(all, func(sb *api.Sandbox) bool {
		o, session := ownerOf(sb)
		return session == "" || owner != "" && o != owner || gone(sb) || sb.State == api.Destroying
	}), nil
}

// ours are labels of every sandbox that berth made or adopted.
func (p *Provider) ours() map[string]string {
	l := map[string]string{labelForm: form}
	if p.o.space != "" {
		l[labelSpace] = p.o.space
	}
	return l
}

// lag is for how long the platform's list may not know what was changed.
const lag = 30 * time.Second

// note remembers that a sandbox was changed now.
func (p *Provider) note(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed[id] = p.now()
}

func (p *Provider) lately() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]bool{}
	for id, at := range p.changed {
		if p.now().Sub(at) > lag {
			delete(p.changed, id)
			continue
		}
		out[id] = true
	}
	return out
}

// Describe tells what a sandbox of spec would be, as far as that is known
// before: it asks nobody.
func (p *Provider) Describe(_ context.Context, spec sandbox.Spec) (sandbox.Info, error) {
	info := sandbox.Info{Provider: Name, Name: spec.Name, Status: sandbox.StatusPending, Spec: spec, Guarantees: p.guarantees(spec, nil)}
	if spec.Image == "" {
		info.Home, info.User = "/home/daytona", "daytona"
		if spec.User == placeholderUser {
			info.Spec.User = info.User
		}
	}
	return info, nil
}

// fail makes an error of the platform's one for callers: its kind is ours, and
// its text says what to do.
func (p *Provider) fail(doing string, err error) error {
	var e *api.Error
	answered := errors.As(err, &e)
	say := func(kind error, format string, a ...any) error {
		return &sandbox.UserError{Err: kind, Text: "Daytona: " + doing + ": " + fmt.Sprintf(format, a...)}
	}
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !answered && !errors.Is(err, api.ErrUnavailable):
		return err
	case errors.Is(err, api.ErrNotFound):
		return fmt.Errorf("%s: %w", doing, sandbox.ErrNotFound)
	case errors.Is(err, api.ErrNotRunning):
		return fmt.Errorf("%s: %w", doing, sandbox.ErrNotRunning)
	case answered && e.Status == 403:
		return say(sandbox.ErrUnavailable, "the key%s may not do this (%s); give it the permission in Daytona's dashboard, or use another key", from(p.o.KeyFrom), e.Message)
	case errors.Is(err, api.ErrUnauthorized):
		return say(sandbox.ErrUnavailable, "the key%s is not accepted at %s; look whether it is whole, of this server, and not expired", from(p.o.KeyFrom), p.have.URL())
	case api.OverQuota(err):
		return say(sandbox.ErrLimit, "%s; destroy or archive sandboxes that nobody needs, or ask for less", e.Message)
	case answered && e.Status == 429:
		return say(sandbox.ErrUnavailable, "too many requests; it asks to wait %s, then make the same call again", cmp.Or(e.RetryAfter, time.Minute).Round(time.Second))
	case errors.Is(err, api.ErrMaybeDone):
		return say(sandbox.ErrUnavailable, "%v; whether it was done is not known, so look before you repeat it", err)
	case errors.Is(err, api.ErrUnavailable):
		return say(sandbox.ErrUnavailable, "%s does not answer as it should (%v); make the same call again, and if it goes on, look at status.daytona.io", p.have.URL(), err)
	case answered:
		return say(nil, "it refuses (%d): %s", e.Status, cmp.Or(e.Message, "no reason is given"))
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func from(where string) string {
	if where == "" {
		return ""
	}
	return " from " + where
}
