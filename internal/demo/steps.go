package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/driver"
)

// What later steps need of earlier ones.
var (
	port    int
	server  string       // process_id of the background server
	writer  string       // process_id of the writer
	cursor  string       // where the reader of the writer's output was
	written bytes.Buffer // what the reader has read
)

// lines that the writer writes.
const lines = 200_000

func (d *demo) connect(ctx context.Context) error {
	var err error
	if port, err = driver.FreePort(); err != nil {
		return err
	}
	begin := time.Now()
	if d.server, err = d.program.ListenAndServe(ctx, port); err != nil {
		return err
	}
	d.say("berth serve --http 127.0.0.1:%d answers after %s (pid %d)", port, took(begin), d.server.PID)
	if d.session, err = d.server.Dial(ctx, driver.HTTP, ""); err != nil {
		return err
	}
	tools, err := d.session.Client.ListTools(ctx, mcp.ListToolsRequest{})
	if err != nil {
		return err
	}
	names := make([]string, len(tools.Tools))
	for i, t := range tools.Tools {
		names[i] = t.Name
	}
	if len(names) < 16 {
		return off("only %d tools: %s", len(names), strings.Join(names, " "))
	}
	d.say("%d tools: %s …", len(names), strings.Join(names[:6], ", "))
	return nil
}

func (d *demo) together(ctx context.Context) error {
	type result struct {
		answer     *driver.Answer
		err        error
		start, end time.Time
	}
	commands := []string{`echo "Hello, world!"; sleep 0.3`, `pwd; sleep 0.3`}
	results := make([]result, len(commands))
	var wg sync.WaitGroup
	begin := time.Now()
	for i, c := range commands {
		wg.Go(func() {
			r := &results[i]
			r.start = time.Now()
			r.answer, r.err = d.call(ctx, "execute_command", map[string]any{"command": c})
			r.end = time.Now()
		})
	}
	wg.Wait()
	want := []string{"Hello, world!", "/home/" + d.user}
	for i, r := range results {
		if r.err != nil {
			return r.err
		}
		if got := body(r.answer); got != want[i] || code(r.answer) != "0" {
			return off("%s answers %q, exit %s; want %q, exit 0", commands[i], got, code(r.answer), want[i])
		}
		const cells = 40
		total := float64(time.Since(begin))
		from, to := int(float64(r.start.Sub(begin))/total*cells), int(float64(r.end.Sub(begin))/total*cells)
		d.say("%-30s %-14s %s%s %s", strings.SplitN(commands[i], ";", 2)[0], body(r.answer),
			strings.Repeat(" ", from), d.paint("36", strings.Repeat("━", max(1, min(to, cells)-from))), took(r.start))
	}
	if results[0].start.After(results[1].end) || results[1].start.After(results[0].end) {
		return off("the commands did not run side by side")
	}
	return nil
}

func (d *demo) walls(ctx context.Context) error {
	marker := d.dir + "/host-marker"
	if err := os.WriteFile(marker, []byte("of the host"), 0o644); err != nil {
		return err
	}
	who, err := d.run1(ctx, `echo "$(id -un) on $(uname -n), $(ls /proc | grep -c '^[0-9]') processes in sight"`)
	if err != nil {
		return err
	}
	root, err := d.run1(ctx, "sudo id -un")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(who, d.user+" ") || root != "root" {
		return off("who am I, and with sudo: %q, %q", who, root)
	}
	d.say("%s; sudo makes root, in there only", who)
	a, err := d.call(ctx, "execute_command", map[string]any{"command": "cat " + marker})
	if err != nil {
		return err
	}
	if code(a) == "0" || strings.Contains(a.Text, "of the host") {
		return off("the sandbox reads the host's files: %s", a.Text)
	}
	d.say("a file of the host: %s", d.paint("33", "not there"))
	return nil
}

