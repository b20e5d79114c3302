//go:build linux

package guest

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// crowdEvery is how often it is looked whether a limit on the processes of a user
// is met, while something runs. The kernel counts the forks that a cgroup refuses,
// but not those that RLIMIT_NPROC does.
const crowdEvery = time.Second

// crowdSoon begins to look, unless that goes on already.
func (g *guest) crowdSoon() {
	if g.nproc <= 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.crowding {
		g.crowding = true
		time.AfterFunc(crowdEvery, g.crowdLook)
	}
}

// crowdLook notes with all that run that the limit is met, until nothing runs.
func (g *guest) crowdLook() {
	met := g.crowded()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.trees) == 0 {
		g.crowding = false
		return
	}
	if met {
		for _, t := range g.trees {
			t.crowd = true
		}
	}
	time.AfterFunc(crowdEvery, g.crowdLook)
}

// crowded tells whether a user has about as many processes and threads as the
// limit allows: of a crowd, some always end and are replaced.
func (g *guest) crowded() bool {
	if g.nproc <= 0 {
		return false
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return false
	}
	defer dir.Close()
	tasks := map[uint32]int64{}
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			pid, nerr := strconv.Atoi(name)
			if nerr != nil {
				continue
			}
			var st unix.Stat_t
			if p, ok := readProc(pid); ok && unix.Stat("/proc/"+name, &st) == nil {
				tasks[st.Uid] += max(p.threads, 1)
			}
		}
		if err != nil || len(names) == 0 {
			break
		}
	}
	for _, n := range tasks {
		if n >= g.nproc-g.nproc/64 {
			return true
		}
	}
	return false
}
