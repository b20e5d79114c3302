package tools_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mark3labs/mcp-go/server"

	"berth/sandbox"
	"berth/sandbox/providertest"
	"berth/tools"
)

// A provider that hangs, and does not heed its context: every tool answers all
// the same, within a minute.
func TestEveryCallIsAnswered(t *testing.T) {
	for _, c := range []struct {
		tool, arguments string
		hang            string // the provider's method
		want            string
		least, most     time.Duration
	}{
		{"execute_command", `"command":"true"`, "lookup", "goes on by itself", 50 * time.Second, 51 * time.Second},
		{"execute_command", `"command":"true"`, "spawn", "whether it was done, or is done yet, is not known", 50 * time.Second, 55 * time.Second},
		{"start_sandbox", ``, "lookup", "goes on by itself", 50 * time.Second, 51 * time.Second},
		{"get_sandbox", ``, "lookup", "make the same call again", 50 * time.Second, 55 * time.Second},
		{"stop_sandbox", ``, "stop", `"status":"running"`, 50 * time.Second, 55 * time.Second},
		{"list_sandboxes", ``, "list", "make the same call again", 50 * time.Second, 55 * time.Second},
		{"read_output", `"process_id":"p-x"`, "process", "make the same call again", 50 * time.Second, 55 * time.Second},
	} {
		t.Run(c.tool+"_"+c.hang, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				hang := func(method string) {
					if method == c.hang {
						<-release
					}
				}
				key := sandbox.Key{Owner: sandbox.LocalOwner, Session: "s"}
				inst := &providertest.StubInstance{
					InfoFunc: func(context.Context) (sandbox.Info, error) {
						return sandbox.Info{Key: key, Status: sandbox.StatusRunning, Home: "/home/agent", User: "agent"}, nil
					},
					StopFunc: func(context.Context) error { hang("stop"); return nil },
					SpawnFunc: func(context.Context, sandbox.Command) (sandbox.Process, error) {
						hang("spawn")
						return nil, sandbox.ErrUnsupported
					},
					ProcessFunc: func(context.Context, sandbox.ProcessID) (sandbox.Process, error) {
						hang("process")
						return nil, sandbox.ErrNoProcess
					},
				}
				p := &providertest.Stub{
					LookupFunc: func(context.Context, sandbox.Key) (sandbox.Instance, error) { hang("lookup"); return inst, nil },
					ListFunc:   func(context.Context, sandbox.Owner) ([]sandbox.Info, error) { hang("list"); return nil, nil },
				}
				m, err := sandbox.NewManager(p, sandbox.Options{})
				if err != nil {
					t.Fatal(err)
				}
				s := server.NewMCPServer("berth", "test")
				if err := tools.Register(s, m, tools.Options{}); err != nil {
					t.Fatal(err)
				}
				arguments := c.arguments
				if c.tool != "list_sandboxes" { // there it is a filter
					arguments = strings.TrimPrefix(arguments+`,"session_id":"s"`, ",")
				}
				began := time.Now()
				answer, err := json.Marshal(s.HandleMessage(t.Context(), json.RawMessage(fmt.Sprintf(
					`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":{%s}}}`, c.tool, arguments))))
				took := time.Since(began)
				if err != nil || !strings.Contains(string(answer), c.want) {
					t.Errorf("%v %s", err, answer)
				}
				if took < c.least || took > c.most {
					t.Errorf("answered after %s, want %s to %s", took, c.least, c.most)
				}
				close(release)
				if err := m.Close(); err != nil {
					t.Error(err)
				}
				synctest.Wait() // nothing is left behind once the provider is back
			})
		})
	}
}
