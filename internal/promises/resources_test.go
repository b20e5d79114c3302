//go:build linux

package promises_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"berth/internal/driver"
)

// TestPromise03Resources asks for processors, memory and disk: they are told
// back, hold inside, and the one that strikes is named. Where they cannot be held
// the sandbox is refused with the fields' names.
func TestPromise03Resources(t *testing.T) {
	if atDaytona {
		resourcesAtDaytona(t)
		return
	}
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	asked := args{"resources": args{"cpu": 0.5, "memory_gib": 0.25, "disk_gib": 0.125}}
	if os.Geteuid() != 0 {
		// An ordinary user has them all in a cgroup of its own only, and disk in memory.
		if r, err := b.Call(t.Context(), "start_sandbox", b.with(asked)); err != nil || r.IsError {
			must(t, err)
			contains(t, r.Text, "resources.", "cannot be held", "best_effort")
			return
		}
	} else {
		b.start(asked, "created")
	}
	box := b.sandbox()
	if got := fmt.Sprint(box["spec"].(args)["resources"]); got != fmt.Sprint(args{"cpu": 0.5, "memory_gib": 0.25, "disk_gib": 0.125}) {
		t.Errorf("resources in force: %s", got)
	}
	contains(t, fmt.Sprint(box["enforced"]), "cpu_limit: 0.5 cores", "memory_limit: 256 MiB", "disk_limit: 128 MiB")
	hog := b.call("execute_command", args{"command": "exec tail -n 1 /dev/zero"})
	contains(t, hog.Text, "killed by SIGKILL: memory limit 256 MiB, exit 137")
	fill := b.call("execute_command", args{"command": "head -c 1G /dev/zero > full"})
	if code := exit(fill); code == 0 || !strings.Contains(fill.Text, "disk limit 128 MiB reached") {
		t.Errorf("filling the disk: exit %d, %s", code, fill.Text)
	}
	b.want("rm full; echo room again > f; cat f", "room again")
	use := b.sandbox()["usage"].(args)
	for _, key := range []string{"cpu_seconds", "memory_bytes", "processes", "disk_bytes"} {
		if use[key] == nil {
			t.Errorf("usage does not tell %s: %v", key, use)
		}
	}
}

// At Daytona sizes are those of an image's sandbox, in whole numbers. The platform,
// here a berth that can, holds them.
func resourcesAtDaytona(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the berth in the cloud's place holds limits as root alone")
	}
	b := withExamples(t).dial(t, driver.Stdio)
	contains(t, b.refused("start_sandbox", args{"image": "daytonaio/sandbox", "resources": args{"cpu": 0.5, "memory_gib": 0.25}}), "resources.cpu", "resources.memory_gib", "whole")
	b.start(args{"image": "daytonaio/sandbox", "resources": args{"cpu": 1, "memory_gib": 1, "disk_gib": 1}}, "created")
	box := b.sandbox()
	if got := fmt.Sprint(box["spec"].(args)["resources"]); got != fmt.Sprint(args{"cpu": 1, "memory_gib": 1, "disk_gib": 1}) {
		t.Errorf("resources in force: %s", got)
	}
	contains(t, fmt.Sprint(box["enforced"]), "cpu_limit", "memory_limit", "disk_limit")
	if hog := b.call("execute_command", args{"command": "x=xxxxxxxx; while :; do x=$x$x; done"}); exit(hog) != 137 {
		t.Errorf("beyond the memory: %s", hog.Text)
	}
	fill := b.call("execute_command", args{"command": "echo more than fits > a; while cat a a > b && cat b b > a; do :; done; exit 1"})
	contains(t, fill.Text, "No space left on device")
	// Not even a byte, with which the helper inside could keep what a command says.
	full := b.call("execute_command", args{"command": "while printf %1000d 0 >> c; do :; done 2>/dev/null; while printf x >> c; do :; done; exit 1"})
	contains(t, full.Text, "No space left on device", "exit 1")
	b.want("rm a b; echo room again > f; cat f", "room again")
}

