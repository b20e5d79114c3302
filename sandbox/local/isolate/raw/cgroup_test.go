//go:build linux

package raw

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup2 makes a cgroup (v2) and returns its directory, its name as seen in
// /proc, and it opened.
func cgroup2(t *testing.T) (dir, name string, fd int) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir = filepath.Join(root, "berth-raw-"+strconv.Itoa(os.Getpid())+"-"+t.Name())
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skip("no cgroup (v2) can be made: ", err)
		}
		t.Cleanup(func() {
			for range 100 {
				if unix.Rmdir(dir) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond) // the last one leaves a little late
			}
			t.Errorf("%s cannot be removed", dir)
		})
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return dir, strings.TrimPrefix(dir, root), fd
	}
	t.Skip("no cgroup (v2) hierarchy is mounted")
	return "", "", -1
}

// into is watched for a command that is born in a cgroup.
func into(text string, cgroup int) func(p *Program) {
	return func(p *Program) {
		parent := p.ForkInto(2, cgroup)
		p.Must(1, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, Keep(p, new(uint64)), 0, 8)
		p.Exec(4, p.String("/bin/sh"), p.Strings([]string{"sh", "-c", text}), p.Strings([]string{"PATH=/bin:/usr/bin"}))
		p.Fail(4)
		parent()
		p.Watch()
	}
}

// The second child is in the cgroup from its birth, and the first is not; also
// when many are born at once.
func TestForkInto(t *testing.T) {
	_, name, fd := cgroup2(t)
	for way, start := range ways {
		t.Run(way, func(t *testing.T) {
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					for i := range 25 {
						code := i + 10
						text := "grep -qx '0::" + name + "' /proc/self/cgroup && ! grep -qx '0::" + name + "' /proc/$PPID/cgroup && exit " + strconv.Itoa(code)
						got, ws := play(t, start, into(text, fd))
						if len(got) != 2 || got[0].Kind != Started || got[1].Kind != Ended || unix.WaitStatus(got[1].Value).ExitStatus() != code || ws.ExitStatus() != 0 {
							t.Errorf("events %+v, watcher %v; want an exit with %d", got, ws, code)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// A cgroup that takes nobody is an error with the fork's stage.
func TestForkIntoRefused(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for way, start := range ways {
		got, _ := play(t, start, into("exit 0", int(null.Fd())))
		if len(got) != 1 || got[0].Kind != Failed || got[0].Stage != 2 {
			t.Errorf("%s: events %+v, want failed at 2", way, got)
		}
	}
}

// A first child can be born in one too.
func TestStartInto(t *testing.T) {
	_, name, fd := cgroup2(t)
	got, ws := play(t, func(p *Program) (int, any, error) {
		pid, err := p.StartInto(unix.CLONE_NEWUTS, fd)
		return pid, nil, err
	}, watched("grep -qx '0::"+name+"' /proc/self/cgroup && exit 7"))
	if len(got) != 2 || unix.WaitStatus(got[1].Value).ExitStatus() != 7 || ws.ExitStatus() != 0 {
		t.Errorf("events %+v, watcher %v; want an exit with 7", got, ws)
	}
}
