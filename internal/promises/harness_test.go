//go:build linux

package promises_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/internal/driver"
)

// program is the berth that all tests run, and shared the state directory that
// most of them share: what sandboxes are built on is then made once.
var program, shared string

// TestMain builds berth once, with the embedded helper program, and bucketd beside
// it, unless BERTH_TEST_PROGRAM names one that is built already.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		if err := chooseProvider(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		// Not t.TempDir: its long names would not leave room for socket paths.
		dir, err := os.MkdirTemp("", runPrefix+strconv.Itoa(os.Getpid())+"-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer removeAll(dir)
		if program = os.Getenv("BERTH_TEST_PROGRAM"); program == "" {
			program = filepath.Join(dir, "berth")
			for _, args := range [][]string{{"generate", "berth/sandbox/local/boxbin"}, {"build", "-o", program, "berth"}, {"build", "-o", filepath.Join(dir, "bucketd"), "berth/mounts/bucketd"}} {
				cmd := exec.Command("go", args...)
				cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
				if out, err := cmd.CombinedOutput(); err != nil {
					fmt.Fprintf(os.Stderr, "go %s: %v\n%s", strings.Join(args, " "), err, out)
					return 1
				}
			}
		}
		removeStale()
		if shared, err = os.MkdirTemp(dir, "s"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if sharedCloud != nil {
			sharedCloud.server.Kill()
		}
		if err := removeSandboxes(shared); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
		return code
	}())
}

// runPrefix is what the directory of one run begins with; its process id and a
// number follow. All states lie in there.
const runPrefix = "bp-"

// removeStale removes what runs left that were killed.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), runPrefix+"*"))
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), runPrefix), "-")
		info, err := os.Lstat(dir)
		if n, perr := strconv.Atoi(pid); perr != nil || err != nil || !dead(n) || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			continue
		}
		states, _ := filepath.Glob(filepath.Join(dir, "s*"))
		for _, state := range states {
			_ = removeSandboxes(state)
		}
		removeAll(dir)
	}
}

// removeAll removes a state directory too, in which an ordinary user has files
// with other ids of his: only root of a user namespace may remove those.
func removeAll(dir string) {
	if os.RemoveAll(dir) != nil {
		_ = exec.Command("unshare", "--user", "--map-auto", "--map-root-user", "rm", "-rf", dir).Run() // where there is such a program
	}
}

// removeSandboxes removes all sandboxes of a state directory: what lies in
// their layers berth alone may remove.
func removeSandboxes(state string) error {
	out, err := cli(state, "ls", "-q")
	if ids := strings.Fields(out); err == nil && len(ids) > 0 {
		_, err = cli(state, append([]string{"rm"}, ids...)...)
	}
	return err
}

// cli runs another command of berth over a state directory.
func cli(state string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "BERTH_STATE="+state, "BERTH_PROVIDER=local")
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("berth %s: %w: %s", strings.Join(args, " "), err, problem.String())
	}
	return string(out), err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is what servers share: a state directory, and at Daytona an account too.
type site struct {
	t testing.TB
	driver.Program
	beneath string // the state directory in which the sandboxes lie
	cloud   *cloud // nil on this machine
}

