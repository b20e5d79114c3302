//go:build linux

package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/image"
	"berth/sandbox/local/wire"
)

// A build goes through its steps, and stands on layers as a fork does: what
// the steps so far have changed. A step that changes files runs in a sandbox of its own on those
// layers, with the limits and the network of every other; it is then stopped,
// its layers are sealed, and it is removed. The cache knows by content which
// layer a step came to, so that a build which was ended anywhere goes on there.
//
// A build holds the lock "build.ID" of its snapshot. Its sandbox has a key that
// no session can have, says in its record that it is a build's, and is shown
// nowhere; whoever sweeps removes it once nobody holds that lock.

// buildStepTime bounds a step's command.
const buildStepTime = time.Hour

// buildIdle is when the monitor of a step's sandbox ends it, should nobody.
const buildIdle = 5 * time.Minute

func buildLock(owner sandbox.Owner, name string) string { return "build." + snapshotID(owner, name) }

func buildKey(owner sandbox.Owner, name string) sandbox.Key {
	return sandbox.Key{Owner: owner, Session: sandbox.SessionID("build " + name)} // no session has a space
}

// rootConfig is what a build says of the commands in sandboxes of the default
// root; of those of images it is in their imageRecord.
type rootConfig struct {
	Env     []string `json:"env,omitempty"`
	User    string   `json:"user,omitempty"`
	WorkDir string   `json:"work_dir,omitempty"`
}

// builder is one build.
type builder struct {
	p    *Provider
	s    *store
	in   *Instance // the sandbox of each step
	b    sandbox.Build
	spec sandbox.Spec
	log  *buildLog

	o    *origin // what the steps so far came to
	ids  wire.IDs
	key  string   // of the step before, in the cache
	used []string // keys of this build
	buildState
}

// buildState is what steps change beside files.
type buildState struct {
	env     map[string]string // the image's, and what env steps set
	args    map[string]string
	user    string
	workDir string // "": not given
	shell   []string
	labels  map[string]string
}

// BuildSnapshot makes a snapshot of b: see sandbox.SnapshotBuilder.
func (p *Provider) BuildSnapshot(ctx context.Context, owner sandbox.Owner, name string, b sandbox.Build, spec sandbox.Spec) (sandbox.SnapshotInfo, error) {
	s, err := p.store()
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	l, err := acquire(ctx, s.lockPath(buildLock(owner, name)), opOther)
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	defer l.release(true)
	digest := b.Digest()
	if info, err := s.built(owner, name, digest); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return info, err
	}
	w := &builder{p: p, s: s, in: p.instance(s, buildKey(owner, name)), b: b, spec: spec}
	if w.log, err = s.openBuildLog(ctx, owner, name); err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	info, err := w.build(ctx, digest)
	w.touchUsed()
	if derr := w.in.discard(ctx); derr != nil {
		p.log.WarnContext(ctx, "leftovers of a build", slog.String("sandbox", w.in.id), slog.Any("err", derr))
	}
	var failed *sandbox.BuildError
	if errors.As(err, &failed) {
		w.log.line(failed.Error())
	} else if err != nil {
		w.log.line("the build ended: " + full(s, err).Error())
	}
	tail := w.log.close()
	if failed != nil {
		failed.Log = tail
		p.log.InfoContext(ctx, "build failed", slog.String("snapshot", name), slog.String("owner", string(owner)), slog.Int("step", failed.Step))
	}
	if err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	info.Log = tail
	p.log.InfoContext(ctx, "snapshot built", slog.String("snapshot", name), slog.String("owner", string(owner)), slog.Int("steps", len(b.Steps)))
	return info, nil
}

// built finds what an earlier build of the same made; fs.ErrNotExist when there
// is no snapshot of that name.
func (s *store) built(owner sandbox.Owner, name, digest string) (sandbox.SnapshotInfo, error) {
	var r snapshotRecord
	if err := readJSON(s.snapshotPath(owner, name), &r); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	if r.Build != digest {
		return sandbox.SnapshotInfo{}, fmt.Errorf("snapshot %s: %w", name, sandbox.ErrExists)
	}
	info := r.info()
	info.Log, _ = s.readBuildLog(owner, name, sandbox.MaxBuildLog)
	return info, nil
}

