//go:build linux

package promises_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/internal/driver"
)

// TestTwoServersOneAccount has many sessions at work through two servers at once,
// which share nothing but an account at Daytona (another berth plays that), and
// kills one or the other again and again. No session gets a second sandbox or
// sees anything of another's, no command runs twice, none that was answered is
// lost, and output that is read on through either server comes whole.
//
// BERTH_TEST_SESSIONS says how many sessions (24).
func TestTwoServersOneAccount(t *testing.T) {
	many := 24
	if text := os.Getenv("BERTH_TEST_SESSIONS"); text != "" {
		n, err := strconv.Atoi(text)
		must(t, err)
		many = n
	}
	c := newCloud(t, stateDir(t, "s"))
	t.Cleanup(func() { c.empty(t) })
	fronts := []*front{c.front(t), c.front(t)}
	begin := time.Now()

	var answers atomic.Int64
	stop, killed := make(chan struct{}), make(chan int)
	go func() { killed <- killNowAndThen(t, fronts, many, &answers, stop) }()
	agents := make([]*agent, many)
	var wg sync.WaitGroup
	for i := range agents {
		agents[i] = &agent{t: t, fronts: fronts, id: fmt.Sprintf("a%d", i), answers: &answers}
		wg.Go(agents[i].work)
	}
	wg.Wait()
	close(stop)
	kills := <-killed
	worked := time.Since(begin)
	var lost int
	for _, a := range agents {
		wg.Go(a.check)
		lost += int(a.lost.Load())
	}
	wg.Wait()
	if kills == 0 {
		t.Error("no server was killed")
	}
	t.Logf("%d sessions, %d calls answered, %d lost with a server, %d servers killed, %s", many, answers.Load(), lost, kills, worked.Round(100*time.Millisecond))

	var want []string
	for _, a := range agents {
		want = append(want, a.id)
	}
	slices.Sort(want)
	if got := c.sessions(t); !slices.Equal(got, want) {
		t.Errorf("the account has sandboxes of the sessions %v, want %v", got, want)
	}
}

// killNowAndThen kills one server or the other until stop, and tells how often:
// whenever some more calls were answered, at most one for each session, or when
// none was for a while, so that a slow machine gets on, too.
func killNowAndThen(t *testing.T, fronts []*front, sessions int, answers *atomic.Int64, stop <-chan struct{}) (n int) {
	for {
		next, latest := answers.Load()+rand.Int64N(int64(sessions)), time.Now().Add(5*time.Second+time.Duration(sessions)*100*time.Millisecond)
		for answers.Load() <= next && time.Now().Before(latest) {
			select {
			case <-stop:
				return n
			case <-time.After(5 * time.Millisecond):
			}
		}
		fronts[rand.IntN(len(fronts))].restart(t)
		n++
	}
}

// agent is one session's line of work.
type agent struct {
	t        *testing.T
	fronts   []*front
	id       string
	answers  *atomic.Int64 // of all agents
	lost     atomic.Int64  // calls whose server died
	commands map[int]bool  // by number, whether they were answered
}

// marks are how many commands of each session must be answered.
const marks = 6

// work runs commands, and beside them follows what a process writes. Both servers
// see the session for the first time at one moment.
func (a *agent) work() {
	var wg sync.WaitGroup
	wg.Go(func() {
		c := &caller{agent: a}
		defer c.close()
		a.commands = map[int]bool{}
		for n, answered := 0, 0; answered < marks && !a.t.Failed(); n++ {
			if a.commands[n] = c.command(n); a.commands[n] {
				answered++
			}
		}
	})
	wg.Go(func() {
		c := &caller{agent: a, at: 1}
		defer c.close()
		c.follow()
	})
	wg.Wait()
}

// caller calls one server after the other.
type caller struct {
	*agent
	at    int // the server of the next call
	links [2]*driver.Session
}

// command leaves a mark of command n in the sandbox, and tells whether that was
// answered; if not, nobody knows whether it ran.
func (a *caller) command(n int) bool {
	mark := fmt.Sprintf("%s %d", a.id, n)
	r, err := a.call("execute_command", args{"command": "echo '" + mark + "' | tee -a ~/marks"})
	if err == nil && (exit(r) != 0 || r.Output() != mark+"\n") {
		a.t.Errorf("%s: command %d answers %q", a.id, n, r.Text)
	}
	return err == nil
}

