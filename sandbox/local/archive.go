//go:build linux

package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/disk"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// An archive is the layers' directory as a tar stream, compressed with zstd.
// Archiving goes: pack aside, read back and compare, rename, write the record
// (from here on it is archived), free the layers. Restoring goes: unpack aside,
// compare, rename, write the record, remove the archive. Killed at any step, one
// of the two is whole, and the same call goes on from there.

const restoringDir = "layers.restoring"

// Archive packs a stopped sandbox.
func (in *Instance) Archive(ctx context.Context) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opArchiving)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.lookLocked(l, opArchiving)
	if errors.Is(err, fs.ErrNotExist) || err == nil && v.status == sandbox.StatusDestroyed {
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	}
	if err != nil {
		return err
	}
	switch v.status {
	case sandbox.StatusArchived:
		return in.freeLayers(ctx, v.rec)
	case sandbox.StatusStopped:
		return full(in.s, in.archive(ctx, &v))
	case sandbox.StatusError:
		return &sandbox.UserError{Text: "the sandbox is damaged: " + v.reason, Err: sandbox.ErrUnavailable}
	}
	return &sandbox.UserError{Text: "only a stopped sandbox can be archived, and this one is " + string(v.status) + "; stop it first"}
}

func (in *Instance) archive(ctx context.Context, v *view) error {
	r, step := v.rec, in.p.opts.step
	if v.crashed {
		if err := in.p.engine.kill(ctx, in.dir()); err != nil {
			return err
		}
	}
	if err := in.settleSeal(r); err != nil {
		return err
	}
	as := treeAs(r.IDs)
	path := filepath.Join(in.dir(), archiveFile)
	tmp := path + ".new"
	defer os.Remove(tmp) // renamed by then, unless something failed
	a := &archived{At: time.Now().UTC(), Stopped: in.stopped(v)}
	var plain string
	err := in.withFiles(r, func(dir string) (err error) {
		// Overlay's working directories mean nothing once it is unmounted.
		works, err := filepath.Glob(filepath.Join(dir, "*", "work"))
		for _, w := range works {
			if err == nil {
				err = as.Remove(ctx, w)
			}
		}
		if err == nil {
			plain, err = in.pack(ctx, dir, tmp, as, a)
		}
		return err
	})
	if err != nil {
		if errors.Is(err, tree.ErrTooDeep) {
			return &sandbox.UserError{Text: "the sandbox stays stopped: " + err.Error()}
		}
		return fmt.Errorf("pack: %w", err)
	}
	if err := step("archive:packed"); err != nil {
		return err
	}
	if err := in.verify(ctx, tmp, a, plain); err != nil {
		return fmt.Errorf("the archive was not written as it should be, and the sandbox stays as it was: %w", err)
	}
	if err := step("archive:verified"); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if err := syncDir(in.dir()); err != nil {
		return err
	}
	if err := step("archive:renamed"); err != nil {
		return err
	}
	r.Archived = a
	if err := in.s.writeRecord(in.id, r); err != nil {
		return err
	}
	if err := step("archive:recorded"); err != nil {
		return err
	}
	in.p.log.InfoContext(ctx, "sandbox archived", slog.String("session", string(r.Session)), slog.String("sandbox", in.id), slog.Int64("bytes", a.Size))
	return in.freeLayers(ctx, r)
}

