//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var fileProbes = []probe{
	{name: "host_files", refused: "files and directories of the host, by every path that could lead there", run: hostFiles},
	{name: "host_secrets", refused: "the host's password hashes, keys, logs, sockets and users", run: hostSecrets},
	{name: "foreign_roots", refused: "other roots and working directories through /proc", run: foreignRoots},
	{name: "hard_links", refused: "links across the walls", run: hardLinks},
	{name: "symlink_proc", refused: "magic links of PID 1", run: magicLinks},
}

// outsideFiles looks for everything of the host below prefix.
func outsideFiles(t *target, prefix string) escape.Finding {
	if ways := findOutside(t, prefix); len(ways) > 0 {
		return found(ways, "")
	}
	return held("%d files and %d directories are not there", len(t.Files), len(t.Dirs))
}

func findOutside(t *target, prefix string) []string {
	var ways []string
	for _, p := range t.Files {
		b, err := os.ReadFile(prefix + p)
		if err == nil && strings.Contains(string(b), escape.Canary) {
			ways = append(ways, "read "+prefix+p)
		} else if _, err := os.Lstat(prefix + p); err == nil {
			ways = append(ways, "saw "+prefix+p)
		}
	}
	for _, p := range t.Dirs {
		if _, err := os.Lstat(prefix + p); err == nil {
			ways = append(ways, "saw "+prefix+p)
		}
	}
	return ways
}

func hostFiles(t *target) escape.Finding {
	prefixes := []string{"", "/..", "/../../../../../../..", "/proc/self/root", "/proc/self/root/..", "/proc/thread-self/root",
		"/proc/self/cwd/../../../../..", "/proc/1/root", "/proc/1/root/..", "/proc/1/cwd", "/proc/1/cwd/../..", "/dev/fd/0/..", "/dev/fd/1/../.."}
	for fd := range 32 {
		prefixes = append(prefixes, fmt.Sprintf("/proc/1/fd/%d", fd), fmt.Sprintf("/proc/self/fd/%d/../../..", fd))
	}
	for _, pid := range pids() {
		prefixes = append(prefixes, "/proc/"+pid+"/root", "/proc/"+pid+"/root/../..", "/proc/"+pid+"/cwd/../../../..")
	}
	var ways []string
	for _, p := range prefixes {
		ways = append(ways, findOutside(t, p)...)
	}
	return found(ways, "%d things of the host by %d ways: nothing", len(t.Files)+len(t.Dirs), len(prefixes))
}

// secrets are places of the host that must be absent or empty inside.
var secrets = []string{"/etc/gshadow", "/etc/sudoers", "/etc/sudoers.d", "/etc/ssh", "/etc/ssl/private", "/etc/machine-id", "/etc/docker", "/etc/kubernetes",
	"/etc/krb5.keytab", "/etc/subuid", "/etc/crontab", "/etc/NetworkManager", "/etc/wireguard", "/root/.ssh", "/root/.bash_history",
	"/root/.docker", "/root/.aws", "/root/.config", "/run/docker.sock", "/var/run/docker.sock", "/run/containerd", "/run/systemd", "/run/user",
	"/run/dbus", "/run/crio", "/var/lib/docker", "/var/lib/kubelet", "/var/lib/cloud", "/var/log/auth.log", "/var/log/syslog", "/var/log/journal",
	"/var/spool/cron", "/boot", "/srv", "/media", "/lost+found", "/host", "/.dockerenv", "/initrd.img", "/var/backups", "/var/mail"}

func hostSecrets(t *target) escape.Finding {
	var ways []string
	for _, p := range secrets {
		fi, err := os.Stat(p)
		if err != nil {
			continue
		}
		if !fi.IsDir() {
			if fi.Size() > 0 || !fi.Mode().IsRegular() {
				ways = append(ways, p)
			}
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil || len(entries) > 0 {
			ways = append(ways, fmt.Sprintf("%s (%d entries, %v)", p, len(entries), err))
		}
	}
	if b, err := os.ReadFile("/etc/shadow"); err == nil {
		if t.user != "root" {
			ways = append(ways, "the user reads /etc/shadow")
		}
		if sum := sha256.Sum256(b); t.Shadow != "" && hex.EncodeToString(sum[:]) == t.Shadow {
			ways = append(ways, "/etc/shadow is the host's")
		}
	}
	for _, file := range []string{"/etc/passwd", "/etc/passwd-", "/etc/group"} {
		b, _ := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			if name, _, _ := strings.Cut(line, ":"); contains(t.Users, name) {
				ways = append(ways, file+" names the host's user "+name)
			}
		}
	}
	if homes, err := os.ReadDir("/home"); err == nil {
		for _, h := range homes {
			if h.Name() != "agent" {
				ways = append(ways, "/home/"+h.Name())
			}
		}
	}
	return found(ways, "%d places absent or empty", len(secrets))
}

