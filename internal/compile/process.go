package compile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// maxChildren are compilations at a time; others wait for their turn.
const maxChildren = 4

// processes is a Compiler with a process for each compilation.
type processes struct {
	program string
	log     *slog.Logger
	turns   chan struct{}
}

// New returns a Compiler that starts program, the absolute path of this one,
// whose main must call Main. A nil log discards. At most four compilations run
// at a time; others wait, within their contexts.
func New(program string, log *slog.Logger) sandbox.Compiler {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if runtime.GOOS == "linux" {
		// Still this program when an update has replaced the file.
		if _, err := os.Stat("/proc/self/exe"); err == nil {
			program = "/proc/self/exe"
		}
	}
	keepDescriptors()
	return &processes{program: program, log: log, turns: make(chan struct{}, maxChildren)}
}

// Compile implements sandbox.Compiler.
func (p *processes) Compile(ctx context.Context, j sandbox.CompileJob, imports sandbox.Imports) (sandbox.Compiled, error) {
	select {
	case p.turns <- struct{}{}:
		defer func() { <-p.turns }()
	case <-ctx.Done():
		return sandbox.Compiled{}, ctx.Err()
	}
	limited, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	cmd := exec.CommandContext(limited, p.program, mode)
	cmd.Args[0] = "berth"
	// Nothing of the server's environment. A parser's stack is of no use to the
	// reader of a log.
	cmd.Env = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}
	cmd.WaitDelay = time.Second
	setGroup(cmd)
	complaint := &bounded{}
	cmd.Stderr = complaint
	in, err := cmd.StdinPipe()
	if err != nil {
		return sandbox.Compiled{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return sandbox.Compiled{}, err
	}
	if err := cmd.Start(); err != nil {
		return sandbox.Compiled{}, errors.Join(ctx.Err(), fmt.Errorf("start the compiler: %w", err))
	}
	res, ready, err := converse(limited, newConversation(out, in), j, imports)
	_ = in.Close()
	if err != nil {
		cancel() // it may still be at work
	}
	ended := cmd.Wait()
	switch {
	case err == nil:
		return res, nil
	case ctx.Err() != nil:
		return sandbox.Compiled{}, ctx.Err()
	case !ready && !errors.Is(limited.Err(), context.DeadlineExceeded):
		return sandbox.Compiled{}, fmt.Errorf("the compiler did not start: %w: %s", errors.Join(err, ended), complaint)
	}
	p.log.LogAttrs(ctx, slog.LevelInfo, "compiler gave up", slog.Any("error", err), slog.Any("end", ended), slog.String("stderr", complaint.String()))
	return sandbox.Compiled{}, &sandbox.TooComplexError{Limits: limits}
}

// converse sends the job and answers what the child asks, until its result.
// Ready tells whether the child began.
func converse(ctx context.Context, c *conversation, j sandbox.CompileJob, imports sandbox.Imports) (res sandbox.Compiled, ready bool, err error) {
	var hello toServer
	if err := c.receive(&hello); err != nil {
		return res, false, err
	}
	if !hello.Ready {
		return res, false, errors.New("it did not say that it is ready")
	}
	code := []byte(j.Code)
	j.Code = ""
	if err := c.send(toChild{Job: &job{CompileJob: j, Code: code}}); err != nil {
		return res, true, err
	}
	for range maxAsks {
		var m toServer
		if err := c.receive(&m); err != nil {
			return res, true, err
		}
		var a toChild
		switch {
		case m.Result != nil:
			res, err := m.Result.checked()
			return res, true, err
		case m.Resolve != nil && len(m.Resolve.Path)+len(m.Resolve.Importer) <= maxAsk:
			r := imports.Resolve(ctx, *m.Resolve)
			a.Resolved = &r
		case m.Load != nil && len(*m.Load) <= maxAsk:
			l := imports.Load(ctx, *m.Load)
			a.Loaded = &l
		default:
			return res, true, errors.New("it said what is not understood")
		}
		if err := c.send(a); err != nil {
			return res, true, err
		}
	}
	return res, true, errors.New("it asked too much")
}

// checked is a child's result within bounds.
func (r *result) checked() (sandbox.Compiled, error) {
	if len(r.Text) > maxResult {
		return sandbox.Compiled{}, errors.New("the result is too large")
	}
	if r.Fault != "" {
		return sandbox.Compiled{Fault: cut(strings.ToValidUTF8(r.Fault, "\uFFFD"), 0, maxFault)}, nil
	}
	return sandbox.Compiled{Text: string(r.Text), Module: r.Module, Mapped: r.Mapped}, nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	mu   sync.Mutex
	text []byte
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p[:min(len(p), 1<<10-len(b.text))]...)
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.ToValidUTF8(strings.TrimSpace(string(b.text)), "\uFFFD")
}
