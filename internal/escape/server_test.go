//go:build linux

package escape_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/driver"
	"berth/internal/escape"
	"berth/sandbox"
	"berth/sandbox/local"
)

// TestThroughServer attacks a sandbox of a real server, driven by an MCP client.
func TestThroughServer(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	state := filepath.Join(shared.dir, "server")
	p := driver.Program{Path: build(t, "berth"), State: state, Env: []string{"BERTH_TOKEN=" + escape.Canary, "S3_SECRET_ACCESS_KEY=" + escape.Canary}}
	s, err := p.Stdio(ctx)
	must(t, err)
	defer s.Close()
	program, err := os.ReadFile(build(t, attackerPackage))
	must(t, err)
	session := map[string]any{"session_id": "escape-" + random()}
	call := func(tool string, args map[string]any) *driver.Answer {
		t.Helper()
		for k, v := range session {
			args[k] = v
		}
		a, err := s.Must(ctx, tool, args)
		must(t, err)
		return a
	}
	call("start_sandbox", map[string]any{})
	defer call("destroy_sandbox", map[string]any{})
	call("write_file", map[string]any{"path": attackerPath, "base64": base64.StdEncoding.EncodeToString(program), "mode": "0755"})
	w.Sockets = append(w.Sockets, stateSockets(t)...)
	ids := strings.Fields(call("execute_command", map[string]any{"argv": []string{"cat", "/proc/self/uid_map"}, "user": "root"}).Output())
	w.IDs = "sub"
	if os.Geteuid() == 0 {
		w.IDs = "range"
	}
	if len(ids) == 3 && ids[2] == "1" {
		w.IDs = "single"
	}
	data, err := json.Marshal(w.Outside)
	must(t, err)
	call("write_file", map[string]any{"path": "/home/agent/outside.json", "content": string(data)})
	for _, user := range []string{"agent", "root"} {
		t.Run(user, func(t *testing.T) {
			a := call("execute_command", map[string]any{"argv": []string{attackerPath, "run", user, "/home/agent/outside.json"}, "user": user})
			judge(t, names(t, user), a.Text, map[string]bool{"read_only_folder": true, "planted_programs": true, "moved_part": true, "own_setuid_file": w.IDs == "single"})
			w.check(t)
		})
	}
	for _, path := range w.Files {
		for _, tool := range []string{"read_file", "edit_file"} {
			args := map[string]any{"path": path, "session_id": session["session_id"]}
			if tool == "edit_file" {
				args["edits"] = []map[string]any{{"old_text": escape.Canary, "new_text": "x"}}
			}
			a, err := s.Call(ctx, tool, args)
			must(t, err)
			if !a.IsError || strings.Contains(a.Text, escape.Canary) {
				t.Errorf("%s %s: %s", tool, path, a.Text)
			}
		}
	}
}

