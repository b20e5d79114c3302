//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/dockerfile"
	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// exitFault is how a step's command ended, when not well.
type exitFault struct {
	code    *int
	problem string
}

func (e *exitFault) Error() string { return e.problem }

// wrong makes a step's fault of what its words say.
func wrong(format string, args ...any) error {
	return &sandbox.FieldError{Field: "step", Problem: fmt.Sprintf(format, args...)}
}

func setEnv(env map[string]string, pair string) {
	if k, v, ok := strings.Cut(pair, "="); ok && k != "" {
		env[k] = v
	}
}

// vars are what words may name.
func (w *builder) vars() map[string]string {
	vars := map[string]string{"PATH": searchPath}
	if w.o.image == nil {
		vars["PATH"] = baseEnv(homeOf(accountOf(w.o.account)))["PATH"]
	}
	maps.Copy(vars, w.args)
	maps.Copy(vars, w.env)
	return vars
}

func (w *builder) step(ctx context.Context, s *sandbox.BuildStep) error {
	switch s.Kind {
	case sandbox.StepRun:
		return w.run(ctx, s)
	case sandbox.StepCopy:
		return w.copy(ctx, &s.Copy)
	case sandbox.StepWorkDir:
		return w.enter(ctx, s.Word)
	case sandbox.StepEnv:
		return w.set(w.env, s.Vars)
	case sandbox.StepLabel:
		return w.set(w.labels, s.Vars)
	case sandbox.StepArg:
		var given []sandbox.BuildVar
		for _, v := range s.Vars {
			if !v.Unset {
				given = append(given, v)
			} else if known := w.platform(v.Name); known != "" {
				given = append(given, sandbox.BuildVar{Name: v.Name, Value: known})
			}
		}
		return w.set(w.args, given)
	case sandbox.StepUser:
		user, err := dockerfile.Expand(s.Word, w.vars())
		switch {
		case err != nil:
			return wrong("%v", err)
		case user == "":
			return wrong("the user's name is empty")
		case w.o.image == nil && user != accountOf(w.o.account) && user != "root":
			return wrong("there is no user %.80q; allowed: %s, root", user, accountOf(w.o.account))
		}
		w.user = user
		return nil
	case sandbox.StepShell:
		w.shell = s.Argv
		return nil
	}
	return wrong("this provider has no step %q", s.Kind)
}

// platform are the arguments that builders know by themselves.
func (w *builder) platform(name string) string {
	if w.o.image == nil {
		return ""
	}
	system, arch, _ := strings.Cut(w.o.image.Platform, "/")
	arch, variant, _ := strings.Cut(arch, "/")
	return map[string]string{"TARGETPLATFORM": w.o.image.Platform, "TARGETOS": system, "TARGETARCH": arch, "TARGETVARIANT": variant}[name]
}

// set sets variables; their values see what was set before the step.
func (w *builder) set(to map[string]string, list []sandbox.BuildVar) error {
	vars := w.vars()
	values := make([]string, len(list))
	for i, v := range list {
		var err error
		if values[i], err = dockerfile.Expand(v.Value, vars); err != nil {
			return wrong("%s: %v", v.Name, err)
		}
		if len(values[i]) > sandbox.MaxEnv/2 {
			return wrong("%s: the value has %d bytes; allowed: at most %d", v.Name, len(values[i]), sandbox.MaxEnv/2)
		}
	}
	for i, v := range list {
		to[v.Name] = values[i]
	}
	size := 0
	for k, v := range to {
		size += len(k) + len(v) + 2
	}
	if size > sandbox.MaxEnv {
		return wrong("the variables have %d bytes in all; allowed: at most %d", size, sandbox.MaxEnv)
	}
	return nil
}

// cwd is where the step's command starts, and what relative paths count from.
func (w *builder) cwd() string {
	switch {
	case w.workDir != "":
		return w.workDir
	case w.o.image != nil:
		return "/"
	case w.user == "root":
		return "/root"
	}
	return homeOf(accountOf(w.o.account))
}

