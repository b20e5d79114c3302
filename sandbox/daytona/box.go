package daytona

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"crypto/rand"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// box is the way into one sandbox: its toolbox, and what is known of its inside.
// It is made anew when the sandbox starts anew.
type box struct {
	p  *Provider
	id string

	mu      sync.Mutex
	url     string // of the toolboxes; "": ask
	user    string // whom commands run as; "": the image's user
	facts   *facts
	help    helper
	quiet   helper
	buckets *server
	claimed bool // see claim
}

// facts are what a look inside told. They do not change while a sandbox runs but
// for interpreters that somebody installs.
type facts struct {
	home, user, cwd string
	runtimes        map[sandbox.Language]string
}

// boxOf is the way into the sandbox.
func (p *Provider) boxOf(sb *api.Sandbox) *box {
	b := p.box(sb.ID)
	b.mu.Lock()
	defer b.mu.Unlock()
	if sb.ToolboxURL != "" {
		b.url = sb.ToolboxURL // it may move
	}
	if r, kept := readRecord(sb); kept {
		b.user = r.User
	}
	return b
}

func (p *Provider) box(id string) *box {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.boxes[id]
	if b == nil {
		b = &box{p: p, id: id}
		p.boxes[id] = b
	}
	return b
}

func (p *Provider) forgetBox(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.boxes, id)
}

// toolbox finds the sandbox's toolbox.
func (b *box) toolbox(ctx context.Context) (*api.Toolbox, error) {
	at, err := b.p.at()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	url := b.url
	b.mu.Unlock()
	if url == "" {
		sb, err := at.Sandbox(ctx, b.id)
		if err != nil {
			return nil, err
		}
		if url = sb.ToolboxURL; url == "" { // an older server
			if url, err = at.ToolboxURL(ctx, b.id); err != nil {
				return nil, err
			}
		}
		b.mu.Lock()
		b.url = url
		b.mu.Unlock()
	}
	return at.Toolbox(url, b.id), nil
}

// Exec runs a command by the toolbox: see resident.Transport.
func (b *box) Exec(ctx context.Context, command string, timeout time.Duration) (string, int, error) {
	return b.exec(ctx, command, timeout, false)
}

func (b *box) exec(ctx context.Context, command string, timeout time.Duration, quiet bool) (string, int, error) {
	tb, err := b.toolbox(ctx)
	if err != nil {
		return "", 0, b.explain(ctx, time.Now(), "run a command", err)
	}
	if quiet {
		tb = tb.Quiet()
	}
	began := time.Now()
	out, code, err := tb.Execute(ctx, command, timeout)
	switch {
	case err != nil:
		return "", 0, b.explain(ctx, began, "run a command", err)
	case code == nil:
		return "", 0, fmt.Errorf("the toolbox told no exit code: %w", api.ErrMaybeDone)
	}
	return out, *code, nil
}

// Upload writes a file by the toolbox.
func (b *box) Upload(ctx context.Context, path string, mode fs.FileMode, r io.Reader, size int64) error {
	began := time.Now()
	tb, err := b.toolbox(ctx)
	if err == nil {
		err = tb.Upload(ctx, path, r, size)
	}
	if err == nil {
		err = tb.SetMode(ctx, path, uint32(mode.Perm()))
	}
	if err != nil {
		return b.explain(ctx, began, "upload "+path, err)
	}
	return nil
}

// Session starts a command that goes on by itself, in a session of its own.
func (b *box) Session(ctx context.Context, command string) error {
	began := time.Now()
	tb, err := b.toolbox(ctx)
	id := "berth-" + strings.ToLower(rand.Text())[:12]
	if err == nil {
		err = tb.Session(ctx, id)
	}
	if err == nil {
		err = tb.Run(ctx, id, command)
	}
	if err != nil {
		return b.explain(ctx, began, "start a session", err)
	}
	return nil
}