// TestOneSandbox makes twenty first calls of one session at once, from five
// server processes: they must meet in one sandbox, and each must run once.
func TestOneSandbox(t *testing.T) {
	ctx := t.Context()
	state := filepath.Join(shared.dir, "one")
	p := driver.Program{Path: build(t, "berth"), State: state}
	const servers, each = 5, 4
	var clients []*driver.Session
	for n := range servers {
		if n < 2 { // each client of stdio is a server of its own
			s, err := p.Stdio(ctx)
			must(t, err)
			defer s.Close()
			for range each {
				clients = append(clients, s)
			}
			continue
		}
		server, err := p.ListenAndServe(ctx, 0)
		must(t, err)
		defer server.Stop()
		for i := range each {
			s, err := server.Dial(ctx, []driver.Transport{driver.HTTP, driver.SSE}[i%2], "")
			must(t, err)
			defer s.Close()
			clients = append(clients, s)
		}
	}
	id := "first-" + random()
	args := map[string]any{"session_id": id, "command": "echo call >> ~/calls; readlink /proc/self/ns/pid"}
	answers := make([]*driver.Answer, len(clients))
	errs := make([]error, len(clients))
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			<-begin
			answers[i], errs[i] = c.Must(ctx, "execute_command", args)
		})
	}
	close(begin)
	wg.Wait()
	spaces, created := map[string]int{}, 0
	for i, a := range answers {
		if errs[i] != nil {
			t.Errorf("call %d: %v", i, errs[i])
			continue
		}
		first, _, _ := strings.Cut(a.Text, "\n")
		spaces[first]++
		if strings.Contains(a.Text, "created") {
			created++
		}
	}
	if len(spaces) != 1 {
		t.Errorf("the calls ran in %d sandboxes: %v", len(spaces), spaces)
	}
	a, err := clients[0].Must(ctx, "execute_command", map[string]any{"session_id": id, "command": "wc -l < ~/calls"})
	must(t, err)
	if got := strings.TrimSpace(a.Output()); got != strconv.Itoa(len(clients)) {
		t.Errorf("%s commands ran, want %d", got, len(clients))
	}
	t.Logf("%d of %d answers say that the sandbox was created", created, len(clients))
	dirs, err := os.ReadDir(filepath.Join(state, "sandboxes"))
	must(t, err)
	if len(dirs) != 1 {
		t.Errorf("%d sandbox directories, want 1", len(dirs))
	}
	if n := len(monitors(id)); n != 1 {
		t.Errorf("%d monitors, want 1", n)
	}
	_, err = clients[0].Must(ctx, "destroy_sandbox", map[string]any{"session_id": id})
	must(t, err)
	if left := monitors(id); len(left) != 0 {
		t.Errorf("left after destroy: %v", left)
	}
}

// monitors lists the processes of this machine that serve sessions whose id
// holds part.
func monitors(part string) (all []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), "box\x00monitor\x00") && strings.Contains(string(b), part) {
			all = append(all, strings.Split(f, "/")[2])
		}
	}
	return all
}

// process is one of this machine for good: numbers alone are given away again,
// as those of namespaces are, and the sandboxes of other tests come and go too.
type process struct {
	pid   string
	start string // clock ticks since boot
}

// stat reads what the kernel says of pid.
func stat(pid string) (p process, parent string, ok bool) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return p, "", false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return p, "", false
	}
	return process{pid, f[19]}, f[1], true
}

// family is pid and all that descend from it. Of a sandbox's monitor, that is
// everything inside: orphans there become children of init.
func family(pid string) (all []process) {
	children := map[string][]process{}
	files, _ := filepath.Glob("/proc/[0-9]*")
	for _, f := range files {
		if p, parent, ok := stat(filepath.Base(f)); ok {
			children[parent] = append(children[parent], p)
		}
	}
	if p, _, ok := stat(pid); ok {
		all = append(all, p)
	}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i].pid]...)
	}
	return all
}

// left is what a run of sandboxes could leave behind.
type left struct {
	sessions  string // part of their ids
	processes []process
	cgroups   map[string]bool // names below the hierarchies
	state     string
}

