package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"berth/sandbox"
)

const chunk = 256 << 10

// errOutput tells that our own output is gone, as after "| head".
var errOutput = errors.New("nobody reads the output")

// follow copies a process's output from c on until the process has ended and
// all of it is written. It returns how the process ended.
func follow(ctx context.Context, p sandbox.Process, c sandbox.Cursor, stdout, stderr io.Writer) (sandbox.ProcessInfo, error) {
	for {
		// The state is read before the output: what a process wrote before
		// it was seen to have ended is in the log.
		info, err := p.Info(ctx)
		if err != nil {
			return info, err
		}
		read := false
		for {
			out, err := p.Read(ctx, c, chunk)
			if err != nil {
				return info, err
			}
			if out.Dropped > 0 {
				fmt.Fprintf(stderr, "\n[berth: %d bytes are no longer kept]\n", out.Dropped)
			}
			if len(out.Stdout)+len(out.Stderr) == 0 {
				break
			}
			read, c = true, out.Next
			if _, err := stdout.Write(out.Stdout); err != nil {
				return info, errOutput
			}
			if _, err := stderr.Write(out.Stderr); err != nil {
				return info, errOutput
			}
		}
		switch {
		case info.State != sandbox.ProcessRunning:
			return info, nil
		case read:
			continue
		}
		if err := p.Wait(ctx, c, false); err != nil {
			return info, err
		}
	}
}

// feed copies r to a process's stdin until r ends, and then closes stdin. It
// returns when the process reads no more.
func feed(ctx context.Context, p sandbox.Process, r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && !push(ctx, p, buf[:n], false) {
			return
		}
		if err != nil {
			push(ctx, p, nil, true)
			return
		}
	}
}

// push writes to stdin, and waits while the process does not read. It reports
// whether stdin is still good.
func push(ctx context.Context, p sandbox.Process, b []byte, end bool) bool {
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := p.Write(ctx, b, end)
		if !errors.Is(err, sandbox.ErrLimit) {
			return err == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

// ended turns how a process ended into our own end. A code that is not known
// is never taken for success.
func (a *App) ended(info sandbox.ProcessInfo) error {
	a.remark(info.Refusals())
	switch {
	case info.ExitCode == nil:
		reason := info.Reason
		if reason == "" {
			reason = "berth lost sight of it"
		}
		fmt.Fprintf(a.Stderr, "berth: how the command ended is not known: %s\n", reason)
		return exit(exitNotRun)
	case info.TimedOut, info.Killed && info.Reason != "" && info.Reason != interrupted && info.Reason != toldToEnd:
		fmt.Fprintf(a.Stderr, "berth: the command was killed: %s\n", info.Reason)
	}
	if code, yes := fromUs(info); yes {
		return exit(code)
	}
	if *info.ExitCode == 0 {
		return nil
	}
	return exit(*info.ExitCode)
}

// notRun tells why a command could not be run.
func (a *App) notRun(err error) error {
	if err == nil {
		return nil
	}
	_, signalled := a.interrupted(err)
	switch code := a.code(err); {
	case code == exitUsage, signalled:
		return exit(code)
	case errors.Is(err, sandbox.ErrNoProgram):
		return exit(exitNoProgram)
	case errors.Is(err, fs.ErrPermission):
		return exit(exitDenied)
	}
	return exit(exitNotRun)
}
