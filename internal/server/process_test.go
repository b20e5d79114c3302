package server_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"berth/internal/server"
)

// helperRole makes this test program a server, or the parent of one.
const helperRole = "SERVER_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(helperRole) {
	case "server":
		s, err := server.New(server.NewMCP("t", "1", server.MCPOptions{}), server.Options{WatchParent: true})
		if err == nil {
			err = s.ServeStdio(context.Background(), os.Stdin, os.Stdout)
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "parent":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), helperRole+"=server")
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		_ = cmd.Run() // the test kills this process
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func helper(t *testing.T, role string) (cmd *exec.Cmd, in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), helperRole+"="+role)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	out = bufio.NewReader(stdout)
	if _, err := io.WriteString(in, initialize+"\n"); err != nil {
		t.Fatal(err)
	}
	line, err := out.ReadBytes('\n')
	if err != nil || decode(t, line).Result == nil {
		t.Fatalf("initialize = %s, %v", line, err)
	}
	return cmd, in, out
}

// ended waits until the other end of out is gone.
func ended(t *testing.T, out io.Reader) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, out)
		done <- err
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the server is still there")
	}
}

func TestProcessEndsWithStdin(t *testing.T) {
	cmd, in, out := helper(t, "server")
	in.Close()
	ended(t, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("exit = %v", err)
	}
}

func TestProcessEndsWithItsParent(t *testing.T) {
	cmd, _, out := helper(t, "parent")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended(t, out) // stdin is still open
	_ = cmd.Wait()
}
