package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/client"

	"berth/internal/driver"
)

type bench struct {
	ctx     context.Context
	dir     string
	n       int
	program driver.Program
	absent  []string
}

// legacy clients ask nothing of the server before initialize: one round trip.
var legacy = client.WithLegacyProtocolOnly() //nolint:staticcheck // deprecated with the protocol that it measures

func (b *bench) stdio() (*driver.Session, error) { return b.program.Stdio(b.ctx, legacy) }

func runTrue(ctx context.Context, s *driver.Session, session string) error {
	return runOne(ctx, s, session, "true")
}

func runOne(ctx context.Context, s *driver.Session, session, command string) error {
	a, err := s.Must(ctx, "execute_command", map[string]any{"session_id": session, "command": command})
	if err != nil {
		return err
	}
	if a.Result.ExitCode == nil || *a.Result.ExitCode != 0 {
		return fmt.Errorf("%s answered %q", command, a.Text)
	}
	return nil
}

func destroy(ctx context.Context, s *driver.Session, session string) error {
	_, err := s.Must(ctx, "destroy_sandbox", map[string]any{"session_id": session})
	return err
}

// create: from nothing to the first command's answer. Peers are one-shot
// programs, whose time holds their taking down too; ours is outside the clock.
func (b *bench) create() ([]row, error) {
	s, err := b.stdio()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	peers, absent := oneShots(b.ctx, b.dir)
	b.absent = append(b.absent, absent...)
	cs := append([]contender{{"berth", func(i int) error { return runTrue(b.ctx, s, fmt.Sprintf("create-%d", i)) }}}, peers...)
	got, err := interleave(b.n, cs)
	if err != nil {
		return nil, err
	}
	for i := range b.n + 1 {
		if err := destroy(b.ctx, s, fmt.Sprintf("create-%d", i)); err != nil {
			return nil, err
		}
	}
	p50 := got["berth"].p50()
	return []row{{"create → first command's answer", "p50 ≤ 25 ms, stretch 12", fmt.Sprintf("p50 %s, p95 %s", ms(p50), ms(got["berth"].p95())),
		beside(got, "berth", cs), judge(p50 <= 25*time.Millisecond)}}, nil
}

func (b *bench) execute() ([]row, error) {
	s, err := b.stdio()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	const list = "true; true"
	shells := []contender{
		{"needs bash", func(int) error { return runOne(b.ctx, s, "exec", list) }},
		{"fork+exec of bash on the host (no sandbox)", func(int) error { return exec.CommandContext(b.ctx, "/bin/bash", "-c", list).Run() }},
	}
	cs := []contender{
		{"berth", func(int) error { return runTrue(b.ctx, s, "exec") }},
		{"fork+exec on the host (no sandbox)", func(int) error { return exec.CommandContext(b.ctx, "/bin/true").Run() }},
	}
	if peer, why := desktopCommander(b.ctx); peer != nil {
		cs = append(cs, *peer)
	} else {
		b.absent = append(b.absent, why)
	}
	got, err := interleave(5*b.n, slices.Concat(cs, shells))
	if err != nil {
		return nil, err
	}
	p50, bash := got["berth"].p50(), got["needs bash"]
	return []row{
		{"execute_command `true`, running sandbox", "p50 ≤ 3 ms", fmt.Sprintf("p50 %s, p95 %s", ms(p50), ms(got["berth"].p95())),
			beside(got, "berth", cs), judge(p50 <= 3*time.Millisecond)},
		{"— `" + list + "`, for which bash is started", "", fmt.Sprintf("p50 %s, p95 %s", ms(bash.p50()), ms(bash.p95())), beside(got, "needs bash", shells), open},
	}, destroy(b.ctx, s, "exec")
}

