//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var folderProbes = []probe{
	{name: "read_only_folder", refused: "writing into a volume or host folder shown read-only", run: readOnlyFolders},
	{name: "planted_programs", refused: "rights from set-user-id files and capabilities that an image or a volume brings", run: plantedPrograms},
	{name: "moved_part", refused: "leaving a part of a volume by moving the directory one stands in out of it", run: movedPart},
	{name: "folder_parents", refused: "walking up out of volumes and host folders", run: folderParents},
	{name: "folder_links", refused: "hard links and renames between volumes, folders and the root", run: folderLinks},
	{name: "overlay_attributes", refused: "notes and whiteouts that overlay would take for its own", run: overlayAttributes},
}

func readOnlyFolders(t *target) escape.Finding {
	if len(t.ReadOnly) == 0 {
		return impossible("no folder is shown")
	}
	var ways []string
	for _, dir := range t.ReadOnly {
		if _, err := os.Stat(filepath.Join(dir, "marker")); err != nil {
			return broken("the folder is not there: %v", err)
		}
		for _, w := range writeInto(t, dir) {
			ways = append(ways, dir+": "+w)
		}
	}
	return found(ways, "refused in %d folders", len(t.ReadOnly))
}

// writeInto tries every way of changing what is shown read-only at dir.
func writeInto(t *target, dir string) (ways []string) {
	marker, victim := filepath.Join(dir, "marker"), filepath.Join(dir, "victim")
	try := func(what string, err error) {
		if err == nil {
			ways = append(ways, what)
		}
	}
	errno := func(e syscall.Errno) error {
		if e == 0 {
			return nil
		}
		return e
	}
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0o600)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	try("wrote a file", open(marker, unix.O_WRONLY))
	try("opened to read and write", open(marker, unix.O_RDWR))
	try("opened with O_TRUNC for reading", open(marker, unix.O_RDONLY|unix.O_TRUNC))
	try("made a file", open(at("new"), unix.O_CREAT|unix.O_WRONLY))
	try("made a file without a name", open(dir, unix.O_TMPFILE|unix.O_RDWR))
	try("made a directory", os.Mkdir(at("newdir"), 0o700))
	try("made a link", os.Symlink("/", at("newlink")))
	try("made a FIFO", unix.Mkfifo(at("newfifo"), 0o600))
	try("made a node", unix.Mknod(at("newnode"), unix.S_IFCHR|0o600, 0))
	if l, err := net.Listen("unix", at("s")); err == nil {
		ways = append(ways, "made a socket")
		_ = l.Close()
	}
	try("removed a file", os.Remove(victim))
	try("renamed a file", os.Rename(victim, at("other")))
	try("exchanged files", unix.Renameat2(unix.AT_FDCWD, victim, unix.AT_FDCWD, marker, unix.RENAME_EXCHANGE))
	try("left a whiteout", unix.Renameat2(unix.AT_FDCWD, victim, unix.AT_FDCWD, at("other"), unix.RENAME_WHITEOUT))
	try("linked a file", os.Link(marker, at("hard")))
	try("changed a mode", os.Chmod(marker, 0o666))
	try("changed the folder's mode", os.Chmod(dir, 0o777))
	if t.IDs != "single" { // else berth's filter says that it worked
		try("changed an owner", os.Chown(marker, 0, 0))
	}
	try("changed times", unix.Utimes(marker, []unix.Timeval{{Sec: 1}, {Sec: 1}}))
	try("set an attribute", unix.Setxattr(marker, "user.x", []byte("y"), 0))
	try("removed an attribute", unix.Removexattr(marker, "user.x"))
	try("truncated a file", os.Truncate(marker, 0))
	// The same file by other names.
	for _, path := range []string{"/proc/self/root" + marker, "/proc/self/cwd" + marker, "/proc/thread-self/root" + marker} {
		try("wrote through "+path, open(path, unix.O_WRONLY))
	}
	// A descriptor opened for reading, used for more.
	fd, err := unix.Open(marker, unix.O_RDONLY, 0)
	if err != nil {
		return ways
	}
	defer unix.Close(fd)
	try("wrote through /proc/self/fd", open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY))
	_, _, e := syscall.Syscall(unix.SYS_FCHMOD, uintptr(fd), 0o777, 0)
	try("changed a mode through a descriptor", errno(e))
	try("truncated through a descriptor", unix.Ftruncate(fd, 0))
	try("punched a hole", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1))
	try("set an attribute through a descriptor", unix.Fsetxattr(fd, "user.x", []byte("y"), 0))
	if m, err := unix.Mmap(fd, 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		ways = append(ways, "mapped it for writing")
		_ = unix.Munmap(m)
	}
	if m, err := unix.Mmap(fd, 0, 1, unix.PROT_READ, unix.MAP_SHARED); err == nil {
		try("made a mapping writable", unix.Mprotect(m, unix.PROT_READ|unix.PROT_WRITE))
		_ = unix.Munmap(m)
	}
	flags := int32(0x20) // append only
	try("set a flag of the file", ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags)))
	if path, err := unix.Open(marker, unix.O_PATH, 0); err == nil {
		try("wrote through O_PATH", open(fmt.Sprintf("/proc/self/fd/%d", path), unix.O_RDWR))
		try("linked by descriptor", unix.Linkat(path, "", unix.AT_FDCWD, at("hard"), unix.AT_EMPTY_PATH))
		_ = unix.Close(path)
	}
	return ways
}

