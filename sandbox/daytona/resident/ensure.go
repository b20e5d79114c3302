package resident

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Ensure sees that the helper is in the sandbox and runs: it is brought once, and
// found by its sum after that, or where an image has it (wire.PrebakedName). It
// costs nothing once that is known.
func (b *Box) Ensure(ctx context.Context) error {
	_, err := b.ready(ctx)
	return plain(err)
}

// forget makes the next request look anew, unless somebody has looked since at was
// found; nil: whatever was found.
func (b *Box) forget(at *place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if at == nil || b.place == at {
		b.place = nil
	}
}

func (b *Box) known() *place {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.place
}

// ready is Ensure; one at a time looks.
func (b *Box) ready(ctx context.Context) (*place, error) {
	if at := b.known(); at != nil {
		return at, nil
	}
	select {
	case <-b.ensuring:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { b.ensuring <- struct{}{} }()
	if at := b.known(); at != nil {
		return at, nil
	}
	at, err := b.find(ctx)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.place = at
	b.mu.Unlock()
	return at, nil
}

func (b *Box) find(ctx context.Context) (*place, error) {
	if b.o.ID == "" {
		return nil, errors.New("the sandbox has no id")
	}
	began := time.Now()
	at, none, err := b.probe(ctx)
	brought := false
	if err == nil && at == nil {
		at, err = b.bring(ctx, none)
		brought = true
	}
	if err == nil && at.facts.Resident == nil {
		err = b.start(ctx, at)
	}
	if err != nil {
		return nil, fmt.Errorf("berth's helper in the sandbox: %w", kind(err))
	}
	at.base = at.facts.Resident.Base
	b.o.Log.Info("helper ready", slog.String("sandbox", b.o.ID), slog.String("program", at.program), slog.Bool("brought", brought), slog.Duration("duration", time.Since(began)))
	return at, nil
}

// noneMark begins the line of a probe that found no helper.
const noneMark = "berth-none"

// absent is what a probe tells where there is no helper.
type absent struct {
	machine string
	base    string // a directory that it may live in; empty: there is none
}

// probe runs the helper that is there, if there is one.
func (b *Box) probe(ctx context.Context) (*place, *absent, error) {
	id := newID()
	value, err := wire.EncodeCall(&wire.Call{ID: id, Sandbox: b.o.ID, Base: b.o.Base, Facts: &wire.CallFacts{}}, nil)
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, arch := range []string{"amd64", "arm64"} {
		if build := b.build(arch); build != "" {
			names = append(names, "box-"+build)
		}
	}
	// One of our own build first, then the image's. Where there is none, directories
	// are made for it that nobody else may enter. Only builtins and tools that every
	// system has.
	text := "export " + wire.CallVariable + "=" + Quote(value) + "; u=$(id -u); umask 077\n" +
		"for b in " + b.bases() + "; do for n in " + strings.Join(names, " ") + "; do " +
		"if [ -x \"$b/$n\" ] && [ -O \"$b/$n\" ]; then exec \"$b/$n\" call </dev/null; fi; done; done\n" +
		"if [ -x " + wire.PrebakedName + " ]; then exec " + wire.PrebakedName + " call </dev/null; fi\n" +
		"echo " + noneMark + " \"$(uname -m)\"\n" + b.room(nil)
	if len(names) == 0 {
		text = strings.Replace(text, "for n in ; do", "for n in none; do", 1)
	}
	for try := 1; ; try++ {
		out, code, err := b.exec(ctx, text, callTime)
		if err != nil {
			return nil, nil, err
		}
		if a, _, err := wire.DecodeAnswer(out, id); err == nil {
			if a.Error == nil {
				return &place{program: a.Facts.Program, facts: a.Facts}, nil, nil
			}
			return nil, nil, terms.Error(a.Error)
		}
		if _, rest, ok := strings.Cut(out, noneMark+" "); ok {
			lines := strings.Split(strings.TrimRight(rest, "\n"), "\n")
			return nil, &absent{machine: strings.TrimSpace(lines[0]), base: firstPath(lines[1:])}, nil
		}
		if code == 126 || try == 3 {
			return nil, nil, refusal("", code, out)
		}
	}
}

// bases are shell words, each a directory that the helper may live in. The helper
// has the same list, in package box/resident.
func (b *Box) bases() string {
	if b.o.Base != "" {
		return Quote(b.o.Base)
	}
	return `"${HOME:-/nonexistent}/.berth" "/var/tmp/berth-$u" "/tmp/berth-$u"`
}

// room is shell text that makes, and prints, the first directory that the helper may
// live in, none of refused.
func (b *Box) room(refused []string) string {
	skip := ""
	for _, r := range refused {
		skip += "if [ \"$b\" = " + Quote(r) + " ]; then continue; fi; "
	}
	return "for b in " + b.bases() + "; do " + skip + "mkdir -p \"$b\" 2>/dev/null; if [ -d \"$b\" ] && [ -O \"$b\" ] && [ -w \"$b\" ]; then echo \"$b\"; break; fi; done"
}

func firstPath(lines []string) string {
	for _, l := range lines {
		if l = strings.TrimRight(l, "\r"); strings.HasPrefix(l, "/") {
			return l
		}
	}
	return ""
}

// exec is Transport.Exec for what can be sent again as it is.
func (b *Box) exec(ctx context.Context, text string, timeout time.Duration) (out string, code int, err error) {
	pause := tryPause
	for try := 1; ; try++ {
		out, code, err = b.t.Exec(ctx, text, timeout)
		if err == nil || ctx.Err() != nil || try == tries || !again(err) {
			return out, code, err
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, tryMost)
		case <-ctx.Done():
			return out, code, err
		}
	}
}

