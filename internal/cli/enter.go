package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"berth/sandbox"
)

type enterCommand struct {
	ownerFlag
	User      string `help:"Enter as this user: agent or root." placeholder:"USER"`
	Cwd       string `short:"w" help:"Start in this directory." placeholder:"PATH"`
	DetachKey string `default:"ctrl-]" help:"The key that leaves and lets the shell run on; none switches it off." placeholder:"KEY"`
	ID        string `arg:"" help:"The sandbox."`
	Process   string `arg:"" optional:"" help:"A process with a terminal to return to; a new shell when absent."`
}

// Help is shown by --help.
func (*enterCommand) Help() string {
	return "Ctrl-] leaves the terminal; what runs in it runs on, and berth enter ID PROCESS returns to it. " +
		"Everything else, Ctrl-C too, goes to the shell. Closing the terminal hangs up: it ends the shell and what runs in its foreground.\n\n" + exitCodes
}

// shell is the sandbox's best login shell.
const shell = "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"

func (c *enterCommand) Run(a *App) error {
	detach, err := detachKey(c.DetachKey)
	if err != nil {
		return err
	}
	if !a.terminal(a.Stdin) {
		return usagef("enter: stdin is no terminal; berth exec %s -- CMD runs one command", c.ID)
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
	if c.Process == "" {
		return a.attach(b, key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Command: shell, User: c.User, Cwd: c.Cwd}}, true, detach)
	}
	id, err := b.process(a.ctx, key, c.Process)
	if err != nil {
		return a.notRun(err)
	}
	p, err := b.Process(a.ctx, key, id)
	if err != nil {
		return a.notRun(err)
	}
	info, err := p.Info(a.ctx)
	switch {
	case err != nil:
		return a.notRun(err)
	case !info.TTY || info.State != sandbox.ProcessRunning:
		return a.notRun(fmt.Errorf("process %s is %s and has %s; berth logs %s %s shows its output",
			id, info.State, map[bool]string{true: "a terminal", false: "no terminal"}[info.TTY], c.ID, id))
	}
	// The last screenful or so; a program that draws is redrawn by the resize.
	from := info.Produced
	from.Stdout = max(from.Stdout-4096, info.Kept.Stdout)
	signals := catch()
	defer signals.stop()
	return a.interact(context.WithoutCancel(a.ctx), key, p, from, detach, signals)
}

func detachKey(s string) (byte, error) {
	s = strings.ToLower(s)
	if s == "none" {
		return 0, nil
	}
	if k, ok := strings.CutPrefix(s, "ctrl-"); ok && len(k) == 1 && (k[0] >= 'a' && k[0] <= 'z' || strings.Contains(`[\]^_`, k)) {
		return strings.ToUpper(k)[0] & 0x1f, nil
	}
	return 0, usagef("--detach-key: %q is no key; allowed: ctrl- and a letter or one of [ \\ ] ^ _, or none", s)
}

// windowSize is that of our terminal, or the usual one.
func (a *App) windowSize() sandbox.WindowSize {
	for _, f := range []any{a.Stdout, a.Stdin, a.Stderr} {
		if file, ok := f.(*os.File); ok && a.terminal(f) {
			if w, h, err := term.GetSize(int(file.Fd())); err == nil && w > 0 && h > 0 {
				return sandbox.WindowSize{Cols: uint16(w), Rows: uint16(h)}
			}
		}
	}
	return sandbox.WindowSize{Cols: 80, Rows: 24}
}

// sane undoes what a program may have left the terminal in: the second screen,
// a hidden cursor, mouse reports, bracketed paste, colour.
const sane = "\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m"

// How a terminal session ended.
type outcome int

const (
	processEnded outcome = iota
	left                 // the detach key
	signalled            // we were told to end
	broke                // the connection to the sandbox, or our terminal
)

// interact connects our terminal with a process's until the process ends or
// the detach key is pressed. Without a terminal of ours it is plain streams.
func (a *App) interact(ctx context.Context, key sandbox.Key, p sandbox.Process, from sandbox.Cursor, detach byte, signals *signals) error {
	if !a.terminal(a.Stdin) {
		signals.pass(ctx, p)
		go feed(ctx, p, a.Stdin)
		info, err := follow(ctx, p, from, a.Stdout, a.Stderr)
		if err != nil {
			return a.notRun(err)
		}
		return a.ended(info)
	}
	how, by, info, err := a.raw(ctx, p, from, detach, signals)
	switch how {
	case left:
		fmt.Fprintf(a.Stderr, "berth: left; berth enter %s %s returns\n", key.Session, p.ID())
		return nil
	case signalled:
		fmt.Fprintf(a.Stderr, "berth: told to end; berth enter %s %s returns\n", key.Session, p.ID())
		return exit(codeOf(by))
	case broke:
		return a.notRun(fmt.Errorf("the connection to the sandbox broke: %w; berth enter %s %s tries again", err, key.Session, p.ID()))
	}
	return a.ended(info)
}

// raw is interact while the terminal is in raw mode. The terminal is given
// back whatever happens, also while panicking.
func (a *App) raw(ctx context.Context, p sandbox.Process, from sandbox.Cursor, detach byte, signals *signals) (how outcome, by os.Signal, info sandbox.ProcessInfo, err error) {
	fd := int(a.Stdin.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return broke, nil, info, err
	}
	how = broke // unless we learn better
	defer func() {
		if how != processEnded {
			fmt.Fprint(a.Stdout, sane+"\r\n")
		}
		_ = term.Restore(fd, before) // the terminal may be gone
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// A terminal that is closed is noticed by a signal, by reading and by
	// writing, whichever comes first.
	hangUp := sync.OnceFunc(func() {
		_ = p.Kill(context.WithoutCancel(ctx), "HUP", 2*time.Second, hungUp) // it may have ended
		cancel(Interrupted{syscall.SIGHUP})
	})
	go func() {
		select {
		case s := <-signals.caught:
			if s == syscall.SIGHUP {
				hangUp()
			}
			cancel(Interrupted{s})
		case <-ctx.Done():
		}
	}()
	go func() { // ends with the process, or with ours
		if a.keys(ctx, p, detach) {
			cancel(errLeft)
		} else if ctx.Err() == nil {
			hangUp()
		}
	}()
	stop := a.followSize(ctx, p)
	defer stop()
	info, err = follow(ctx, p, from, a.Stdout, a.Stderr)
	if errors.Is(err, errOutput) || err == nil && info.Reason == hungUp {
		hangUp()
		err = context.Canceled
	}
	cause := context.Cause(ctx)
	told, isTold := errors.AsType[Interrupted](cause)
	switch {
	case err == nil:
		how = processEnded
	case errors.Is(cause, errLeft):
		how = left
	case isTold:
		how = signalled
	}
	return how, told.Signal, info, err
}

var errLeft = errors.New("the detach key was pressed")

// keys sends what is typed to the process until the detach key is typed, for
// which it returns true, or until the terminal is gone. It waits for the end of
// ctx when the process reads no more, which is no matter of the terminal's.
func (a *App) keys(ctx context.Context, p sandbox.Process, detach byte) (left bool) {
	buf := make([]byte, 4096)
	for {
		n, err := a.Stdin.Read(buf)
		typed := buf[:n]
		at := -1
		if detach != 0 {
			at = strings.IndexByte(string(typed), detach)
		}
		if at >= 0 {
			push(ctx, p, typed[:at], false)
			return true
		}
		if n > 0 && !push(ctx, p, typed, false) {
			<-ctx.Done()
			return false
		}
		if err != nil {
			return false
		}
	}
}
