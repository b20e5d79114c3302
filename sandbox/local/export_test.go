//go:build linux

package local

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

// WithStep calls f at every step of a life-cycle operation.
func (o Options) WithStep(f func(string) error) Options {
	o.step = f
	return o
}

// WithFakeEngine runs sleeping processes in place of monitors, for tests of the
// state directory alone.
func (o Options) WithFakeEngine() Options {
	o.engine = fakeEngine{}
	return o
}

// WithNow sets the clock that tells what is old.
func (o Options) WithNow(now func() time.Time) Options {
	o.now = now
	return o
}

// Dir is where in keeps its files.
func (in *Instance) Dir() string { return in.dir() }

// IDs are what the record says.
func (in *Instance) IDs() (wire.IDs, error) {
	r, err := readRecord(in.dir())
	if err != nil {
		return wire.IDs{}, err
	}
	return r.IDs, nil
}

// ShowDir shows a directory of the host in sandboxes as /usr is shown, until
// hide is called.
func ShowDir(dir string) (hide func()) {
	before := packageDirs
	packageDirs = append(slices.Clone(before), dir)
	return func() { packageDirs = before }
}

// Base builds the layers for ids and returns the directory.
func (p *Provider) Base(ids wire.IDs) (layer func(string) string, err error) {
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	b, err := s.base(context.Background(), p.kindFor(ids, ""), p.opts.step)
	return b.layer, err
}

// ShowOnly shows one directory of the host and nothing else, so that layers are
// built at once, until all is called.
func ShowOnly(dir string) (all func()) {
	overDirs = func() []string { return []string{dir} }
	return func() { overDirs = hostsDirs }
}

// KeepTombstones bounds their number, until before is called.
func KeepTombstones(n int) (before func()) {
	was := maxTombstones
	maxTombstones = n
	return func() { maxTombstones = was }
}

// MostLayers bounds on how many layers a sandbox stands, until before is called.
func MostLayers(n int) (before func()) {
	was := maxSealed
	maxSealed = n
	return func() { maxSealed = was }
}

// SealedLayers is on how many a sandbox stands.
func SealedLayers(x sandbox.Instance) (int, error) {
	r, err := readRecord(x.(*Instance).dir())
	if err != nil {
		return 0, err
	}
	return len(r.Sealed), nil
}

// BuildOver makes the layer over dir.
func BuildOver(ctx context.Context, layer, dir string, skeleton bool) error {
	return buildOver(ctx, layer, dir, skeleton)
}

// SandboxID is the name of a key's directory.
func SandboxID(k sandbox.Key) string { return sandboxID(k) }

// RemoveBases removes a directory of layers.
func RemoveBases(dir string) {
	s := &store{dir: dir}
	if err := s.removeTree(context.Background(), dir); err != nil {
		panic(err)
	}
}

// StopIdle does what the monitor of an idle sandbox does, with the fake engine.
func StopIdle(t interface {
	Helper()
	Fatal(...any)
}, in sandbox.Instance) {
	t.Helper()
	c := fakeConn{in.(*Instance).dir()}
	if err := c.Stop(context.Background(), "idle for 15 minutes"); err != nil {
		t.Fatal(err)
	}
}

// StandOnLayers stops a sandbox and seals n layers for it, each with a file f1,
// f2 … of its own and one that all have.
func StandOnLayers(x sandbox.Instance, n int) error {
	in, ctx := x.(*Instance), context.Background()
	for i := 1; i <= n; i++ {
		if i == 1 {
			if err := in.Stop(ctx); err != nil {
				return err
			}
		}
		r, err := readRecord(in.dir())
		if err != nil {
			return err
		}
		home := filepath.Join(in.layers(), "root", "upper", homeOf(sandbox.DefaultAccount))
		if err := os.MkdirAll(home, 0o755); err != nil {
			return err
		}
		paths := []string{home}
		for _, name := range []string{"f" + strconv.Itoa(i), "same"} {
			paths = append([]string{filepath.Join(home, name)}, paths...)
			if err := os.WriteFile(filepath.Join(home, name), []byte(strconv.Itoa(i)+"\n"), 0o644); err != nil {
				return err
			}
		}
		if as := treeAs(r.IDs); as.Map != nil || r.IDs.Mode == wire.IDsRange {
			if err := as.Chown(ctx, agentID, agentID, paths...); err != nil {
				return err
			}
		}
		if err := in.intendSeal(r); err != nil {
			return err
		}
		if err := in.seal(r); err != nil {
			return err
		}
		if err := in.settleSeal(r); err != nil {
			return err
		}
	}
	return nil
}

// StateOf is p's state directory.
func StateOf(p *Provider) string { return p.opts.Dir }

// SnapshotTree writes all that sandboxes of a snapshot see, but for what berth
// adds, as a tar stream.
func (p *Provider) SnapshotTree(ctx context.Context, w io.Writer, owner sandbox.Owner, name string) error {
	s, err := p.store()
	if err != nil {
		return err
	}
	var r snapshotRecord
	if err := readJSON(s.snapshotPath(owner, name), &r); err != nil {
		return err
	}
	is, err := p.imageStore(s)
	if err != nil {
		return err
	}
	form := p.formNow(s)
	lower, err := is.Lower(&r.Image.Image, form)
	if err != nil {
		return err
	}
	dirs := append(sealedUppers(s.sealedPaths(r.Sealed), "root"), lower...)
	_, err = form.As.PackStack(ctx, w, tree.StackOptions{Dirs: dirs, Alone: true})
	return err
}
