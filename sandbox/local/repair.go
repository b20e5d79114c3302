//go:build linux

package local

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// machine is what fixes change. Each fix says what it did, and does nothing
// when it is already done.
type machine struct {
	root string // "/", but in tests
	// run runs a program of the machine.
	run func(name string, args ...string) error
}

var thisMachine = machine{root: "/", run: func(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.200s", strings.Join(append([]string{name}, args...), " "), err, bytes.TrimSpace(out))
	}
	return nil
}}

func (m machine) path(name string) string { return filepath.Join(m.root, name) }

// sysctl is the present value, empty when the kernel has none.
func (m machine) sysctl(key string) string {
	b, err := os.ReadFile(m.path("/proc/sys/" + strings.ReplaceAll(key, ".", "/")))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// setSysctl sets a value now and at every boot.
func (m machine) setSysctl(key, value string) (string, error) {
	f, err := os.OpenFile(m.path("/proc/sys/"+strings.ReplaceAll(key, ".", "/")), os.O_WRONLY, 0) // never made
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(value + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	const file = "/etc/sysctl.d/60-berth.conf"
	done := key + " = " + value
	if err := m.keepLine(file, done, func(line string) bool {
		k, _, ok := strings.Cut(line, "=")
		return ok && strings.TrimSpace(k) == key
	}); err != nil {
		return done + ", until the next boot", err
	}
	return done + ", also at every boot (" + file + ")", nil
}

// keepLine makes line the only one of those in a file of berth's own that same picks.
func (m machine) keepLine(file, line string, same func(string) bool) error {
	old, err := os.ReadFile(m.path(file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var text strings.Builder
	for l := range strings.Lines(string(old)) {
		if !same(strings.TrimSpace(l)) {
			text.WriteString(strings.TrimSuffix(l, "\n") + "\n")
		}
	}
	text.WriteString(line + "\n")
	return m.replace(file, text.String())
}

// replace writes a file of the machine at once, or not at all.
func (m machine) replace(file, text string) error {
	path := m.path(file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".berth-*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// installProfile tells AppArmor that the program exe may make user namespaces.
func (m machine) installProfile(exe string) (string, error) {
	const file = "/etc/apparmor.d/berth"
	before, rerr := os.ReadFile(m.path(file))
	if err := m.replace(file, fmt.Sprintf(appArmorProfile, exe)); err != nil {
		return "", err
	}
	if err := m.run("apparmor_parser", "-r", m.path(file)); err != nil {
		// A profile that cannot be loaded would be tried at every boot.
		if rerr == nil {
			return "", errors.Join(err, m.replace(file, string(before)))
		}
		return "", errors.Join(err, os.Remove(m.path(file)))
	}
	return "AppArmor lets " + exe + " make user namespaces (" + file + ")", nil
}

// loadModule loads a module of the kernel now and at every boot.
func (m machine) loadModule(name string) (string, error) {
	if err := m.run("modprobe", name); err != nil {
		return "", err
	}
	const file = "/etc/modules-load.d/berth.conf"
	if err := m.keepLine(file, name, func(line string) bool { return line == name }); err != nil {
		return "module " + name + " is loaded, until the next boot", err
	}
	return "module " + name + " is loaded, also at every boot (" + file + ")", nil
}

// openFUSE lets everybody open /dev/fuse, as udev's own rule does.
func (m machine) openFUSE() (string, error) {
	fi, err := os.Lstat(m.path("/dev/fuse"))
	if err != nil {
		return "", err
	}
	if m.root == "/" && fi.Mode()&fs.ModeCharDevice == 0 {
		return "", errors.New("/dev/fuse is no device")
	}
	if err := os.Chmod(m.path("/dev/fuse"), 0o666); err != nil {
		return "", err
	}
	return "everybody may open /dev/fuse, until the next boot", nil
}

// hasIDs tells whether a user, known by these names, has a range of ids in a
// file such as /etc/subuid.
func (m machine) hasIDs(file string, names ...string) bool {
	return slices.ContainsFunc(readRanges(m.path(file)), func(r idRange) bool {
		return slices.Contains(names, r.name) && r.count >= minSubIDs
	})
}

// giveIDs gives a user 65,536 ids of each kind that nobody else has.
func (m machine) giveIDs(name string, uid int) (string, error) {
	if name == "" || uid == 0 || strings.ContainsAny(name, ":\n# \t") {
		return "", fmt.Errorf("ids are given to ordinary users, and %q is none", name)
	}
	files := []string{"/etc/subuid", "/etc/subgid"}
	// Both hold the same numbers, as useradd does it; so look at both.
	var taken []idRange
	for _, f := range files {
		taken = append(taken, readRanges(m.path(f))...)
	}
	start := uint64(100_000)
	for i := 0; i < len(taken); i++ {
		if r := taken[i]; start < r.start+r.count && r.start < start+rangeSize {
			start, i = r.start+r.count, -1
		}
	}
	if start+rangeSize > firstSlot*rangeSize { // from there on they are root's sandboxes'
		return "", fmt.Errorf("no %d ids in one piece are free below %d in %s", rangeSize, firstSlot*rangeSize, strings.Join(files, " and "))
	}
	var done []string
	for _, f := range files {
		if m.hasIDs(f, name, strconv.Itoa(uid)) {
			continue
		}
		if err := m.appendLocked(f, fmt.Sprintf("%s:%d:%d\n", name, start, rangeSize)); err != nil {
			return strings.Join(done, "; "), err
		}
		done = append(done, fmt.Sprintf("%s gives %s the ids %d to %d", f, name, start, start+rangeSize-1))
	}
	return strings.Join(done, "; "), nil
}

// appendLocked adds a line as usermod does, which locks by a file of that name.
func (m machine) appendLocked(file, line string) error {
	lock := m.path(file + ".lock")
	l, err := os.OpenFile(lock, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is being changed by another program; if none runs, remove %s.lock", file, file)
	}
	if err != nil {
		return err
	}
	_, _ = l.WriteString(strconv.Itoa(os.Getpid()))
	_ = l.Close()
	defer os.Remove(lock)
	old, err := os.ReadFile(m.path(file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := string(old)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return m.replace(file, text+line)
}

// DiagnoseUser finds out what an ordinary user of this machine would miss, when
// root asks in that user's place (sudo berth doctor). It reads only.
func DiagnoseUser(name string, uid int) []Check {
	return thisMachine.diagnoseUser(name, uid, container() != "")
}

func (m machine) diagnoseUser(name string, uid int, contained bool) []Check {
	c := Check{Name: "user_namespaces_of_" + name, State: OK, Detail: "nothing keeps ordinary users from making them"}
	switch {
	case m.sysctl("kernel.unprivileged_userns_clone") == "0":
		c.State, c.Detail = Missing, "ordinary users may not make them"
		c.Remedy = "sysctl -w kernel.unprivileged_userns_clone=1"
		c.Fix = func() (string, error) { return m.setSysctl("kernel.unprivileged_userns_clone", "1") }
	case m.sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		exe, err := os.Executable()
		if _, serr := os.Stat(m.path("/etc/apparmor.d/berth")); serr == nil {
			c.Detail = "AppArmor has a profile for berth"
			break
		}
		c.State, c.Detail = Missing, "AppArmor keeps unknown programs of ordinary users from making them"
		c.Remedy = "save this as /etc/apparmor.d/berth and run `apparmor_parser -r /etc/apparmor.d/berth`:\n" + fmt.Sprintf(appArmorProfile, exe)
		if err == nil {
			c.Fix = func() (string, error) { return m.installProfile(exe) }
		}
	}
	if contained {
		c.Fix = nil // the machine's own settings are not the container's to change
	}
	ids := Check{Name: "user_ids_of_" + name, State: OK, Detail: "has ids in /etc/subuid and /etc/subgid"}
	for _, f := range []string{"/etc/subuid", "/etc/subgid"} {
		if !m.hasIDs(f, name, strconv.Itoa(uid)) {
			ids.State, ids.Detail = Degraded, f+" has no range of at least "+strconv.Itoa(minSubIDs)+" ids for "+name
			ids.Remedy = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + name
			ids.Fix = func() (string, error) { return m.giveIDs(name, uid) }
			break
		}
	}
	return []Check{c, ids}
}
