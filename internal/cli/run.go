package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"berth/internal/config"
	"berth/sandbox"
)

// The recorded reasons of a command that a signal to us ended.
const (
	interrupted = "interrupted from the keyboard"
	toldToEnd   = "berth was told to end"
	hungUp      = "its terminal was closed"
)

// exitCodes is the part of the help that run, exec and enter share.
const exitCodes = "Exit code: the command's own; 128+n when signal n ended it, such as 130 after Ctrl-C; 124 when its time " +
	"was up; 137 when it was killed for another reason, which is said; 125 when berth could not run it or does not know how it ended; 126 when it may " +
	"not be run; 127 when there is no such program; 2 for wrong usage."

type runCommand struct {
	Keep     bool     `help:"Keep the sandbox afterwards, and say its id."`
	Session  string   `help:"The sandbox's id; made when absent." placeholder:"ID"`
	Owner    string   `help:"Whose it is, and so are --snapshot and --volume: local, default (BERTH_TOKEN), or a token's name." default:"local" placeholder:"NAME"`
	Image    string   `help:"The image to make it of: a name as for docker pull, oci:PATH[:TAG] or docker-archive:PATH." placeholder:"IMAGE"`
	Snapshot string   `help:"The snapshot to make it of; it beats --image." placeholder:"NAME"`
	Env      []string `short:"e" sep:"none" help:"An environment variable, NAME=VALUE; NAME alone takes yours." placeholder:"NAME=VALUE"`
	Dir      []string `sep:"none" help:"Show a folder of this machine inside, HOST:PATH[:ro]." placeholder:"HOST:PATH" key:"limits.host_dirs"`
	User     string   `help:"Run as this user: agent or root; with an image one of its own." placeholder:"USER"`
	Cwd      string   `short:"w" help:"Start in this directory." placeholder:"PATH"`
	TTY      bool     `short:"t" name:"tty" help:"Give it a terminal."`
	wants
	Command []string `arg:"" passthrough:"partial" help:"The command and its arguments."`
}

