//go:build linux

package local

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"berth/sandbox"
	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/tree"
	"golang.org/x/sys/unix"
)

// baseFormat changes whenever the layers would be built differently.
const baseFormat = "4"

const workspace = "/workspace"

// homeOf is the home of the ordinary user of the default root.
func homeOf(account string) string { return "/home/" + account }

// accountOf is that user's name, where account is what a spec says.
func accountOf(account string) string { return cmp.Or(account, sandbox.DefaultAccount) }

// systemDirs may be links into /usr (the usual way) or directories of their own.
var systemDirs = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// packageDirs are what apt and dpkg know of the host's packages.
var packageDirs = []string{"/var/lib/dpkg", "/var/lib/apt"}

// baseKind is what the layers of the default root depend on beside the host.
type baseKind struct {
	// skeleton: the host's root is nobody inside, so that directories of ours
	// must lie over the host's where something is to be written.
	skeleton bool
	single   bool
	account  string // the ordinary user
	// owner of the layers' files, for root without id-mapped mounts.
	shift int
	as    tree.As
	extra []string
}

// base is a set of layers.
type base struct {
	name baseName
	dir  string
}

// layer is the directory that lies over the host's dir ("/usr", …); "/" is the
// lowest of the root itself.
func (b base) layer(dir string) string {
	if dir == "/" {
		return filepath.Join(b.dir, "root")
	}
	return filepath.Join(b.dir, "over", strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-"))
}

// fingerprintPaths tell by inode, size or time when the host was upgraded or
// something was installed on it.
var fingerprintPaths = []string{"/usr", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/share",
	"/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/lib/node_modules", "/usr/local/lib/node_modules", "/bin", "/lib", "/var/lib/dpkg/status", "/usr/lib/sysimage/rpm", "/var/lib/rpm", "/lib/apk/db/installed", "/var/lib/pacman/local",
	"/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl/certs", "/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/localtime", "/etc/os-release"}

// fingerprint identifies the present state of the host's system directories,
// and of the layers of that kind over them.
func fingerprint(kind baseKind) baseName {
	h := sha256.New()
	fmt.Fprintln(h, runtime.GOARCH)
	for _, p := range append(append([]string(nil), fingerprintPaths...), kind.extra...) {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			fmt.Fprintln(h, p, "-")
			continue
		}
		fmt.Fprintln(h, p, st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Mode)
	}
	host := hex.EncodeToString(h.Sum(nil)[:8])
	fmt.Fprintln(h, baseFormat, os.Geteuid(), os.Getegid(), kind.skeleton, kind.single, kind.shift, kind.extra, overDirs())
	if m := kind.as.Map; m != nil {
		fmt.Fprintln(h, *m)
	}
	if kind.account != sandbox.DefaultAccount {
		fmt.Fprintln(h, kind.account)
	}
	return baseName{Fingerprint: hex.EncodeToString(h.Sum(nil)[:12]), Host: host, System: systemName()}
}

func systemName() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			if q, err := strconv.Unquote(v); err == nil {
				return q
			}
			return v
		}
	}
	return "Linux"
}

// base returns the layers of the present host, building them when they are not
// there. One process builds, the others wait for it and use what it made; when
// it fails or is killed, the next one builds.
func (s *store) base(ctx context.Context, kind baseKind, step func(string) error) (base, error) {
	name := fingerprint(kind)
	b := base{name: name, dir: s.path("base", name.Fingerprint)}
	if s.use(b) {
		return b, nil
	}
	defer say(ctx, "preparing what all sandboxes show of this machine, once")()
	l, err := acquire(ctx, s.baseLock(name.Fingerprint), opCreating)
	if err != nil {
		return b, err
	}
	defer l.release(true)
	if s.use(b) {
		return b, nil
	}
	if err := s.makeLayers(ctx, b, kind.as, step, func(b base) error { return b.build(ctx, kind) }); err != nil {
		return b, fmt.Errorf("layers of the default root: %w", err)
	}
	return b, nil
}

// baseLock is held while the layers are built or removed.
func (s *store) baseLock(fingerprint string) string { return s.lockPath("base." + fingerprint) }

// use tells whether the layers are there, and the sweeper that they are used.
func (s *store) use(b base) bool {
	now := s.now()
	return os.Chtimes(b.dir, now, now) == nil
}

// makeLayers builds b aside and renames it into place, for the holder of its
// lock.
func (s *store) makeLayers(ctx context.Context, b base, as tree.As, step func(string) error, build func(base) error) error {
	// What a killed process left: whoever holds the lock is alone.
	tmp := s.path("tmp", "base."+b.name.Fingerprint)
	if err := as.Remove(ctx, tmp); err != nil {
		return err
	}
	err := os.Mkdir(tmp, 0o700)
	if err == nil {
		err = build(base{name: b.name, dir: tmp})
	}
	if err == nil {
		err = step("base:built")
	}
	if err == nil {
		err = os.Rename(tmp, b.dir)
	}
	if err != nil {
		_ = as.Remove(context.WithoutCancel(ctx), tmp)
		if s.use(b) {
			return nil // where a base directory is shared, another may have made it
		}
	}
	return err
}

