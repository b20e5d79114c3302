//go:build linux

package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/disk"
	"berth/sandbox/local/image"
	"berth/sandbox/local/wire"
)

// Provider makes sandboxes on this machine. It holds no state of its own that
// is not in the state directory.
type Provider struct {
	opts   Options
	log    *slog.Logger
	engine engine
	names  *image.Store // for names alone

	mu    sync.Mutex
	state *store // nil until the state directory was opened
	// images are those of the state directory at imagesDir; nil until they are needed.
	images    *image.Store
	imagesDir string
	pruned    time.Time // when unused images were looked for
	ended     bool
}

var (
	_ sandbox.Provider = (*Provider)(nil)
	_ sandbox.Sweeper  = (*Provider)(nil)

	_ sandbox.Imager      = (*Provider)(nil)
	_ sandbox.ImageLister = (*Provider)(nil)
	_ sandbox.ImagePuller = (*Provider)(nil)
	_ sandbox.ImagePruner = (*Provider)(nil)
)

// New checks o and touches nothing yet: what is missing on the machine is said
// by the first call that needs it. The error joins a *sandbox.FieldError for
// each fault.
func New(o Options) (*Provider, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.step == nil {
		o.step = func(string) error { return nil }
	}
	if o.now == nil {
		o.now = time.Now
	}
	names, err := o.Images.store("", o.Logger)
	if err != nil {
		return nil, err
	}
	p := &Provider{opts: o, log: o.Logger, engine: o.engine, names: names}
	if p.engine == nil {
		p.engine = newEngine(o.Logger)
	}
	return p, nil
}

// Name is "local".
func (p *Provider) Name() string { return "local" }

// Close lets go of connections. Sandboxes run on.
func (p *Provider) Close() error {
	p.mu.Lock()
	p.ended = true
	images := p.images
	p.mu.Unlock()
	if images != nil {
		_ = images.Close()
	}
	return p.engine.close()
}

// store opens the state directory once; a refusal is tried again at the next
// call, since somebody may have followed its advice.
func (p *Provider) store() (*store, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil, sandbox.ErrClosed
	}
	if p.state != nil {
		if _, err := os.Stat(p.state.path("sandboxes")); err == nil {
			return p.state, nil
		}
		p.state = nil
	}
	s, err := openStore(p.opts.Dir)
	if err != nil {
		return nil, err
	}
	s.now = p.opts.now
	p.state = s
	return s, nil
}

func (p *Provider) instance(s *store, key sandbox.Key) *Instance {
	return &Instance{p: p, s: s, id: sandboxID(key), key: key}
}

// Create makes the sandbox of key and starts it.
func (p *Provider) Create(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	if err := checkAccount(accountOf(spec.Account)); err != nil {
		return nil, err
	}
	in := p.instance(s, key)
	o := &origin{account: spec.Account}
	if spec.Snapshot != "" {
		// Only as long as that takes, or all sandboxes of one would be started
		// one after the other: its layers stay for a while, by whomever it is
		// deleted, and soon the sandbox's record names them.
		said := say(ctx, "waiting for the snapshot "+spec.Snapshot+", which is being made or deleted")
		l, err := acquire(ctx, s.lockPath(snapshotLock(key.Owner, spec.Snapshot)), opOther)
		said()
		if err != nil {
			return nil, err
		}
		o, err = s.snapshotOrigin(key.Owner, spec.Snapshot)
		l.release(true)
		if err != nil {
			return nil, err
		}
		if err := p.snapshotUser(ctx, s, o, spec.User); err != nil {
			return nil, err
		}
	}
	if spec.Image != "" && spec.Snapshot == "" {
		// Before the lock: it may take long, and until then nothing is there.
		var pin *image.Pin
		if o.image, pin, err = p.pullImage(ctx, s, spec); err != nil {
			return nil, full(s, err)
		}
		defer pin.Release()
	}
	said := say(ctx, "waiting for another berth, which is just making or destroying it")
	l, err := acquire(ctx, s.lockPath(in.id), opCreating)
	said()
	if err != nil {
		return nil, err
	}
	created := false
	defer func() { l.release(!created && in.gone()) }()
	v, err := in.lookLocked(l, opCreating)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case v.status == sandbox.StatusDestroyed:
		if err := in.destroyLocked(ctx, v.ended()); err != nil {
			return nil, err
		}
		l.mark(opCreating)
	default:
		return nil, fmt.Errorf("session %s: %w", key.Session, sandbox.ErrExists)
	}
	if err := s.checkSpace(); err != nil {
		return nil, err
	}
	if err := in.create(ctx, spec, o); err != nil {
		return nil, full(s, err)
	}
	created = true
	p.log.InfoContext(ctx, "sandbox created", slog.String("session", string(key.Session)), slog.String("owner", string(key.Owner)), slog.String("sandbox", in.id))
	return in, nil
}

