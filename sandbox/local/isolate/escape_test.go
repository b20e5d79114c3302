//go:build linux

package isolate_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/sandbox/local/wire"
)

// refusals are lines of shell that must fail inside, for root too.
var refusals = map[string]string{
	"mount":            "mount -t tmpfs none /mnt || mount --bind /tmp /home",
	"remount":          "mount -o remount,rw /sys || mount -o remount,rw /proc/sys",
	"umount":           "umount /proc/sys || umount /proc/kcore || umount /usr/bin/sudo",
	"unshare_user":     "unshare -U true",
	"unshare_mount":    "unshare -m true",
	"nsenter":          "nsenter -t 1 -m true",
	"kill_init_term":   "kill -TERM 1; kill -SEGV 1; kill -KILL 1; kill -QUIT 1; sleep 0.05; ! kill -0 1 2>/dev/null && ! test -d /proc/1",
	"init_root":        "ls /proc/1/root/",
	"init_fd":          "readlink /proc/1/fd/3 || cat /proc/1/fd/0 || : < /proc/1/fd/2",
	"init_environ":     "cat /proc/1/environ",
	"init_mem":         "head -c1 /proc/1/mem",
	"init_maps":        "cat /proc/1/maps | grep .",
	"init_exe":         "readlink /proc/1/exe",
	"init_cwd":         "ls /proc/1/cwd/",
	"watcher_fd":       "readlink /proc/$PPID/fd/*",
	"watcher_mem":      "head -c1 /proc/$PPID/mem",
	"kcore":            "head -c1 /proc/kcore | grep -c . | grep 1",
	"kallsyms":         "grep . /proc/kallsyms",
	"keys":             "grep . /proc/keys",
	"sysrq":            "echo h > /proc/sysrq-trigger",
	"sysctl":           "echo 1 > /proc/sys/kernel/dmesg_restrict",
	"core_pattern":     "echo x > /proc/sys/kernel/core_pattern",
	"sys_write":        "echo 0 > /sys/kernel/mm/ksm/run",
	"dmesg":            "dmesg | grep .",
	"mknod_disk":       "cd /tmp && mknod d b 254 0 && head -c1 d",
	"mknod_mem":        "cd /tmp && mknod m c 1 1 && head -c1 m",
	"host_tmp":         "ls -d /tmp/Test*",
	"host_root_files":  "cat /etc/shadow",
	"module":           "modprobe dummy || insmod /x",
	"reboot":           "reboot -f",
	"clock":            "date -s 2001-01-01",
	"hostname":         "hostname other",
	"link_up":          "ip link add x type dummy",
	"pivot":            "pivot_root / /tmp",
	"swapon":           "swapon /tmp/x",
	"cgroup":           "ls /sys/fs/cgroup | grep .",
	"sudo_replace":     "s=$(command -v sudo); rm -f $s || echo x > $s",
	"monitor_process":  "ps -eo args | grep '[m]onitor'",
	"setuid_shell":     "cd /tmp && cp /bin/bash b && chmod 4755 b && su -s /bin/sh nobody -c './b -p -c \"test $(id -u) = 0\"'",
	"chroot_breakout":  "chroot /proc/1/root ls",
	"ptrace_init":      "strace -p 1 -o /dev/null",
	"abstract_sockets": "grep @ /proc/net/unix",
}

// What Docker refuses is refused, and nothing of the host or of init shows.
func TestRefusals(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			for name, text := range refusals {
				for _, user := range []string{"agent", "root"} {
					out, e := b.in(t).sh(user, "{ "+text+"; } 2>&1")
					if e.Code == 0 {
						t.Errorf("%s as %s succeeded: %s", name, user, out)
					}
				}
			}
			if out, e := b.sh("root", "echo alive"); out != "alive\n" || e.Code != 0 {
				t.Errorf("afterwards: %q %+v", out, e)
			}
		})
	}
}

const probe = `
import ctypes, os, platform, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
amd = platform.machine() == "x86_64"
def call(name, nr, *args):
    ctypes.set_errno(0)
    r = libc.syscall(ctypes.c_long(nr), *[ctypes.c_long(a) for a in args])
    print(name, ctypes.get_errno() if r == -1 else 0)
call("unshare", 272 if amd else 97, 0x10000000)
call("mount", 165 if amd else 40, 0, 0, 0, 0, 0)
call("keyctl", 250 if amd else 219, 0, 0)
call("bpf", 321 if amd else 280, 0, 0, 0)
call("perf_event_open", 298 if amd else 241, 0, 0, 0, 0, 0)
call("io_uring_setup", 425, 1, 0)
call("userfaultfd", 323 if amd else 282, 0)
call("open_by_handle_at", 304 if amd else 265, 0, 0, 0)
call("clone3", 435, 0, 0)
call("setns", 308 if amd else 268, 0, 0)
call("fsopen", 430, 0, 0)
call("open_tree", 428, 0, 0, 0)
call("clone_newuser", 56 if amd else 220, 0x10000011, 0, 0, 0, 0)
if amd: call("x32", 0x40000000 + 39)
for name, family in (("af_alg", 38), ("af_vsock", 40)):
    try:
        socket.socket(family, socket.SOCK_STREAM if family == 40 else socket.SOCK_SEQPACKET)
        print(name, 0)
    except OSError as e: print(name, e.errno)
`

