package compile

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// mode is the only argument of a child.
const mode = "berth-transpile"

// Limits of a child. The stack's is where a Go program dies by itself; twice
// that and what is beside it fits the memory.
const (
	maxTime   = 10 * time.Second
	maxStack  = 64 << 20
	softLimit = 384 << 20 // where the garbage collector begins to try hard
	maxMemory = 768 << 20
	limits    = "10 seconds, 768 MiB of memory, 64 MiB of stack"
)

// Main does the work of a child, when args, a program's os.Args, ask for it.
// Ok is false when they do not; otherwise the program must end with the code.
// It belongs before everything else that a main does.
func Main(args []string) (code int, ok bool) {
	if len(args) != 2 || args[1] != mode {
		return 0, false
	}
	runtime.GOMAXPROCS(1)
	debug.SetMaxStack(maxStack)
	debug.SetMemoryLimit(softLimit)
	if err := confine(); err != nil {
		fmt.Fprintln(os.Stderr, "limits:", err)
		return 1, true
	}
	// The server ends its child. This is for a child whose server was killed:
	// its stdin ends, and esbuild would not notice.
	in, server := io.Pipe()
	go func() {
		_, _ = io.Copy(server, os.Stdin)
		os.Exit(3) //nolint:forbidigo // main is at work elsewhere
	}()
	time.AfterFunc(maxTime+5*time.Second, func() { os.Exit(3) }) //nolint:forbidigo // the same
	if err := serve(in, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// serve does one job.
func serve(r io.Reader, w io.Writer) error {
	c := newConversation(r, w)
	if err := c.send(toServer{Ready: true}); err != nil {
		return err
	}
	var m toChild
	if err := c.receive(&m); err != nil || m.Job == nil {
		return err
	}
	j := m.Job.CompileJob
	j.Code = string(m.Job.Code)
	res := compile(context.Background(), j, &remote{c: c})
	text := []byte(res.Text)
	res.Text = ""
	return c.send(toServer{Result: &result{Compiled: res, Text: text}})
}

// remote asks the server, one question at a time.
type remote struct {
	mu sync.Mutex
	c  *conversation
}

func (r *remote) ask(q toServer) (a toChild) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c.send(q) != nil || r.c.receive(&a) != nil {
		os.Exit(3) //nolint:forbidigo // without its server the child has nothing to do, and esbuild would go on
	}
	return a
}

func (r *remote) Resolve(_ context.Context, i sandbox.Import) sandbox.Resolved {
	if len(i.Path) > maxAsk/8 && !strings.HasPrefix(i.Path, ".") && !strings.HasPrefix(i.Path, "/") {
		return sandbox.Resolved{Path: i.Path, External: true} // a data: URL
	}
	if len(i.Path) > maxAsk/8 {
		return sandbox.Resolved{Problem: "an import is no path: it is too long"}
	}
	if a := r.ask(toServer{Resolve: &i}); a.Resolved != nil {
		return *a.Resolved
	}
	return sandbox.Resolved{Problem: "no answer"}
}

func (r *remote) Load(_ context.Context, path string) sandbox.Loaded {
	if a := r.ask(toServer{Load: &path}); a.Loaded != nil {
		return *a.Loaded
	}
	return sandbox.Loaded{Problem: "no answer"}
}
