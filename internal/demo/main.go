// Demo shows the whole main job of berth to a person: it starts the real
// server, drives it with a real MCP client, kills the server in the middle, and
// counts that nothing was lost. It exits with 1 as soon as anything is off.
//
//	go run ./internal/demo bin/berth
//	go run ./internal/demo -provider daytona bin/berth
//
// With the provider daytona a second server plays the cloud: it serves the
// Daytona API over sandboxes of this machine.
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"berth/internal/driver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	provider := flag.String("provider", "", "local (unless this is said) or daytona")
	flag.Parse()
	path := "bin/berth"
	if flag.NArg() > 0 {
		path = flag.Arg(0)
	}
	d := &demo{provider: *provider, started: time.Now(), colour: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == ""}
	err := d.run(ctx, path)
	d.end()
	if err != nil {
		fmt.Printf("\n%s %v\n", d.paint("1;31", "✗"), err)
		if d.log != "" {
			if b, rerr := os.ReadFile(d.log); rerr == nil && len(b) > 0 {
				fmt.Printf("The servers' log:\n%s", b[max(0, len(b)-4000):])
			}
		}
		d.clean()
		stop()
		os.Exit(1)
	}
	d.clean()
}

// demo is one run.
type demo struct {
	provider string
	colour   bool
	started  time.Time
	steps    int
	dir      string // everything of this run
	log      string
	user     string // whose name commands run under
	program  driver.Program
	server   *driver.Server
	session  *driver.Session
	cloud    *cloud // of the provider daytona
}

// step is one thing that is shown.
type step struct {
	title string
	do    func(context.Context) error
}

// sessionID is the agent's, the only thing it has to remember.
const sessionID = "demo"

func (d *demo) run(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("no berth at %s; run make demo, or make build first", path)
	}
	if d.dir, err = os.MkdirTemp("", "berth-demo-"); err != nil {
		return err
	}
	d.log = filepath.Join(d.dir, "servers.log")
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d.program = driver.Program{Path: path, State: filepath.Join(d.dir, "state"), Stderr: log, Env: []string{"BERTH_CONFIG=", "XDG_CONFIG_HOME=" + d.dir}}
	steps := []step{
		{"Start the server and connect an MCP client", d.connect},
		{"Two commands side by side; the first makes the sandbox", d.together},
		{"A real machine of its own, with walls", d.walls},
		{"Code in three languages", d.code},
		{"A background server that is talked to", d.background},
		{"A writer at full speed; the server killed with -9 in the middle", d.kill},
		{"A new server, a new connection, the same sandbox", d.back},
		{"Nothing lost, nothing repeated", d.count},
		{"The background server never noticed", d.still},
		{"Time-outs and kills tell the truth", d.truth},
		{"Stopped; the next command wakes it, files intact", d.wake},
		{"Destroyed: nothing is left", d.destroy},
	}
	switch d.provider {
	case "", "local":
		d.user = "agent"
		d.program.Args = []string{"--provider", "local"}
	case "daytona":
		steps = d.atDaytona(steps)
	default:
		return fmt.Errorf("no provider %q; there are local and daytona", d.provider)
	}

	fmt.Printf("\n  %s  an agent, its sandbox, and a server that is killed in between\n\n", d.paint("1;36", "berth"))
	for _, s := range steps {
		d.steps++
		begin := time.Now()
		fmt.Printf("%s %s\n", d.paint("1;34", fmt.Sprintf("%2d", d.steps)), d.paint("1", s.title))
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w", d.steps, strings.ToLower(s.title), err)
		}
		fmt.Printf("   %s %s\n\n", d.paint("32", "✓"), d.paint("2", took(begin)))
	}
	fmt.Printf("%s %d steps in %s\n", d.paint("1;32", "All good:"), d.steps, took(d.started))
	return nil
}

// say prints one fact of a step.
func (d *demo) say(format string, args ...any) {
	fmt.Printf("   %s\n", fmt.Sprintf(format, args...))
}

func (d *demo) paint(style, s string) string {
	if !d.colour {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

func took(since time.Time) string {
	t := time.Since(since)
	if t < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(t)/float64(time.Millisecond))
	}
	if t < time.Second {
		return fmt.Sprintf("%d ms", t.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", t.Seconds())
}

// end stops whatever still runs; the sandbox too, when the demo broke off.
func (d *demo) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if d.session != nil {
		_, _ = d.session.Call(ctx, "destroy_sandbox", map[string]any{"session_id": sessionID}) // gone already when all went well
		_ = d.session.Close()
	}
	if d.server != nil {
		d.server.Stop()
	}
	if d.cloud != nil {
		d.cloud.end(ctx)
	}
}

func (d *demo) clean() {
	if d.dir != "" {
		_ = os.RemoveAll(d.dir) // of the temporary directory
	}
}

// call calls a tool for the demo's session.
func (d *demo) call(ctx context.Context, tool string, args map[string]any) (*driver.Answer, error) {
	if args == nil {
		args = map[string]any{}
	}
	args["session_id"] = sessionID
	return d.session.Must(ctx, tool, args)
}

// run1 runs a command that must succeed, and returns its output.
func (d *demo) run1(ctx context.Context, command string) (string, error) {
	a, err := d.call(ctx, "execute_command", map[string]any{"command": command})
	if err != nil {
		return "", err
	}
	if a.Result.ExitCode == nil || *a.Result.ExitCode != 0 {
		return "", fmt.Errorf("%s: %s", command, a.Text)
	}
	return body(a), nil
}

// body is an answer's text without the bracketed lines that end it.
func body(a *driver.Answer) string {
	lines := strings.Split(strings.TrimRight(a.Text, "\n"), "\n")
	for len(lines) > 0 && strings.HasPrefix(lines[len(lines)-1], "[") {
		lines = lines[:len(lines)-1]
	}
	return strings.Join(lines, "\n")
}

func code(a *driver.Answer) string {
	if a.Result.ExitCode == nil {
		return "null"
	}
	return strconv.Itoa(*a.Result.ExitCode)
}

// raw are the exact bytes of stdout in an answer that was asked for base64.
func raw(a *driver.Answer) ([]byte, error) {
	lines := strings.Split(a.Text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "[stdout: ") && i+1 < len(lines) {
			return base64.StdEncoding.DecodeString(lines[i+1])
		}
	}
	return nil, nil
}

var errOff = errors.New("not as promised")

func off(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errOff, fmt.Sprintf(format, args...))
}