// The filter's answers, call by call.
func TestFilter(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			for _, user := range []string{"agent", "root"} {
				p, err := b.spawn(wire.StartProcess{Argv: []string{"python3", "-c", probe}, User: user})
				if err != nil {
					t.Fatal(err)
				}
				p.stdin.Close()
				p.wait()
				out := strings.TrimSpace(<-p.out)
				lines := strings.Split(out, "\n")
				if len(lines) < 15 {
					t.Fatalf("probe said %q", out)
				}
				for _, line := range lines {
					name, errno, _ := strings.Cut(line, " ")
					want := "1" // EPERM
					if name == "clone3" || name == "x32" {
						want = "38" // ENOSYS
					}
					if errno != want {
						t.Errorf("%s as %s: errno %s, want %s", name, user, errno, want)
					}
				}
			}
			out, e := b.sh("agent", "grep -E 'CapBnd|NoNewPrivs|Seccomp:|CapEff' /proc/self/status | tr -d '\\t\\n'; sudo grep CapEff /proc/self/status | tr -d '\\t\\n'")
			if want := "CapEff:0000000000000000CapBnd:00000000a80425fbNoNewPrivs:1Seccomp:2CapEff:00000000a80425fb"; out != want || e.Code != 0 {
				t.Errorf("status %q, want %q", out, want)
			}
		})
	}
}

// Root of one id can pretend to own files as others, which package managers do.
func TestFakeOwner(t *testing.T) {
	b := start(t, launch(t, wire.IDsSingle))
	out, e := b.sh("root", "cd /tmp && touch f && chown 5:6 f && chgrp 7 f && python3 -c 'import os; os.setgroups([1]); os.setresuid(9,9,9)' && echo fine")
	if out != "fine\n" || e.Code != 0 {
		t.Errorf("chown and setresuid as root: %q, %+v", out, e)
	}
	if out, e := b.sh("agent", "cd /tmp && touch g && chown 5:6 g 2>&1"); e.Code == 0 {
		t.Errorf("chown as the user succeeded: %q", out)
	}
}

// Read-only mounts stay so for root, a host folder's owner is the user inside, and mount
// points follow no link out of the new root.
func TestMounts(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			l := launch(t, mode)
			folder := filepath.Join(l.Dir, "folder")
			if err := os.Mkdir(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 && mode == wire.IDsRange {
				if err := os.Chown(folder, 4321, 4321); err != nil {
					t.Fatal(err)
				}
			}
			outside := filepath.Join(l.Dir, "outside")
			if err := os.Mkdir(outside, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(outside, filepath.Join(l.Mounts[0].Lower[0], "link")); err != nil {
				t.Fatal(err)
			}
			owner := "agent"
			if mode == wire.IDsSub {
				owner = "" // only the host's root can
			}
			l.Mounts = append(l.Mounts,
				wire.Mount{Target: "/mnt/rw", Type: "bind", Source: folder, MapOwner: owner},
				wire.Mount{Target: "/mnt/ro", Type: "bind", Source: folder, MapOwner: owner, ReadOnly: true},
				wire.Mount{Target: "/scratch", Type: "tmpfs", Size: 1 << 20, Mode: 0o1777, NoExec: true},
			)
			b := start(t, l)
			user := "agent"
			if mode == wire.IDsSub {
				user = "root"
			}
			if out, e := b.sh(user, "echo x > /mnt/rw/f && cat /mnt/ro/f && stat -c %U /mnt/rw/f"); out != "x\n"+user+"\n" || e.Code != 0 {
				t.Errorf("a host folder: %q, %+v", out, e)
			}
			if os.Geteuid() == 0 && mode == wire.IDsRange {
				info, err := os.Stat(filepath.Join(folder, "f"))
				if err != nil || !ownedBy(info, 4321) {
					t.Errorf("outside: %+v, %v", info, err)
				}
			}
			for _, user := range []string{"agent", "root"} {
				if out, e := b.sh(user, "echo y > /mnt/ro/g"); e.Code == 0 {
					t.Errorf("write to a read-only folder as %s: %q", user, out)
				}
			}
			if out, e := b.sh("agent", "cp /bin/true /scratch/t && /scratch/t"); e.Code != 126 {
				t.Errorf("execute from noexec: %q, %+v", out, e)
			}
			if out, e := b.sh("root", "head -c 2000000 /dev/zero > /scratch/z"); e.Code == 0 {
				t.Errorf("write beyond a tmpfs's size: %q", out)
			}
		})
	}
	t.Run("link", func(t *testing.T) {
		l := launch(t, wire.IDsSingle)
		outside := filepath.Join(l.Dir, "outside")
		if err := os.Mkdir(outside, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(l.Mounts[0].Lower[0], "link")); err != nil {
			t.Fatal(err)
		}
		l.Mounts = append(l.Mounts, wire.Mount{Target: "/link/in", Type: "tmpfs"})
		b := start2(t, l)
		if b != nil {
			b.sh("agent", "true")
		}
		if entries, _ := os.ReadDir(outside); len(entries) != 0 {
			t.Errorf("a mount point was made outside: %v", entries)
		}
	})
}