// throughput: 16 clients of one HTTP server, each with a sandbox of its own; in
// turns with as many that start the program without one.
func (b *bench) throughput() ([]row, error) {
	server, err := b.program.ListenAndServe(b.ctx, 0)
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	const clients, each, turns = 16, 50, 3
	sessions := make([]*rawHTTP, clients)
	name := func(i int) string { return fmt.Sprintf("tp-%d", i) }
	for i := range sessions {
		if sessions[i], err = dialRaw(b.ctx, server.URL+"/mcp"); err != nil {
			return nil, err
		}
		if err := sessions[i].runTrue(b.ctx, name(i)); err != nil {
			return nil, err
		}
	}
	var ours, bare time.Duration
	for range turns {
		took, err := allAtOnce(clients, each, func(i int) error { return sessions[i].runTrue(b.ctx, name(i)) })
		if err != nil {
			return nil, err
		}
		ours += took
		if took, err = allAtOnce(clients, each, func(int) error { return exec.CommandContext(b.ctx, "/bin/true").Run() }); err != nil {
			return nil, err
		}
		bare += took
	}
	rate, host := turns*clients*each/ours.Seconds(), turns*clients*each/bare.Seconds()
	last, err := server.Dial(b.ctx, driver.HTTP, "", legacy)
	if err != nil {
		return nil, err
	}
	defer last.Close()
	for i := range sessions {
		if err := destroy(b.ctx, last, name(i)); err != nil {
			return nil, err
		}
	}
	return []row{{"commands per second, 16 clients, HTTP", "≥ 500", fmt.Sprintf("%.0f", rate),
		fmt.Sprintf("fork+exec on the host, 16 at once (no sandbox) %.0f (%.1f×)", host, host/rate), judge(rate >= 500)}}, nil
}

// allAtOnce is how long n callers take that call f so many times each.
func allAtOnce(n, times int, f func(i int) error) (time.Duration, error) {
	begin := time.Now()
	err := parallel(n, func(i int) error {
		for range times {
			if err := f(i); err != nil {
				return err
			}
		}
		return nil
	})
	return time.Since(begin), err
}

// output: a command writes 10 MiB into its log; then all of it is read back.
// The client is a pipe and a scanner, since decoding JSON in the client costs
// more than all the rest.
func (b *bench) output() ([]row, error) {
	s, err := startRaw(b.ctx, b.program)
	if err != nil {
		return nil, err
	}
	defer s.close()
	const line, lines = 80, 10 << 20 / 80
	const size = line * lines
	command := fmt.Sprintf("yes %s | head -c %d", strings.Repeat("x", line-1), size)
	file := filepath.Join(b.program.State, "output")
	defer os.Remove(file)
	var times, plain sample
	for i := range max(5, b.n/3) + 1 {
		begin := time.Now()
		text, err := s.tool("execute_command", map[string]any{"session_id": "output", "command": command})
		if err != nil {
			return nil, err
		}
		id := between(text, `"process_id":"`, `"`)
		if got := between(text, `"stdout_bytes":`, `,`); got != strconv.Itoa(size) {
			return nil, fmt.Errorf("stdout_bytes %q, want %d", got, size)
		}
		got := 0
		for cursor := "c0.0"; got < size-lines; {
			page, err := s.tool("read_output", map[string]any{"session_id": "output", "process_id": id,
				"cursor": cursor, "max_bytes": 1 << 20, "wait_for": "none"})
			if err != nil {
				return nil, err
			}
			n := bytes.Count(page, []byte("x"))
			if n == 0 {
				return nil, fmt.Errorf("nothing at %s: %.300s", cursor, page)
			}
			got += n
			cursor = between(page[len(page)-min(len(page), 2000):], `"cursor":"`, `"`)
			if cursor == "" {
				cursor = between(page[:min(len(page), 2000)], `"cursor":"`, `"`)
			}
		}
		took := time.Since(begin)
		begin = time.Now()
		if err := exec.CommandContext(b.ctx, "/bin/bash", "-c", command+" > "+file+" && cat "+file+" | cat > /dev/null").Run(); err != nil {
			return nil, err
		}
		if i > 0 {
			times, plain = append(times, took), append(plain, time.Since(begin))
		}
	}
	rate, host := size/1e6/times.p50().Seconds(), size/1e6/plain.p50().Seconds()
	rss := memory(s.cmd.Process.Pid, "VmHWM")
	helpers, err := helperMemory(b.program.State)
	if err != nil {
		return nil, err
	}
	_, err = s.tool("destroy_sandbox", map[string]any{"session_id": "output"})
	return []row{
		{"10 MiB of output into the log and read back", "≥ 200 MB/s", fmt.Sprintf("%.0f MB/s", rate),
			fmt.Sprintf("by the host's shell into a file, and cat through a pipe %.0f MB/s (%.1f×)", host, host/rate), judge(rate >= 200)},
		{"— server's peak RSS while doing so", "≤ 40 MiB", mib(rss), "", judge(rss <= 40<<20)},
		{"— helper's memory (PSS) after it", "", mib(helpers.total), "", open},
	}, err
}

