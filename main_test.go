package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"berth/internal/golden"
)

// cleaning runs the tests, and then what they put off.
type cleaning struct{ *testing.M }

var atEnd []func()

func (c cleaning) Run() int {
	code := c.M.Run()
	for _, f := range atEnd {
		f()
	}
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){"berth": main})
}

// TestScript runs testdata/script against this program. With -update the
// expected outputs in the scripts are rewritten.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       golden.Updating(),
		// A command that hangs is shown, instead of the whole test run.
		Deadline: time.Now().Add(12 * time.Minute),
		Setup: func(e *testscript.Env) error {
			state := filepath.Join(e.WorkDir, "state")
			e.Defer(func() { removeAll(t, e) })
			e.Vars = append(e.Vars, "BERTH_STATE="+state, "HOME="+e.WorkDir, "XDG_CONFIG_HOME=", "NO_COLOR=1")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"jsonlines": jsonLines,
			"mode":      mode,
		},
	})
}

// removeAll deletes the sandboxes that a script that failed left behind.
func removeAll(t *testing.T, e *testscript.Env) {
	exe, err := os.Executable()
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := os.Stat(e.Getenv("BERTH_STATE")); err != nil {
		return
	}
	list := exec.Cmd{Path: exe, Args: []string{"berth", "ls", "-q"}, Env: e.Vars, Dir: e.WorkDir}
	out, err := list.Output()
	if ids := strings.Fields(string(out)); err == nil && len(ids) > 0 {
		rm := exec.Cmd{Path: exe, Args: append([]string{"berth", "rm"}, ids...), Env: e.Vars, Dir: e.WorkDir}
		if out, err := rm.CombinedOutput(); err != nil {
			t.Errorf("sandboxes stay behind: %v: %s", err, out)
		}
	}
}

// jsonLines FILE: every line of the file is a JSON-RPC message, and there is one.
func jsonLines(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: jsonlines file")
	}
	lines := strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n")
	for i, line := range lines {
		var m struct {
			JSONRPC string `json:"jsonrpc"`
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil || m.JSONRPC != "2.0" {
			ts.Fatalf("line %d is no JSON-RPC message: %q", i+1, line)
		}
	}
}

// mode 0600 FILE: the file's permission bits are these.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode bits file")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}