// things lists what is left; names that stand for tombstones aside.
func (l *left) things() (all []string) {
	for _, pid := range monitors(l.sessions) {
		all = append(all, "monitor "+pid)
	}
	for _, p := range l.processes {
		if now, _, ok := stat(p.pid); ok && now == p {
			b, _ := os.ReadFile("/proc/" + p.pid + "/cmdline")
			all = append(all, fmt.Sprintf("process %s %q", p.pid, b))
		}
	}
	for name := range l.cgroups {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + name)
		more, _ := filepath.Glob("/sys/fs/cgroup" + name)
		all = append(all, append(dirs, more...)...)
	}
	for _, dir := range []string{"sandboxes", "tmp", "run", "trash"} {
		entries, _ := os.ReadDir(filepath.Join(l.state, dir))
		for _, e := range entries {
			all = append(all, filepath.Join(l.state, dir, e.Name()))
		}
	}
	return all
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// TestCycles makes and destroys sandboxes, each with a process still running,
// and looks for whatever is left of them. BERTH_ESCAPE_CYCLES says how many.
func TestCycles(t *testing.T) {
	cycles := 50
	if s := os.Getenv("BERTH_ESCAPE_CYCLES"); s != "" {
		var err error
		cycles, err = strconv.Atoi(s)
		must(t, err)
	} else if testing.Short() {
		cycles = 10
	}
	state := filepath.Join(shared.dir, "cycles")
	m := newManager(t, local.Options{Dir: state})
	l := &left{sessions: "cycle-" + random(), cgroups: map[string]bool{}, state: state}
	ctx := t.Context()
	// On a slow machine it takes more than one call's time to prepare the root.
	first := sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.SessionID(l.sessions + "-first")}
	for err := sandbox.ErrStarting; errors.Is(err, sandbox.ErrStarting); {
		_, err = m.ExecuteCommand(ctx, first, sandbox.RunRequest{Command: "true"})
	}
	_, err := m.DestroySandbox(ctx, first)
	must(t, err)
	var fds, routines int
	for i := range cycles {
		key := sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.SessionID(fmt.Sprintf("%s-%d", l.sessions, i))}
		r, err := m.ExecuteCommand(ctx, key, sandbox.RunRequest{Command: "cat /proc/self/cgroup; (setsid sleep 1000 >/dev/null 2>&1 &)"})
		must(t, err)
		if strings.Contains(r.Stdout.Head, "berth") || !strings.Contains(r.Stdout.Head, ":/\n") {
			t.Fatalf("what a command sees of its cgroups: %q", r.Stdout.Head)
		}
		_, err = m.SpawnProcess(ctx, key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Argv: []string{"sleep", "1000"}}})
		must(t, err)
		var own []process
		for _, monitor := range monitors(string(key.Session)) {
			own = append(own, family(monitor)...)
		}
		if len(own) < 4 { // monitor, init, and two commands
			t.Fatalf("of a running sandbox only %d processes are found: the test is blind: %v", len(own), own)
		}
		cycle := &left{sessions: string(key.Session), processes: own, cgroups: map[string]bool{}, state: state}
		for _, p := range own {
			b, _ := os.ReadFile("/proc/" + p.pid + "/cgroup")
			for line := range strings.Lines(string(b)) {
				if _, path, ok := strings.Cut(strings.TrimSpace(line), ":/"); ok && strings.Contains(path, "berth/") {
					cycle.cgroups["/"+path] = true
				}
			}
		}
		if n := len(cycle.things()); n < 6 {
			t.Fatalf("of a running sandbox only %d things are found: the test is blind: %v", n, cycle.things())
		}
		l.processes = append(l.processes, own...)
		maps.Copy(l.cgroups, cycle.cgroups)
		_, err = m.DestroySandbox(ctx, key)
		must(t, err)
		if i == 2 { // what is made once is made by now
			fds, routines = descriptors(t), runtime.NumGoroutine()
		}
	}
	t.Logf("%d processes, %d control groups seen", len(l.processes), len(l.cgroups))
	var things []string
	for range 50 { // the kernel lets go of some things a little later
		if things = l.things(); len(things) == 0 && descriptors(t) <= fds && runtime.NumGoroutine() <= routines {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if len(things) > 0 {
		t.Errorf("%d things are left, such as %v", len(things), things[:min(len(things), 10)])
	}
	if n := descriptors(t); n > fds {
		t.Errorf("%d descriptors are open, %d were after the third cycle", n, fds)
	}
	if n := runtime.NumGoroutine(); n > routines {
		t.Errorf("%d goroutines, %d after the third cycle", n, routines)
	}
	if n := mountCount(t, state); n > 0 {
		t.Errorf("%d mounts of the state directory are left", n)
	}
	zombies(t)
}

// mountCount counts the mounts that this process sees of or in dir.
func mountCount(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return strings.Count(string(b), dir)
}

// zombies fails the test for children that nobody waited for.
func zombies(t *testing.T) {
	t.Helper()
	me := strconv.Itoa(os.Getpid())
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[0] == "Z" && fields[1] == me {
			t.Errorf("a child was not waited for: %s", b)
		}
	}
}