// bring uploads the helper to the first directory that it can be run from.
func (b *Box) bring(ctx context.Context, none *absent) (*place, error) {
	if none.machine == "" {
		return nil, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "berth's helper cannot be brought into the sandbox, which has no uname: use an image with a system's usual programs (id, mkdir, uname, wc, tr, chmod, mv, rm), or that has the helper as " + wire.PrebakedName}
	}
	goarch := map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[none.machine]
	if goarch == "" {
		return nil, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: fmt.Sprintf("berth's helper is made for amd64 and arm64, and the sandbox's machine is %.40q; choose an image or a target of one of these", none.machine)}
	}
	program := b.program(goarch)
	if program == nil {
		return nil, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "this berth was built without its helper for linux/" + goarch + ": build it by make (or go generate ./sandbox/local/boxbin before go build), or have the helper in the image as " + wire.PrebakedName}
	}
	if none.base == "" {
		return nil, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "berth's helper finds no directory in the sandbox that it may write to: neither the home directory nor /var/tmp nor /tmp; use an image where one of them can be written, or that has the helper as " + wire.PrebakedName + " and a /tmp"}
	}
	var errs []error
	var refused []string
	for base := none.base; base != ""; {
		at, err := b.bringTo(ctx, base, "box-"+program.build, program)
		if err == nil {
			return at, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		errs = append(errs, err)
		var r *refusedError
		if !errors.As(err, &r) {
			break // the platform's fault, and not the directory's
		}
		refused = append(refused, base)
		out, _, err := b.exec(ctx, "u=$(id -u); umask 077\n"+b.room(refused), callTime)
		if err != nil {
			return nil, err
		}
		base = firstPath(strings.Split(out, "\n"))
	}
	return nil, errors.Join(errs...)
}

func (b *Box) bringTo(ctx context.Context, base, name string, program *binary) (*place, error) {
	id := newID()
	value, err := wire.EncodeCall(&wire.Call{ID: id, Sandbox: b.o.ID, Base: b.o.Base, Facts: &wire.CallFacts{}}, nil)
	if err != nil {
		return nil, err
	}
	// Beside its name, and then renamed: others may do the same at this moment.
	temp, final := base+"/"+name+"."+newID(), base+"/"+name
	if err := b.upload(ctx, temp, program); err != nil {
		return nil, err
	}
	t, f := Quote(temp), Quote(final)
	text := "export " + wire.CallVariable + "=" + Quote(value) + "\n" +
		fmt.Sprintf("if [ \"$(wc -c <%s | tr -d ' ')\" != %d ]; then rm -f %s; echo the upload did not come whole; exit 3; fi\n", t, program.size, t) +
		"chmod 755 " + t + " && mv -f " + t + " " + f + " && exec " + f + " call </dev/null"
	out, code, err := b.exec(ctx, text, callTime)
	if err != nil {
		return nil, err
	}
	a, _, err := wire.DecodeAnswer(out, id)
	if err != nil {
		return nil, refusal(final, code, out)
	}
	if a.Error != nil {
		return nil, terms.Error(a.Error)
	}
	return &place{program: final, facts: a.Facts}, nil
}