func plantedPrograms(t *target) escape.Finding {
	if len(t.Planted) == 0 {
		return impossible("nothing was planted")
	}
	var ways []string
	ran := 0
	for _, path := range t.Planted {
		fi, err := os.Stat(path)
		if err != nil {
			return broken("%v", err)
		}
		if fi.Mode()&(os.ModeSetuid|os.ModeSetgid) == 0 && unixAttribute(path, "security.capability") == "" && t.IDs == "range" {
			return broken("%s is an ordinary file", path)
		}
		cmd := exec.Command(path, "tool", "whoami")
		cmd.Dir = "/"
		if t.user == "root" && t.IDs != "single" {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000, NoSetGroups: true}}
		} else if t.user == "root" {
			continue // the one id cannot become another
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return broken("%s: %v: %s", path, err, out)
			}
			continue // refused
		}
		ran++
		if s := strings.TrimSpace(string(out)); s != asCaller {
			ways = append(ways, path+" ran as "+s)
		}
	}
	return found(ways, "%d of %d ran, all as the caller", ran, len(t.Planted))
}

func unixAttribute(path, name string) string {
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// movedPart stands in a directory of a part of a volume while that directory is
// moved out of it, and walks up from there.
func movedPart(t *target) escape.Finding {
	if t.Part == "" {
		return impossible("no part of a volume is attached")
	}
	name := fmt.Sprintf("moved-%d", os.Getpid())
	inner := filepath.Join(t.Part, name, "a", "b")
	if err := os.MkdirAll(inner, 0o777); err != nil {
		return broken("%v", err)
	}
	fd, err := unix.Open(inner, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return broken("%v", err)
	}
	defer unix.Close(fd)
	to := filepath.Join(t.Whole, name)
	if err := os.Rename(filepath.Join(t.Whole, "part", name), to); err != nil {
		return broken("%v", err)
	}
	defer os.RemoveAll(to)
	if err := unix.Fchdir(fd); err != nil {
		return held("fchdir refused: %v", err)
	}
	dev, ino, err := identity("/")
	if err != nil {
		return broken("%v", err)
	}
	for up := range 40 {
		if err := unix.Chdir(".."); err != nil {
			return held("%d steps up: %v", up+1, err)
		}
		// Nothing above the volume can be seen: no mount is there.
		for _, file := range t.Files {
			if _, err := os.Stat(strings.TrimPrefix(file, "/")); err == nil {
				return escaped("%d steps up is a directory of the host", up+1)
			}
		}
		if _, err := os.Stat("sandboxes"); err == nil {
			return escaped("%d steps up is berth's own directory", up+1)
		}
	}
	if d, i, err := identity("."); err != nil || d != dev || i != ino {
		return escaped("came out at %d:%d, which is not the sandbox's root (%v)", d, i, err)
	}
	return held("all the way up is the sandbox's own root")
}

func folderParents(t *target) escape.Finding {
	rootDev, rootIno, err := identity("/")
	if err != nil {
		return broken("%v", err)
	}
	var ways []string
	dirs := append(append([]string{"/home/agent"}, t.Writable...), t.ReadOnly...)
	for _, dir := range dirs {
		above := filepath.Dir(dir)
		wantDev, wantIno, err := identity(above)
		if err != nil {
			return broken("%v", err)
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return broken("%v", err)
		}
		for _, steps := range []string{"..", strings.Repeat("../", 40)} {
			up, err := unix.Openat(fd, steps, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				continue
			}
			var st unix.Stat_t
			_ = unix.Fstat(up, &st)
			_ = unix.Close(up)
			if steps == ".." && (st.Dev != wantDev || st.Ino != wantIno) || steps != ".." && (st.Dev != rootDev || st.Ino != rootIno) {
				ways = append(ways, steps[:2]+" of "+dir+" is not what stands above it")
			}
		}
		_ = unix.Close(fd)
	}
	return found(ways, "%d folders", len(dirs))
}

func folderLinks(t *target) escape.Finding {
	var ways []string
	tried := 0
	// From the system and from what is read-only into what can be written.
	sources := []string{"/etc/passwd", "/bin/cat", "/usr/bin/env", "/proc/1/exe", "/proc/1/root/etc/passwd", "/proc/self/exe"}
	for _, dir := range t.ReadOnly {
		sources = append(sources, filepath.Join(dir, "marker"))
	}
	for _, dir := range t.Writable {
		to := filepath.Join(dir, fmt.Sprintf("crossed-%d", os.Getpid()))
		for _, from := range sources {
			if filepath.Dir(from) == dir {
				continue
			}
			tried++
			if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW); err == nil {
				ways = append(ways, "linked "+from+" to "+to)
				_ = os.Remove(to)
			}
			if !strings.HasSuffix(from, "/marker") {
				continue
			}
			if err := os.Rename(from, to); err == nil {
				ways = append(ways, "moved "+from+" to "+to)
			}
		}
	}
	return found(ways, "%d links refused", tried)
}