// sayAfter is how long a step of a start takes before it is worth a word.
const sayAfter = time.Second

// say tells whoever waits what takes long, if it does, until said is called.
func say(ctx context.Context, what string) (said func()) {
	t := time.AfterFunc(sayAfter, func() { sandbox.Report(ctx, sandbox.Progress{Text: what}) })
	return func() { t.Stop() }
}

// create builds the sandbox aside and renames it into place. From then on it
// exists: killed here, it is found stopped and can be started.
// It stands on what o tells, and takes over o.dir.
func (in *Instance) create(ctx context.Context, spec sandbox.Spec, o *origin) (err error) {
	p, s := in.p, in.s
	im := o.image
	r := &record{Version: recordVersion, Owner: string(in.key.Owner), Session: string(in.key.Session), Created: time.Now().UTC(), Spec: fromSpec(spec), Image: im}
	if im != nil && r.Spec.WorkingDirectory == "" {
		r.Spec.WorkingDirectory = im.WorkDir
	}
	r.Spec.Account, r.Build, r.Root = o.account, o.build, o.root
	if c := o.root; c != nil {
		r.Spec.WorkingDirectory, r.Spec.User = cmp.Or(r.Spec.WorkingDirectory, c.WorkDir), cmp.Or(r.Spec.User, c.User)
	}
	r.Sealed, r.IDs, r.MadeOn, r.DiskKind = o.sealed, o.ids, o.madeOn, o.diskKind
	if o.fork {
		r.Mounts = o.mounts
	}
	tmp := s.path("tmp", in.id+".create")
	if err := s.removeTree(ctx, tmp); err != nil { // of a berth that was killed
		return err
	}
	dir := s.sandboxDir(in.id)
	defer func() {
		if err == nil {
			return
		}
		// A failed Create leaves nothing, whatever the reason.
		clean := context.WithoutCancel(ctx)
		_ = p.engine.kill(clean, dir)
		_ = treeAs(r.IDs).Remove(clean, tmp)
		if o.dir != "" {
			_ = treeAs(r.IDs).Remove(clean, o.dir)
		}
		if terr := in.trash(clean, r.IDs); terr != nil {
			p.log.WarnContext(clean, "leftovers of a failed create", slog.String("sandbox", in.id), slog.Any("err", terr))
		}
		s.releaseRange(in.id, r.IDs)
	}()
	launch, err := p.prepare(ctx, s, in.id, r)
	if err != nil {
		return err
	}
	if err := p.opts.step("create:prepared"); err != nil {
		return err
	}
	s.useSealed(r.Sealed)
	if o.dir != "" {
		r.Unsynced = bootID()
		err = os.Rename(o.dir, tmp)
	} else if err = os.MkdirAll(filepath.Join(tmp, layersDir), 0o700); err == nil && r.DiskKind == wire.DiskImage {
		err = makeImage(ctx, filepath.Join(tmp, disk.Image), spec.Resources.Disk)
	}
	if err != nil {
		return err
	}
	said := say(ctx, "writing its record: the disk is slow")
	defer func() { said() }()
	if o.fork {
		err = orderJSON(filepath.Join(tmp, recordFile), r)
	} else {
		err = writeJSON(filepath.Join(tmp, recordFile), r, true)
	}
	if err != nil {
		return err
	}
	if err := p.opts.step("create:written"); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	if !o.fork {
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	said()
	if err := p.opts.step("create:exists"); err != nil {
		return err
	}
	said = say(ctx, "starting its first process")
	ahead := make(chan struct{})
	go func() { defer close(ahead); s.ahead(in.id, r, launch) }()
	err = p.engine.launch(ctx, launch, r.Session)
	<-ahead
	said()
	if err != nil {
		return launchError(err)
	}
	if err := p.opts.step("create:launched"); err != nil {
		return err
	}
	_ = os.Remove(s.tombstonePath(in.id))
	return nil
}

// ahead makes, while the helper program starts, what would hold the start up
// later. Who is killed before has lost nothing by it.
func (s *store) ahead(id string, r *record, l *wire.Launch) {
	if l.IDs.IDMapped && l.Disk == nil { // else they belong to root inside, or into a file system of its own
		for _, m := range l.Mounts {
			for _, dir := range []string{m.Upper, m.Work} {
				if dir != "" {
					_ = os.MkdirAll(dir, 0o755)
				}
			}
		}
	}
	_ = writeJSON(filepath.Join(s.sandboxDir(id), recordCopy), r, false)
}

// launchError keeps the helper's own sentence, which names the remedy.
func launchError(err error) error {
	var we *wire.Error
	if errors.As(err, &we) && we.Text != "" {
		return &sandbox.UserError{Text: "the sandbox could not be started: " + we.Text, Err: sandbox.ErrUnavailable}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, sandbox.ErrUnsupported) {
		// The helper's sentence, by way of its client.
		return &sandbox.UserError{Text: "the sandbox could not be started: " + err.Error(), Err: sandbox.ErrUnavailable}
	}
	return fmt.Errorf("start the sandbox: %w", err)
}

// full turns a full disk into a sentence.
func full(s *store, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return refuse("the file system of the state directory %s is full; nothing was lost: free some space, for example with `berth prune`, and try again", s.dir)
	}
	return err
}

