//go:build linux

package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
	"golang.org/x/sys/unix"
)

const (
	rangeSize = 65536
	// Ranges are taken from a part of the 32-bit ids that distributions leave
	// to container managers and do not hand to people.
	firstSlot = 0x30000000 / rangeSize
	lastSlot  = 0x7ffe0000 / rangeSize
)

// idMode finds out how this berth can map ids, and what stands in the way of a
// better one; that is empty for the best.
func idMode() (wire.IDs, string) {
	if os.Geteuid() == 0 {
		if holdsIDs(rangeSize) {
			return wire.IDs{Mode: wire.IDsRange, Count: rangeSize, IDMapped: true}, ""
		}
		// Root of a user namespace that has not enough ids of its own.
		return wire.IDs{Mode: wire.IDsSingle}, "root here has fewer than 65,536 ids of its own (a rootless container)"
	}
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return wire.IDs{Mode: wire.IDsSingle}, tool + " is not installed (package uidmap)"
		}
	}
	uid, n, err := subIDs("/etc/subuid")
	if err == nil {
		var gid, m uint32
		if gid, m, err = subIDs("/etc/subgid"); err == nil {
			ids := wire.IDs{Mode: wire.IDsSub, Count: min(n, m, rangeSize-1) + 1, SubUID: uid, SubGID: gid}
			if err = mapToolsWork(tree.IDs{SubUID: uid, SubGID: gid, Count: ids.Count}); err == nil {
				return ids, ""
			}
		}
	}
	return wire.IDs{Mode: wire.IDsSingle}, err.Error()
}

// mapToolsWork tells why newuidmap and newgidmap, which are there, cannot do
// their work for this process: where what is executed gains no rights
// (no_new_privs), and in containers, where Debian's, being set-user-id root,
// miss a capability that they do not need as the owner of the namespace. Only
// where that may be so are they tried, once.
func mapToolsWork(ids tree.IDs) error {
	locked, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if admin, _ := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0); locked != 1 && admin == 1 {
		return nil
	}
	mapToolsTried.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := tree.As{Map: &ids}.Chown(ctx, 0, 0) // of no path: the map is all that is asked for
		switch {
		case err == nil:
		case locked == 1:
			mapToolsError = errors.New("newuidmap gains no rights here: this process was started with no_new_privs (NoNewPrivileges= of systemd, --security-opt no-new-privileges of containers)")
		default:
			mapToolsError = fmt.Errorf("newuidmap cannot map ids in this container (%w); as its root, `chmod u-s /usr/bin/new?idmap; setcap cap_setuid+ep /usr/bin/newuidmap; setcap cap_setgid+ep /usr/bin/newgidmap` (package libcap2-bin) lets it", err)
		}
	})
	return mapToolsError
}

var (
	mapToolsTried sync.Once
	mapToolsError error
)

// minSubIDs is the smallest range that makes sub mode worth while: it must hold
// the user agent.
const minSubIDs = 2000

// subIDs finds the caller's first range of sufficient size in a file such as
// /etc/subuid.
func subIDs(file string) (start, count uint32, err error) {
	me := strconv.Itoa(os.Getuid())
	names := []string{me}
	if u, err := user.LookupId(me); err == nil {
		names = append(names, u.Username)
	}
	for _, r := range readRanges(file) {
		for _, n := range names {
			if r.name == n && r.count >= minSubIDs {
				return uint32(r.start), uint32(min(r.count, rangeSize)), nil
			}
		}
	}
	return 0, 0, fmt.Errorf("%s has no range of at least %d ids for %s", file, minSubIDs, names[len(names)-1])
}

type idRange struct {
	name         string
	start, count uint64
}

func readRanges(file string) []idRange {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []idRange
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(fields) != 3 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		start, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err1 == nil && err2 == nil {
			out = append(out, idRange{fields[0], start, count})
		}
	}
	return out
}