// build does the steps and names what they came to.
func (w *builder) build(ctx context.Context, digest string) (sandbox.SnapshotInfo, error) {
	none := sandbox.SnapshotInfo{}
	if err := w.in.discard(ctx); err != nil { // of one that was killed
		return none, err
	}
	pin, err := w.base(ctx)
	if err != nil {
		return none, w.baseFault(err)
	}
	defer pin.Release()
	for i := range w.b.Steps {
		step := &w.b.Steps[i]
		w.log.line(fmt.Sprintf("[%d/%d] %s", i+1, len(w.b.Steps), firstLine(step.Text)))
		if err := w.step(ctx, step); err != nil {
			if ctx.Err() != nil {
				return none, context.Cause(ctx)
			}
			return none, w.fault(i, step, err)
		}
	}
	r, err := w.record(ctx, digest)
	if err != nil {
		return none, err
	}
	if err := w.p.opts.step("build:digested"); err != nil {
		return none, err
	}
	return r.info(), w.name(ctx, r)
}

// base finds what the steps stand on. The pin keeps its image.
func (w *builder) base(ctx context.Context) (*image.Pin, error) {
	p, s := w.p, w.s
	w.ids = p.idsNow(s)
	w.o = &origin{account: w.spec.Account}
	w.buildState = buildState{env: map[string]string{}, args: map[string]string{}, labels: map[string]string{}, shell: []string{"/bin/sh", "-c"}}
	var pin *image.Pin
	root := []string{buildFormat, string(w.in.key.Owner), layerForm(w.ids).Name}
	switch {
	case w.b.Snapshot != "":
		l, err := acquire(ctx, s.lockPath(snapshotLock(w.in.key.Owner, w.b.Snapshot)), opOther)
		if err != nil {
			return nil, err
		}
		defer l.release(true)
		if w.o, err = s.snapshotOrigin(w.in.key.Owner, w.b.Snapshot); err != nil {
			return nil, err
		}
		if w.o.ids.Mode != "" {
			w.ids = w.o.ids
		}
		root = append(root, w.o.sealed...)
		if w.o.image != nil {
			w.o.imageName = w.o.image.Name
			if pin, err = p.imageAgain(ctx, s, &w.o.image.Image, w.ids); err != nil {
				return nil, err
			}
		}
	case w.b.Image != "":
		w.log.line("[base] " + w.b.Image)
		var err error
		if w.o.image, pin, err = p.pullImage(ctx, s, sandbox.Spec{Image: w.b.Image, User: "root"}); err != nil {
			return nil, err
		}
		w.o.imageName = w.b.Image
		if list := w.o.image.OnBuild; len(list) > 0 {
			pin.Release()
			return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf("the image asks for steps by ONBUILD, which are not done here (%.200q); begin with the image that it is made of, and write them as steps", list)}
		}
	}
	if im := w.o.image; im != nil {
		root = append(root, im.Digest, im.Platform)
		for _, e := range im.Env {
			setEnv(w.env, e)
		}
		w.user, w.workDir = im.User, im.WorkDir
		if w.env["PATH"] == "" {
			w.env["PATH"] = searchPath
		}
		w.key = digestOf(root)
		return pin, nil
	}
	now := fingerprint(p.kindFor(w.ids, w.o.account))
	if w.o.madeOn.Host == "" {
		w.o.madeOn = now
	}
	root = append(root, now.Host)
	if w.o.account != "" {
		root = append(root, w.o.account)
	}
	w.user = accountOf(w.o.account)
	if c := w.o.root; c != nil {
		for _, e := range c.Env {
			setEnv(w.env, e)
		}
		w.user, w.workDir = c.User, c.WorkDir
	}
	w.key = digestOf(root)
	return nil, nil
}

