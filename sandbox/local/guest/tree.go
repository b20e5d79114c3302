//go:build linux

package guest

import (
	"bytes"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/wire"
)

// tree is one process of the monitor's, with all its descendants.
type tree struct {
	id     string
	shims  map[*shim]bool // those that have not ended; the first, and one for each sudo
	exited bool
	alone  bool   // and nothing was left by then, as the monitor was told
	told   bool   // the monitor knows of the exit
	oom    int64  // the counters at the start: kills for memory,
	forks  int64  // and refused forks
	crowd  bool   // the limit on a user's processes was met since
	file   string // the command's text, when it was too long for an argument
	become string // what is left for the part of us that becomes another user
}

// shim is the watcher of one command: all the command's descendants stay below it.
type shim struct {
	tree   *tree
	child  *raw.Child // not to be dropped before it is dead
	main   int        // the command
	report *os.File
	dead   chan unix.WaitStatus                               // how the shim itself ended
	ended  func(status unix.WaitStatus, cpu int64, left bool) // the command has exited; whether descendants are left
	over   bool                                               // ended was called
}

// watch follows a shim until it is gone.
func (g *guest) watch(s *shim) {
	var buf [raw.EventSize]byte
	for {
		n, err := s.report.Read(buf[:])
		if err != nil || n != len(buf) {
			break
		}
		if e := raw.Decode(buf[:]); e.Kind == raw.Ended && !s.over {
			s.over = true
			s.ended(unix.WaitStatus(e.Value), e.CPUNS, e.Stage != 0)
		}
	}
	_ = s.report.Close()
	if ws := <-s.dead; ws.Signaled() {
		// Somebody inside killed the shim. What it watched has come to init,
		// unsorted: it is killed, as the rest of the tree would be.
		g.killStrays()
	}
	if !s.over {
		s.over = true
		s.ended(unix.WaitStatus(unix.SIGKILL), -1, false)
	}
	g.mu.Lock()
	delete(s.tree.shims, s)
	gone := len(s.tree.shims) == 0 && s.tree.exited && g.trees[s.tree.id] == s.tree
	if gone {
		delete(g.trees, s.tree.id)
	}
	known := s.tree.alone
	g.mu.Unlock()
	if gone && !known {
		g.event(wire.OpGone, wire.ProcessRef{ID: s.tree.id})
	}
}

// reap collects init's children: shims, and what they leave when they are killed.
func (g *guest) reap() {
	for {
		c, err := g.children.Next()
		if err != nil {
			return // the process is ending
		}
		g.mu.Lock()
		switch {
		case c.Status.Stopped():
			if !g.frozen && (g.free == nil || g.shims[c.PID] != nil) {
				_ = unix.Kill(c.PID, unix.SIGCONT) // a shim's work must go on
			}
		default:
			if s := g.shims[c.PID]; s != nil {
				delete(g.shims, c.PID)
				s.dead <- c.Status
			}
			if ended := g.helpers[c.PID]; ended != nil {
				delete(g.helpers, c.PID)
				ended <- c.Status
			}
		}
		g.mu.Unlock()
	}
}

// proc is a line of the process table.
type proc struct {
	pid, ppid int
	state     byte
	comm      string
	start     uint64
	cpu       int64 // clock ticks
	rss       int64 // pages
	threads   int64
}

func (p *proc) dead() bool { return p.state == 'Z' || p.state == 'X' }

// readProc reads /proc/PID/stat.
func readProc(pid int) (proc, bool) {
	var buf [1024]byte
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return proc{}, false
	}
	n, err := unix.Read(fd, buf[:])
	_ = unix.Close(fd)
	if err != nil || n <= 0 {
		return proc{}, false
	}
	b := buf[:n]
	// The name may hold spaces and brackets; fields follow the last bracket.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return proc{}, false
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 22 {
		return proc{}, false
	}
	num := func(i int) int64 { v, _ := strconv.ParseInt(f[i-3], 10, 64); return v }
	p := proc{pid: pid, comm: string(b[open+1 : end]), state: f[0][0], ppid: int(num(4)), cpu: num(14) + num(15), start: uint64(num(22)), rss: num(24), threads: num(20)}
	return p, true
}

