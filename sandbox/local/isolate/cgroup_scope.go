//go:build linux

package isolate

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/scope"
)

// userBus is where the ordinary user who calls may have a systemd; empty: there
// is none. Root needs none.
var userBus = func() string {
	if os.Geteuid() == 0 {
		return ""
	}
	bus := scope.Bus(os.Getuid())
	if _, err := os.Stat(bus); err != nil {
		return ""
	}
	return bus
}

const scopeTime = 3 * time.Second

// delegated moves this process, the monitor, into a systemd scope of its own,
// where its user may make cgroups (v2), and returns what it then sees; nil when
// that is not needed or not to be had. It is done for limits that must hold only,
// since it takes some tens of milliseconds.
func (c *cgroups) delegated(trees []hierarchy) []hierarchy {
	v2 := slices.ContainsFunc(trees, func(h hierarchy) bool { return h.v2 })
	bus := ""
	if v2 && c.born < 0 && len(c.limits.Must) > 0 {
		bus = userBus()
	}
	if bus == "" {
		return nil
	}
	trees, err := c.enterScope(bus)
	if err != nil {
		c.reason += "; a systemd scope was asked for and refused (" + err.Error() + ")"
		return nil
	}
	return trees
}

func (c *cgroups) enterScope(bus string) ([]hierarchy, error) {
	unit := "berth-" + c.name + "-" + strconv.Itoa(os.Getpid()) + ".scope"
	if err := scope.Start(bus, unit, "a berth sandbox", os.Getpid()); err != nil {
		return nil, err
	}
	for end := time.Now().Add(scopeTime); ; time.Sleep(time.Millisecond) {
		for _, h := range found() {
			if !h.v2 || filepath.Base(h.own) != unit {
				continue
			}
			// A cgroup that hands controllers down has no processes itself.
			leaf := filepath.Join(h.own, "monitor")
			if err := os.Mkdir(leaf, 0o755); err != nil && !os.IsExist(err) {
				return nil, err
			}
			if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
				return nil, err
			}
			return found(), nil
		}
		if time.Now().After(end) {
			return nil, errors.New("systemd did not move the monitor into it")
		}
	}
}

// Delegated tells how an ordinary user comes to cgroups here; empty: not at
// all.
func Delegated() string {
	for _, h := range found() {
		if !h.v2 {
			continue
		}
		for _, place := range h.places() {
			if unix.Access(filepath.Join(place, "cgroup.subtree_control"), unix.W_OK) == nil {
				return "ours below " + place
			}
		}
		if userBus() != "" {
			return "a scope of the user's systemd, where limits are asked for"
		}
	}
	return ""
}
