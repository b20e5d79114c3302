package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/mounts"
	"berth/mounts/objects"
)

// logMost is how large the servers' log may be when another mount is made.
const logMost = 1 << 20

// keeper keeps the mounts of one sandbox: a file for each, in a directory.
type keeper struct{ dir string }

// kept is what is known of one mount.
type kept struct {
	mounts.Standing
	Print string   `json:"print,omitempty"`
	PID   int      `json:"pid,omitempty"`  // of its server
	Made  []string `json:"made,omitempty"` // directories, the deepest last
	Run   string   `json:"run"`            // of the sandbox; in the next, nothing is mounted
}

// answerError is an error of a kind that the asker is to know.
type answerError struct {
	kind mounts.AnswerError
	text string
}

func (e *answerError) Error() string { return e.text }

func noPlace(name, why string) error {
	return &answerError{mounts.AnswerMountpoint, name + " " + why}
}

// answered writes the answer to a command.
func answered(out io.Writer, list []mounts.Standing, err error) error {
	a := mounts.Answer{Standings: list}
	var fault *mounts.Fault
	var known *answerError
	switch {
	case err == nil:
	case errors.As(err, &fault):
		a.Error, a.Message, a.Fault = mounts.AnswerFault, fault.Message, fault
	case errors.As(err, &known):
		a.Error, a.Message = known.kind, known.text
	default:
		a.Error, a.Message = mounts.AnswerOther, err.Error()
	}
	text, merr := json.Marshal(a)
	if merr != nil {
		return merr
	}
	if _, werr := fmt.Fprintf(out, "%s%s\n", mounts.AnswerMark, text); werr != nil {
		return werr
	}
	if err != nil {
		return errReported
	}
	return nil
}

// order carries out the order in a file.
func order(name string, out io.Writer) error {
	if err := prepare(); err != nil {
		return err
	}
	text, err := takeFile(name)
	if err != nil {
		return err
	}
	defer clear(text)
	var o mounts.Order
	if json.Unmarshal(text, &o) != nil || !filepath.IsAbs(o.Dir) || !filepath.IsAbs(o.Path) || o.Path != path.Clean(o.Path) {
		return errors.New("the order makes no sense")
	}
	k, free, err := openKeeper(o.Dir)
	if err != nil {
		return answered(out, nil, err)
	}
	defer free()
	if o.Remove {
		return answered(out, nil, k.remove(o.Path))
	}
	st, err := k.place(o)
	if err != nil {
		return answered(out, nil, err)
	}
	return answered(out, []mounts.Standing{st}, nil)
}

// list tells how all mounts stand.
func list(dir string, out io.Writer) error {
	k := keeper{dir}
	all, err := k.all()
	if errors.Is(err, fs.ErrNotExist) {
		return answered(out, nil, nil)
	}
	if err != nil {
		return answered(out, nil, err)
	}
	table, err := mountTable()
	if err != nil {
		return answered(out, nil, err)
	}
	var standings []mounts.Standing
	for _, m := range all {
		if m.Run != thisRun() {
			continue
		}
		if m.Mounted && !alive(m, table) {
			m.Mounted, m.Reason, m.Entries = false, "the program that served it has ended; start_sandbox mounts it again", -1
		}
		standings = append(standings, m.Standing)
	}
	return answered(out, standings, nil)
}

// leave unmounts all, so that what is written gets into the buckets.
func leave(dir string, out io.Writer) error {
	k, free, err := openKeeper(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return answered(out, nil, nil)
	}
	if err != nil {
		return answered(out, nil, err)
	}
	defer free()
	all, err := k.all()
	for _, m := range slices.Backward(all) {
		if m.Run == thisRun() && m.Mounted {
			err = errors.Join(err, k.end(m, true))
		}
	}
	return answered(out, nil, err)
}

// openKeeper takes the lock of a directory, which is made.
func openKeeper(dir string) (k keeper, free func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return k, nil, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return k, nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() && os.Geteuid() != 0 || st.Mode&0o022 != 0 {
		return k, nil, fmt.Errorf("%s is not a directory of this user's alone", dir)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return k, nil, err
	}
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		lock.Close()
		return k, nil, err
	}
	return keeper{dir}, func() { lock.Close() }, nil
}

// file is where a mount is kept.
func (k keeper) file(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(k.dir, hex.EncodeToString(sum[:8])+".json")
}

func (k keeper) get(name string) (m kept, found bool) {
	b, err := os.ReadFile(k.file(name))
	return m, err == nil && json.Unmarshal(b, &m) == nil && m.Path == name
}

func (k keeper) put(m kept) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	temp := k.file(m.Path) + ".new"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, k.file(m.Path))
}

// all are the mounts, by path.
func (k keeper) all() ([]kept, error) {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return nil, err
	}
	var out []kept
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		var m kept
		if b, err := os.ReadFile(filepath.Join(k.dir, e.Name())); err == nil && json.Unmarshal(b, &m) == nil {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b kept) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// place makes a mount as it is ordered.
