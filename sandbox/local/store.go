//go:build linux

package local

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"berth/sandbox"
	"golang.org/x/sys/unix"
)

// store is the state directory:
//
//	sandboxes/ID/    record, layers, and the monitor's own files
//	locks/ID         see lock
//	tombstones/ID    JSON, what is remembered of a destroyed sandbox
//	retired/NAME/    sandboxes set aside, with a record of when and why
//	volumes/OWNER/NAME/ an owner's volumes; no sandbox's, and never swept
//	ports/LABEL      which sandbox's port is exposed under that label
//	ids/SLOT         which sandbox has which range of user ids
//	base/FINGERPRINT/ layers of the default root, and ours over images
//	images/          see package image
//	builds/          logs of builds, and in cache/ what their steps came to
//	snapshots/ID     JSON, which layers have a name
//	sealed/ID/       layers that sandboxes share, see seal
//	tmp/, trash/     half made and half removed; swept
//
// A sandbox exists when sandboxes/ID does; it comes and goes by one rename.
type store struct {
	dir string
	now func() time.Time // for what is old
}

var storeDirs = []string{"sandboxes", "locks", "tombstones", "retired", "ids", "base", "sealed", "snapshots", "builds", "builds/cache", "tmp", "trash", "bin", "ports", "volumes"}

// sandboxID is the name of a key's sandbox in the state directory. Nobody can
// choose another's, and it is short and safe as a file name.
func sandboxID(k sandbox.Key) string {
	sum := sha256.Sum256([]byte(string(k.Owner) + "\x00" + string(k.Session)))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:15]))
}

// openStore checks and, where it is missing, makes the state directory. Its
// errors are *sandbox.UserError and say what to do.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, refuse("the state directory %s cannot be made: %v; choose another with BERTH_STATE or state: in the configuration", dir, reason(err))
	}
	// Layers are named to the kernel by path: a link that changes later must
	// not move them.
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, refuse("the state directory %s: %v", dir, reason(err))
	}
	s := &store{dir: real, now: time.Now}
	if err := s.check(); err != nil {
		return nil, err
	}
	spread(real)
	for _, d := range storeDirs {
		if err := os.Mkdir(filepath.Join(real, d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, refuse("the state directory %s is not writable: %v; choose another with BERTH_STATE or state: in the configuration", real, reason(err))
		}
	}
	for _, d := range []string{"tmp", "sealed", "volumes"} { // where trees are made
		spread(filepath.Join(real, d))
	}
	return s, nil
}

// topDir is FS_TOPDIR_FL of linux/fs.h: what lies in the directory is unrelated.
const topDir = 0x20000

// spread lets ext4 lay the directories below dir far apart. Near each other they
// share a table of inodes, and one that many sandboxes have just left takes ten
// times as long to find a free one in. Other file systems know no such hint.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&topDir == 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// Kinds of file systems that cannot hold the upper layer of an overlay.
var unfitFS = map[int64]string{
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", // a container's own root
	unix.NFS_SUPER_MAGIC:       "NFS",
	unix.V9FS_MAGIC:            "9p",
	unix.SMB2_SUPER_MAGIC:      "SMB",
	unix.CIFS_SUPER_MAGIC:      "CIFS",
	unix.MSDOS_SUPER_MAGIC:     "FAT",
	unix.EXFAT_SUPER_MAGIC:     "exFAT",
	unix.ECRYPTFS_SUPER_MAGIC:  "eCryptfs",
}

