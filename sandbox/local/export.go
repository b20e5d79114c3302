//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/image"
	"berth/sandbox/local/tree"
)

var (
	_ sandbox.SnapshotExporter = (*Provider)(nil)
	_ sandbox.SnapshotImporter = (*Provider)(nil)
)

// ExportSnapshot writes a snapshot as an image: a layer for each of the image
// that its sandbox was made of, and one for all that was changed.
func (p *Provider) ExportSnapshot(ctx context.Context, owner sandbox.Owner, name string, o sandbox.ExportOptions) (sandbox.SnapshotExport, error) {
	var out sandbox.SnapshotExport
	s, err := p.store()
	if err != nil {
		return out, err
	}
	var r snapshotRecord
	err = readJSON(s.snapshotPath(owner, name), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("snapshot %s: %w", name, sandbox.ErrNotFound)
	}
	if err != nil {
		return out, err
	}
	if r.Image == nil {
		return out, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "the snapshot " + name + " lies over this machine's own system directories, /usr among them, which are no part of it: elsewhere nothing of it would run; make one of a sandbox of an image (image: debian:12, for example), which can be exported whole"}
	}
	if gone := s.missingLayer(&record{Sealed: r.Sealed}); gone != "" {
		return out, &sandbox.UserError{Text: "the snapshot " + name + " is damaged: " + gone + " is missing", Err: sandbox.ErrUnavailable}
	}
	stop := s.keep(func() { s.useSealed(r.Sealed) })
	defer stop()
	is, err := p.imageStore(s)
	if err != nil {
		return out, err
	}
	form := layerForm(r.IDs)
	if r.IDs.Mode == "" { // it was imported
		form = p.formNow(s)
	}
	pin, err := is.Again(ctx, &r.Image.Image, form, report(ctx))
	if err != nil {
		return out, full(s, err)
	}
	defer pin.Release()
	lower, err := is.Lower(&r.Image.Image, form)
	if err != nil {
		return out, err
	}
	w, err := image.NewWriter(o.To, o.Dir, o.Replace)
	if errors.Is(err, fs.ErrExist) {
		hint := "name another, or pass --force"
		if o.Dir {
			hint = "name another, or an empty directory"
		}
		return out, &sandbox.FieldError{Field: "to", Problem: o.To + " is there already", Hint: hint}
	}
	if err != nil {
		return out, err
	}
	defer func() { _ = w.Close() }()
	if err := p.opts.step("export:begun"); err != nil {
		return out, err
	}
	e := exporter{ctx: ctx, w: w, form: form, name: name, total: is.Bytes(&r.Image.Image, form) + r.Size, layers: len(lower)}
	changes := sealedUppers(s.sealedPaths(r.Sealed), "root")
	if len(changes) > 0 {
		e.layers++
	}
	for i := len(lower) - 1; i >= 0; i-- {
		if err := e.add("a layer of "+r.Image.Name, lower[i:i+1], i == len(lower)-1, false); err != nil {
			return out, err
		}
	}
	if len(changes) > 0 {
		if err := e.add("the berth snapshot "+name, changes, len(lower) == 0, true); err != nil {
			return out, err
		}
	}
	labels := maps.Clone(r.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[snapshotLabel] = name
	im := &r.Image.Image
	out.Image = image.PlainName(name) + ":latest"
	out.Digest, out.Size, err = w.Finish(image.Config{Name: image.PlainName(name), Tag: "latest", Created: r.Created, Platform: im.Platform,
		Env: im.Env, User: im.User, WorkDir: im.WorkDir, Labels: labels})
	if err != nil {
		return out, err
	}
	out.To, out.Layers, out.Remarks = o.To, e.layers, e.remarks()
	return out, nil
}

// snapshotLabel names, in an exported image, the snapshot that it was.
const snapshotLabel = "berth.snapshot"

// exporter adds layers and tells how far it is.
type exporter struct {
	ctx    context.Context
	w      *image.Writer
	form   image.Form
	name   string
	total  int64
	layers int

	layer int
	done  int64
	told  time.Time
	sum   tree.StackSummary
}