// absolute makes a word a path inside. A slash at the end stays.
func (w *builder) absolute(word string) (string, error) {
	p, err := dockerfile.Expand(word, w.vars())
	switch {
	case err != nil:
		return "", wrong("%v", err)
	case p == "" || len(p) > sandbox.MaxPath:
		return "", wrong("a path is empty or too long")
	}
	dir := strings.HasSuffix(p, "/") || p == "." || strings.HasSuffix(p, "/.") || p == ".." || strings.HasSuffix(p, "/..")
	if !path.IsAbs(p) {
		p = path.Join(w.cwd(), p)
	}
	if p = path.Clean(p); dir && p != "/" {
		p += "/"
	}
	return p, nil
}

func (w *builder) run(ctx context.Context, s *sandbox.BuildStep) error {
	argv := s.Argv
	if s.Script != "" {
		argv = append(slices.Clone(w.shell), s.Script)
	}
	env := maps.Clone(w.args)
	maps.Copy(env, w.env)
	c := sandbox.Command{Argv: argv, Display: firstLine(s.Text), Cwd: w.cwd(), Env: env, User: w.user, Timeout: buildStepTime, Busy: true}
	return w.layer(ctx, []any{"run", argv, c.Cwd, c.User, env}, func(ctx context.Context) error {
		if strings.Contains(c.User, ":") { // the guest knows pairs of numbers only
			im, err := w.p.imageOver(w.s, &w.o.image.Image, w.o.sealed, w.ids, c.User)
			if err != nil {
				return err
			}
			a := im.Account
			c.User = strconv.Itoa(int(a.UID)) + ":" + strconv.Itoa(int(a.GID))
			if _, given := env["HOME"]; !given {
				env["HOME"] = a.Home
			}
		}
		return w.exec(ctx, c)
	})
}

// layer does a step that changes files in a sandbox of its own, unless it is
// known what that comes to. what is all that it depends on beside the steps
// before.
func (w *builder) layer(ctx context.Context, what []any, do func(context.Context) error) error {
	key := digestOf(append([]any{w.key}, what...))
	if !w.b.Fresh {
		if e, ok := w.s.cached(key); ok {
			w.log.line("[cached]")
			if e.Layer != "" {
				w.o.sealed = append(slices.Clone(w.o.sealed), e.Layer)
			}
			w.key, w.used = key, append(w.used, key)
			return nil
		}
	}
	if len(w.o.sealed) >= maxSealed {
		return wrong("the snapshot that it begins with, and the steps, come to more than %d layers; begin with an image, or join steps", maxSealed)
	}
	if err := w.open(ctx); err != nil {
		return err
	}
	err := do(ctx)
	w.log.flush()
	if err != nil {
		return errors.Join(err, w.in.discard(ctx))
	}
	if err := w.p.opts.step("build:ran"); err != nil {
		return err
	}
	layer, err := w.seal(ctx)
	if err != nil {
		return err
	}
	if err := w.p.opts.step("build:sealed"); err != nil {
		return err
	}
	if err := w.s.remember(key, layer); err != nil {
		return err
	}
	w.key, w.used = key, append(w.used, key)
	if err := w.p.opts.step("build:remembered"); err != nil {
		return err
	}
	return w.in.discard(ctx)
}

// open makes a sandbox on what the steps so far came to.
func (w *builder) open(ctx context.Context) error {
	l, err := acquire(ctx, w.s.lockPath(w.in.id), opCreating)
	if err != nil {
		return err
	}
	defer l.release(false)
	if err := w.s.checkSpace(); err != nil {
		return err
	}
	o := *w.o
	o.build, o.root = buildLock(w.in.key.Owner, w.snapshot()), nil
	if o.image != nil {
		// Files are copied as root; commands name their users.
		im := *o.image
		im.Account = im.Root
		o.image = &im
	}
	spec := w.spec.Clone()
	spec.User, spec.Image, spec.Snapshot, spec.WorkingDirectory, spec.Volumes = "root", w.o.imageName, "", "", nil
	idle := buildIdle
	never := sandbox.Never
	no := false
	spec.AutoStop, spec.AutoDelete, spec.Ephemeral = &idle, &never, &no
	w.s.useSealed(o.sealed)
	if err := w.in.create(ctx, spec, &o); err != nil {
		return err
	}
	return w.p.opts.step("build:opened")
}