// holdsIDs tells whether this user namespace maps the ids that ranges are made
// of, or at least n of them in one piece from the first slot on.
func holdsIDs(n uint64) bool {
	for _, file := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		ok := false
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue
			}
			start, _ := strconv.ParseUint(f[0], 10, 64)
			count, _ := strconv.ParseUint(f[2], 10, 64)
			if start <= firstSlot*rangeSize && start+count >= lastSlot*rangeSize+n {
				ok = true
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// claimRange finds ids for sandbox id that no other sandbox here has, and that
// the host has not given to a person. want is what it had before; it is kept
// when nobody else has it.
func (s *store) claimRange(id string, want uint32) (uint32, error) {
	taken := append(readRanges("/etc/subuid"), readRanges("/etc/subgid")...)
	free := func(base uint64) bool {
		for _, r := range taken {
			if base < r.start+r.count && r.start < base+rangeSize {
				return false
			}
		}
		return true
	}
	if want != 0 && free(uint64(want)) && s.claimSlot(id, want/rangeSize) {
		return want, nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.dir + "\x00" + id))
	const slots = lastSlot - firstSlot + 1
	for i := range uint32(slots) {
		slot := firstSlot + (h.Sum32()+i)%slots
		if free(uint64(slot)*rangeSize) && s.claimSlot(id, slot) {
			return slot * rangeSize, nil
		}
	}
	return 0, refuse("all %d ranges of user ids are taken by sandboxes of %s; destroy some", slots, s.dir)
}

// claimSlot makes the slot's file, whose content names its holder. A holder
// that no longer exists loses it.
func (s *store) claimSlot(id string, slot uint32) bool {
	path := s.path("ids", strconv.FormatUint(uint64(slot), 10))
	for range 2 {
		// A link with its target is made in one step, content and all.
		err := os.Symlink(id, path)
		if err == nil {
			return true
		}
		holder, rerr := os.Readlink(path)
		if rerr != nil {
			if errors.Is(rerr, fs.ErrNotExist) {
				continue
			}
			return false
		}
		if holder == id {
			return true
		}
		if !s.freeStale(path, holder) {
			return false
		}
	}
	return false
}

// freeStale removes a slot whose holder is gone, one process at a time: the
// second would remove what the first has just claimed.
func (s *store) freeStale(path, holder string) bool {
	l, err := tryAcquire(s.lockPath("ids"), opOther)
	if err != nil {
		return false
	}
	defer l.release(false)
	if now, err := os.Readlink(path); err != nil || now != holder {
		return false
	}
	if _, err := os.Lstat(s.sandboxDir(holder)); !errors.Is(err, fs.ErrNotExist) || operation(s.lockPath(holder)) != "" {
		return false
	}
	return os.Remove(path) == nil
}

func (s *store) releaseRange(id string, ids wire.IDs) {
	if ids.Mode != wire.IDsRange || ids.Base == 0 {
		return
	}
	path := s.path("ids", strconv.FormatUint(uint64(ids.Base/rangeSize), 10))
	if holder, err := os.Readlink(path); err == nil && holder == id {
		_ = os.Remove(path)
	}
}

// treeAs says who must remove and pack the files of a sandbox with these ids.
func treeAs(ids wire.IDs) tree.As {
	switch ids.Mode {
	case wire.IDsSub:
		return tree.As{Map: &tree.IDs{SubUID: ids.SubUID, SubGID: ids.SubGID, Count: ids.Count}}
	case wire.IDsSingle:
		return tree.As{Shift: tree.IDShift{Single: true}}
	}
	return tree.As{Shift: tree.IDShift{Base: layerShift(ids)}}
}

// layerShift is the owner on disk of files of inside's root, in range mode.
func layerShift(ids wire.IDs) int {
	if ids.Mode == wire.IDsRange && !ids.IDMapped {
		return int(ids.Base)
	}
	return 0
}

// File systems that can be shown with other owners, and since which kernel.
var idMappable = map[int64][2]int{
	unix.EXT4_SUPER_MAGIC:     {5, 19},
	unix.XFS_SUPER_MAGIC:      {5, 19},
	unix.BTRFS_SUPER_MAGIC:    {5, 19},
	unix.F2FS_SUPER_MAGIC:     {5, 19},
	unix.EROFS_SUPER_MAGIC_V1: {5, 19},
	unix.SQUASHFS_MAGIC:       {6, 2},
	unix.TMPFS_MAGIC:          {6, 3},
}

// idMapped tells whether the kernel can id-map the file systems of all paths;
// 5.19 is the first that takes such layers for an overlay.
func idMapped(paths ...string) bool {
	major, minor := kernelVersion()
	for _, p := range paths {
		var st unix.Statfs_t
		if err := unix.Statfs(p, &st); err != nil {
			continue
		}
		since, ok := idMappable[int64(st.Type)]
		if !ok || major < since[0] || major == since[0] && minor < since[1] {
			return false
		}
	}
	return true
}

func kernelVersion() (major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	}
	return major, minor
}

// layersPath is where the upper directories of sandbox id are.
func (s *store) layersPath(id string) string { return filepath.Join(s.sandboxDir(id), layersDir) }