// foreignRoots checks every process's links: only our own root and files may
// be behind them.
func foreignRoots(t *target) escape.Finding {
	var ways []string
	opened := 0
	for _, pid := range pids() {
		dir := "/proc/" + pid
		if fd, err := unix.Open(dir+"/root", unix.O_PATH, 0); err == nil {
			opened++
			if !sameFile(dir+"/root", "/") {
				ways = append(ways, dir+"/root is another root")
			}
			_ = unix.Close(fd)
		}
		for _, name := range []string{"cwd", "exe"} {
			to, err := os.Readlink(dir + "/" + name)
			if err != nil {
				continue
			}
			opened++
			if strings.HasPrefix(to, "(unreachable)") {
				ways = append(ways, dir+"/"+name+" -> "+to)
			}
		}
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue
		}
		for _, f := range fds {
			to, err := os.Readlink(dir + "/fd/" + f.Name())
			if err != nil {
				continue
			}
			opened++
			if strings.HasPrefix(to, "(unreachable)") {
				ways = append(ways, dir+"/fd/"+f.Name()+" -> "+to)
				continue
			}
			// A path that does not lead to the same file here is one of another root.
			if strings.HasPrefix(to, "/") && !strings.HasSuffix(to, " (deleted)") && !strings.HasPrefix(to, "/proc/") &&
				!strings.HasPrefix(to, "/dev/") && !sameFile(dir+"/fd/"+f.Name(), to) {
				if _, err := os.Stat(dir + "/fd/" + f.Name()); err == nil {
					ways = append(ways, dir+"/fd/"+f.Name()+" -> "+to+" is a file of another root")
				}
			}
		}
	}
	return found(ways, "%d links lead nowhere else", opened)
}

func hardLinks(t *target) escape.Finding {
	var ways []string
	for _, p := range []string{"/etc/passwd", "/usr/bin/env", "/proc/1/exe", "/proc/1/root/etc/passwd", "/proc/self/exe"} {
		to := filepath.Join(os.TempDir(), "linked")
		_ = os.Remove(to)
		if err := unix.Linkat(unix.AT_FDCWD, p, unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW); err == nil {
			if strings.HasPrefix(p, "/proc/1/") {
				ways = append(ways, "linked "+p)
			}
			_ = os.Remove(to)
		}
	}
	return found(ways, "nothing of PID 1 was linked")
}

func magicLinks(t *target) escape.Finding {
	var ways []string
	count := 0
	names := []string{"root", "cwd", "exe", "fd", "fdinfo", "map_files", "environ", "mem", "maps", "smaps", "pagemap", "auxv", "stack", "syscall", "io", "numa_maps",
		"personality", "ns/mnt", "ns/user", "ns/pid", "ns/net", "root/proc/self", "fd/0", "fd/3", "fd/4", "fd/5", "fd/6", "fd/7", "task/1/fd", "task/1/root", "task/1/mem"}
	for _, n := range names {
		count++
		path := "/proc/1/" + n
		if _, err := os.Readlink(path); err == nil && n != "root/proc/self" {
			ways = append(ways, "readlink "+path)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		b := make([]byte, 64)
		if n, err := unix.Read(fd, b); err == nil && n > 0 {
			ways = append(ways, "read "+path)
		}
		_ = unix.Close(fd)
		// Root may count the entries of some, but use none of them.
		entries, _ := os.ReadDir(path)
		for _, e := range entries {
			if _, err := os.Readlink(path + "/" + e.Name()); err == nil {
				ways = append(ways, "readlink "+path+"/"+e.Name())
			}
			if fd, err := unix.Open(path+"/"+e.Name(), unix.O_PATH, 0); err == nil && !strings.Contains(path, "fdinfo") {
				if _, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && !strings.HasPrefix(link(fd), "/proc/") {
					ways = append(ways, "opened "+path+"/"+e.Name())
				}
				_ = unix.Close(fd)
			}
		}
	}
	for n, value := range map[string]string{"comm": "escaped", "uid_map": "0 0 4294967295", "gid_map": "0 0 4294967295", "setgroups": "allow",
		"attr/current": "unconfined", "attr/exec": "unconfined", "loginuid": "0", "timerslack_ns": "1", "mem": "x", "task/1/comm": "escaped"} {
		count++
		if fd, err := unix.Open("/proc/1/"+n, unix.O_WRONLY, 0); err == nil {
			if _, err := unix.Write(fd, []byte(value)); err == nil {
				ways = append(ways, "wrote /proc/1/"+n)
			}
			_ = unix.Close(fd)
		}
	}
	return found(ways, "%d files of PID 1 refused", count)
}