// seal stops the step's sandbox and makes what it wrote a layer; "" when it
// wrote nothing.
func (w *builder) seal(ctx context.Context) (string, error) {
	if err := w.in.Stop(ctx); err != nil {
		return "", err
	}
	o, err := w.in.shareForSnapshot(ctx)
	if err != nil {
		return "", err
	}
	if o.dir != "" {
		if err := w.s.adopt(o.origin); err != nil {
			_ = treeAs(o.ids).Remove(context.WithoutCancel(ctx), o.dir)
			return "", err
		}
	}
	layer := ""
	if len(o.sealed) > len(w.o.sealed) {
		layer = o.sealed[len(o.sealed)-1]
	}
	w.o.sealed, w.ids = o.sealed, o.ids
	if w.o.image == nil {
		w.o.madeOn = o.madeOn
	}
	w.s.useSealed(w.o.sealed)
	return layer, nil
}

// exec runs a command in the step's sandbox, its output in the log.
func (w *builder) exec(ctx context.Context, c sandbox.Command) error {
	c.ID = sandbox.NewProcessID()
	proc, err := w.in.Spawn(ctx, c)
	if errors.Is(err, sandbox.ErrNoProgram) {
		return &exitFault{problem: fmt.Sprintf("cannot be done: there is no program %.200q in the sandbox", c.Argv[0])}
	}
	if err != nil {
		return err
	}
	var at sandbox.Cursor
	for ended := false; ; {
		err := proc.Wait(ctx, at, ended)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		info, ierr := proc.Info(ctx)
		if err = errors.Join(err, ierr); err != nil {
			if errors.Is(err, sandbox.ErrNotRunning) || errors.Is(err, sandbox.ErrUnavailable) || errors.Is(err, sandbox.ErrNoProcess) {
				return &exitFault{problem: "was lost: its sandbox went away beneath it; make the same call again"}
			}
			return err
		}
		for {
			out, err := proc.Read(ctx, at, 64<<10)
			if err != nil {
				return err
			}
			w.log.output(out)
			if out.Next == at {
				break
			}
			at = out.Next
		}
		if ended {
			w.log.flush()
			for _, r := range info.Refused {
				w.log.line(fmt.Sprintf("[network: refused %s:%d (%s), %d times: %s]", r.Host, r.Port, r.Protocol, r.Count, r.Rule))
			}
			return exited(info)
		}
		// Once more, for what it wrote at its very end.
		ended = info.State != sandbox.ProcessRunning
	}
}

// exited is how a command ended, if not well.
func exited(i sandbox.ProcessInfo) error {
	f := &exitFault{code: i.ExitCode}
	switch {
	case i.TimedOut:
		f.problem = fmt.Sprintf("took longer than %s, and was killed", buildStepTime)
	case i.State == sandbox.ProcessLost || i.ExitCode == nil:
		f.problem = "was lost: " + i.Reason + "; make the same call again"
	case i.Killed:
		f.problem = "was killed: " + i.Reason
	case i.Signal != "":
		f.problem = "was ended by " + i.Signal
	case *i.ExitCode != 0:
		f.problem = "exited with " + strconv.Itoa(*i.ExitCode)
	default:
		return nil
	}
	if len(i.Struck) > 0 {
		f.problem += " (" + strings.Join(i.Struck, ", ") + ")"
	}
	return f
}

// touchUsed has the whole chain of steps look as old as its end, the first the
// youngest: what others stand on goes last.
func (w *builder) touchUsed() {
	now := w.s.now()
	for i, key := range w.used {
		w.s.touchCache(key, now.Add(-time.Duration(i)*time.Millisecond))
	}
}

func single(ids wire.IDs) bool { return ids.Mode == wire.IDsSingle }