func (k keeper) place(o mounts.Order) (mounts.Standing, error) {
	old, known := k.get(o.Path)
	table, err := mountTable()
	if err != nil {
		return mounts.Standing{}, err
	}
	current := known && old.Run == thisRun()
	if current && old.Mounted {
		if old.Print == o.Print && o.Refused == "" && alive(old, table) {
			return old.Standing, nil
		}
		if o.Refused == "" && alive(old, table) {
			// What works goes only for what will.
			if _, fault := usable(o.Job); fault != nil {
				return mounts.Standing{}, fault
			}
		}
		if err := k.end(old, o.Refused != ""); err != nil { // what is forbidden goes in any case
			return mounts.Standing{}, err
		}
	}
	m := kept{Standing: mounts.Standing{Path: o.Path, Entries: -1}, Print: o.Print, Run: thisRun()}
	if o.Refused != "" {
		m.Reason = o.Refused
		return m.Standing, k.put(m)
	}
	err = k.mount(o, &m)
	switch {
	case err == nil:
		return m.Standing, k.put(m)
	case o.Wanted:
		m.Reason = err.Error()
		return mounts.Standing{}, errors.Join(err, k.put(m))
	default:
		return mounts.Standing{}, errors.Join(err, k.forget(o.Path))
	}
}

func (k keeper) forget(name string) error {
	if err := os.Remove(k.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove unmounts and forgets.
func (k keeper) remove(name string) error {
	m, known := k.get(name)
	if known && m.Run == thisRun() && m.Mounted {
		if err := k.end(m, false); err != nil {
			return err
		}
	}
	return k.forget(name)
}

// mount makes the mount and says in m what has become of it.
func (k keeper) mount(o mounts.Order, m *kept) error {
	if err := canMount(); err != nil {
		return err
	}
	uid, gid, err := ids(o.User)
	if err != nil {
		return err
	}
	if m.Made, err = makeDirs(o.Path, uid, gid); err == nil {
		err = free(o.Path)
	}
	if err == nil {
		j := o.Job
		j.Mountpoint, j.View.UID, j.View.GID = o.Path, uint32(uid), uint32(gid)
		j.View.AllowOther = os.Geteuid() == 0
		j.Log = filepath.Join(k.dir, "log")
		if fi, err := os.Stat(j.Log); err == nil && fi.Size() > logMost {
			_ = os.Truncate(j.Log, 0) // who serves goes on at its end
		}
		var text []byte
		if text, err = json.Marshal(j); err == nil {
			m.PID, err = begin(text, j.Log, func(r mounts.Report) error {
				if r.Fault != nil {
					return r.Fault
				}
				m.Entries, m.More, m.Mounted = r.Entries, r.More, r.Ready
				return nil
			})
			clear(text)
		}
	}
	if err != nil {
		unmake(m.Made)
		m.Made, m.Mounted = nil, false
	}
	return err
}

// end unmounts a mount of ours and waits for its server, which brings into the
// bucket what is open. force does so also where it is in use.
func (k keeper) end(m kept, force bool) error {
	table, err := mountTable()
	if err != nil {
		return err
	}
	if on, kind := covering(table, m.Path); on == m.Path && kind == "fuse.bucket" {
		err := unmountAt(m.Path, force || !alive(m, table))
		for end := time.Now().Add(time.Second); errors.Is(err, unix.EBUSY) && len(usersOf(m.Path)) == 0 && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond) // who used it is just ending
			err = unmountAt(m.Path, false)
		}
		if errors.Is(err, unix.EBUSY) {
			who := strings.Join(usersOf(m.Path), ", ")
			if who == "" {
				who = "a file system that is mounted in it"
			}
			return noPlace(m.Path, "is in use, by "+who+"; end that, or wait for it, and try again")
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", m.Path, err)
		}
	}
	if force && serves(m.PID) {
		_ = unix.Kill(m.PID, unix.SIGTERM) // it does not wait for long for those who have files open
	}
	for end := time.Now().Add(6 * objects.Patience); serves(m.PID) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	unmake(m.Made)
	m.Mounted, m.PID, m.Made = false, 0, nil
	return k.put(m)
}

// alive tells whether a mount is there and answers.
func alive(m kept, table []mountLine) bool {
	if on, kind := covering(table, m.Path); on != m.Path || kind != "fuse.bucket" || !serves(m.PID) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), objects.Patience+time.Second)
	defer cancel()
	answers := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answers <- unix.Statfs(m.Path, &st)
	}()
	select {
	case err := <-answers:
		return err == nil
	case <-ctx.Done():
		return false
	}
}

// serves tells whether the process is a bucketd.
func serves(pid int) bool {
	if pid <= 0 {
		return false
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline") // empty once it has ended
	return err == nil && string(b) == "bucketd\x00serve\x00"
}

// thisRun names the sandbox's run: the machine's boot and when init began.
func thisRun() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	stat, _ := os.ReadFile("/proc/1/stat")
	_, rest, _ := strings.Cut(string(stat), ") ")
	began := ""
	if f := strings.Fields(rest); len(f) > 19 {
		began = f[19]
	}
	return strings.TrimSpace(string(boot)) + "/" + began
}
