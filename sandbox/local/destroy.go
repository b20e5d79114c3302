//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

// Destroy deletes everything but a tombstone.
func (in *Instance) Destroy(ctx context.Context) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opDestroying)
	if err != nil {
		return err
	}
	err = in.destroyLocked(ctx, "")
	l.release(err == nil)
	return err
}

// destroyLocked destroys under the caller's lock. The sandbox is gone with the
// rename into the trash; killed before, it is still there, killed after, the
// next berth empties the trash.
func (in *Instance) destroyLocked(ctx context.Context, reason string) error {
	ctx = context.WithoutCancel(ctx)
	step := in.p.opts.step
	var ids wire.IDs
	if !in.gone() {
		if err := step("destroy:begin"); err != nil {
			return err
		}
		if err := in.p.engine.kill(ctx, in.dir()); err != nil {
			return fmt.Errorf("end the sandbox's processes: %w", err)
		}
		if err := step("destroy:killed"); err != nil {
			return err
		}
		r, err := readRecord(in.dir())
		if err != nil {
			r, err = readCopy(in.dir())
		}
		t := tombstone{Owner: string(in.key.Owner), Session: string(in.key.Session), Destroyed: time.Now().UTC(), Reason: reason}
		if err == nil {
			t.Owner, t.Session, t.Created, t.Spec = r.Owner, r.Session, r.Created, r.Spec
			t.Spec.Env = nil // secrets live no longer than their sandbox
			ids = r.IDs
			in.s.dropPorts(r)
		}
		if t.Session != "" {
			// On a full disk deleting matters more than remembering.
			if err := writeJSON(in.s.tombstonePath(in.id), &t, true); err != nil {
				in.p.log.WarnContext(ctx, "no tombstone", slog.String("sandbox", in.id), slog.Any("err", err))
			}
		}
		if err := step("destroy:remembered"); err != nil {
			return err
		}
	}
	if err := in.trash(ctx, ids); err != nil {
		return err
	}
	in.p.log.InfoContext(ctx, "sandbox destroyed", slog.String("session", string(in.key.Session)), slog.String("sandbox", in.id))
	return nil
}