// Help is shown by --help.
func (*runCommand) Help() string {
	return "The sandbox is deleted afterwards. Flags for berth come before the command; write -- before a command that begins with -. " +
		"Ctrl-C interrupts the command, a second one kills it.\n\n" + exitCodes
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
	if err := imagePath("run: --image", c.Image); err != nil {
		return err
	}
	if !config.OwnerName(c.Owner) || c.Owner == "all" {
		return usagef("run: --owner: %.80q is no name of an owner; allowed: %s, and not all", c.Owner, config.OwnerNames)
	}
	ephemeral := !c.Keep
	spec := sandbox.Spec{Ephemeral: &ephemeral, Image: a.absoluteImage(c.Image), Snapshot: c.Snapshot}
	if err := c.add(&spec); err != nil {
		return err
	}
	a.flags = a.absoluteDirs(a.flags)
	for _, f := range a.flags {
		// Else it would be found when the sandbox starts, by the name of a
		// setting that nobody wrote.
		if d, err := config.ParseHostDir(f.Value); f.Name == "--dir" && err == nil {
			if st, err := os.Stat(d.Host); err != nil {
				return usagef("run: --dir: %s: %s", d.Host, because(err))
			} else if !st.IsDir() {
				return usagef("run: --dir: %s is no directory", d.Host)
			}
		}
	}
	b, err := a.open()
	if err != nil {
		return a.notRun(err)
	}
	defer b.close()

	key := sandbox.Key{Owner: sandbox.Owner(c.Owner), Session: sandbox.NewSessionID()}
	if c.Session != "" {
		if key.Session, err = sandbox.ParseSessionID(c.Session); err != nil {
			if f, ok := errors.AsType[*sandbox.FieldError](err); ok {
				return usagef("run: --session: %s; allowed: %s", f.Problem, f.Allowed)
			}
			return usagef("run: --session: %v", err)
		}
	}
	// Whatever happens from here on, the sandbox goes away again, also when
	// the reader of our output does.
	signal.Ignore(syscall.SIGPIPE)
	started, err := a.start(b, key, spec)
	if err != nil {
		return a.notRun(c.whose(a, b, err))
	}
	if started.Outcome == sandbox.Connected {
		return a.notRun(fmt.Errorf("sandbox %s exists already; berth exec %s -- … runs commands in it", key.Session, key.Session))
	}
	a.remark(started.Notice.Warnings)
	err = a.attach(b, key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Argv: argv, Env: env, User: c.User, Cwd: c.Cwd}}, c.TTY, 0)
	if c.Keep {
		flag := ""
		if key.Owner != visibleOwner("") && visibleOwner("") != "" {
			flag = "--owner " + c.Owner + " "
		}
		fmt.Fprintf(a.Stderr, "berth: the sandbox is kept; berth enter %s%s\n", flag, key.Session)
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

// whose says of a snapshot that the owner of the sandbox does not have who has it.
func (c *runCommand) whose(a *App, b *bench, err error) error {
	f, ok := errors.AsType[*sandbox.FieldError](err)
	if !ok || f.Field != "snapshot" || c.Snapshot == "" {
		return err
	}
	owners, listErr := b.snapshotOwners(a, c.Snapshot)
	if listErr != nil || len(owners) == 0 || slices.Contains(owners, c.Owner) {
		return err
	}
	slices.Sort(owners)
	return fmt.Errorf("run: --snapshot: %s has no snapshot %q; it exists for %s; give --owner %s, whose the sandbox then is", c.Owner, c.Snapshot, strings.Join(owners, " and "), owners[0])
}

type execCommand struct {
	ownerFlag
	Env     []string `short:"e" sep:"none" help:"An environment variable, NAME=VALUE; NAME alone takes yours." placeholder:"NAME=VALUE"`
	User    string   `help:"Run as this user: agent or root." placeholder:"USER"`
	Cwd     string   `short:"w" help:"Start in this directory." placeholder:"PATH"`
	TTY     bool     `short:"t" name:"tty" help:"Give it a terminal."`
	ID      string   `arg:"" help:"The sandbox."`
	Command []string `arg:"" passthrough:"partial" help:"The command and its arguments."`
}

// Help is shown by --help.
func (*execCommand) Help() string {
	return "A stopped sandbox is started. Flags for berth come before the command; write -- before a command that begins with -. " +
		"Ctrl-C interrupts the command, a second one kills it.\n\n" + exitCodes
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
	key, err := b.find(a.ctx, c.ID, c.Owner)
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
	// From before the start on: what comes in between must reach the command.
	signals := catch()
	defer signals.stop()
	spawned, err := b.SpawnProcess(a.ctx, key, r)
	if err != nil {
		return a.notRun(shellText(r.Argv, err))
	}
	a.remark(spawned.Notice.Warnings)
	ctx := context.WithoutCancel(a.ctx)
	p, err := b.Process(ctx, key, spawned.Process.ID)
	if err != nil {
		return a.notRun(err)
	}
	if tty {
		return a.interact(ctx, key, p, sandbox.Cursor{}, detach, signals)
	}
	signals.pass(ctx, p)
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

// shellText explains, for a command line, that one word with blanks in it is no
// command with arguments.
func shellText(argv []string, err error) error {
	if len(argv) == 0 || !errors.Is(err, sandbox.ErrNoProgram) || !strings.ContainsAny(argv[0], " \t\n") {
		return err
	}
	return &copyError{fmt.Sprintf("there is no program %.200q in the sandbox; write the program and its arguments as words of their own, or use: sh -c %s",
		argv[0], shellWords([]string{argv[0]})), err}
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
			if value, ok = a.lookupEnv(name); !ok {
				return nil, usagef("--env: %s is not set here; write %s=VALUE, or leave it out", name, name)
			}
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
