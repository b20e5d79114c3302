//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"berth/sandbox/local/disk"
	"berth/sandbox/local/wire"
	"golang.org/x/sys/unix"
)

// How a disk limit is held is chosen when the sandbox is made and stays so, since
// its files lie accordingly: on an image, below layers/files of a file system that
// is mounted on layers while it runs; else below layers itself.

// chooseDisk finds out how the limit of s can be held with these ids, and, when
// not in full, why.
func chooseDisk(s specRecord, ids wire.IDs) (kind, why string) {
	err := disk.Available()
	if err == nil && ids.Mode != wire.IDsRange {
		err = errors.New("this root has too few user ids")
	}
	if err == nil {
		if _, err = mkfs(); err == nil {
			return wire.DiskImage, ""
		}
	}
	// What is deleted when it stops need not be on a disk.
	major, minor := kernelVersion()
	if s.deletedOnStop() && s.Disk <= usableMemory()/4 && (major > 6 || major == 6 && minor >= 6) {
		return wire.DiskTmpfs, ""
	}
	return wire.DiskSoft, err.Error() + "; an ephemeral sandbox could have up to " + size(usableMemory()/4) + " in memory"
}

// disk is what the monitor is to do about the limit; nil without one.
func (r *record) disk(dir string) *wire.Disk {
	if r.DiskKind == "" {
		return nil
	}
	d := &wire.Disk{Kind: r.DiskKind, Dir: filepath.Join(dir, layersDir)}
	switch r.DiskKind {
	case wire.DiskImage:
		d.Image = filepath.Join(dir, disk.Image)
	case wire.DiskSoft:
		_, d.Detail = chooseDisk(r.Spec, r.IDs)
	}
	return d
}

// uppers is where, below the layers' directory, the sandbox's files are while it runs.
func (r *record) uppers(layers string) string {
	if r.DiskKind == wire.DiskImage {
		return filepath.Join(layers, disk.Files)
	}
	return layers
}

// withFiles calls f with the directory of a stopped sandbox's files.
func (in *Instance) withFiles(r *record, f func(dir string) error) error {
	if r.DiskKind != wire.DiskImage {
		return f(in.layers())
	}
	return withImage(filepath.Join(in.dir(), disk.Image), f)
}

// withImage mounts an image for as long as f runs.
func withImage(image string, f func(files string) error) error {
	fd, err := disk.Mount(image)
	if err != nil {
		return fmt.Errorf("mount the sandbox's file system: %w", err)
	}
	defer unix.Close(fd)
	files := filepath.Join("/proc/self/fd", strconv.Itoa(fd), disk.Files)
	if err := os.MkdirAll(files, 0o700); err != nil {
		return err
	}
	return f(files)
}

// mkfs finds the program that makes file systems.
func mkfs() (string, error) {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("mkfs.ext4 is not installed (package e2fsprogs)")
}

// makeImage makes an empty file system of so many bytes, in a sparse file.
func makeImage(ctx context.Context, image string, bytes int64) error {
	program, err := mkfs()
	if err != nil {
		return err
	}
	// A former one may still be mounted for a moment.
	if err := os.Remove(image); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(image, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(bytes)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	// Room for many small files, as packages bring; a small journal, since a
	// machine that loses power must not take the files along.
	args := []string{"-q", "-F", "-m", "0", "-i", "8192", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"}
	if bytes >= 128<<20 {
		args = append(args, "-b", "4096", "-J", "size=4")
	} else {
		args = append(args, "-O", "^has_journal")
	}
	out, err := exec.CommandContext(ctx, program, append(args, image)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.200s", program, err, out)
	}
	return nil
}