// add adds a layer of what dirs hold together. used: by sandboxes, which have
// left marks of berth's programs in it.
func (e *exporter) add(made string, dirs []string, alone, used bool) error {
	e.layer++
	return e.w.AddLayer(made, func(w io.Writer) error {
		w = &exportCounter{e, w}
		finish := func(error) error { return nil }
		if used {
			w, finish = unmarked(w)
		}
		sum, err := e.form.As.PackStack(e.ctx, w, tree.StackOptions{Dirs: dirs, Alone: alone})
		if ferr := finish(err); err == nil {
			err = ferr
		}
		e.sum.Sockets += sum.Sockets
		e.sum.Names += sum.Names
		e.sum.Attributes += sum.Attributes
		if err != nil {
			return fmt.Errorf("pack layer %d of %d: %w", e.layer, e.layers, err)
		}
		return nil
	})
}

type exportCounter struct {
	e *exporter
	w io.Writer
}

func (c *exportCounter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	e := c.e
	e.done += int64(n)
	if now := time.Now(); now.Sub(e.told) >= 100*time.Millisecond {
		e.told = now
		sandbox.Report(e.ctx, sandbox.Progress{Done: min(e.done, e.total), Total: e.total,
			Text: fmt.Sprintf("exporting %s: layer %d of %d, %.1f MiB", e.name, e.layer, e.layers, float64(e.done)/(1<<20))})
	}
	return n, err
}

func (e *exporter) remarks() []string {
	var list []string
	for _, r := range []struct {
		n    int64
		text string
	}{
		{e.sum.Sockets, "%d sockets were left out: nobody listens to them any more"},
		{e.sum.Names, "%d files whose names begin with .wh. were left out: in a layer of an image such names remove files"},
		{e.sum.Attributes, "%d extended attributes were left out that mean something on this machine alone"},
	} {
		if r.n > 0 {
			list = append(list, fmt.Sprintf(r.text, r.n))
		}
	}
	return list
}

// ImportSnapshot makes a snapshot of an image in a file or directory.
func (p *Provider) ImportSnapshot(ctx context.Context, owner sandbox.Owner, name, from string) (sandbox.SnapshotInfo, error) {
	s, err := p.store()
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	exists := fmt.Errorf("snapshot %s: %w", name, sandbox.ErrExists)
	named, err := tryAcquire(s.lockPath(snapshotLock(owner, name)), opOther)
	if errors.Is(err, errLocked) {
		return sandbox.SnapshotInfo{}, exists
	}
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	defer named.release(true)
	if _, err := os.Lstat(s.snapshotPath(owner, name)); err == nil {
		return sandbox.SnapshotInfo{}, exists
	}
	if err := s.checkSpace(); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	is, err := p.imageStore(s)
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	n, err := is.Parse(imageFile(from))
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	if err := p.opts.step("import:begun"); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	form := p.formNow(s)
	im, pin, err := is.Pull(ctx, n, form, true, report(ctx))
	if err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	defer pin.Release()
	ir, err := recordOf(is, im, form, sandbox.Spec{})
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	if err := p.opts.step("import:pulled"); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	r := snapshotRecord{Version: 1, Owner: string(owner), Name: name, Created: time.Now().UTC(), Image: ir, ImageName: n.Full}
	if r.Digest, _, err = s.digest(ctx, &r); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	r.Size = is.Bytes(im, form)
	// What it is made of may be removed then: it is on the disk.
	if err := is.Sync(im, form); err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	if err := writeJSON(s.snapshotPath(owner, name), &r, true); err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	return r.info(), nil
}

// imageFile is the name of an image in a file or a directory, which may be
// followed by ":TAG".
func imageFile(path string) string {
	dir := path
	if _, err := os.Stat(path); err != nil {
		if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, filepath.Separator) {
			dir = path[:i]
		}
	}
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return "oci:" + path
	}
	return "docker-archive:" + path
}
