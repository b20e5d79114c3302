//go:build linux

package promises_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// dir is where the site keeps the session's sandbox.
func (s *site) dir(b *box) string {
	b.t.Helper()
	dir := s.find(b)
	if dir == "" {
		b.t.Fatalf("no directory of session %s", b.id)
	}
	return dir
}

// find is dir, or empty when there is none.
func (s *site) find(b *box) string {
	found, _ := filepath.Glob(filepath.Join(s.beneath, "sandboxes", "*", "sandbox.json"))
	for _, f := range found {
		var r struct {
			Session string `json:"session"`
			Spec    struct {
				Labels map[string]string `json:"labels"`
			} `json:"spec"`
		}
		data, err := os.ReadFile(f)
		if err == nil && json.Unmarshal(data, &r) == nil && (r.Session == b.id || r.Spec.Labels[sessionLabel] == b.id) {
			return filepath.Dir(f)
		}
	}
	return ""
}

// monitor is what the sandbox's monitor says of itself.
func (s *site) monitor(b *box) map[string]any {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir(b), "monitor.json"))
	must(b.t, err)
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber() // times are in nanoseconds
	var m map[string]any
	must(b.t, d.Decode(&m))
	return m
}

// backdate lets the sandbox, which is stopped, have stopped so long ago.
func (s *site) backdate(b *box, ago time.Duration) {
	b.t.Helper()
	m := s.monitor(b)
	if _, ok := m["stopped"]; !ok {
		b.t.Fatal("the sandbox has not stopped in order")
	}
	m["stopped"] = time.Now().Add(-ago).UnixNano()
	data, err := json.Marshal(m)
	must(b.t, err)
	must(b.t, os.WriteFile(filepath.Join(s.dir(b), "monitor.json"), data, 0o600))
}

// crash kills the sandbox's monitor and its init, as a reboot would.
func (s *site) crash(b *box) {
	b.t.Helper()
	m := s.monitor(b)
	find := func(name string) int {
		var walk func(v any) int
		walk = func(v any) int {
			o, ok := v.(map[string]any)
			if !ok {
				return 0
			}
			if n, ok := o[name].(json.Number); ok {
				i, err := n.Int64()
				must(b.t, err)
				return int(i)
			}
			for _, inner := range o {
				if n := walk(inner); n > 0 {
					return n
				}
			}
			return 0
		}
		n := walk(m)
		if n <= 1 {
			b.t.Fatalf("no %s in %v", name, m)
		}
		return n
	}
	monitor, guest := find("monitor_pid"), find("init_pid")
	must(b.t, syscall.Kill(monitor, syscall.SIGKILL))
	// Init may end with its monitor.
	if err := syscall.Kill(guest, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		b.t.Fatal(err)
	}
	wait(b.t, 10*time.Second, "monitor and init are dead", func() bool { return dead(monitor) && dead(guest) })
}

// strike kills what runs of the sandbox now, if anything does, and does not
// wait. What the record says may be old: only a process with the start time that
// it names is killed.
func (s *site) strike(b *box) {
	var m struct {
		MonitorPID   int    `json:"monitor_pid"`
		MonitorStart uint64 `json:"monitor_start"`
		Ready        struct {
			InitPID   int    `json:"init_pid"`
			InitStart uint64 `json:"init_start"`
		} `json:"ready"`
	}
	data, err := os.ReadFile(filepath.Join(s.find(b), "monitor.json"))
	if err != nil || json.Unmarshal(data, &m) != nil {
		return
	}
	for _, p := range []struct {
		pid   int
		start uint64
	}{{m.MonitorPID, m.MonitorStart}, {m.Ready.InitPID, m.Ready.InitStart}} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		_, rest, _ := strings.Cut(string(data), ") ")
		if f := strings.Fields(rest); err == nil && len(f) > 19 && f[19] == strconv.FormatUint(p.start, 10) {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
}

// dead tells whether a process is gone or a zombie.
func dead(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z")
}