// processes reads the whole table.
func processes() map[int]proc {
	table := map[int]proc{}
	dir, err := os.Open("/proc")
	if err != nil {
		return table
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil {
				if p, ok := readProc(pid); ok {
					table[pid] = p
				}
			}
		}
		if err != nil || len(names) == 0 {
			return table
		}
	}
}

// below lists the live descendants of roots, without the roots and without
// shims. The table was not read at one instant: who has a parent that is not in
// it may have lost it since, or got it after the table was read.
func below(table map[int]proc, roots map[int]bool) []proc {
	under := map[int]bool{}
	var check func(pid, depth int) bool
	check = func(pid, depth int) bool {
		if roots[pid] {
			return true
		}
		if is, known := under[pid]; known {
			return is
		}
		p, ok := table[pid]
		if !ok && pid > 1 {
			p, ok = readProc(pid)
		}
		is := ok && pid != 1 && depth < 4096 && check(p.ppid, depth+1)
		if _, had := table[p.ppid]; ok && !is && !had && p.ppid > 1 {
			now, alive := readProc(pid)
			is = alive && now.start == p.start && now.ppid != p.ppid && depth < 4096 && check(now.ppid, depth+1)
		}
		under[pid] = is
		return is
	}
	var out []proc
	for pid, p := range table {
		if !roots[pid] && !p.dead() && check(pid, 0) {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].pid < out[j].pid })
	return out
}

// members lists the live processes of a tree.
func (g *guest) members(t *tree) []proc {
	roots := map[int]bool{}
	g.mu.Lock()
	for s := range t.shims {
		roots[s.child.PID] = true
	}
	g.mu.Unlock()
	return below(processes(), roots)
}