func (b *bench) idle() ([]row, error) {
	s, err := b.stdio()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	const n = 10
	for i := range n {
		if err := runTrue(b.ctx, s, fmt.Sprintf("idle-%d", i)); err != nil {
			return nil, err
		}
	}
	time.Sleep(2 * time.Second) // let the helpers give memory back
	h, err := helperMemory(b.program.State)
	if err != nil {
		return nil, err
	}
	for i := range n {
		if err := destroy(b.ctx, s, fmt.Sprintf("idle-%d", i)); err != nil {
			return nil, err
		}
	}
	per := h.total / n
	return []row{{"idle sandbox, our processes (PSS, mean of 10)", "≤ 3 MiB", fmt.Sprintf("%s in %d processes", mib(per), h.count/n), "", judge(per <= 3<<20)}}, nil
}

// many: does a command take longer when 100 sandboxes run?
func (b *bench) many() ([]row, error) {
	s, err := b.stdio()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := runTrue(b.ctx, s, "many-0"); err != nil {
		return nil, err
	}
	time1 := func(session string) (time.Duration, error) {
		begin := time.Now()
		err := runTrue(b.ctx, s, session)
		return time.Since(begin), err
	}
	var one, hundred sample
	for range 200 {
		d, err := time1("many-0")
		if err != nil {
			return nil, err
		}
		one = append(one, d)
	}
	begin := time.Now()
	for i := 1; i < 100; i++ {
		if err := runTrue(b.ctx, s, fmt.Sprintf("many-%d", i)); err != nil {
			return nil, err
		}
	}
	made := time.Since(begin)
	for i := range 200 {
		d, err := time1(fmt.Sprintf("many-%d", i%100))
		if err != nil {
			return nil, err
		}
		hundred = append(hundred, d)
	}
	for i := range 100 {
		if err := destroy(b.ctx, s, fmt.Sprintf("many-%d", i)); err != nil {
			return nil, err
		}
	}
	ratio := float64(hundred.p95()) / float64(one.p95())
	return []row{{"100 running sandboxes, a command in each", "p95 ≤ 2 × of one",
		fmt.Sprintf("p95 %s, of one %s: %.2f×; 99 made in %.1f s", ms(hundred.p95()), ms(one.p95()), ratio, made.Seconds()), "", judge(ratio <= 2)}}, nil
}

