//go:build linux

package rootfs

import (
	"bytes"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// DpkgDir is dpkg's database.
const DpkgDir = "/var/lib/dpkg"

// DpkgFiles are the files of its database in which dpkg is told of berth's
// programs. Tell returns a content with what is told, Untell without.
var DpkgFiles = []struct {
	Name         string
	Tell, Untell func([]byte) []byte
}{{"diversions", diversions, undiverted}, {"statoverride", overrides, notOverridden}}

// Placeholders are where an empty file may have been made for a program of berth's
// to be mounted on.
var Placeholders = []string{"/usr/bin/sudo", "/usr/bin/fusermount3", "/usr/bin/fusermount",
	"/usr/local/bin/sudo", "/usr/local/bin/fusermount3", "/usr/local/bin/fusermount"}

// managers are the databases of other package managers.
var managers = []string{"/lib/apk/db/installed", "/usr/lib/sysimage/rpm", "/var/lib/rpm", "/var/lib/pacman/local"}

// diverted are the files of packages that berth's programs stand for. A mount
// point can be neither replaced nor removed, so that apt-get would fail: dpkg is
// told to put them aside, and believes that an administrator wants it so.
var diverted = []string{"/usr/bin/sudo", "/bin/fusermount3", "/usr/bin/fusermount3", "/bin/fusermount", "/usr/bin/fusermount"}

// aside is what dpkg calls them instead.
const aside = ".distrib"

// maxList is the longest list of dpkg's that is read.
const maxList = 1 << 20

// diversions returns dpkg's list of diversions with those of berth's programs: in
// groups of three lines, the name, what it is called instead, and the package that
// wants it, ":" for none. What others divert stays. A list that is no such one is
// returned as it is.
func diversions(list []byte) []byte {
	var lines []string
	if text := strings.TrimSuffix(string(list), "\n"); text != "" {
		lines = strings.Split(text, "\n")
	}
	if len(lines)%3 != 0 {
		return list
	}
	have := map[string]bool{}
	for i := 0; i < len(lines); i += 3 {
		have[lines[i]], have[lines[i+1]] = true, true
	}
	out := bytes.Clone(list)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	for _, name := range diverted {
		if !have[name] && !have[name+aside] {
			out = append(out, name+"\n"+name+aside+"\n:\n"...)
		}
	}
	return out
}

// undiverted returns a list without what diversions adds.
func undiverted(list []byte) []byte {
	for _, name := range diverted {
		entry := name + "\n" + name + aside + "\n:\n"
		if bytes.HasPrefix(list, []byte(entry)) {
			list = list[len(entry):]
		} else {
			list = bytes.Replace(list, []byte("\n"+entry), []byte("\n"), 1)
		}
	}
	return list
}

const overridden = "root root 755 "

// notOverridden returns a list without what overrides adds.
func notOverridden(list []byte) []byte {
	var out []byte
	for line := range bytes.Lines(list) {
		name, ours := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), overridden)
		if !ours || !strings.Contains(name, "fusermount") || !slices.Contains(diverted, name) {
			out = append(out, line...)
		}
	}
	return out
}

// overrides returns dpkg's list of modes that an administrator wants (user, group,
// mode and name in a line) with those of fusermount: where there is one, the
// scripts of its packages do not give it rights, which they cannot.
func overrides(list []byte) []byte {
	have := map[string]bool{}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) == 4 {
			have[f[3]] = true
		}
	}
	out := bytes.Clone(list)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	for _, name := range diverted {
		if strings.Contains(name, "fusermount") && !have[name] {
			out = append(out, overridden+name+"\n"...)
		}
	}
	return out
}

// programs puts berth's sudo, and fusermount where it is wanted, at their places:
// in /usr/bin, where libraries look for them before they look at the PATH. A
// package manager that knows no diversions would fail to put its own there: where
// there is one, ours stand in /usr/local/bin, unless the image has such a file.
func (r *builder) programs(extra *Extra) {
	if extra.Sudo < 0 || r.err != nil {
		return
	}
	names := []string{"sudo"}
	if extra.Fusermount {
		names = append(names, "fusermount3", "fusermount")
	}
	local := !r.divert() && slices.ContainsFunc(managers, r.exists)
	for i, name := range names {
		attach := func(dir string) {
			if i == 0 {
				r.attach(extra.Sudo, dir+"/"+name, true)
			} else {
				r.copied(extra.Sudo, dir+"/"+name)
			}
		}
		dir := "/usr/bin"
		if local && !r.exists(dir+"/"+name) {
			dir = "/usr/local/bin"
		}
		if attach(dir); r.err != nil {
			r.err, extra.SudoDir = nil, RunDir+"/bin"
			attach(extra.SudoDir)
		}
	}
}

func (r *builder) exists(name string) bool {
	fd, err := r.within(name, unix.O_PATH)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// divert tells dpkg, where there is one, and reports whether it knows now. All
// that is read and written may be hostile, and lies inside.
func (r *builder) divert() bool {
	dir, err := r.within(DpkgDir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, "status", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false // of a distroless image
	}
	told := true
	for _, f := range DpkgFiles {
		told = tell(dir, f.Name, f.Tell) == nil && told
	}
	return told
}

// tell changes a file in a directory, when there is something to change.
func tell(dir int, name string, change func([]byte) []byte) error {
	old, err := readList(dir, name)
	if err != nil {
		return err
	}
	list := change(old)
	if bytes.Equal(list, old) {
		return nil
	}
	tmp := name + "-berth"
	_ = unix.Unlinkat(dir, tmp, 0)
	fd, err := unix.Openat(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	_, err = f.Write(list)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Renameat(dir, tmp, dir, name)
	}
	if err != nil {
		_ = unix.Unlinkat(dir, tmp, 0)
	}
	return err
}

// readList reads a file in a directory; there may be none.
func readList(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxList {
		return nil, unix.EINVAL
	}
	list := make([]byte, st.Size)
	n, err := unix.Pread(fd, list, 0)
	if err != nil {
		return nil, err
	}
	if int64(n) != st.Size {
		return nil, unix.EIO
	}
	return list, nil
}