// send signals p, unless its number has meanwhile gone to another process.
func send(p proc, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if now, ok := readProc(p.pid); !ok || now.start != p.start {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// send signals all of list, and tells how many it has reached.
func (g *guest) send(list []proc, sig unix.Signal) (count int) {
	var foreign []proc
	for _, p := range list {
		switch err := send(p, sig); {
		case err == nil:
			count++
		case err == unix.EPERM && g.free != nil:
			foreign = append(foreign, p)
		}
	}
	if len(foreign) > 0 {
		count += g.sendAsRoot(foreign, sig)
	}
	return count
}

// killTime bounds how long killAll goes after processes that come ever anew.
const killTime = 20 * time.Second

// killAll ends all processes that list tells, however fast they fork: first
// each is stopped, until there is no new one.
func (g *guest) killAll(list func() []proc) (count int) {
	type key struct {
		pid   int
		start uint64
	}
	seen := map[key]bool{}
	// Reading the table takes time, in which one process may follow another
	// unseen: so it must be empty twice. What waits for a file system that does
	// not answer does not go: that is given up when nothing new has come for long.
	end := time.Now().Add(killTime)
	for empty, idle := 0, 0; empty < 2 && idle < 1000 && time.Now().Before(end); idle++ {
		found := list()
		var fresh []proc
		for _, p := range found {
			k := key{p.pid, p.start}
			if !seen[k] {
				fresh = append(fresh, p)
				seen[k] = true
			}
		}
		if len(fresh) > 0 {
			g.send(fresh, unix.SIGSTOP)
			empty, idle = 0, 0
			continue
		}
		if len(found) == 0 {
			empty++
			continue
		}
		empty = 0
		g.send(found, unix.SIGKILL)
		time.Sleep(time.Millisecond) // they take a moment to die
	}
	return len(seen)
}

// killStrays ends processes that are init's children but nobody's shim.
func (g *guest) killStrays() {
	g.killAll(func() []proc {
		table := processes()
		g.mu.Lock()
		defer g.mu.Unlock()
		roots := map[int]bool{}
		for pid, p := range table {
			if p.ppid == g.pid && !p.dead() && g.shims[pid] == nil && g.helpers[pid] == nil {
				roots[pid] = true
			}
		}
		out := below(table, roots)
		for pid := range roots {
			out = append(out, table[pid])
		}
		return out
	})
}

func (g *guest) tree(id string) (*tree, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.trees[id]
	if t == nil {
		return nil, &wire.Error{Code: wire.CodeNoProcess, Text: "nothing of process " + id + " is left"}
	}
	return t, nil
}

func (g *guest) signal(r *wire.Signal) (*wire.Signalled, error) {
	if r.Signal < 1 || r.Signal > 64 {
		return nil, invalid("signal: must be from 1 to 64")
	}
	t, err := g.tree(r.ID)
	if err != nil {
		return nil, err
	}
	sig := unix.Signal(r.Signal)
	if sig == unix.SIGKILL {
		return &wire.Signalled{Count: g.killAll(func() []proc { return g.members(t) })}, nil
	}
	return &wire.Signalled{Count: g.send(g.members(t), sig)}, nil
}

const maxNamed = 20

func (g *guest) describe(id string) (*wire.Tree, error) {
	t, err := g.tree(id)
	if err != nil {
		return nil, err
	}
	members := g.members(t)
	out := &wire.Tree{Count: len(members), Processes: name(members)}
	for _, p := range members {
		out.CPUNS += p.cpu * (1e9 / 100) // clock ticks are 100 a second on all of Linux's ABIs that we support
		out.Memory += p.rss * int64(os.Getpagesize())
	}
	return out, nil
}

// name describes processes as "pid command".
func name(list []proc) []string {
	var out []string
	patience := 20
	for _, p := range list {
		if len(out) == maxNamed {
			break
		}
		out = append(out, strconv.Itoa(p.pid)+" "+commandLine(p, &patience))
	}
	return out
}

// commandLine is p's arguments. A program that is just being executed has none
// for a moment, for which it waits, some milliseconds in all for all of a list:
// what runs inside can also do away with its arguments.
func commandLine(p proc, patience *int) string {
	for {
		text := arguments(p)
		if text != "" {
			return text
		}
		if now, ok := readProc(p.pid); *patience == 0 || !ok || now.start != p.start || now.dead() {
			return p.comm
		}
		*patience--
		time.Sleep(time.Millisecond)
	}
}

func arguments(p proc) string {
	var buf [200]byte
	fd, err := unix.Open("/proc/"+strconv.Itoa(p.pid)+"/cmdline", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	// The name may lie in memory that is slow to come, so only what is asked for.
	n, err := unix.Read(fd, buf[:])
	_ = unix.Close(fd)
	if err != nil || n <= 0 {
		return ""
	}
	text := strings.ToValidUTF8(strings.TrimRight(string(buf[:n]), "\x00"), "")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// halt ends everything inside, for good.
func (g *guest) halt(grace time.Duration) {
	g.mu.Lock()
	g.halting = true
	g.mu.Unlock()
	alive := func() []proc {
		table := processes()
		g.mu.Lock()
		defer g.mu.Unlock()
		var out []proc
		if g.free != nil {
			for _, p := range below(table, map[int]bool{g.pid: true}) {
				if g.shims[p.pid] == nil && g.helpers[p.pid] == nil {
					out = append(out, p)
				}
			}
			return out
		}
		for pid, p := range table {
			if pid != 1 && !p.dead() && g.shims[pid] == nil && p.ppid != 0 {
				out = append(out, p)
			}
		}
		return out
	}
	if grace > 0 {
		list := alive()
		g.send(list, unix.SIGTERM)
		g.send(list, unix.SIGCONT)
		for end := time.Now().Add(grace); time.Now().Before(end) && len(alive()) > 0; {
			time.Sleep(2 * time.Millisecond)
		}
	}
	g.killAll(alive)
	g.abortAll()
	defer g.allTold()
	for range 1000 {
		if len(alive()) == 0 || g.free != nil {
			return
		}
		// The kernel walks all of the namespace at once: nothing outruns that.
		_ = unix.Kill(-1, unix.SIGKILL)
		time.Sleep(time.Millisecond)
	}
}

// tellTime bounds how long the exits of what was killed may take to be told.
const tellTime = 2 * time.Second

// allTold waits until the monitor was told how everything ended, as its shims say
// it: they may be a moment behind.
func (g *guest) allTold() {
	for end := time.Now().Add(tellTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		g.mu.Lock()
		waiting := false
		for _, t := range g.trees {
			waiting = waiting || !t.told
		}
		g.mu.Unlock()
		if !waiting {
			return
		}
	}
}