// lines that the process of each session writes, two a second.
const lines = 12

// follow starts a process and reads its output to the end.
func (a *caller) follow() {
	var process string
	for process == "" && !a.t.Failed() {
		// A lost one is left alone.
		r, err := a.call("spawn_process", args{"command": fmt.Sprintf(`exec 3<> <(:); for i in $(seq %d); do echo "%s line $i"; read -t 0.5 -u 3; done; true`, lines, a.id)})
		if err == nil && r.IsError {
			return
		}
		if err == nil {
			process = r.Result.ProcessID
		}
	}
	var got bytes.Buffer
	cursor := "c0.0"
	for ended := false; !ended; {
		r, err := a.call("read_output", args{"process_id": process, "cursor": cursor, "base64": true, "wait_seconds": 5})
		if err != nil {
			continue // the same once more, from the same cursor
		}
		if r.IsError {
			return
		}
		for i, l := range strings.Split(r.Text, "\n") {
			if strings.HasPrefix(l, "[stdout: ") {
				b, err := base64.StdEncoding.DecodeString(strings.Split(r.Text, "\n")[i+1])
				if err != nil {
					a.t.Errorf("%s: %v in %q", a.id, err, r.Text)
				}
				got.Write(b)
			}
		}
		ended = r.Result.ExitCode != nil && r.Result.Cursor == cursor
		cursor = r.Result.Cursor
	}
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "%s line %d\n", a.id, i+1)
	}
	if got.String() != want.String() {
		a.t.Errorf("%s: its process wrote %q, of which arrived %q", a.id, want.String(), got.String())
	}
}

// check looks at what the commands left.
func (a *agent) check() {
	c := &caller{agent: a}
	defer c.close()
	r, err := c.call("execute_command", args{"command": "cat ~/marks"})
	if err != nil || exit(r) != 0 {
		a.t.Errorf("%s: cat: %v, %+v", a.id, err, r)
		return
	}
	count := map[string]int{}
	for l := range strings.Lines(r.Output()) {
		count[strings.TrimSpace(l)]++
	}
	for n, answered := range a.commands {
		mark := fmt.Sprintf("%s %d", a.id, n)
		if got := count[mark]; got > 1 || answered && got == 0 {
			a.t.Errorf("%s: command %d ran %d times; it was answered: %t", a.id, n, got, answered)
		}
		delete(count, mark)
	}
	if len(count) > 0 {
		a.t.Errorf("%s: its sandbox has the marks of others: %v", a.id, count)
	}
}

func (a *caller) close() {
	for _, l := range a.links {
		if l != nil {
			_ = l.Close()
		}
	}
}

// call calls a tool through the server whose turn it is, once that is there. An
// error says that it went away meanwhile; a failure of the tool is one of the test.
func (a *caller) call(tool string, arguments args) (*driver.Answer, error) {
	at := a.at
	a.at = 1 - at
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.t.Context()), 2*time.Minute)
	defer cancel()
	arguments["session_id"] = a.id
	for a.links[at] == nil {
		if l, err := a.fronts[at].now().Dial(ctx, driver.HTTP, ""); err == nil {
			a.links[at] = l
		} else if ctx.Err() != nil {
			a.t.Errorf("%s: connect: %v", a.id, err)
			return nil, err
		} else {
			time.Sleep(20 * time.Millisecond) // until it is back
		}
	}
	r, err := a.links[at].Call(ctx, tool, arguments)
	if err != nil {
		a.lost.Add(1)
		a.links[at] = nil // there is nobody to say goodbye to
		return nil, err
	}
	if r.IsError && strings.Contains(r.Text, "is not known") { // as if the server had died
		a.lost.Add(1)
		return nil, errors.New(r.Text)
	}
	if r.IsError && strings.Contains(r.Text, "the same call again") { // waits on
		a.t.Logf("%s: %s: %s", a.id, tool, r.Text)
		return a.call(tool, arguments)
	}
	a.answers.Add(1)
	if r.IsError {
		a.t.Errorf("%s: %s: %s", a.id, tool, r.Text)
	}
	return r, nil
}
