// Command bench measures berth through MCP beside the peers that this machine
// has, in one interleaved run, and prints a table with the goals of the design.
// It judges nothing by itself: machines differ, so read ratios, not times.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"berth/internal/driver"
)

func main() {
	var (
		berth = flag.String("berth", "bin/berth", "the berth program")
		out   = flag.String("o", "", "write the table into this file, between its bench markers; a file that is not there is made, and with -only the other rows stay")
		n     = flag.Int("n", 30, "repetitions of a latency row")
		only  = flag.String("only", "", "only groups of rows whose name contains this")
	)
	flag.Parse()
	if flag.NArg() == 3 && flag.Arg(0) == gateClient {
		if err := runClient(flag.Arg(1), flag.Arg(2)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if flag.NArg() == 4 && flag.Arg(0) == bucketClient {
		if err := runBucketClient(flag.Arg(1), flag.Arg(2), flag.Arg(3)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := run(*berth, *out, *n, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(berth, out string, n int, only string) error {
	berth, err := filepath.Abs(berth)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return err
	}
	b := &bench{ctx: context.Background(), dir: dir, n: n,
		program: driver.Program{Path: berth, State: filepath.Join(dir, "state"), Args: []string{"--log-level", "warn"}, Stderr: os.Stderr}}
	defer func() {
		b.cleanUp()
		_ = os.RemoveAll(dir)
	}()
	groups := []struct {
		name string
		run  func() ([]row, error)
	}{
		{"create", b.create},
		{"execute", b.execute},
		{"throughput", b.throughput},
		{"output", b.output},
		{"idle", b.idle},
		{"many", b.many},
		{"sse", b.sse},
		{"greedy", b.greedy},
		{"gate", b.gate},
		{"ready", b.ready},
		{"images", b.images},
		{"fork", b.fork},
		{"daytona", b.daytona},
		{"buckets", b.buckets},
	}
	var order, measured []string
	for _, m := range groups {
		order = append(order, m.name)
	}
	found := newReport(order)
	for _, m := range groups {
		if !strings.Contains(m.name, only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s …\n", m.name)
		r, err := m.run()
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		measured = append(measured, m.name)
		found.add(m.name, r, b.absent)
		b.absent = nil
		for _, r := range r {
			fmt.Fprintf(os.Stderr, "  %s: %s (goal %s) %s\n", r.what, r.got, r.goal, r.peers)
		}
	}
	if len(measured) == 0 {
		return fmt.Errorf("-only is %q, but the rows are %s", only, strings.Join(order, ", "))
	}
	machine := fmt.Sprintf("%s, %d cores, %s, %s.", kernel(), runtime.NumCPU(), runtime.Version(), time.Now().Format("2006-01-02"))
	found.machine = machine
	fmt.Print(found)
	if out == "" {
		return nil
	}
	return replaceBetween(out, func(old string) string {
		if len(measured) < len(order) && strings.TrimSpace(old) != "" {
			return found.over(parseReport(old, order), measured, machine).String()
		}
		return found.String()
	})
}

// cleanUp ends what a failed row left running.
func (b *bench) cleanUp() {
	s, err := b.stdio()
	if err != nil {
		return
	}
	defer s.Close()
	for {
		a, err := s.Must(b.ctx, "list_sandboxes", map[string]any{"limit": 200})
		if err != nil {
			return
		}
		list, _ := a.Structured["sandboxes"].([]any)
		if len(list) == 0 {
			return
		}
		for _, row := range list {
			m, _ := row.(map[string]any)
			id, _ := m["session_id"].(string)
			if destroy(b.ctx, s, id) != nil {
				return
			}
		}
	}
}

func kernel() string {
	b, err := exec.CommandContext(context.Background(), "uname", "-sr").Output()
	if err != nil {
		return "unknown kernel"
	}
	return strings.TrimSpace(string(b))
}