// sse: 500 connected SSE clients, each with a sandbox of its own.
func (b *bench) sse() ([]row, error) {
	server, err := b.program.ListenAndServe(b.ctx, 0)
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	const n = 500
	sessions := make([]*driver.Session, n)
	for i := range sessions {
		if sessions[i], err = server.Dial(b.ctx, driver.SSE, "", legacy); err != nil {
			return nil, fmt.Errorf("client %d: %w", i, err)
		}
		defer sessions[i].Close()
	}
	answered, gate := 0, make(chan struct{}, 8)
	var mu sync.Mutex
	begin := time.Now()
	err = parallel(n, func(i int) error {
		gate <- struct{}{}
		defer func() { <-gate }()
		want := fmt.Sprintf("sse-%d", i)
		a, err := sessions[i].Must(b.ctx, "execute_command", map[string]any{"session_id": want, "command": "echo " + want})
		if err != nil {
			return err
		}
		if !strings.HasPrefix(a.Text, want+"\n") {
			return fmt.Errorf("client %d got %.100q", i, a.Text)
		}
		mu.Lock()
		answered++
		mu.Unlock()
		return nil
	})
	if err != nil {
		return nil, err
	}
	took := time.Since(begin)
	rss := memory(server.PID, "VmRSS")
	err = parallel(8, func(w int) error {
		for i := w; i < n; i += 8 {
			if err := destroy(b.ctx, sessions[i], fmt.Sprintf("sse-%d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	return []row{{"500 SSE sessions, a sandbox each", "all answer",
		fmt.Sprintf("%d answered, all made in %.1f s; server %s", answered, took.Seconds(), mib(rss)), "", judge(answered == n)}}, err
}

// ready: from starting the program to its answer to initialize; and from
// closing its stdin to its end.
func (b *bench) ready() ([]row, error) {
	var up, down, node sample
	var rss int64
	_, absent := exec.LookPath("node")
	if absent != nil {
		b.absent = append(b.absent, "node (not on the PATH)")
	}
	for range b.n {
		begin := time.Now()
		s, err := b.stdio()
		if err != nil {
			return nil, err
		}
		up = append(up, time.Since(begin))
		rss = max(rss, memory(s.PID(), "VmRSS"))
		begin = time.Now()
		if err := s.Close(); err != nil {
			return nil, err
		}
		down = append(down, time.Since(begin))
		if absent == nil {
			begin = time.Now()
			if err := exec.CommandContext(b.ctx, "node", "-e", "0").Run(); err != nil {
				return nil, err
			}
			node = append(node, time.Since(begin))
		}
	}
	const empty = "node with an empty program"
	var peers []contender
	if len(node) > 0 {
		peers = append(peers, contender{name: empty})
	}
	return []row{
		{"server ready (start → initialize answered)", "≤ 30 ms", "p50 " + ms(up.p50()) + ", p95 " + ms(up.p95()),
			beside(map[string]sample{"berth": up, empty: node}, "berth", peers), judge(up.p50() <= 30*time.Millisecond)},
		{"— its RSS then", "≤ 30 MiB", mib(rss), "", judge(rss <= 30<<20)},
		{"stdin closed → server gone", "≤ 1 s", "p50 " + ms(down.p50()) + ", p95 " + ms(down.p95()), "", judge(down.p95() <= time.Second)},
	}, nil
}

func parallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// memory reads one size of /proc/PID/status, in bytes.
func memory(pid int, key string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return -1
			}
			return n << 10
		}
	}
	return -1
}

type helpers struct {
	total int64
	count int
}

// helperMemory sums the PSS of all processes of the helper program that belong
// to the state directory: monitors by their record, init by its parent.
func helperMemory(state string) (helpers, error) {
	var h helpers
	records, err := filepath.Glob(filepath.Join(state, "sandboxes", "*", "monitor.json"))
	if err != nil {
		return h, err
	}
	monitors := map[string]bool{}
	for _, r := range records {
		b, err := os.ReadFile(r)
		if err != nil {
			continue
		}
		if _, rest, ok := strings.Cut(string(b), `"monitor_pid":`); ok {
			monitors[strings.TrimSpace(rest[:strings.IndexAny(rest, ",}\n")])] = true
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return h, err
	}
	for _, p := range procs {
		pid := filepath.Base(p)
		stat, err := os.ReadFile(p + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if !monitors[pid] && (len(fields) < 2 || !monitors[fields[1]]) {
			continue
		}
		rollup, err := os.ReadFile(p + "/smaps_rollup")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(rollup)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				h.total += n << 10
				h.count++
			}
		}
	}
	if h.count == 0 {
		return h, errors.New("no helper process found")
	}
	return h, nil
}
