package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"berth/sandbox"
)

// interrupted is the recorded reason of a command that Ctrl-C ended.
const interrupted = "interrupted from the keyboard"

type runCommand struct {
	Keep    bool     `help:"Keep the sandbox afterwards, and say its id."`
	Session string   `help:"The sandbox's id; made when absent." placeholder:"ID"`
	Env     []string `short:"e" sep:"none" help:"An environment variable, NAME=VALUE; NAME alone takes yours." placeholder:"NAME=VALUE"`
	Dir     []string `sep:"none" help:"Show a folder of this machine inside, HOST:PATH[:ro]." placeholder:"HOST:PATH" key:"limits.host_dirs"`
	User    string   `help:"Run as this user: agent or root." placeholder:"USER"`
	Cwd     string   `short:"w" help:"Start in this directory." placeholder:"PATH"`
	TTY     bool     `short:"t" name:"tty" help:"Give it a terminal."`
	Command []string `arg:"" passthrough:"" help:"The command and its arguments."`
}

func (c *runCommand) Run(a *App) error {
	env, err := a.environment(c.Env)
	if err != nil {
		return err
	}
	argv := command(c.Command)
	if len(argv) == 0 {
		return usagef("run: say which command to run: berth run -- CMD")
	}
	a.flags = a.absoluteDirs(a.flags)
	b, err := a.open()
	if err != nil {
		return a.notRun(err)
	}
	defer b.close()

	key := sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.NewSessionID()}
	if c.Session != "" {
		if key.Session, err = sandbox.ParseSessionID(c.Session); err != nil {
			return usagef("run: --session: %v", err)
		}
	}
	// Whatever happens from here on, the sandbox goes away again, also when
	// the reader of our output does.
	signal.Ignore(syscall.SIGPIPE)
	ephemeral := !c.Keep
	started, err := b.StartSandbox(a.ctx, key, sandbox.Spec{Ephemeral: &ephemeral})
	if err != nil {
		return a.notRun(err)
	}
	if started.Outcome == sandbox.Connected {
		return a.notRun(fmt.Errorf("sandbox %s exists already; berth exec %s -- … runs commands in it", key.Session, key.Session))
	}
	a.remark(started.Notice.Warnings)
	err = a.attach(b, key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Argv: argv, Env: env, User: c.User, Cwd: c.Cwd}}, c.TTY, 0)
	if c.Keep {
		fmt.Fprintf(a.Stderr, "berth: the sandbox is kept; berth enter %s\n", key.Session)
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), 30*time.Second)
	defer cancel()
	if _, derr := b.DestroySandbox(ctx, key); derr != nil {
		fmt.Fprintf(a.Stderr, "berth: the sandbox could not be deleted: %v; berth rm %s tries again\n", derr, key.Session)
		if err == nil {
			err = exit(exitFailed)
		}
	}
	return err
}

type execCommand struct {
	Env     []string `short:"e" sep:"none" help:"An environment variable, NAME=VALUE; NAME alone takes yours." placeholder:"NAME=VALUE"`
	User    string   `help:"Run as this user: agent or root." placeholder:"USER"`
	Cwd     string   `short:"w" help:"Start in this directory." placeholder:"PATH"`
	TTY     bool     `short:"t" name:"tty" help:"Give it a terminal."`
	ID      string   `arg:"" help:"The sandbox."`
	Command []string `arg:"" passthrough:"" help:"The command and its arguments."`
}

func (c *execCommand) Run(a *App) error {
	env, err := a.environment(c.Env)
	if err != nil {
		return err
	}
	argv := command(c.Command)
	if len(argv) == 0 {
		return usagef("exec: say which command to run: berth exec %s -- CMD", c.ID)
	}
	b, err := a.open()
	if err != nil {
		return a.notRun(err)
	}
	defer b.close()
	key, err := b.find(a.ctx, c.ID)
	if err != nil {
		return a.notRun(err)
	}
	signal.Ignore(syscall.SIGPIPE)
	return a.attach(b, key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Argv: argv, Env: env, User: c.User, Cwd: c.Cwd}}, c.TTY, 0)
}

// attach starts a process and stays with it: stdin in, output out, signals
// through, its exit code as ours. detach, if not 0, is the key that leaves a
// terminal while the process runs on.
func (a *App) attach(b *bench, key sandbox.Key, r sandbox.SpawnRequest, tty bool, detach byte) error {
	r.OpenStdin = true
	none := time.Duration(0)
	r.Timeout, r.Wait, r.WaitFor = &none, &none, sandbox.WaitNone
	if tty {
		size := a.windowSize()
		r.TTY = &size
		if t := a.getenv("TERM"); t != "" {
			if r.Env == nil {
				r.Env = map[string]*string{}
			}
			if _, given := r.Env["TERM"]; !given {
				r.Env["TERM"] = &t
			}
		}
	}
	spawned, err := b.SpawnProcess(a.ctx, key, r)
	if err != nil {
		return a.notRun(err)
	}
	a.remark(spawned.Notice.Warnings)
	ctx := context.WithoutCancel(a.ctx)
	p, err := b.Process(ctx, key, spawned.Process.ID)
	if err != nil {
		return a.notRun(err)
	}
	if tty {
		return a.interact(ctx, key, p, sandbox.Cursor{}, detach)
	}
	stop := passSignals(ctx, p)
	defer stop()
	go feed(ctx, p, a.Stdin) // ends with the process, or with ours
	info, err := follow(ctx, p, sandbox.Cursor{}, a.Stdout, a.Stderr)
	if errors.Is(err, errOutput) {
		_ = p.Kill(ctx, "TERM", 2*time.Second, "nobody reads its output any more")
		return exit(128 + int(syscall.SIGPIPE))
	}
	if err != nil {
		return a.notRun(err)
	}
	return a.ended(info)
}

// passSignals hands the signals that end us on to the process; the second of
// a kind kills it.
func passSignals(ctx context.Context, p sandbox.Process) (stop func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		seen := map[os.Signal]bool{}
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				name := map[os.Signal]string{os.Interrupt: "INT", syscall.SIGTERM: "TERM"}[s]
				if seen[s] {
					name = "KILL"
				}
				seen[s] = true
				_ = p.Kill(ctx, name, 0, interrupted) // it may have ended
			}
		}
	}()
	return func() { signal.Stop(signals); close(done) }
}

// environment reads NAME=VALUE arguments; NAME alone takes the caller's value.
func (a *App) environment(list []string) (map[string]*string, error) {
	env := map[string]*string{}
	for _, e := range list {
		name, value, ok := strings.Cut(e, "=")
		if name == "" {
			return nil, usagef("--env: %q names no variable; allowed: NAME=VALUE, or NAME to take yours", e)
		}
		if !ok {
			value = a.getenv(name)
		}
		env[name] = &value
	}
	return env, nil
}

// remark shows warnings that came with a result.
func (a *App) remark(list []string) {
	for _, w := range list {
		fmt.Fprintln(a.Stderr, "berth: "+w)
	}
}