// overlayAttributes writes what overlay notes down for itself, where that would
// make it show another file. On the root it must not come to overlay's eyes.
func overlayAttributes(t *target) escape.Finding {
	var ways []string
	tried := 0
	for _, dir := range []string{"/", "/tmp", "/home/agent", "/workspace"} {
		sub, err := os.MkdirTemp(dir, "noted-")
		if err != nil {
			continue
		}
		file := filepath.Join(sub, "file")
		_ = os.WriteFile(file, []byte("mine"), 0o666)
		for _, at := range []string{sub, file} {
			for note, value := range map[string]string{"redirect": "/etc", "opaque": "y", "metacopy": "", "origin": "\x00\xfb\x00\x00", "impure": "y", "upper": "x", "uuid": "0123456789abcdef", "whiteout": "y", "whiteouts": "y", "xwhiteouts": "y", "protattr": "i"} {
				tried++
				if err := unix.Setxattr(at, "trusted.overlay."+note, []byte(value), 0); err == nil {
					ways = append(ways, at+" took trusted.overlay."+note)
				}
				// Either refused or kept as a user's own note; what it does is seen below.
				_ = unix.Setxattr(at, "user.overlay."+note, []byte(value), 0)
			}
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
			ways = append(ways, fmt.Sprintf("%s now reads %.40q, %v", file, b, err))
		}
		if _, err := os.Stat(filepath.Join(sub, "passwd")); err == nil {
			ways = append(ways, sub+" shows another directory")
		}
		white := filepath.Join(sub, "white")
		tried++
		if err := unix.Mknod(white, unix.S_IFCHR|0o600, 0); err == nil {
			if fd, err := unix.Open(white, unix.O_RDWR, 0); err == nil {
				ways = append(ways, "opened a whiteout")
				_ = unix.Close(fd)
			}
		}
	}
	if tried == 0 {
		return broken("no directory could be made")
	}
	// They are left for who looks after the next start.
	return found(ways, "%d notes changed nothing", tried)
}

// seed fills dir with what the next one to see it may trip over: programs with
// rights, devices, whiteouts, links that lead out. It prints what it could plant.
func seed(dirs []string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, "part"), 0o777); err != nil {
			return err
		}
		_ = os.Chmod(filepath.Join(dir, "part"), 0o777)
		for _, d := range []string{dir, filepath.Join(dir, "part")} {
			for _, name := range []string{"marker", "victim"} {
				if err := os.WriteFile(filepath.Join(d, name), []byte(name), 0o666); err != nil {
					return err
				}
				_ = os.Chmod(filepath.Join(d, name), 0o666)
			}
		}
		for _, name := range []string{"setuid", "capable"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, self, 0o755); err != nil {
				return err
			}
			mode := os.FileMode(0o755)
			if name == "setuid" {
				mode |= os.ModeSetuid | os.ModeSetgid
			}
			if err := os.Chmod(path, mode); err != nil {
				return err
			}
			if name == "capable" {
				_ = unix.Setxattr(path, "security.capability", allCapabilities, 0)
			}
		}
		for name, dev := range map[string]uint64{"mem": unix.Mkdev(1, 1), "kmsg": unix.Mkdev(1, 11), "null": unix.Mkdev(1, 3), "whiteout": 0} {
			_ = unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(dev))
			_ = unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(8, 0)))
		}
		for name, to := range map[string]string{"up": "../../../..", "root": "/", "proc": "/proc/1/root", "shadow": "/etc/shadow"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		for _, note := range []string{"opaque", "redirect", "metacopy"} {
			_ = unix.Setxattr(filepath.Join(dir, "part"), "user.overlay."+note, []byte("y"), 0)
		}
	}
	fmt.Println("seeded")
	return nil
}

// swapPart makes name in the volume at dir, by turns, a directory and a link
// that leads out; it says "swapping" and goes on until it is killed.
func swapPart(dir, name string, targets []string) error {
	real, link := filepath.Join(dir, name), filepath.Join(dir, name+"-link")
	if err := os.MkdirAll(filepath.Join(real, "deep"), 0o777); err != nil {
		return err
	}
	for i := 0; ; i++ {
		_ = os.Remove(link)
		if err := os.Symlink(targets[i%len(targets)], link); err != nil {
			return err
		}
		for range 50 {
			if err := unix.Renameat2(unix.AT_FDCWD, real, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				return err
			}
		}
		// An even number of exchanges: link is a link again.
		if i == 0 {
			fmt.Println("swapping")
		}
	}
}