func (s *store) check() error {
	var st unix.Stat_t
	if err := unix.Stat(s.dir, &st); err != nil {
		return refuse("the state directory %s: %v", s.dir, err)
	}
	if int(st.Uid) != os.Geteuid() {
		return refuse("the state directory %s belongs to user id %d, and berth runs as %d; run berth as its owner, or choose another with BERTH_STATE", s.dir, st.Uid, os.Geteuid())
	}
	if st.Mode&0o077 != 0 {
		if err := os.Chmod(s.dir, 0o700); err != nil {
			return refuse("the state directory %s is open to others (mode %o) and cannot be closed: %v", s.dir, st.Mode&0o777, reason(err))
		}
	}
	var fsinfo unix.Statfs_t
	if err := unix.Statfs(s.dir, &fsinfo); err != nil {
		return refuse("the state directory %s: %v", s.dir, err)
	}
	if kind, ok := unfitFS[int64(fsinfo.Type)]; ok {
		return refuse("the state directory %s is on %s, which cannot hold a sandbox's files; put it on a local file system such as ext4, xfs, btrfs or tmpfs: in a container, mount a volume there (docker run -v berth:%s), else set BERTH_STATE", s.dir, kind, s.dir)
	}
	if fsinfo.Flags&unix.ST_RDONLY != 0 {
		return refuse("the state directory %s is on a read-only file system; choose another with BERTH_STATE", s.dir)
	}
	return s.checkXattr()
}

// checkXattr tries what an overlay must be able to write.
func (s *store) checkXattr() error {
	probe, err := os.MkdirTemp(s.dir, ".probe-")
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return nil // said where space is needed
		}
		return refuse("the state directory %s is not writable: %v; choose another with BERTH_STATE or state: in the configuration", s.dir, reason(err))
	}
	defer os.Remove(probe)
	name := "user.overlay.berth"
	if os.Geteuid() == 0 {
		name = "trusted.overlay.berth"
	}
	err = unix.Setxattr(probe, name, []byte("y"), 0)
	if err == unix.EPERM && os.Geteuid() == 0 {
		err = unix.Setxattr(probe, "user.overlay.berth", []byte("y"), 0)
	}
	if err != nil && err != unix.ENOSPC && err != unix.EDQUOT {
		return refuse("the file system of the state directory %s cannot hold extended attributes (%v), which an overlay needs; put it on ext4, xfs or btrfs with BERTH_STATE (tmpfs: Linux 6.6 or later)", s.dir, err)
	}
	return nil
}

// minFree is what a new sandbox needs to start at all, in bytes.
const minFree = 32 << 20

func (s *store) checkSpace() error {
	var fsinfo unix.Statfs_t
	if err := unix.Statfs(s.dir, &fsinfo); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	free := int64(fsinfo.Bavail) * int64(fsinfo.Bsize)
	if free < minFree {
		return refuse("only %d MiB are free on the file system of %s, and a sandbox needs %d MiB to start; free some space, or move the state directory with BERTH_STATE", free>>20, s.dir, minFree>>20)
	}
	if fsinfo.Files > 0 && fsinfo.Ffree < 256 {
		return refuse("the file system of %s has no inodes left; remove files, or move the state directory with BERTH_STATE", s.dir)
	}
	return nil
}

// refuse makes an error of the machine, not of the call.
func refuse(format string, args ...any) error {
	return &sandbox.UserError{Text: fmt.Sprintf(format, args...), Err: sandbox.ErrUnavailable}
}

func (s *store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// writeJSON replaces the file at path atomically, for a caller that alone writes
// there. With durable, the content and its name are on disk when it returns.
func writeJSON(path string, v any, durable bool) error {
	if !durable {
		return replaceJSON(path+".new", path, v, nil)
	}
	if err := replaceJSON(path+".new", path, v, (*os.File).Sync); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// orderJSON is writeJSON for what need not be on disk at once: after the power
// was cut the file is as before or as now, never in between, and what was
// renamed before it is renamed. It does not wait for the journal, behind which
// all that a sandbox has just written may queue.
func orderJSON(path string, v any) error {
	return replaceJSON(path+".new", path, v, func(f *os.File) error {
		const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		err := unix.SyncFileRange(int(f.Fd()), 0, 0, all)
		if err == unix.ENOSYS || err == unix.EINVAL || err == unix.ESPIPE {
			return f.Sync()
		}
		return err
	})
}

// replaceJSON writes v to tmp, calls written with the file, unless it is nil, and
// renames it to path.
func replaceJSON(tmp, path string, v any, written func(*os.File) error) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil && written != nil {
		err = written(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// readJSON reads at most 1 MiB.
func readJSON(path string, v any) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20+1))
	if err != nil {
		return err
	}
	if len(b) > 1<<20 {
		return errors.New("too large")
	}
	return json.Unmarshal(b, v)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