// freeLayers removes the layers of an archived sandbox, if they are still there.
func (in *Instance) freeLayers(ctx context.Context, r *record) error {
	ctx = context.WithoutCancel(ctx)
	if err := os.Remove(filepath.Join(in.dir(), disk.Image)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Lstat(in.layers()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// Renamed first: half of the layers must not look like all of them.
	gone := in.layers() + ".gone"
	as := treeAs(r.IDs)
	if err := as.Remove(ctx, gone); err != nil {
		return err
	}
	if err := os.Rename(in.layers(), gone); err != nil {
		return err
	}
	if err := in.p.opts.step("archive:freeing"); err != nil {
		return err
	}
	return as.Remove(ctx, gone)
}

// pack writes the archive and returns the digest of what was packed.
func (in *Instance) pack(ctx context.Context, dir, tmp string, as tree.As, a *archived) (string, error) {
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	packedSum, plainSum := sha256.New(), sha256.New()
	out := &counter{w: io.MultiWriter(f, packedSum)}
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(2))
	if err != nil {
		return "", err
	}
	defer z.Close()
	content := &counter{w: io.MultiWriter(z, plainSum), told: in.tell("packing")}
	if a.Content, err = as.Pack(ctx, content, dir); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	a.SHA256, a.Size = hexSum(packedSum), out.n
	return hexSum(plainSum), f.Close()
}

// verify reads the archive back from the file and compares.
func (in *Instance) verify(ctx context.Context, path string, a *archived, plain string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// What is read must come from the disk, not from what was just written.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	packedSum, plainSum := sha256.New(), sha256.New()
	z, err := zstd.NewReader(io.TeeReader(ctxReader{ctx, f}, packedSum), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	if _, err := io.Copy(&counter{w: plainSum, told: in.tell("verifying")}, z); err != nil {
		return err
	}
	if got := hexSum(packedSum); got != a.SHA256 {
		return fmt.Errorf("checksum is %s, not %s", got, a.SHA256)
	}
	if got := hexSum(plainSum); got != plain {
		return fmt.Errorf("checksum of the contents is %s, not %s", got, plain)
	}
	return nil
}

// errDamagedArchive is the sandbox's own fault, unlike a full disk.
var errDamagedArchive = errors.New("its archive is damaged")

// checkArchive compares the archive's checksum.
func (in *Instance) checkArchive(ctx context.Context, a *archived) error {
	f, err := os.Open(filepath.Join(in.dir(), archiveFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", errDamagedArchive, archiveFile)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, ctxReader{ctx, f}); err != nil {
		return err
	}
	if got := hexSum(sum); got != a.SHA256 {
		return fmt.Errorf("%w: the checksum of %s is %s and was %s", errDamagedArchive, archiveFile, got, a.SHA256)
	}
	return nil
}

// restore unpacks the archive of an archived sandbox; then it is a stopped one.
func (in *Instance) restore(ctx context.Context, r *record) error {
	step := in.p.opts.step
	as := treeAs(r.IDs)
	if _, err := os.Lstat(in.layers()); errors.Is(err, fs.ErrNotExist) {
		if err := in.unpack(ctx, r, as); err != nil {
			return err
		}
	} // else killed before freeing, or after unpacking: they are whole
	r.Archived = nil
	if err := in.s.writeRecord(in.id, r); err != nil {
		return err
	}
	if err := step("restore:recorded"); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(in.dir(), archiveFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return as.Remove(ctx, in.layers()+".gone")
}

func (in *Instance) unpack(ctx context.Context, r *record, as tree.As) error {
	step := in.p.opts.step
	// Before anything is unpacked: what is damaged must not be interpreted.
	if err := in.checkArchive(ctx, r.Archived); err != nil {
		if errors.Is(err, errDamagedArchive) {
			return in.fail(r, err.Error())
		}
		return err
	}
	tmp := filepath.Join(in.dir(), restoringDir)
	if err := as.Remove(ctx, tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	unpack := func(dir string) error {
		if err := in.unpackInto(ctx, dir, r.Archived, as); err != nil {
			return err
		}
		return syncFS(dir)
	}
	var err error
	if image := filepath.Join(in.dir(), disk.Image); r.DiskKind == wire.DiskImage {
		// What a killed restore left of the image is made anew; without layers it
		// is nobody's.
		if err = makeImage(ctx, image, r.Spec.Disk); err == nil {
			err = withImage(image, unpack)
		}
		if err == nil {
			err = syncFS(in.dir())
		}
	} else {
		err = unpack(tmp)
	}
	if err == nil {
		err = step("restore:unpacked")
	}
	if err == nil {
		err = os.Rename(tmp, in.layers())
	}
	if err != nil {
		_ = as.Remove(context.WithoutCancel(ctx), tmp)
		return fmt.Errorf("restore the archive: %w", err)
	}
	if err := syncDir(in.dir()); err != nil {
		return err
	}
	return step("restore:renamed")
}

func (in *Instance) unpackInto(ctx context.Context, dir string, a *archived, as tree.As) error {
	f, err := os.Open(filepath.Join(in.dir(), archiveFile))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(2))
	if err != nil {
		return err
	}
	defer z.Close()
	told := &counter{w: io.Discard, told: in.tell("unpacking")}
	got, err := as.Unpack(ctx, io.TeeReader(z, told), dir)
	if err != nil {
		return err
	}
	if got.Entries != a.Content.Entries || got.Bytes != a.Content.Bytes {
		return fmt.Errorf("%d entries with %d bytes were unpacked, and %d with %d packed", got.Entries, got.Bytes, a.Content.Entries, a.Content.Bytes)
	}
	return nil
}

func syncFS(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

func (in *Instance) tell(what string) func(int64) {
	if in.p.opts.Progress == nil {
		return nil
	}
	return func(n int64) { in.p.opts.Progress(in.key, Progress{Step: what, Bytes: n}) }
}

// counter counts what passes to w, and tells every 8 MiB.
type counter struct {
	w       io.Writer
	n, last int64
	told    func(int64)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if c.told != nil && c.n-c.last >= 8<<20 {
		c.last = c.n
		c.told(c.n)
	}
	return n, err
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
