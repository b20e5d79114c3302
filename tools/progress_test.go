//go:build unix

package tools_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/mcptest"
	"berth/sandbox"
)

func TestProgressStreamsOutput(t *testing.T) {
	for _, how := range mcptest.Transports() {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			c := mcptest.New(t, mcptest.Options{}).Client(t, how)
			c.Must("start_sandbox", args{"session_id": "s"})
			r, err := c.Try(t.Context(), "execute_command", args{"session_id": "s",
				"command": `for i in 1 2 3; do echo line $i; sleep 0.3; done; printf '\033[31mred\033[0m'; echo err >&2`}, "tok")
			end := time.Now()
			if err != nil || r.IsError {
				t.Fatalf("%v %v", r, err)
			}
			// mcp-go hands a client in its own process notifications from beside, in no
			// order with results; on every wire they come before.
			beside := how == mcptest.InProcess
			if beside {
				for late := time.Now().Add(20 * time.Second); time.Now().Before(late); time.Sleep(time.Millisecond) {
					if got := c.Progress("tok"); len(got) > 0 && strings.Contains(got[len(got)-1].Message, "err") {
						break
					}
				}
			}
			got := c.Progress("tok")
			if len(got) < 3 {
				t.Fatalf("%d progress messages: %v", len(got), got)
			}
			var all []string
			for i, p := range got {
				if i > 0 && p.Value <= got[i-1].Value {
					t.Errorf("progress does not rise: %v", got)
				}
				if p.Time.After(end) && !beside {
					t.Errorf("progress %v came after the result", p)
				}
				all = append(all, p.Message)
			}
			text := strings.Join(all, "\n") + "\n"
			for _, want := range []string{"line 1\n", "line 2\n", "line 3\n", "red\n", "err\n"} {
				if !strings.Contains(text, want) {
					t.Errorf("progress lacks %q: %q", want, text)
				}
			}
			if strings.Contains(text, "\033") {
				t.Errorf("progress has escape sequences: %q", text)
			}
			if apart := got[len(got)-1].Time.Sub(got[0].Time); apart < 400*time.Millisecond {
				t.Errorf("all progress came within %v, so it did not stream", apart)
			}
			if !strings.Contains(r.Text, "line 1\nline 2\nline 3\nred") {
				t.Errorf("the result is not whole: %q", r.Text)
			}
			quiet, err := c.Try(t.Context(), "execute_command", args{"session_id": "s", "command": "echo quiet"}, nil)
			if err != nil || quiet.IsError || len(c.Progress(nil)) != 0 {
				t.Errorf("without a token: %v %v %v", quiet, err, c.Progress(nil))
			}
			if late := c.Progress("tok"); len(late) != len(got) {
				t.Errorf("%d progress messages came after the result", len(late)-len(got))
			}
		})
	}
}

func TestFloodOfOutputIsCoalesced(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.Stdio)
	c.Must("start_sandbox", args{"session_id": "s"})
	start := time.Now()
	r, err := c.Try(t.Context(), "execute_command", args{"session_id": "s", "command": "seq 1 300000"}, 7)
	if err != nil || r.IsError {
		t.Fatalf("%v %v", r, err)
	}
	got := c.Progress(7.0)
	if most := int(time.Since(start)/(100*time.Millisecond)) + 2; len(got) > most {
		t.Errorf("%d messages in %v, want at most %d", len(got), time.Since(start), most)
	}
	for _, p := range got {
		if len(p.Message) > 5000 {
			t.Errorf("a message of %d bytes", len(p.Message))
		}
	}
	if len(got) == 0 || !strings.Contains(got[len(got)-1].Message, "300000") {
		t.Errorf("the last lines are missing from %d messages", len(got))
	}
}

func TestProgressOfParallelCallsIsApart(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.HTTP)
	c.Must("start_sandbox", args{"session_id": "s"})
	var wg sync.WaitGroup
	for _, token := range []string{"a", "b"} {
		wg.Go(func() {
			if r, err := c.Try(t.Context(), "execute_command", args{"session_id": "s", "command": "echo for-" + token + "; sleep 0.3"}, token); err != nil || r.IsError {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	wg.Wait()
	for token, other := range map[string]string{"a": "for-b", "b": "for-a"} {
		text := ""
		for _, p := range c.Progress(token) {
			text += p.Message
		}
		if strings.Contains(text, other) || !strings.Contains(text, "for-"+token) {
			t.Errorf("progress of %s: %q", token, text)
		}
	}
}

// TestCancelKillsAndALostConnectionHandsOver: over stdio the client says that
// it cancels, over modern HTTP it closes the request's stream; with a legacy
// session a closed stream is only a lost connection.
func TestCancelKillsAndALostConnectionHandsOver(t *testing.T) {
	for how, killed := range map[mcptest.Transport]bool{mcptest.Stdio: true, mcptest.Modern: true, mcptest.HTTP: false} {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			s := mcptest.New(t, mcptest.Options{})
			c := s.Client(t, how)
			c.Must("start_sandbox", args{"session_id": "s"})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := c.Try(ctx, "execute_command", args{"session_id": "s", "command": "echo started; sleep 300"}, "tok")
				ended <- err
			}()
			eventually(t, "the command's first output", func() bool { return len(c.Progress("tok")) > 0 })
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the call ended with %v", err)
			}
			eventually(t, "the end of the call", func() bool {
				events, err := s.Manager.Events(t.Context(), keyOf("s"))
				return err == nil && len(events) == 2 && events[1].Outcome != sandbox.Begun
			})
			list, err := s.Manager.ListProcesses(t.Context(), keyOf("s"))
			if err != nil || len(list) != 1 {
				t.Fatalf("%v, %v", list, err)
			}
			p := list[0]
			if killed && (!p.Killed || p.ExitCode == nil || *p.ExitCode != 137) {
				t.Errorf("the cancelled command: %+v", p)
			}
			if !killed && p.State != sandbox.ProcessRunning {
				t.Errorf("the command of a lost connection: %+v", p)
			}
		})
	}
}

// eventually waits for something that another goroutine does.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
	}
}
