//go:build linux

package isolate

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hierarchy is one mounted tree of cgroups, and where this process is in it.
type hierarchy struct {
	root        string // where it is mounted
	own         string // this process's cgroup there, as a path on the host
	v2          bool
	controllers []string
}

// hierarchies reads what this process sees.
func hierarchies() []hierarchy {
	own := map[string]string{} // by controller; "" is v2
	b, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for c := range strings.SplitSeq(f[1], ",") {
				own[c] = f[2]
			}
		}
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []hierarchy
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		m, fs := strings.Fields(before), strings.Fields(after)
		if !found || len(m) < 6 || len(fs) < 3 || fs[0] != "cgroup" && fs[0] != "cgroup2" {
			continue
		}
		// Where the mount shows a part of the tree only, paths start there.
		h := hierarchy{root: m[4], own: m[4], v2: fs[0] == "cgroup2"}
		place := func(p string) string {
			if p = strings.TrimPrefix(p, strings.TrimSuffix(m[3], "/")); strings.Contains(p, "..") {
				return h.root
			}
			return filepath.Join(h.root, p)
		}
		if h.v2 {
			b, err := os.ReadFile(filepath.Join(h.root, "cgroup.controllers"))
			if err != nil {
				continue
			}
			for _, o := range strings.Fields(string(b)) {
				if o == "memory" || o == "pids" || o == "cpu" {
					h.controllers = append(h.controllers, o)
				}
			}
			h.own = place(own[""])
		} else {
			for o := range strings.SplitSeq(fs[2], ",") {
				switch o {
				case "memory", "pids", "cpu", "cpuacct":
					h.controllers = append(h.controllers, o)
					h.own = place(own[o])
				}
			}
		}
		if len(h.controllers) > 0 {
			out = append(out, h)
		}
	}
	return out
}

// found is hierarchies, but in tests.
var found = hierarchies

// places lists where the sandboxes' cgroups may be: below this process's own,
// or the nearest one above that can hold some.
func (h *hierarchy) places() []string {
	var out []string
	for dir := h.own; ; dir = filepath.Dir(dir) {
		out = append(out, dir)
		if dir == h.root || len(dir) <= len(h.root) {
			return out
		}
	}
}

// place is where the sandboxes' cgroups (v2) go, and which of the wanted
// controllers they have there: where all can be had, else where most.
func (h *hierarchy) place(wanted []string) (place string, on []string) {
	for _, dir := range h.places() {
		got := enable(dir, wanted)
		if len(got) < len(wanted) {
			// Those above may hand down what they hold back so far. Only root can
			// tell them to.
			h.handDown(dir, wanted)
			got = enable(dir, wanted)
		}
		if len(got) > len(on) {
			place, on = dir, got
		}
		if len(on) == len(wanted) {
			break
		}
	}
	return place, on
}

// handDown enables controllers in all cgroups above dir.
func (h *hierarchy) handDown(dir string, wanted []string) {
	rest, ok := strings.CutPrefix(dir, h.root+"/")
	if !ok {
		return
	}
	at := h.root
	for part := range strings.SplitSeq(rest, "/") {
		if len(enable(at, wanted)) < len(wanted) {
			return
		}
		at = filepath.Join(at, part)
	}
}

// enable turns controllers on for dir's children and tells which are.
func enable(dir string, wanted []string) []string {
	file := filepath.Join(dir, "cgroup.subtree_control")
	read := func() []string {
		b, _ := os.ReadFile(file)
		return strings.Fields(string(b))
	}
	on, tried := read(), false
	for _, w := range wanted {
		// To write what is so already makes the kernel wait for its locks.
		if !slices.Contains(on, w) {
			_ = os.WriteFile(file, []byte("+"+w), 0)
			tried = true
		}
	}
	if tried {
		on = read()
	}
	var out []string
	for _, w := range wanted {
		if slices.Contains(on, w) {
			out = append(out, w)
		}
	}
	return out
}