// idsNow are those of sandboxes that are made now, without a range.
func (p *Provider) idsNow(s *store) wire.IDs {
	ids, _ := p.idMode()
	if ids.Mode == wire.IDsRange {
		if ids.IDMapped = idMapped(s.dir, "/usr"); !ids.IDMapped {
			ids.Base = firstSlot * rangeSize
		}
	}
	return ids
}

// baseFault keeps errors of the base that say what to do, as the build's.
func (w *builder) baseFault(err error) error {
	var field *sandbox.FieldError
	var user *sandbox.UserError
	switch {
	case errors.As(err, &field):
		return err
	case errors.As(err, &user) && errors.Is(err, sandbox.ErrUnavailable):
		return &sandbox.BuildError{Steps: len(w.b.Steps), Text: firstLine(w.b.Origin), Problem: user.Text}
	}
	return err
}

// fault makes of a step's error the build's.
func (w *builder) fault(i int, step *sandbox.BuildStep, err error) error {
	if errors.Is(err, sandbox.ErrClosed) {
		return err
	}
	out := &sandbox.BuildError{Step: i + 1, Steps: len(w.b.Steps), Line: step.Line, Text: firstLine(step.Text)}
	var exit *exitFault
	var field *sandbox.FieldError
	var user *sandbox.UserError
	switch {
	case errors.As(err, &exit):
		out.ExitCode, out.Problem = exit.code, exit.problem
	case errors.As(err, &field):
		out.Problem = "cannot be done: " + field.Problem
		for _, more := range []string{field.Allowed, field.Hint} {
			if more != "" {
				out.Problem += "; " + more
			}
		}
	case errors.As(err, &user):
		out.Problem = "cannot be done: " + user.Text
	default:
		return err // the host's, not the step's
	}
	return out
}

// record is that of the finished snapshot.
func (w *builder) record(ctx context.Context, digest string) (*snapshotRecord, error) {
	r := &snapshotRecord{Version: 1, Owner: string(w.in.key.Owner), Name: w.snapshot(), Created: time.Now().UTC(), IDs: w.ids, MadeOn: w.o.madeOn,
		Sealed: w.o.sealed, ImageName: w.o.imageName, Account: w.o.account, Build: digest, Labels: w.labels}
	if r.IDs.IDMapped {
		r.IDs.Base = 0
	}
	if w.o.image == nil {
		c := &rootConfig{User: w.user, WorkDir: w.workDir}
		for _, k := range slices.Sorted(maps.Keys(w.env)) {
			c.Env = append(c.Env, k+"="+w.env[k])
		}
		r.Root = c
	} else {
		im := w.o.image.Image
		im.User, im.WorkDir, im.Env = w.user, w.workDir, nil
		for _, k := range slices.Sorted(maps.Keys(w.env)) {
			im.Env = append(im.Env, k+"="+w.env[k])
		}
		var err error
		if r.Image, err = w.p.imageOver(w.s, &im, w.o.sealed, w.ids, ""); err != nil {
			var field *sandbox.FieldError
			if errors.As(err, &field) {
				return nil, &sandbox.BuildError{Steps: len(w.b.Steps), Text: "USER " + w.user, Problem: field.Problem + "; make it in RUN, or name another"}
			}
			return nil, err
		}
	}
	w.log.line("keeping the files")
	w.s.useSealed(r.Sealed)
	var err error
	r.Digest, r.Size, err = w.s.digest(ctx, r)
	return r, err
}

func (w *builder) snapshot() string { return string(w.in.key.Session)[len("build "):] }

// name makes r the owner's snapshot.
func (w *builder) name(ctx context.Context, r *snapshotRecord) error {
	owner := w.in.key.Owner
	named, err := acquire(ctx, w.s.lockPath(snapshotLock(owner, r.Name)), opOther)
	if err != nil {
		return err
	}
	defer named.release(true)
	path := w.s.snapshotPath(owner, r.Name)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("snapshot %s: %w", r.Name, sandbox.ErrExists) // kept of a sandbox meanwhile
	}
	w.s.useSealed(r.Sealed)
	if len(r.Sealed) > 0 {
		// A name is a promise: what it stands for is on disk first.
		if err := syncFS(w.s.path("sealed")); err != nil {
			return err
		}
		w.s.settleCache(w.used)
	}
	return writeJSON(path, r, true)
}