// Lookup finds the sandbox of key.
func (p *Provider) Lookup(_ context.Context, key sandbox.Key) (sandbox.Instance, error) {
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	in := p.instance(s, key)
	if _, err := in.look(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if _, terr := s.readTombstone(in.id); terr == nil {
				return in, nil
			} else if !errors.Is(terr, fs.ErrNotExist) {
				return nil, terr
			}
			return nil, fmt.Errorf("session %s: %w", key.Session, sandbox.ErrNotFound)
		}
		return nil, err
	}
	return in, nil
}

// List returns the sandboxes of owner.
func (p *Provider) List(ctx context.Context, owner sandbox.Owner) ([]sandbox.Info, error) {
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.path("sandboxes"))
	if err != nil {
		return nil, err
	}
	var out []sandbox.Info
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		in := &Instance{p: p, s: s, id: e.Name()}
		info, err := in.info(ctx, listed)
		if errors.Is(err, fs.ErrNotExist) || err == nil && (info.Status == sandbox.StatusDestroyed || in.ofBuild(info.Key)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if owner == "" || info.Key.Owner == owner {
			out = append(out, info)
		}
	}
	slices.SortFunc(out, func(a, b sandbox.Info) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		if c := strings.Compare(string(a.Key.Owner), string(b.Key.Owner)); c != 0 {
			return c
		}
		return strings.Compare(string(a.Key.Session), string(b.Key.Session))
	})
	return out, nil
}

// Describe tells what a new sandbox would be.
func (p *Provider) Describe(_ context.Context, spec sandbox.Spec) (sandbox.Info, error) {
	// A server describes when it starts, and starting leaves no trace.
	if _, err := os.Stat(p.opts.Dir); err == nil {
		if _, err := p.store(); err != nil {
			return sandbox.Info{}, err
		}
	}
	info := p.describe(fromSpec(spec))
	info.Status = sandbox.StatusPending
	info.Guarantees = p.guarantees(nil, fromSpec(spec))
	return info, nil
}

func (p *Provider) describe(r specRecord) sandbox.Info {
	user := userOf(r)
	home := homeOf(accountOf(r.Account))
	if user == "root" {
		home = "/root"
	}
	if r.Image != "" { // the image says more once it is there
		return sandbox.Info{Provider: p.Name(), Name: r.Name, Spec: r.spec(), User: r.User, HostDirs: slices.Clone(p.opts.HostDirs)}
	}
	return sandbox.Info{Provider: p.Name(), Name: r.Name, Spec: r.spec(), User: user, Home: home,
		Runtimes: p.runtimes(), HostDirs: slices.Clone(p.opts.HostDirs)}
}
