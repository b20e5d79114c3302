//go:build linux

package guest

import (
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// freezeWait is how long processes may take to stand still.
const freezeWait = 3 * time.Second

// freeze stops everything inside, so that the files can be copied as they are
// at one moment, until thaw. The kernel stops all processes at once, and those
// that are just being forked with them.
func (g *guest) freeze() error {
	end := time.Now().Add(freezeWait)
	for !g.hold.TryLock() {
		if time.Now().After(end) {
			return &wire.Error{Code: wire.CodeLimit, Text: "a file is being written, or a command started, and does not get on"}
		}
		time.Sleep(time.Millisecond)
	}
	g.mu.Lock()
	g.frozen, g.stayed = true, map[int]uint64{}
	for pid, p := range processes() {
		if p.state == 'T' {
			g.stayed[pid] = p.start
		}
	}
	g.mu.Unlock()
	for {
		// Again each time: one may have been continued from outside.
		if err := unix.Kill(-1, unix.SIGSTOP); err != nil && err != unix.ESRCH {
			g.thaw()
			return pathError("", err)
		}
		moving := moving()
		if moving == "" {
			return nil
		}
		if time.Now().After(end) {
			g.thaw()
			return &wire.Error{Code: wire.CodeLimit, Text: "a process does not stand still: " + moving}
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// thaw lets go on what freeze stopped: children before their parents, which
// would else be told that a child has stopped.
func (g *guest) thaw() {
	g.mu.Lock()
	if !g.frozen {
		g.mu.Unlock()
		return
	}
	stayed := g.stayed
	g.frozen, g.stayed = false, nil
	g.mu.Unlock()
	table := processes()
	pids := make([]int, 0, len(table))
	for pid := range table {
		if start, was := stayed[pid]; pid != 1 && (!was || start != table[pid].start) {
			pids = append(pids, pid)
		}
	}
	sort.Sort(sort.Reverse(sort.IntSlice(pids)))
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGCONT)
	}
	g.hold.Unlock()
}

// moving names a process that may still run, by any of its threads.
func moving() string {
	for pid := range processes() {
		if pid == 1 {
			continue
		}
		dir := "/proc/" + strconv.Itoa(pid)
		tasks, err := os.ReadDir(dir + "/task")
		if err != nil {
			continue // it has ended
		}
		for _, t := range tasks {
			b, err := os.ReadFile(dir + "/task/" + t.Name() + "/stat")
			if err != nil {
				continue
			}
			text := string(b)
			end := strings.LastIndexByte(text, ')')
			if end < 0 || end+2 >= len(text) {
				continue
			}
			switch text[end+2] {
			case 'T', 't', 'Z', 'X':
				continue
			case 'D':
				// One that waits for its vforked child, which stands still, does
				// nothing until then.
				if waitsForChild(dir + "/task/" + t.Name()) {
					continue
				}
			}
			return strconv.Itoa(pid) + " " + text[strings.IndexByte(text, '(')+1:end]
		}
	}
	return ""
}

// waitsForChild tells whether a task is within one of the calls that make
// processes.
func waitsForChild(dir string) bool {
	b, err := os.ReadFile(dir + "/syscall")
	if err != nil {
		return false
	}
	nr, _, _ := strings.Cut(string(b), " ")
	n, err := strconv.Atoi(nr)
	return err == nil && madeProcess[n]
}