// explain makes an error of the toolbox' one for callers: what is said of a
// sandbox that does not run differs from proxy to proxy, so its state is looked
// up. sent is when the request was.
func (b *box) explain(ctx context.Context, sent time.Time, doing string, err error) error {
	if errors.Is(err, api.ErrTimeout) || errors.Is(err, sandbox.ErrClosed) || errors.Is(err, api.ErrUnauthorized) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	doubt := errors.Is(err, api.ErrMaybeDone)
	lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	at, aerr := b.p.at()
	if aerr != nil {
		return errors.Join(fmt.Errorf("%s: %w", doing, err), aerr)
	}
	sb, lerr := at.Sandbox(lctx, b.id)
	var kind error
	switch {
	case errors.Is(lerr, api.ErrNotFound) || lerr == nil && gone(sb):
		kind = sandbox.ErrNotFound
	case lerr != nil:
	case statusOf(sb) != sandbox.StatusRunning:
		kind = sandbox.ErrNotRunning
		// It was down already when the request was sent, by the server's own
		// clock: so nothing of it was carried out.
		if settled(sb.State) && !sb.Seen.IsZero() && !sb.Updated.IsZero() && sb.Seen.Sub(sb.Updated) > time.Since(sent)+2*time.Second {
			doubt = false
		}
	default: // it runs: the toolbox may be elsewhere now
		b.mu.Lock()
		b.url = sb.ToolboxURL
		b.mu.Unlock()
		if errors.Is(err, api.ErrNotRunning) || errors.Is(err, api.ErrNotFound) {
			return &boxError{text: fmt.Sprintf("%s: %v", doing, err), kinds: []error{sandbox.ErrUnavailable}}
		}
	}
	if kind == nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	b.p.forgetBox(b.id)
	kinds := []error{kind}
	if doubt {
		kinds = []error{api.ErrMaybeDone}
	} else if kind == sandbox.ErrNotRunning { //nolint:errorlint // set above
		kinds = append(kinds, api.ErrNotRunning)
	}
	return &boxError{text: fmt.Sprintf("%s: %v: %v", doing, kind, err), kinds: kinds}
}

// boxError is an error of certain kinds alone.
type boxError struct {
	text  string
	kinds []error
}

func (e *boxError) Error() string   { return e.text }
func (e *boxError) Unwrap() []error { return e.kinds }

// look is a look inside: one line a fact.
const lookScript = `echo "home=$HOME"; echo "user=$(id -un 2>/dev/null || id -u)"; echo "cwd=$(pwd)"
for p in bash python3 python node; do f=$(command -v $p 2>/dev/null) && echo "$p=$f"; done; true`

// learn looks inside a running sandbox, once.
func (p *Provider) learn(ctx context.Context, sb *api.Sandbox) {
	b := p.boxOf(sb)
	b.mu.Lock()
	known := b.facts != nil
	b.mu.Unlock()
	if known {
		return
	}
	out, code, err := b.exec(ctx, lookScript, 30*time.Second, true)
	if err != nil || code != 0 {
		p.log.Debug("no look inside", slog.String("sandbox", sb.ID), slog.Int("exit_code", code), slog.Any("err", err))
		return
	}
	f := &facts{runtimes: map[sandbox.Language]string{}}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		switch name {
		case "home":
			f.home = value
		case "user":
			f.user = value
		case "cwd":
			f.cwd = value
		case "bash":
			f.runtimes[sandbox.Bash] = value
		case "python3":
			f.runtimes[sandbox.Python] = value
		case "python":
			if f.runtimes[sandbox.Python] == "" {
				f.runtimes[sandbox.Python] = value
			}
		case "node":
			f.runtimes[sandbox.JavaScript], f.runtimes[sandbox.TypeScript] = value, value
		}
	}
	if !strings.HasPrefix(f.home, "/") {
		f.home = "/"
	}
	b.mu.Lock()
	b.facts = f
	b.mu.Unlock()
}

func (p *Provider) factsOf(id string) *facts {
	b := p.box(id)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.facts
}

// addFacts puts what is known of the inside into info.
func (p *Provider) addFacts(info *sandbox.Info, sb *api.Sandbox) {
	if f := p.factsOf(sb.ID); f != nil {
		info.Home, info.User, info.Runtimes = f.home, f.user, f.runtimes
	}
}