// newSite is a site whose sandboxes lie in the shared state directory. Those of the
// test are removed at its end.
func newSite(t testing.TB) *site {
	t.Helper()
	if atDaytona {
		return theCloud(t).site(t)
	}
	s := &site{t: t, Program: driver.Program{Path: program, State: shared}, beneath: shared}
	t.Cleanup(func() {
		out, err := cli(s.State, "ls", "-q")
		if err != nil {
			t.Error(err)
		}
		there := strings.Fields(out)
		var own []string
		for _, id := range idsOf(t) {
			if slices.Contains(there, id) {
				own = append(own, id)
			}
		}
		if len(own) > 0 {
			if _, err := cli(s.State, append([]string{"rm"}, own...)...); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

// ownSite is a site whose sandboxes lie in a state directory of its own, for tests
// that look at what lies in it. The configuration is that of who has the sandboxes.
func ownSite(t testing.TB, configuration ...string) *site {
	t.Helper()
	dir := stateDir(t, "s")
	if atDaytona {
		return newCloud(t, dir, configuration...).site(t)
	}
	return (&site{t: t, Program: driver.Program{Path: program, State: dir}, beneath: dir}).configured(configuration...)
}

// configured has the servers of a site read a configuration.
func (s *site) configured(configuration ...string) *site {
	s.t.Helper()
	if len(configuration) > 0 {
		file := filepath.Join(s.t.TempDir(), "berth.yaml")
		must(s.t, os.WriteFile(file, []byte(strings.Join(configuration, "")), 0o600))
		s.Args = append(s.Args, "--config", file)
	}
	return s
}

// stateDir makes a state directory, which is removed with its sandboxes when the
// test ends.
func stateDir(t testing.TB, prefix string) string {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(shared), prefix) //nolint:usetesting // see TestMain
	must(t, err)
	t.Cleanup(func() {
		if err := removeSandboxes(dir); err != nil {
			t.Error(err)
		}
		removeAll(dir)
		if _, err := os.Lstat(dir); err == nil && os.Geteuid() == 0 {
			t.Errorf("%s is not removed", dir)
		}
	})
	return dir
}

// listen starts an HTTP server, ended with the test.
func (s *site) listen(t testing.TB) *driver.Server {
	t.Helper()
	srv, err := s.ListenAndServe(t.Context(), 0)
	must(t, err)
	t.Cleanup(srv.Kill)
	return srv
}

var transports = []driver.Transport{driver.Stdio, driver.HTTP, driver.SSE}

// dial connects a client to a server of its own over how.
func (s *site) dial(t testing.TB, how driver.Transport) *box {
	t.Helper()
	if how != driver.Stdio {
		return connect(t, s.listen(t), how)
	}
	c, err := s.Stdio(t.Context())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return newBox(t, c)
}

func connect(t testing.TB, srv *driver.Server, how driver.Transport) *box {
	t.Helper()
	c, err := srv.Dial(t.Context(), how, "")
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return newBox(t, c)
}

// each runs f over all transports, each with a server and a state of its own.
func each(t *testing.T, f func(t *testing.T, s *site, b *box)) {
	for _, how := range transports {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			f(t, s, s.dial(t, how))
		})
	}
}

var sessions atomic.Int64

// box is a session's sandbox through a client.
type box struct {
	*driver.Session
	t  testing.TB
	id string
}

func newBox(t testing.TB, c *driver.Session) *box {
	b := &box{Session: c, t: t, id: "p" + strconv.FormatInt(sessions.Add(1), 10)}
	given.Lock()
	defer given.Unlock()
	given.ids[t] = append(given.ids[t], b.id)
	return b
}

// given are the session ids that tests have got.
var given = struct {
	sync.Mutex
	ids map[testing.TB][]string
}{ids: map[testing.TB][]string{}}

func idsOf(t testing.TB) []string {
	given.Lock()
	defer given.Unlock()
	return given.ids[t]
}

// as is the same session through another client.
func (b *box) as(c *box) *box { return &box{Session: c.Session, t: c.t, id: b.id} }

// other is another session of the same client.
func (b *box) other() *box { return newBox(b.t, b.Session) }

type args = map[string]any

func (b *box) with(a args) args {
	out := args{"session_id": b.id}
	for k, v := range a {
		out[k] = v
	}
	return out
}

// call calls a tool that must succeed.
func (b *box) call(tool string, a args) *driver.Answer {
	b.t.Helper()
	r, err := b.Must(b.t.Context(), tool, b.with(a))
	must(b.t, err)
	return r
}

// refused calls a tool that must answer with an error, whose text it returns.
func (b *box) refused(tool string, a args) string {
	b.t.Helper()
	r, err := b.Call(b.t.Context(), tool, b.with(a))
	must(b.t, err)
	if !r.IsError {
		b.t.Fatalf("%s(%v) succeeded: %s", tool, a, r.Text)
	}
	return r.Text
}

// sh runs shell text that must exit with 0, and returns its output, trimmed.
func (b *box) sh(command string) string {
	b.t.Helper()
	return b.run(args{"command": command}, 0)
}

// run executes a command that must exit with code.
func (b *box) run(a args, code int) string {
	b.t.Helper()
	r := b.call("execute_command", a)
	if got := exit(r); got != code {
		b.t.Fatalf("%v exits with %d, want %d: %s", a, got, code, r.Text)
	}
	return strings.TrimSuffix(r.Output(), "\n")
}

func (b *box) want(command, want string) {
	b.t.Helper()
	if got := b.sh(command); got != want {
		b.t.Errorf("%s prints %q, want %q", command, got, want)
	}
}

// exit is the exit code of an answer, -1 for none.
func exit(r *driver.Answer) int {
	if r.Result.ExitCode == nil {
		return -1
	}
	return *r.Result.ExitCode
}

// sandbox is the record of get_sandbox.
func (b *box) sandbox() args {
	b.t.Helper()
	return record(b.t, b.call("get_sandbox", nil))
}

func (b *box) status() string {
	b.t.Helper()
	return fmt.Sprint(b.sandbox()["status"])
}

// record is the sandbox in an answer.
func record(t testing.TB, r *driver.Answer) args {
	t.Helper()
	m, ok := r.Structured["sandbox"].(args)
	if !ok {
		t.Fatalf("no sandbox in the answer: %s", r.Text)
	}
	return m
}

// start calls start_sandbox, which must have this outcome.
func (b *box) start(a args, outcome string) *driver.Answer {
	b.t.Helper()
	r := b.call("start_sandbox", a)
	if r.Structured["outcome"] != outcome {
		b.t.Fatalf("start_sandbox: outcome %v, want %s: %s", r.Structured["outcome"], outcome, r.Text)
	}
	return r
}

// processes are the rows of list_processes.
func (b *box) processes() map[string]args {
	b.t.Helper()
	list, _ := b.call("list_processes", nil).Structured["processes"].([]any)
	out := map[string]args{}
	for _, p := range list {
		row := p.(args)
		out[row["process_id"].(string)] = row
	}
	return out
}

// listed tells whether list_sandboxes shows the session.
func (b *box) listed() bool {
	b.t.Helper()
	for cursor := ""; ; {
		a := args{"limit": 200}
		if cursor != "" {
			a["cursor"] = cursor
		}
		r, err := b.Must(b.t.Context(), "list_sandboxes", a)
		must(b.t, err)
		list, ok := r.Structured["sandboxes"].([]any)
		if !ok {
			b.t.Fatalf("no list: %s", r.Text)
		}
		for _, row := range list {
			if row.(args)["session_id"] == b.id {
				return true
			}
		}
		if cursor, _ = r.Structured["next_cursor"].(string); cursor == "" {
			return false
		}
	}
}

// wait polls until ok, which another program makes true, and fails after limit.
func wait(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q lacks %q", text, p)
		}
	}
}
