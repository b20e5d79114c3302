//go:build linux

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var procProbes = []probe{
	{name: "proc_writable", refused: "files of /proc that change the machine", run: procWritable},
	{name: "proc_revealing", refused: "files of /proc that show the host's memory or addresses", run: procRevealing},
	{name: "sys_writable", refused: "files of /sys that change the machine", run: sysWritable},
	{name: "sys_revealing", refused: "firmware, debugging and power files of /sys", run: sysRevealing},
	{name: "cgroups", refused: "writing into control groups, release agents above all", run: cgroups},
	{name: "host_processes", refused: "seeing processes of the host", run: hostProcesses},
}

func pids() []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, e.Name())
		}
	}
	return all
}

// writable lists the files below dir that open for writing. Nothing is
// written. skip leaves out directories.
func writable(dir string, skip func(path string) bool) (ways []string, seen int) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if skip != nil && skip(path) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			if fd, err := unix.Open(path, unix.O_TMPFILE|unix.O_WRONLY, 0o600); err == nil {
				ways = append(ways, path+"/ takes new files")
				_ = unix.Close(fd)
			}
			return nil
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		seen++
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && unix.Major(st.Rdev) == 1 && unix.Minor(st.Rdev) == 3 {
			return nil // covered by /dev/null
		}
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
			ways = append(ways, path)
			_ = unix.Close(fd)
		}
		return nil
	})
	return ways, seen
}

func procWritable(t *target) escape.Finding {
	ways, seen := writable("/proc", func(path string) bool {
		first, _, _ := strings.Cut(strings.TrimPrefix(path, "/proc/"), "/")
		_, err := strconv.Atoi(first)
		return err == nil || first == "self" || first == "thread-self"
	})
	return found(ways, "%d files, none opens for writing", seen)
}

func procRevealing(t *target) escape.Finding {
	var ways []string
	for _, p := range []string{"kcore", "kmsg", "keys", "timer_list", "latency_stats", "sched_debug", "vmallocinfo", "slabinfo", "pagetypeinfo", "kpagecount",
		"kpageflags", "kpagecgroup", "vmcore", "timer_stats", "acpi/alarm", "scsi/scsi", "mtrr", "self/stack", "self/mem_none", "asound/cards"} {
		path := "/proc/" + p
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		b := make([]byte, 256)
		if n, err := unix.Read(fd, b); err == nil && n > 0 && p != "self/stack" {
			ways = append(ways, fmt.Sprintf("%s: %.40q", path, b[:n]))
		}
		_ = unix.Close(fd)
	}
	// Addresses: zero is what those without rights see.
	for _, p := range []string{"kallsyms", "modules", "iomem", "ioports"} {
		b, err := os.ReadFile("/proc/" + p)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if len(fields) < 3 {
				continue
			}
			address := fields[0]
			if p == "modules" {
				address = strings.TrimPrefix(fields[len(fields)-1], "0x")
			}
			if p == "iomem" || p == "ioports" {
				_, address, _ = strings.Cut(fields[0], "-")
			}
			if v, err := strconv.ParseUint(address, 16, 64); err == nil && v != 0 {
				ways = append(ways, "/proc/"+p+" shows addresses: "+strings.TrimSpace(line))
				break
			}
		}
	}
	// /proc/self/pagemap hides frame numbers from those without rights.
	if f, err := os.Open("/proc/self/pagemap"); err == nil {
		b := make([]byte, 8)
		page := os.Getpagesize()
		keep := make([]byte, page)
		keep[0] = 1
		if _, err := f.ReadAt(b, int64(pointer(keep))/int64(page)*8); err == nil {
			var v uint64
			for i := range b {
				v |= uint64(b[i]) << (8 * i)
			}
			if frame := v & (1<<55 - 1); v>>63 == 1 && frame != 0 {
				ways = append(ways, fmt.Sprintf("/proc/self/pagemap shows frame %#x", frame))
			}
		}
		_ = f.Close()
	}
	for _, dir := range []string{"/proc/acpi", "/proc/scsi"} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			ways = append(ways, fmt.Sprintf("%s has %d entries", dir, len(entries)))
		}
	}
	return found(ways, "nothing shown")
}

func sysWritable(t *target) escape.Finding {
	if _, err := os.Stat("/sys"); err != nil {
		return held("no /sys")
	}
	ways, seen := writable("/sys", nil)
	return found(ways, "%d files, none opens for writing", seen)
}

func sysRevealing(t *target) escape.Finding {
	var ways []string
	for _, dir := range []string{"/sys/firmware", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security", "/sys/kernel/config", "/sys/fs/bpf",
		"/sys/fs/pstore", "/sys/fs/fuse/connections", "/sys/devices/virtual/powercap", "/sys/fs/selinux"} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			ways = append(ways, fmt.Sprintf("%s has %d entries", dir, len(entries)))
		}
	}
	// Only our own loopback.
	if entries, err := os.ReadDir("/sys/class/net"); err == nil {
		for _, e := range entries {
			if e.Name() != "lo" && !strings.HasSuffix(e.Name(), "0") {
				ways = append(ways, "/sys/class/net/"+e.Name())
			}
		}
	}
	// The addresses of loaded code.
	sections, _ := filepath.Glob("/sys/module/*/sections/.text")
	for _, s := range sections {
		if b, err := os.ReadFile(s); err == nil && strings.Trim(string(b), "0x\n") != "" {
			ways = append(ways, s+" shows "+string(b))
		}
	}
	return found(ways, "empty")
}

func cgroups(t *target) escape.Finding {
	var ways []string
	dirs := []string{"/sys/fs/cgroup"}
	entries, err := mountEntries()
	if err != nil {
		return broken("%v", err)
	}
	for _, m := range entries {
		if m.kind == "cgroup" || m.kind == "cgroup2" {
			dirs = append(dirs, m.at)
		}
	}
	for _, dir := range dirs {
		more, _ := writable(dir, nil)
		ways = append(ways, more...)
		if err := os.Mkdir(filepath.Join(dir, "escape"), 0o700); err == nil {
			ways = append(ways, "made a group in "+dir)
			_ = os.Remove(filepath.Join(dir, "escape"))
		}
	}
	return found(ways, "%d mounts, none writable", len(dirs)-1)
}

func hostProcesses(t *target) escape.Finding {
	var ways []string
	all := pids()
	for _, pid := range all {
		b, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		if t.Argument != "" && strings.Contains(string(b), t.Argument) {
			ways = append(ways, "saw "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	// A pid of this namespace is small; kernel threads are the host's.
	if b, err := os.ReadFile("/proc/2/comm"); err == nil && strings.TrimSpace(string(b)) == "kthreadd" {
		ways = append(ways, "kernel threads are seen")
	}
	return found(ways, "%d processes seen, all ours", len(all))
}
