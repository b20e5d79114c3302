//go:build unix

// Package buckettest starts real bucket servers for tests: versitygw (S3),
// fake-gcs-server (Google) and Azurite (Azure), each the published program. A test
// can kill and pause them.
//
// Tests that need them run with BERTH_REQUIRE_BUCKETS=1 and are skipped without
// it: the programs are built or fetched when they are first needed, which takes
// minutes, and kept in the user's cache directory.
package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The programs, at the versions that are known to do.
const (
	versitygw = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
	fakeGCS   = "github.com/fsouza/fake-gcs-server@v1.56.1"
	azurite   = "azurite@3.37.0"
)

// RequireVariable lets tests use real servers.
const RequireVariable = "BERTH_REQUIRE_BUCKETS"

// unavailable skips the test, or fails it where servers are required.
func unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(RequireVariable) != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "berth-buckettest")
	return dir, os.MkdirAll(dir, 0o700)
}

// once keeps the result of making each program.
var once sync.Map // name: func() (string, error)

// made returns the path of a program that make puts into a directory of its
// own; several processes that want it wait for the one that makes it.
func made(name string, make func(dir string) error) (string, error) {
	if os.Getenv(RequireVariable) == "" {
		return "", fmt.Errorf("real servers are used with %s=1 only", RequireVariable)
	}
	f, _ := once.LoadOrStore(name, sync.OnceValues(func() (string, error) {
		cache, err := cacheDir()
		if err != nil {
			return "", err
		}
		lock, err := os.OpenFile(filepath.Join(cache, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return "", err
		}
		defer lock.Close()
		if err := flock(lock); err != nil {
			return "", err
		}
		dir := filepath.Join(cache, name)
		if _, err := os.Stat(dir); err == nil {
			return dir, nil
		}
		tmp, err := os.MkdirTemp(cache, name+".new-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(tmp)
		if err := make(tmp); err != nil {
			return "", err
		}
		return dir, os.Rename(tmp, dir)
	}))
	return f.(func() (string, error))()
}

// goProgram builds a Go program outside of this module.
func goProgram(name, pkg string) (string, error) {
	dir, err := made(name+"-"+version(pkg), func(dir string) error {
		cmd := exec.CommandContext(context.Background(), "go", "install", "-trimpath", "-ldflags", "-s -w", pkg)
		cmd.Dir = dir // no go.mod above it
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
		return quiet(cmd)
	})
	return filepath.Join(dir, name), err
}

// version is what follows the at sign.
func version(pkg string) string { return pkg[strings.LastIndexByte(pkg, '@')+1:] }

func quiet(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		text := out.Bytes()
		if len(text) > 1000 {
			text = text[len(text)-1000:]
		}
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, text)
	}
	return nil
}

// Process is a server that a test can stop, pause and start again.
type Process struct {
	t    testing.TB
	name string
	make func() *exec.Cmd
	addr string

	mu  sync.Mutex
	cmd *exec.Cmd
	out bytes.Buffer
}

// freePort returns an address of loopback that nobody listened on just now.
func freePort(t testing.TB) string {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t testing.TB, name, addr string, make func() *exec.Cmd) *Process {
	t.Helper()
	p := &Process{t: t, name: name, make: make, addr: addr}
	t.Cleanup(p.Kill)
	p.Start()
	return p
}

// Start starts the server, again after Kill, and waits until it answers.
func (p *Process) Start() {
	p.t.Helper()
	p.mu.Lock()
	p.cmd = p.make()
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = ownGroup()
	err := p.cmd.Start()
	p.mu.Unlock()
	if err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", p.addr)
		if err == nil {
			c.Close()
			return
		}
		time.Sleep(20 * time.Millisecond) // polls another program
	}
	p.Kill()
	p.t.Fatalf("%s does not listen on %s: %s", p.name, p.addr, p.out.Bytes())
}

// Kill ends the server at once.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.signal(syscall.SIGKILL)
	_ = p.cmd.Wait()
	p.cmd = nil
}

// signal goes to the whole group; the caller holds the lock.
func (p *Process) signal(s syscall.Signal) error {
	if p.cmd == nil || p.cmd.Process == nil {
		return errors.New("it does not run")
	}
	return killGroup(p.cmd.Process.Pid, s)
}