// TestLimitsAreNamed meets each limit, as root and as an ordinary user, whose
// limits hold by other means: the answer of the command that met it names it,
// list_processes does so later, and the sandbox goes on.
func TestLimitsAreNamed(t *testing.T) {
	notAtDaytona(t, "the platform does not tell which of its limits ended a command")
	t.Parallel()
	root := os.Geteuid() == 0
	s := configured(t, fmt.Sprintf("best_effort: %t\nlimits: {max_pids: 256}\n", !root))
	b := s.dial(t, driver.Stdio)
	asked := args{"ephemeral": !root, "resources": args{"memory_gib": 0.5, "disk_gib": 0.125}}
	b.start(asked, "created")
	hog := "exec python3 -c 'x = bytearray(1 << 30)'"
	if !root {
		// One alone is refused the memory; of all together the largest is killed.
		hog = "python3 -c 'import time; x = bytearray(300 << 20); time.sleep(20)'"
		hog += " & exec " + hog
	}
	// As many as may be, however long the machine takes to start them.
	const crowd = `exec python3 -c '
import subprocess, sys, time
all = []
try:
    while len(all) < 300:
        all.append(subprocess.Popen(["sleep", "100"]))
except OSError:
    time.sleep(3)
for p in all:
    p.kill()
sys.exit(len(all) == 300)'`
	for _, tt := range []struct{ name, command, want string }{
		{"memory", hog, "killed by SIGKILL: memory limit 512 MiB, exit 137"},
		{"disk", "head -c 10G /dev/zero > full", "disk limit 128 MiB reached"},
		{"processes", crowd, "process limit 256 reached"},
	} {
		r := b.call("execute_command", args{"command": tt.command})
		contains(t, r.Text, tt.want)
		if code := exit(r); code == 0 && tt.name != "processes" {
			t.Errorf("%s: exit 0: %s", tt.name, r.Text)
		}
		row := b.processes()[r.Result.ProcessID]
		if !strings.Contains(fmt.Sprint(row["limits"], row["reason"]), strings.TrimPrefix(strings.TrimSuffix(tt.want, ", exit 137"), "killed by SIGKILL: ")) {
			t.Errorf("%s: list_processes shows %v", tt.name, row)
		}
		b.want("rm -f full; echo goes on", "goes on")
	}
	// What is used is told, of the sandbox and of each process.
	held := b.call("spawn_process", args{"command": "python3 -c 'import time; x = bytearray(100 << 20); print(1, flush=True); [i*i for i in range(10**6)]; time.sleep(60)'", "wait_for": "output", "wait_seconds": 20})
	wait(t, 10*time.Second, "usage of the process and of the sandbox is told", func() bool {
		row := b.processes()[held.Result.ProcessID]
		memory, _ := row["memory_bytes"].(float64)
		cpu, _ := row["cpu_seconds"].(float64)
		use, _ := b.sandbox()["usage"].(args)
		whole, _ := use["memory_bytes"].(float64)
		count, _ := use["processes"].(float64)
		return memory > 100<<20 && memory < 400<<20 && cpu > 0.01 && whole > 100<<20 && count >= 1
	})
}

// TestADozenStayWithinTheirLimits runs twelve sandboxes that each take all they can
// of everything, at once, under limits that the operator sets. Each stays within its
// own, and answers.
func TestADozenStayWithinTheirLimits(t *testing.T) {
	notAtDaytona(t, "the sizes of sandboxes without an image are the platform's, and so is holding them")
	root := os.Geteuid() == 0
	const many, memory, disk, pids = 12, 96, 64, 64 // MiB, MiB
	const cpu = 0.1
	s := configured(t, fmt.Sprintf("best_effort: %t\nlimits: {max_cpu: %v, max_memory_gib: %v, max_disk_gib: %v, max_pids: %d, max_sandboxes: %d}\n",
		!root, cpu, memory/1024.0, disk/1024.0, pids, many))
	first := s.dial(t, driver.Stdio)
	var boxes []*box
	for len(boxes) < many {
		b := first.other()
		b.start(args{"ephemeral": !root}, "created") // asking for nothing: the ceiling holds
		boxes = append(boxes, b)
	}
	contains(t, first.refused("start_sandbox", nil), "the operator's limit is 12")
	began := time.Now()
	for _, b := range boxes {
		b.call("spawn_process", args{"command": "while :; do :; done"})
		b.call("spawn_process", args{"command": "while :; do tail -n 1 /dev/zero; done 2>/dev/null"})
		b.call("spawn_process", args{"command": "while :; do head -c 1G /dev/zero > full; rm full; done 2>/dev/null"})
		b.call("spawn_process", args{"command": "while :; do for i in $(seq 100); do sleep 1 & done; wait; done 2>/dev/null"})
	}
	usage := func(b *box) (cpu, memory, disk, processes float64) {
		use, _ := b.sandbox()["usage"].(args)
		number := func(key string) float64 { n, _ := use[key].(float64); return n }
		return number("cpu_seconds"), number("memory_bytes"), number("disk_bytes"), number("processes")
	}
	busy := 0.0
	for range 6 {
		for _, b := range boxes {
			_, m, d, n := usage(b)
			busy = max(busy, m, d)
			if root && (m > memory<<20 || n > pids) || d > (disk+8)<<20 {
				t.Errorf("%s uses %v bytes of memory, %v of its disk, %v processes", b.id, m, d, n)
			}
		}
		time.Sleep(500 * time.Millisecond) // while they go on
	}
	for _, b := range boxes {
		used, _, _, _ := usage(b)
		if most := cpu*time.Since(began).Seconds()*1.3 + 0.3; root && used > most {
			t.Errorf("%s used %.1f s of a processor, at most %.1f s were its share", b.id, used, most)
		}
		if root && used == 0 {
			t.Errorf("%s used no processor, so nothing is shown", b.id)
		}
	}
	if busy < 16<<20 {
		t.Errorf("at the most %v bytes were used, so nothing is shown", busy)
	}
	// The processes are as many as they may be: one more may have to wait for room.
	for _, b := range boxes {
		for _, p := range b.processes() {
			b.call("kill_process", args{"process_id": p["process_id"], "signal": "KILL"})
		}
		b.want("rm -f full; echo goes on > f && cat f", "goes on")
	}
}