// ofBuild tells that a sandbox is one of a build's steps, and no session's.
func (in *Instance) ofBuild(key sandbox.Key) bool {
	name, ok := strings.CutPrefix(string(key.Session), "build ")
	return ok && in.id == sandboxID(buildKey(key.Owner, name))
}

// snapshotUser makes user the one who runs commands in a sandbox of o, if it is
// of an image.
func (p *Provider) snapshotUser(ctx context.Context, s *store, o *origin, user string) error {
	switch {
	case user == "" || o.image == nil && (user == accountOf(o.account) || user == "root"):
		return nil
	case o.image == nil:
		return &sandbox.FieldError{Field: "user", Problem: fmt.Sprintf("there is no user %.80q", user), Allowed: accountOf(o.account) + ", root"}
	}
	ids := o.ids
	if ids.Mode == "" {
		ids = p.idsNow(s)
	}
	pin, err := p.imageAgain(ctx, s, &o.image.Image, ids)
	if err != nil {
		return err
	}
	defer pin.Release()
	o.image, err = p.imageOver(s, &o.image.Image, o.sealed, ids, user)
	return err
}

// imageAgain makes sure that the layers of an image are there, which others
// stand on already. The pin may be nil.
func (p *Provider) imageAgain(ctx context.Context, s *store, im *image.Image, ids wire.IDs) (*image.Pin, error) {
	is, err := p.imageStore(s)
	if err != nil || is.Ready(im, layerForm(ids)) {
		return nil, err
	}
	return is.Again(ctx, im, layerForm(ids), report(ctx))
}

// imageOver is what im says of its commands with the layers over it: they may
// have brought users and interpreters. user is who runs commands, if not the
// one that im names.
func (p *Provider) imageOver(s *store, im *image.Image, sealed []string, ids wire.IDs, user string) (*imageRecord, error) {
	is, err := p.imageStore(s)
	if err != nil {
		return nil, err
	}
	form := layerForm(ids)
	dirs, err := is.Lower(im, form)
	if err != nil {
		return nil, err
	}
	return describeImage(image.View{Dirs: append(sealedUppers(s.sealedPaths(sealed), "root"), dirs...)}, im, form, user)
}

// discard removes the sandbox of a build's step, if there is one, without a
// trace of it.
func (in *Instance) discard(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	l, err := acquire(ctx, in.s.lockPath(in.id), opDestroying)
	if err != nil {
		return err
	}
	defer l.release(true)
	return in.discardLocked(ctx)
}

func (in *Instance) discardLocked(ctx context.Context) error {
	if in.gone() {
		return nil
	}
	if err := in.p.engine.kill(ctx, in.dir()); err != nil {
		return err
	}
	var ids wire.IDs
	r, err := readRecord(in.dir())
	if err != nil {
		r, err = readCopy(in.dir())
	}
	if err == nil {
		ids = r.IDs
	}
	return in.trash(ctx, ids)
}

// sweepBuild removes the sandbox of a build that nobody is at; done tells that
// it is one of a build.
func (in *Instance) sweepBuild(ctx context.Context, r *record) (done bool, err error) {
	if r.Build == "" {
		return false, nil
	}
	b, err := tryAcquire(in.s.lockPath(r.Build), opOther)
	if err != nil {
		return true, err
	}
	defer b.release(true)
	l, err := tryAcquire(in.s.lockPath(in.id), opDestroying)
	if err != nil {
		return true, err
	}
	defer l.release(true)
	return true, in.discardLocked(context.WithoutCancel(ctx))
}

func digestOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts, numbers and lists of them
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

var _ sandbox.SnapshotBuilder = (*Provider)(nil)

// layersOf is where a sealed layer's files are.
func (s *store) layersOf(id string) string { return filepath.Join(s.sealedDir(id), layersDir) }