// again tells that what failed so may do better, and that to repeat it does no harm.
func again(err error) bool {
	k := kind(err)
	return maybe(err) || errors.Is(k, sandbox.ErrUnavailable)
}

func (b *Box) upload(ctx context.Context, name string, p *binary) (err error) {
	for try := 1; ; try++ {
		err = b.t.Upload(ctx, name, 0o755, io.NewSectionReader(p, 0, p.size), p.size)
		if err == nil || ctx.Err() != nil || try == tries || !again(err) {
			return err
		}
		select {
		case <-time.After(tryPause << min(try, 5)):
		case <-ctx.Done():
			return err
		}
	}
}

// refusedError tells why the helper cannot be run from a directory.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }
func (e *refusedError) Unwrap() error { return sandbox.ErrUnsupported }

// refusal explains what a shell printed in place of the helper's answer.
func refusal(program string, code int, out string) error {
	low := strings.ToLower(out)
	why := ""
	switch {
	case strings.Contains(low, "exec format error"), strings.Contains(low, "cannot execute binary"), strings.Contains(low, "cannot execute: required file"):
		why = "it is of another architecture than the sandbox's machine"
	case code == 126, strings.Contains(low, "permission denied"), strings.Contains(low, "operation not permitted"):
		why = "programs may not be run from there: the file system is mounted noexec, or a policy forbids it"
	case code == 127:
		why = "it is not there"
	}
	if program != "" {
		why = strings.TrimPrefix(program+": "+why, ": ")
	}
	if why == "" {
		return fmt.Errorf("%w (exit %d): %s", errTorn, code, brief(out))
	}
	return &refusedError{text: fmt.Sprintf("%s (exit %d: %s)", why, code, brief(out))}
}

// startWait is for a helper that was just started to answer.
const startWait = 5 * time.Second

// start starts the helper: by a session, which the platform lets live, and where
// that comes to nothing by a command, which also tells why.
func (b *Box) start(ctx context.Context, at *place) error {
	call := &wire.Call{ID: newID(), Sandbox: b.o.ID, Base: b.o.Base, Start: &wire.CallStart{
		Build: b.build(at.facts.Arch), LogBytes: b.o.LogBytes, KeepLogBytes: b.o.KeepLogBytes, Keep: b.o.KeepProcesses}}
	if at.program == wire.PrebakedName {
		call.Start.Build = "prebaked"
	}
	value, err := wire.EncodeCall(call, nil)
	if err != nil {
		return err
	}
	serr := b.t.Session(ctx, wire.CallVariable+"="+Quote(value)+" "+Quote(at.program)+" call </dev/null >/dev/null 2>&1")
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if serr == nil {
		look := &wire.Call{ID: newID(), Sandbox: b.o.ID, Base: b.o.Base, Facts: &wire.CallFacts{WaitMS: startWait.Milliseconds()}}
		a, err := b.plainly(ctx, at.program, look)
		if err != nil {
			return err
		}
		if a.Facts != nil && a.Facts.Resident != nil {
			at.facts = a.Facts
			return nil
		}
	} else {
		b.o.Log.Warn("no session for the helper", slog.String("sandbox", b.o.ID), slog.Any("err", serr))
		if k := kind(serr); errors.Is(k, sandbox.ErrNotRunning) || errors.Is(k, sandbox.ErrNotFound) {
			return k
		}
	}
	a, err := b.plainly(ctx, at.program, call)
	if err != nil {
		return err
	}
	if a.Facts == nil || a.Facts.Resident == nil {
		return errors.New("it was started, and does not answer")
	}
	at.facts = a.Facts
	return nil
}

// plainly carries out a call that may be repeated, with the program as it is.
func (b *Box) plainly(ctx context.Context, program string, c *wire.Call) (*wire.Answer, error) {
	value, err := wire.EncodeCall(c, nil)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		out, code, err := b.exec(ctx, command(program, value), callTime)
		if err != nil {
			return nil, err
		}
		a, _, err := wire.DecodeAnswer(out, c.ID)
		switch {
		case err == nil && a.Error == nil:
			return a, nil
		case err == nil:
			return nil, terms.Error(a.Error)
		case try == 3 || code == 126 || code == 127:
			return nil, refusal(program, code, out)
		}
	}
}