func (d *demo) code(ctx context.Context) error {
	info, err := d.session.Must(ctx, "get_sandbox", map[string]any{"session_id": sessionID})
	if err != nil {
		return err
	}
	have := fmt.Sprint(info.Structured)
	ran := 0
	for _, c := range []struct{ language, needs, code, want string }{
		{"bash", "bash", `echo $((6 * 7))`, "42"},
		{"python", "python", `print(sum(n * n for n in range(10)))`, "285"},
		{"typescript", "node", `const xs: number[] = [3, 1, 2]; console.log(xs.sort().join("<"))`, "1<2<3"},
	} {
		a, err := d.call(ctx, "run_code", map[string]any{"language": c.language, "code": c.code})
		if err != nil {
			if !strings.Contains(have, c.needs) {
				d.say("%-11s %s", c.language, d.paint("33", "not on this machine: the answer says what to install"))
				continue
			}
			return err
		}
		if body(a) != c.want {
			return off("%s answers %q, want %q", c.language, a.Text, c.want)
		}
		ran++
		d.say("%-11s %-66s → %s", c.language, c.code, d.paint("36", c.want))
	}
	if ran == 0 {
		return off("no language works")
	}
	return nil
}

func (d *demo) background(ctx context.Context) error {
	a, err := d.call(ctx, "spawn_process", map[string]any{
		"command":  `n=0; echo ready; while read -r line; do n=$((n+1)); echo "$n: $line"; done; echo bye`,
		"wait_for": "pattern", "pattern": "ready", "wait_seconds": 10,
	})
	if err != nil {
		return err
	}
	server = a.Result.ProcessID
	d.say("started as %s: %s", server, d.paint("36", body(a)))
	return d.talk(ctx, "is anybody there?", "1: is anybody there?")
}

// talk sends a line to the background server.
func (d *demo) talk(ctx context.Context, line, want string) error {
	a, err := d.call(ctx, "send_stdin", map[string]any{"process_id": server, "text": line + "\n", "wait_seconds": 10})
	if err != nil {
		return err
	}
	if body(a) != want {
		return off("the background server answers %q, want %q", a.Text, want)
	}
	d.say("%s  →  %s", line, d.paint("36", want))
	return nil
}

