//go:build linux

// The runtime would keep a cgroup file open, which looks like a leak.
//
//go:debug containermaxprocs=0

// Attacker runs inside a sandbox and tries to get out, or to do harm. It is
// built and started by the tests of package escape:
//
//	attacker list USER              names the probes for USER ("agent", "root")
//	attacker run USER FILE [NAME…]  runs them, one process each; FILE is an escape.Outside
//	attacker tool NAME ARG…         one of the tools that scenarios are made of
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"berth/internal/escape"
)

// probe is one attack.
type probe struct {
	name string
	// refused says what must be refused or left unharmed.
	refused string
	// user is "agent" or "root" when only that one can try; else "".
	user string
	run  func(*target) escape.Finding
}

// target is what a probe knows.
type target struct {
	*escape.Outside
	user string
	// leaked are the descriptors this process was started with, beyond 0,
	// 1 and 2, as "fd path"; taken before anything else ran.
	leaked []string
}

func held(format string, args ...any) escape.Finding {
	return escape.Finding{State: escape.Held, Detail: fmt.Sprintf(format, args...)}
}

func escaped(format string, args ...any) escape.Finding {
	return escape.Finding{State: escape.Escaped, Detail: fmt.Sprintf(format, args...)}
}

func broken(format string, args ...any) escape.Finding {
	return escape.Finding{State: escape.Broken, Detail: fmt.Sprintf(format, args...)}
}

func impossible(format string, args ...any) escape.Finding {
	return escape.Finding{State: escape.Impossible, Detail: fmt.Sprintf(format, args...)}
}

// found makes a finding of a list of ways out.
func found(ways []string, format string, args ...any) escape.Finding {
	if len(ways) == 0 {
		return held(format, args...)
	}
	n := len(ways)
	if n > 12 {
		ways = append(ways[:12:12], fmt.Sprintf("and %d more", n-12))
	}
	return escaped("%s", strings.Join(ways, "; "))
}

func probes(user string) []probe {
	var all []probe
	for _, set := range [][]probe{rightsProbes, syscallProbes, mountProbes, fuseProbes, folderProbes, fileProbes, procProbes, deviceProbes, networkProbes, ipcProbes, processProbes} {
		for _, p := range set {
			if p.user == "" || p.user == user {
				all = append(all, p)
			}
		}
	}
	return all
}

func main() {
	leaked := openDescriptors()
	if standIn(filepath.Base(os.Args[0]), os.Args[1:]) {
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: attacker list USER | run USER FILE [NAME…] | tool NAME ARG…")
		os.Exit(2)
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "list":
		for _, p := range probes(args[0]) {
			fmt.Printf("%s\t%s\n", p.name, p.refused)
		}
	case "run":
		if len(args) < 2 {
			os.Exit(2)
		}
		runAll(args[0], args[1], args[2:], leaked)
	case "one":
		runOne(args[0], args[1], args[2], nil)
	case "tool":
		if err := tool(args[0], args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, args[0]+":", err)
			os.Exit(1)
		}
	default:
		os.Exit(2)
	}
}

// standIn makes this program the few commands of an image that has nothing else.
func standIn(name string, args []string) bool {
	switch name {
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "cat":
		for _, f := range args {
			b, err := os.ReadFile(f)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			_, _ = os.Stdout.Write(b)
		}
	case "id":
		fmt.Println(os.Geteuid())
	default:
		return false
	}
	return true
}

// probeTime is for walks of all of /usr on a machine that is slow and busy.
const probeTime = 2 * time.Minute

func runAll(user, file string, only []string, leaked []string) {
	for _, p := range probes(user) {
		if len(only) > 0 && !contains(only, p.name) {
			continue
		}
		if p.name == "leaked_descriptors" || p.name == "environment" {
			// These ask how this very process was started.
			runOne(user, file, p.name, leaked)
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), probeTime)
		cmd := exec.CommandContext(ctx, os.Args[0], "one", user, file, p.name)
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		cancel()
		if got := escape.Parse(string(out)); len(got) == 1 {
			fmt.Println(got[0])
			continue
		}
		f := broken("the probe's process printed no finding: %v: %.300q", err, out)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			f = broken("no answer within %s", probeTime)
		}
		f.Probe = p.name
		fmt.Println(f)
	}
}

func runOne(user, file, name string, leaked []string) {
	o, err := escape.ReadOutside(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	runtime.LockOSThread() // many attacks change the calling thread only
	for _, p := range probes(user) {
		if p.name == name {
			f := p.run(&target{Outside: o, user: user, leaked: leaked})
			f.Probe = name
			fmt.Println(f)
			return
		}
	}
	os.Exit(2)
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
