//go:build linux

package escape_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
			judge(t, names(t, user), a.Text, map[string]bool{"read_only_folder": true, "own_setuid_file": w.IDs == "single"})
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

// left is what a run of sandboxes could leave behind.
type left struct {
	sessions string // part of their ids
	// namespaces of their processes, and when the sandbox was destroyed: the
	// kernel gives numbers away again, to processes that start later.
	namespaces map[string]time.Time
	cgroups    map[string]bool // names below the hierarchies
	state      string
}

// things lists what is left; names that stand for tombstones aside.
func (l *left) things() (all []string) {
	for _, pid := range monitors(l.sessions) {
		all = append(all, "monitor "+pid)
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/*")
	for _, link := range links {
		ns, err := os.Readlink(link)
		if err != nil {
			continue
		}
		if gone, ok := l.namespaces[ns]; ok && (gone.IsZero() || started(strings.Split(link, "/")[2]).Before(gone)) {
			all = append(all, link+" is "+ns)
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

// started tells when a process began; the future when it is gone.
func started(pid string) time.Time {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if err != nil || !ok || len(f) < 20 {
		return time.Now().Add(time.Hour)
	}
	ticks, _ := strconv.ParseInt(f[19], 10, 64)
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
	return time.Now().Add(-time.Duration(up.Nano())).Add(time.Duration(ticks) * time.Second / 100)
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
	l := &left{sessions: "cycle-" + random(), namespaces: map[string]time.Time{}, cgroups: map[string]bool{}, state: state}
	ctx := t.Context()
	var fds, routines, mounts, seen int
	for i := range cycles {
		key := sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.SessionID(fmt.Sprintf("%s-%d", l.sessions, i))}
		r, err := m.ExecuteCommand(ctx, key, sandbox.RunRequest{Command: "readlink /proc/self/ns/*; cat /proc/self/cgroup; (setsid sleep 1000 >/dev/null 2>&1 &)"})
		must(t, err)
		var own []string
		for line := range strings.Lines(r.Stdout.Head) {
			line = strings.TrimSpace(line)
			if strings.Contains(line, ":[") && !strings.HasPrefix(line, "time") {
				own = append(own, line)
				l.namespaces[line] = time.Time{}
			} else if _, path, ok := strings.Cut(line, ":/"); ok && strings.Contains(path, "berth") {
				l.cgroups["/"+strings.TrimLeft(path, "./")] = true
			}
		}
		_, err = m.SpawnProcess(ctx, key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Argv: []string{"sleep", "1000"}}})
		must(t, err)
		if i == 0 {
			if n := len(l.things()); n < 3 {
				t.Fatalf("of a running sandbox only %d things are found: the test is blind: %v", n, l.things())
			}
		}
		_, err = m.DestroySandbox(ctx, key)
		must(t, err)
		seen += len(own)
		for _, ns := range own {
			l.namespaces[ns] = time.Now()
		}
		if i == 2 { // what is made once is made by now
			fds, routines, mounts = descriptors(t), runtime.NumGoroutine(), mountCount(t)
		}
	}
	t.Logf("%d namespaces, %d control groups seen", seen, len(l.cgroups))
	if seen < 7*cycles {
		t.Errorf("only %d namespaces were seen in %d cycles", seen, cycles)
	}
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
	if n := mountCount(t); n > mounts+5 { // others mount, too
		t.Errorf("%d mounts, %d after the third cycle", n, mounts)
	}
	zombies(t)
}

func mountCount(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return strings.Count(string(b), "\n")
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