func (d *demo) kill(ctx context.Context) error {
	if _, err := d.call(ctx, "write_file", map[string]any{"path": "notes.txt", "content": "kept\n"}); err != nil {
		return err
	}
	a, err := d.call(ctx, "spawn_process", map[string]any{
		"command": fmt.Sprintf(`for i in $(seq 1 20); do seq $(((i-1)*%d+1)) $((i*%d)); sleep 0.05; done`, lines/20, lines/20),
	})
	if err != nil {
		return err
	}
	writer = a.Result.ProcessID
	for i := 0; i < 3; i++ {
		if err := d.read(ctx); err != nil {
			return err
		}
	}
	d.say("the reader has %d lines, at cursor %s", bytes.Count(written.Bytes(), []byte("\n")), cursor)
	d.server.Kill()
	d.say("%s the server (pid %d)", d.paint("1;31", "kill -9"), d.server.PID)
	if _, err := d.call(ctx, "list_processes", nil); err == nil {
		return off("a killed server still answers")
	}
	_ = d.session.Close()
	// The writer writes on, with nobody there.
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// read reads what is new of the writer's output.
func (d *demo) read(ctx context.Context) error {
	args := map[string]any{"process_id": writer, "base64": true, "max_bytes": 1 << 18, "wait_seconds": 5}
	if cursor == "" {
		// From the very beginning; without a cursor the newest would be shown
		// when there is more than fits.
		args["max_bytes"] = 1 << 20
	} else {
		args["cursor"] = cursor
	}
	a, err := d.call(ctx, "read_output", args)
	if err != nil {
		return err
	}
	if a.Result.DroppedBytes > 0 {
		return off("%d bytes were dropped", a.Result.DroppedBytes)
	}
	b, err := raw(a)
	if err != nil {
		return err
	}
	written.Write(b)
	cursor = a.Result.Cursor
	return nil
}

func (d *demo) back(ctx context.Context) error {
	begin := time.Now()
	var err error
	if d.server, err = d.program.ListenAndServe(ctx, port); err != nil {
		return err
	}
	d.say("a new server answers after %s (pid %d)", took(begin), d.server.PID)
	if d.session, err = d.server.Dial(ctx, driver.SSE, ""); err != nil {
		return err
	}
	begin = time.Now()
	a, err := d.call(ctx, "reconnect", nil)
	if err != nil {
		return err
	}
	if got := a.Structured["outcome"]; got != "connected" {
		return off("reconnect answers %v, want connected", got)
	}
	d.say("reconnect %q over SSE this time: %s in %s", sessionID, d.paint("36", "connected"), took(begin))
	return nil
}

func (d *demo) count(ctx context.Context) error {
	for {
		before := written.Len()
		if err := d.read(ctx); err != nil {
			return err
		}
		if written.Len() > before {
			continue
		}
		a, err := d.call(ctx, "read_output", map[string]any{"process_id": writer, "cursor": cursor, "wait_for": "exit", "wait_seconds": 20})
		if err != nil {
			return err
		}
		if a.Result.ExitCode == nil {
			continue
		}
		if code(a) != "0" {
			return off("the writer ended with exit %s", code(a))
		}
		if err := d.read(ctx); err != nil {
			return err
		}
		if written.Len() == before {
			break
		}
	}
	want := 1
	for l := range strings.Lines(written.String()) {
		if l != strconv.Itoa(want)+"\n" {
			return off("after line %d comes %q", want-1, l)
		}
		want++
	}
	if want-1 != lines {
		return off("%d lines arrived, want %d", want-1, lines)
	}
	d.say("%s lines, %s bytes: every one arrived once, in order", d.paint("36", strconv.Itoa(lines)), strconv.Itoa(written.Len()))
	return nil
}

func (d *demo) still(ctx context.Context) error {
	if err := d.talk(ctx, "still there?", "2: still there?"); err != nil {
		return err
	}
	a, err := d.call(ctx, "send_stdin", map[string]any{"process_id": server, "text": "", "end": true, "wait_for": "exit", "wait_seconds": 10})
	if err != nil {
		return err
	}
	if body(a) != "bye" || code(a) != "0" {
		return off("closing its stdin answers %q", a.Text)
	}
	d.say("its stdin closed  →  %s, exit 0", d.paint("36", "bye"))
	return nil
}

func (d *demo) truth(ctx context.Context) error {
	a, err := d.call(ctx, "execute_command", map[string]any{"command": "echo begun; sleep 30", "timeout_seconds": 0.5})
	if err != nil {
		return err
	}
	if code(a) != "124" || !a.Result.TimedOut || body(a) != "begun" {
		return off("a time-out answers %q", a.Text)
	}
	d.say("sleep 30 with half a second  →  exit 124, and the output so far: %s", d.paint("36", "begun"))
	if a, err = d.call(ctx, "spawn_process", map[string]any{"command": "sleep 300 & sleep 300 & wait"}); err != nil {
		return err
	}
	if a, err = d.call(ctx, "kill_process", map[string]any{"process_id": a.Result.ProcessID, "signal": "KILL"}); err != nil {
		return err
	}
	if code(a) != "137" || !a.Result.Killed {
		return off("kill answers %q", a.Text)
	}
	left, err := d.run1(ctx, `ps -e -o comm= 2>/dev/null | grep -c '^sleep' || true`)
	if err != nil {
		return err
	}
	if left != "0" {
		return off("%s processes outlived the kill of their tree", left)
	}
	d.say("a tree of three killed  →  exit 137, none of them left")
	return nil
}

func (d *demo) wake(ctx context.Context) error {
	if _, err := d.call(ctx, "stop_sandbox", nil); err != nil {
		return err
	}
	begin := time.Now()
	out, err := d.run1(ctx, "cat notes.txt")
	if err != nil {
		return err
	}
	if out != "kept" {
		return off("notes.txt holds %q after the stop, want %q", out, "kept")
	}
	d.say("cat notes.txt  →  %s, %s after the stop", d.paint("36", out), took(begin))
	return nil
}

func (d *demo) destroy(ctx context.Context) error {
	if _, err := d.call(ctx, "destroy_sandbox", nil); err != nil {
		return err
	}
	a, err := d.session.Must(ctx, "list_sandboxes", nil)
	if err != nil {
		return err
	}
	if list, _ := a.Structured["sandboxes"].([]any); len(list) != 0 {
		return off("%d sandboxes are listed after the only one was destroyed", len(list))
	}
	d.say("no sandbox is listed")
	return nil
}
