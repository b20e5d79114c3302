package resident

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

const (
	// inlineBytes of a call go within the command. A shell reads a command byte by
	// byte, so that more is faster by a file.
	inlineBytes = 40 << 10
	// callTime is for what takes no time, on a sandbox that is very busy.
	callTime = 30 * time.Second
	tries    = 10
	tryPause = 20 * time.Millisecond // before the second try, and twice as long before each other
	tryMost  = time.Second
)

// doubtError tells that a request failed in the end, and may have been carried out.
type doubtError struct{ err error }

func (e *doubtError) Error() string { return e.err.Error() }
func (e *doubtError) Unwrap() error { return e.err }

// plain takes the doubt from an error of what changes nothing.
func plain(err error) error {
	var doubt *doubtError
	if errors.As(err, &doubt) {
		return doubt.err
	}
	return err
}

// ask has the helper carry out c, and brings and starts it when it must. A request
// that broke is sent again: the helper knows its id. wait is how long the helper
// may take besides.
func (b *Box) ask(ctx context.Context, c *wire.Call, data []byte, wait time.Duration) (*wire.Answer, []byte, error) {
	if c.ID == "" {
		c.ID = newID()
	}
	c.Sandbox = b.o.ID
	doubt := false
	fail := func(err error) (*wire.Answer, []byte, error) {
		if doubt {
			err = &doubtError{err}
		}
		return nil, nil, err
	}
	pause := tryPause
	for try := 1; ; try++ {
		at, err := b.ready(ctx)
		var a *wire.Answer
		var out []byte
		if err == nil {
			a, out, err = b.once(ctx, at, c, data, wait)
			if err == nil && a.Error == nil {
				return a, out, nil
			}
		} else if ctx.Err() != nil || !errors.Is(err, sandbox.ErrUnavailable) {
			return fail(err)
		}
		switch {
		case err == nil && a.Error.Code == wire.CodeNoResident:
			if c.Stop != nil {
				return fail(a.Error)
			}
			b.forget(at)
			err = &terms.KindError{Text: a.Error.Text, Kind: sandbox.ErrNotRunning}
		case err == nil && a.Error.Code == wire.CodeTorn && c.File != nil && c.File.Staged != "":
			return fail(&terms.KindError{Text: a.Error.Text, Kind: sandbox.ErrUnavailable}) // the call came whole, and the file did not
		case err == nil && a.Error.Code == wire.CodeTorn:
			err = &terms.KindError{Text: a.Error.Text, Kind: sandbox.ErrUnavailable}
		case err == nil && a.Error.Code == wire.CodeStdinMoved:
			return fail(a.Error)
		case err == nil:
			return fail(terms.Error(a.Error))
		case errors.Is(err, errNoProgram):
			b.forget(at)
		case ctx.Err() != nil:
			doubt = doubt || maybe(err)
			return fail(ctx.Err())
		case maybe(err):
			doubt, c.Again = true, true
		case errors.Is(err, api.ErrUnavailable), errors.Is(err, sandbox.ErrUnavailable):
		default:
			return fail(kind(err))
		}
		if try == tries {
			return fail(fmt.Errorf("after %d tries: %w", tries, kind(err)))
		}
		b.o.Log.Debug("call sent again", slog.String("sandbox", b.o.ID), slog.Int("try", try), slog.Any("err", err))
		select {
		case <-time.After(pause):
			pause = min(2*pause, tryMost)
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
}

var (
	errTorn      = errors.New("the platform's answer did not come whole")
	errNoProgram = errors.New("berth's helper is not in the sandbox any more")
)

// maybe tells that a request that failed so may have been carried out.
func maybe(err error) bool {
	return errors.Is(err, api.ErrMaybeDone) || errors.Is(err, api.ErrTimeout) || errors.Is(err, errTorn) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// kind gives an error of the platform its kind of package sandbox.
func kind(err error) error {
	switch {
	case errors.Is(err, sandbox.ErrNotRunning), errors.Is(err, sandbox.ErrNotFound):
	case errors.Is(err, api.ErrNotRunning):
		return fmt.Errorf("%w: %w", sandbox.ErrNotRunning, err)
	case errors.Is(err, api.ErrNotFound):
		return fmt.Errorf("%w: %w", sandbox.ErrNotFound, err)
	case errors.Is(err, api.ErrUnavailable), errors.Is(err, errTorn), errors.Is(err, errNoProgram):
		return fmt.Errorf("%w: %w", sandbox.ErrUnavailable, err)
	}
	return err
}

// once runs box call once.
func (b *Box) once(ctx context.Context, at *place, c *wire.Call, data []byte, wait time.Duration) (*wire.Answer, []byte, error) {
	c.Base = at.base
	var value string
	var err error
	if len(data) <= inlineBytes {
		value, err = wire.EncodeCall(c, data)
	}
	if err == nil && (value == "" || len(value) > 2*inlineBytes) {
		value, err = b.byFile(ctx, at, c, data)
	}
	if err != nil {
		return nil, nil, err
	}
	text, code, err := b.t.Exec(ctx, command(at.program, value), wait+callTime)
	if err != nil {
		return nil, nil, err
	}
	a, out, err := wire.DecodeAnswer(text, c.ID)
	if err != nil {
		if code == 126 || code == 127 {
			return nil, nil, fmt.Errorf("%w: %s", errNoProgram, brief(text))
		}
		return nil, nil, fmt.Errorf("%w (exit %d): %s", errTorn, code, brief(text))
	}
	return a, out, nil
}

// byFile brings a call that is too long for a command.
func (b *Box) byFile(ctx context.Context, at *place, c *wire.Call, data []byte) (string, error) {
	p, err := wire.EncodeCallFile(c, data)
	if err != nil {
		return "", err
	}
	name := b.temp(at, "call")
	if err := b.t.Upload(ctx, name, 0o600, bytes.NewReader(p), int64(len(p))); err != nil {
		if ctx.Err() == nil && maybe(err) {
			err = fmt.Errorf("%w: %s", api.ErrUnavailable, err.Error()) // nothing has seen the file
		}
		return "", err
	}
	return wire.CallFileValue(name, p), nil
}

// temp names a file in the helper's own directory, which removes what is left there
// when the helper starts.
func (b *Box) temp(at *place, what string) string {
	return fmt.Sprintf("%s/%s.v%d/tmp/%s-%s", at.base, b.o.ID, wire.CallVersion, what, newID())
}

// command is the text for a shell. The call is in the environment, since arguments
// are everybody's to see; exec spares a process.
func command(program, value string) string {
	return "export " + wire.CallVariable + "=" + Quote(value) + "; exec " + Quote(program) + " call </dev/null"
}

// Quote makes one word of a POSIX shell of s.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// brief is the beginning of what a command printed, for an error.
func brief(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > 200 {
		text = text[:200] + " …"
	}
	if text == "" {
		return "it printed nothing"
	}
	return text
}