// trash removes the sandbox's directory, and what earlier attempts left.
func (in *Instance) trash(ctx context.Context, ids wire.IDs) error {
	s := in.s
	to := s.path("trash", in.id+"."+strconv.FormatInt(time.Now().UnixNano(), 36))
	err := os.Rename(in.dir(), to)
	switch {
	case err == nil:
		if err := syncDir(s.path("sandboxes")); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	s.releaseRange(in.id, ids)
	if err := in.p.opts.step("destroy:renamed"); err != nil {
		return err
	}
	return s.emptyTrash(ctx, in.id)
}

// emptyTrash removes what lies in the trash of sandbox id.
func (s *store) emptyTrash(ctx context.Context, id string) error {
	entries, err := os.ReadDir(s.path("trash"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if owner, _, _ := strings.Cut(e.Name(), "."); owner == id {
			errs = append(errs, s.removeTree(ctx, s.path("trash", e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a sandbox's directory, or part of one. Whose its files are
// says its record; without one, the way ids are mapped now.
func (s *store) removeTree(ctx context.Context, dir string) error {
	var r record
	as := treeAs(r.IDs)
	if err := readJSON(filepath.Join(dir, recordFile), &r); err == nil {
		as = treeAs(r.IDs)
	} else if err := readJSON(filepath.Join(dir, layerFile), &r); err == nil {
		as = treeAs(r.IDs)
	} else if ids, _ := idMode(); ids.Mode == wire.IDsSub {
		as = treeAs(ids)
	}
	// The record goes last: killed half way, the next attempt needs it.
	if as.Map != nil {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return tree.Remove(dir)
		}
		for _, e := range entries {
			if e.Name() == recordFile || e.Name() == layerFile {
				continue
			}
			if err := as.Remove(ctx, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return as.Remove(ctx, dir)
}

// retireTime is how long a sandbox that was set aside is kept.
const retireTime = 30 * 24 * time.Hour

// retirement is retired.json, in the directory of a sandbox set aside.
type retirement struct {
	Owner   string    `json:"owner"`
	Session string    `json:"session"`
	At      time.Time `json:"at"`
	Reason  string    `json:"reason"`
}

const retiredFile = "retired.json"

// Retire moves a damaged sandbox out of the way of its key.
func (in *Instance) Retire(ctx context.Context, reason string) (string, error) {
	l, err := acquire(ctx, in.s.lockPath(in.id), opDestroying)
	if err != nil {
		return "", err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.lookLocked(l, opDestroying)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	if v.status != sandbox.StatusError {
		return "", &sandbox.UserError{Text: "only a damaged sandbox is set aside, and this one is " + string(v.status) + "; destroy it instead"}
	}
	ctx = context.WithoutCancel(ctx)
	if err := in.p.engine.kill(ctx, in.dir()); err != nil {
		return "", err
	}
	now := time.Now().UTC()
	note := retirement{Owner: string(in.key.Owner), Session: string(in.key.Session), At: now, Reason: reason}
	if err := writeJSON(filepath.Join(in.dir(), retiredFile), &note, true); err != nil {
		return "", full(in.s, err)
	}
	t := tombstone{Owner: note.Owner, Session: note.Session, Destroyed: now, Reason: "set aside: " + reason}
	if v.rec != nil {
		t.Created, t.Spec = v.rec.Created, v.rec.Spec
		t.Spec.Env = nil
	}
	if err := writeJSON(in.s.tombstonePath(in.id), &t, true); err != nil {
		return "", full(in.s, err)
	}
	if err := in.p.opts.step("retire:remembered"); err != nil {
		return "", err
	}
	to := in.s.path("retired", in.id+"."+now.Format("20060102T150405.000"))
	if err := os.Rename(in.dir(), to); err != nil {
		return "", err
	}
	if v.rec != nil {
		in.s.releaseRange(in.id, v.rec.IDs)
	}
	for _, d := range []string{"sandboxes", "retired"} {
		if err := syncDir(in.s.path(d)); err != nil {
			return "", err
		}
	}
	in.p.log.WarnContext(ctx, "sandbox set aside", slog.String("session", string(in.key.Session)), slog.String("sandbox", in.id), slog.String("reason", reason), slog.String("to", to))
	return to + ", until " + now.Add(retireTime).Format(time.DateOnly), nil
}

// Recover tries to bring a damaged sandbox back: from the second copy of its
// record, or because what was missing is there again.
func (in *Instance) Recover(ctx context.Context) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opOther)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.look()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if v.status != sandbox.StatusError {
		return nil
	}
	unrecoverable := &sandbox.UserError{Text: "the sandbox cannot be recovered: " + v.reason, Err: sandbox.ErrUnavailable}
	r := v.rec
	if r == nil {
		if r, err = readCopy(in.dir()); err != nil || sandboxID(r.key()) != in.id {
			return unrecoverable
		}
	}
	if r.Archived != nil {
		if err := in.checkArchive(ctx, r.Archived); err != nil {
			return unrecoverable
		}
	} else if _, err := os.Lstat(in.layers()); err != nil && r.Sealing == "" {
		return unrecoverable
	}
	if in.s.missingLayer(r) != "" {
		return unrecoverable
	}
	r.Error = ""
	return full(in.s, in.s.writeRecord(in.id, r))
}

// fail records that the sandbox itself is damaged.
func (in *Instance) fail(r *record, why string) error {
	r.Error = why
	if err := in.s.writeRecord(in.id, r); err != nil {
		return err
	}
	return &sandbox.UserError{Text: "the sandbox is damaged: " + why, Err: sandbox.ErrUnavailable}
}