func (b base) build(ctx context.Context, kind baseKind) error {
	root := b.layer("/")
	if err := os.MkdirAll(filepath.Join(b.dir, "over"), 0o700); err != nil {
		return err
	}
	if err := buildRoot(root, kind); err != nil {
		return err
	}
	for _, d := range systemDirs {
		fi, err := os.Lstat("/" + d)
		switch {
		case err != nil:
			continue
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink("/" + d)
			if err != nil {
				return err
			}
			if err := os.Symlink(to, filepath.Join(root, d)); err != nil {
				return err
			}
		case fi.IsDir():
			if err := mkdir(filepath.Join(root, d), 0o755); err != nil {
				return err
			}
		}
	}
	for _, d := range overDirs() {
		if err := buildOver(ctx, b.layer(d), d, kind.skeleton); err != nil {
			return err
		}
	}
	if err := b.divert(); err != nil {
		return err
	}
	return b.own(ctx, kind)
}

// divert tells the host's dpkg, as it is seen inside, what starts would tell it
// otherwise, each for itself.
func (b base) divert() error {
	const dir = rootfs.DpkgDir
	if !slices.Contains(overDirs(), dir) {
		return nil
	}
	for _, f := range rootfs.DpkgFiles {
		list, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		to := filepath.Join(b.layer(dir), f.Name)
		if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a skeleton, a copy
			return err
		}
		if err := os.WriteFile(to, f.Tell(list), 0o644); err != nil {
			return err
		}
		if err := os.Chmod(to, 0o644); err != nil { // whatever the umask
			return err
		}
	}
	return nil
}

// buildRoot makes the lowest layer: an empty system with our /etc.
func buildRoot(root string, kind baseKind) error {
	dirs := []struct {
		path string
		mode uint32
	}{
		{"", 0o755}, {"boot", 0o755}, {"dev", 0o755}, {"etc", 0o755}, {"home", 0o755}, {homeOf(kind.account), 0o750}, {"media", 0o755}, {"mnt", 0o755}, {"opt", 0o755},
		{"proc", 0o555}, {"root", 0o700}, {"run", 0o755}, {"run/lock", 0o1777}, {"srv", 0o755}, {"sys", 0o555}, {"tmp", 0o1777}, {"usr", 0o755}, {"workspace", 0o755},
		{"var", 0o755}, {"var/backups", 0o755}, {"var/cache", 0o755}, {"var/cache/apt", 0o755}, {"var/cache/apt/archives", 0o755}, {"var/cache/apt/archives/partial", 0o755},
		{"var/cache/debconf", 0o755}, {"var/cache/ldconfig", 0o700}, {"var/cache/fontconfig", 0o755}, {"var/cache/man", 0o755}, {"var/lib", 0o755}, {"var/lib/dpkg", 0o755}, {"var/lib/apt", 0o755},
		{"var/lib/misc", 0o755}, {"var/lib/pam", 0o755}, {"var/lib/python", 0o755}, {"var/lib/ucf", 0o755}, {"var/local", 0o755}, {"var/log", 0o755}, {"var/log/apt", 0o755}, {"var/mail", 0o1777}, {"var/opt", 0o755},
		{"var/spool", 0o755}, {"var/tmp", 0o1777},
	}
	for _, d := range dirs {
		if err := mkdir(filepath.Join(root, d.path), d.mode); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, p := range kind.extra {
		at := root
		for _, part := range strings.Split(strings.Trim(p, "/"), "/") {
			at = filepath.Join(at, part)
			if _, err := os.Lstat(at); err == nil {
				continue
			}
			if err := mkdir(at, 0o755); err != nil {
				return err
			}
		}
	}
	etc := filepath.Join(root, "etc")
	if err := copyEtc(etc); err != nil {
		return err
	}
	if err := writeEtc(etc, loginShell(), kind.account, kind.single); err != nil {
		return err
	}
	home := filepath.Join(root, homeOf(kind.account))
	for _, f := range []string{".bashrc", ".profile", ".bash_logout"} {
		for _, dir := range []string{home, filepath.Join(root, "root")} {
			if err := copyShown("/etc/skel/"+f, filepath.Join(dir, f), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func loginShell() string {
	for _, sh := range []string{"/bin/bash", "/usr/bin/bash"} {
		if _, err := os.Stat(sh); err == nil {
			return sh
		}
	}
	return "/bin/sh"
}

// mkdir makes a directory with exactly that mode, whatever the umask.
func mkdir(path string, mode uint32) error {
	if err := unix.Mkdir(path, mode); err != nil && err != unix.EEXIST {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return unix.Chmod(path, mode)
}

// copyReadable copies a file if there is one and everyone may read it; locks,
// which may be closed, are made empty.
func copyReadable(src, dst string) error {
	in, err := os.Open(src)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return os.WriteFile(dst, nil, 0o644)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// own gives the layers to those users inside that are not root. Files of ours
// are inside's root's already, but for a root without id-mapped mounts.
func (b base) own(ctx context.Context, kind baseKind) error {
	root := b.layer("/")
	if kind.shift != 0 {
		err := filepath.WalkDir(b.dir, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, kind.shift, kind.shift)
		})
		if err != nil {
			return err
		}
	}
	if kind.single {
		return nil
	}
	paths := []string{filepath.Join(root, homeOf(kind.account)), filepath.Join(root, workspace)}
	entries, err := os.ReadDir(paths[0])
	if err != nil {
		return err
	}
	for _, e := range entries {
		paths = append(paths, filepath.Join(paths[0], e.Name()))
	}
	if kind.as.Map == nil {
		return kind.as.Chown(ctx, kind.shift+agentID, kind.shift+agentID, paths...)
	}
	// What will be inside must be opened before it is given away.
	return kind.as.Chown(ctx, agentID, agentID, append(paths[1:], paths[0])...)
}
