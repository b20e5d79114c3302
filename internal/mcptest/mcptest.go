//go:build unix

package mcptest

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/internal/compile"
	"berth/internal/preview"
	"berth/internal/server"
	"berth/internal/session"
	"berth/sandbox"
	"berth/sandbox/providertest"
	"berth/tools"
)

// Options of New. The zero value works.
type Options struct {
	Tools   tools.Options
	Manager sandbox.Options
	Server  server.Options
	// Provider, when set, is used instead of the one of Provider, and is not
	// closed.
	Provider sandbox.Provider
	// PublicURL and State are those of the exposed ports; empty: none, and a
	// directory of the test's own.
	PublicURL, State string
}

// Server is a running server. It ends with its test.
type Server struct {
	Provider sandbox.Provider
	Manager  *sandbox.Manager
	MCP      *mcpserver.MCPServer
	Server   *server.Server
	Ports    *preview.Server
	// Log is what was logged, at all levels.
	Log *Log

	t      testing.TB
	listen sync.Once
	url    string
	stop   context.CancelFunc
	served chan error
}

// Provider makes the provider that tests of tools run over, and is the one
// place that chooses it: the fake, whose commands are processes of the host,
// or the embedded one when BERTH_TEST_PROVIDER is "local".
func Provider(t testing.TB) sandbox.Provider {
	t.Helper()
	switch name := os.Getenv("BERTH_TEST_PROVIDER"); name {
	case "local":
		return localProvider(t)
	case "", "fake":
	default:
		t.Fatalf("BERTH_TEST_PROVIDER is %q; allowed: fake, local", name)
	}
	f := providertest.NewFake(t.TempDir(), providertest.FakeOptions{})
	t.Cleanup(func() {
		f.Shutdown()
		if err := f.Close(); err != nil {
			t.Errorf("close the provider: %v", err)
		}
	})
	return f
}

// New makes a server; nothing listens until a client asks for it.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{t: t, Provider: o.Provider, Log: &Log{}}
	if s.Provider == nil {
		s.Provider = Provider(t)
	}
	logger := slog.New(slog.NewJSONHandler(s.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, l := range []**slog.Logger{&o.Tools.Logger, &o.Manager.Logger, &o.Server.Logger} {
		if *l == nil {
			*l = logger
		}
	}
	if o.Manager.EventDir == "" {
		o.Manager.EventDir = t.TempDir()
	}
	if o.State == "" {
		o.State = t.TempDir()
	}
	if o.Tools.Book == nil {
		o.Tools.Book = session.NewBook(sandbox.SessionID(o.Tools.DefaultSession))
	}
	if o.Server.Ended == nil {
		o.Server.Ended = o.Tools.Book.Forget
	}
	if o.Manager.Compiler == nil {
		o.Manager.Compiler = compile.InProcess()
	}
	var err error
	if s.Manager, err = sandbox.NewManager(s.Provider, o.Manager); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Manager.Close(); err != nil {
			t.Errorf("close the manager: %v", err)
		}
	})
	if s.Ports, err = preview.New(preview.Options{Manager: s.Manager, Logger: logger, State: o.State, Public: o.PublicURL}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Ports.Close(); err != nil {
			t.Errorf("close the ports: %v", err)
		}
	})
	o.Tools.Previews, o.Server.Previews = s.Ports, s.Ports
	info, err := s.Provider.Describe(t.Context(), sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	s.MCP = server.NewMCP("berth", "test", server.MCPOptions{Logger: logger, Instructions: tools.Instructions(info, o.Tools)})
	if err := tools.Register(s.MCP, s.Manager, o.Tools); err != nil {
		t.Fatal(err)
	}
	if s.Server, err = server.New(s.MCP, o.Server); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.stop == nil {
			return
		}
		s.stop()
		if err := <-s.served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// URL is where the server listens, such as http://127.0.0.1:1234; the first
// call makes it listen.
func (s *Server) URL() string {
	s.t.Helper()
	s.listen.Do(func() {
		l, err := (&net.ListenConfig{}).Listen(s.t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		// The test's own context ends before its clean-up runs; the server
		// ends in order there.
		ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
		s.stop, s.served = cancel, make(chan error, 1)
		go func() { s.served <- s.Server.ServeHTTP(ctx, l) }()
		s.Ports.Share(l.Addr())
		s.url = "http://" + l.Addr().String()
	})
	return s.url
}

// Log keeps what a server logged.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*Log)(nil)

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is all of it.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Contains reports whether any line has s.
func (l *Log) Contains(s string) bool { return strings.Contains(l.String(), s) }
