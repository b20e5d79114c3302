// Package toolbox is the half of the Daytona API that works inside a sandbox:
// processes, sessions, terminals, files, git. It serves the paths below
// /toolbox/{sandboxId} over a sandbox.Manager, so that the official SDKs run
// against berth; package daytonaapi, which serves the other half, authenticates
// and finds the sandbox.
//
// The paths, bodies, statuses and headers are those that the SDKs 0.143 to
// 0.218 use and that the open server 0.190 answered. Where that server loses
// something (a byte of output, an exit code, a command that calls exit), this
// one does not.
//
// The package keeps nothing of its own: sessions, commands and terminals are
// processes of the Manager, and all that must be known of them is their Note.
// So they are found again by the next server, and by any number of servers
// beside this one.
package toolbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"berth/sandbox"
)

// Options of New.
type Options struct {
	Manager *sandbox.Manager
	Logger  *slog.Logger // nil discards
}

// Toolbox serves the toolbox of all sandboxes. It is safe for concurrent use.
type Toolbox struct {
	manager *sandbox.Manager
	log     *slog.Logger
	mux     *http.ServeMux

	// ctx is the life of the streams; Close ends them.
	ctx    context.Context
	cancel context.CancelFunc
	orders sync.Map   // the directories of sessions -> a lock for who adds a command
	mu     sync.Mutex // guards closed against wg, and unseen
	closed bool
	wg     sync.WaitGroup
	envs   sync.Mutex      // held while variables of sandboxes are changed
	unseen map[ptyKey]bool // terminals made here that nobody was connected to yet
}

// New returns a Toolbox. The caller calls Close.
func New(o Options) *Toolbox {
	t := &Toolbox{manager: o.Manager, log: o.Logger, mux: http.NewServeMux(), unseen: map[ptyKey]bool{}}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	for pattern, h := range t.routes() {
		t.mux.Handle(pattern, t.handler(pattern, h))
	}
	t.mux.Handle("/", t.handler("", func(c *call) error {
		return &apiError{status: http.StatusNotFound, code: codeNotFound,
			text: fmt.Sprintf("there is no %s %.200s in the toolbox", c.r.Method, c.r.URL.Path)}
	}))
	return t
}

// routes are all that there is, and by name what is not.
func (t *Toolbox) routes() map[string]func(*call) error {
	m := map[string]func(*call) error{
		"POST /process/execute":  t.execute,
		"POST /process/code-run": t.codeRun,

		"POST /process/session":                                   t.createSession,
		"GET /process/session":                                    t.listSessions,
		"GET /process/session/{session}":                          t.getSession,
		"DELETE /process/session/{session}":                       t.deleteSession,
		"POST /process/session/{session}/exec":                    t.execInSession,
		"GET /process/session/{session}/command/{command}":        t.getCommand,
		"GET /process/session/{session}/command/{command}/logs":   t.commandLogs,
		"POST /process/session/{session}/command/{command}/input": t.commandInput,
		"GET /process/session/entrypoint/logs":                    t.entrypointLogs,

		"GET /files":                t.listFiles,
		"DELETE /files":             t.deleteFile,
		"GET /files/info":           t.fileInfo,
		"POST /files/folder":        t.createFolder,
		"POST /files/move":          t.moveFile,
		"POST /files/permissions":   t.setPermissions,
		"GET /files/download":       t.download,
		"POST /files/bulk-download": t.bulkDownload,
		"POST /files/upload":        t.upload,
		"POST /files/upload-v2":     t.uploadV2,
		"POST /files/bulk-upload":   t.bulkUpload,
		"GET /files/find":           t.find,
		"GET /files/search":         t.search,
		"POST /files/replace":       t.replace,

		"POST /process/pty":               t.createPTY,
		"GET /process/pty":                t.listPTYs,
		"GET /process/pty/create-connect": t.createAndConnectPTY,
		"GET /process/pty/{pty}":          t.getPTY,
		"DELETE /process/pty/{pty}":       t.deletePTY,
		"POST /process/pty/{pty}/resize":  t.resizePTY,
		"GET /process/pty/{pty}/connect":  t.connectPTY,

		"POST /process/interpreter/context":             t.createContext,
		"GET /process/interpreter/context":              t.listContexts,
		"DELETE /process/interpreter/context/{context}": t.deleteContext,
		"GET /process/interpreter/execute":              t.interpret,

		"POST /git/clone":       t.gitClone,
		"GET /git/status":       t.gitStatus,
		"GET /git/branches":     t.gitBranches,
		"POST /git/branches":    t.gitCreateBranch,
		"DELETE /git/branches":  t.gitDeleteBranch,
		"POST /git/checkout":    t.gitCheckout,
		"POST /git/add":         t.gitAdd,
		"POST /git/commit":      t.gitCommit,
		"POST /git/push":        t.gitPush,
		"POST /git/pull":        t.gitPull,
		"GET /git/history":      t.gitHistory,
		"POST /git/init":        t.gitInit,
		"POST /git/reset":       t.gitReset,
		"POST /git/restore":     t.gitRestore,
		"GET /git/remotes":      t.gitRemotes,
		"POST /git/remotes":     t.gitAddRemote,
		"GET /git/config":       t.gitConfig,
		"POST /git/config":      t.gitSetConfig,
		"POST /git/config/user": t.gitConfigureUser,
		"POST /git/credentials": t.gitCredentials,

		"GET /version":            t.version,
		"GET /work-dir":           t.workDir,
		"GET /user-home-dir":      t.userHome,
		"GET /project-dir":        t.userHome,
		"GET /port":               t.ports,
		"GET /port/{port}/in-use": t.portInUse,
		"GET /system/metrics":     t.metrics,
		"POST /env":               t.updateEnv,
	}
	for prefix, what := range map[string]string{"/lsp/": "the language server protocol (lsp)", "/computeruse/": "computer use",
		"/proxy/": "the proxy of the toolbox (preview URLs reach the ports of a sandbox)", "/init": "init"} {
		m[prefix] = missing(what)
	}
	return m
}

// Serve answers one request for the toolbox of key's sandbox. r.URL.Path is
// what follows /toolbox/{id} and begins with '/'. The caller has authenticated
// the request, and checked that the sandbox is the caller's. Nothing here
// starts a sandbox that does not run.
func (t *Toolbox) Serve(w http.ResponseWriter, r *http.Request, key sandbox.Key) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		writeError(w, r, sandbox.ErrClosed, "")
		return
	}
	t.wg.Add(1)
	t.mu.Unlock()
	defer t.wg.Done()
	ctx, cancel := context.WithCancel(context.WithValue(sandbox.RunningOnly(r.Context()), keyKey{}, key))
	if r.Header.Get(asideHeader) == "true" {
		ctx = sandbox.Aside(ctx)
	}
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	t.mux.ServeHTTP(w, r.WithContext(ctx))
}

// Close ends all requests under way, and waits for them. It ends no process.
func (t *Toolbox) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
}

// asideHeader says that a request is no use of the sandbox.
const asideHeader = "X-Daytona-Skip-Last-Activity-Update"

type keyKey struct{}

// call is one request.
type call struct {
	w   *recorder
	r   *http.Request
	ctx context.Context
	key sandbox.Key
	// args are for the event log; see Manager.Record.
	args map[string]any
}

// recorder notes whether an answer has begun.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// handler runs h, answers its error and records the call as an event of the
// sandbox, if it may have changed something.
func (t *Toolbox) handler(pattern string, h func(*call) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		key, _ := ctx.Value(keyKey{}).(sandbox.Key)
		c := &call{w: &recorder{ResponseWriter: w}, r: r, ctx: ctx, key: key, args: map[string]any{}}
		began := time.Now()
		err := t.guarded(c, h)
		if errors.Is(err, errAborted) {
			panic(http.ErrAbortHandler) // the answer has begun and cannot be ended well
		}
		ref := ""
		if err != nil {
			if e := new(apiError); !errors.As(err, &e) && statusOf(err) == http.StatusInternalServerError {
				ref = newUUID()
				t.log.ErrorContext(ctx, "toolbox request failed", slog.String("session", string(key.Session)),
					slog.String("request", pattern), slog.String("reference", ref), slog.Any("err", err))
			}
			if c.w.status == 0 {
				writeError(c.w, r, err, ref)
			}
		}
		t.log.DebugContext(ctx, "toolbox request", slog.String("session", string(key.Session)), slog.String("request", pattern),
			slog.Int("status", c.w.status), slog.Duration("duration", time.Since(began)))
		if pattern == "" || r.Method == http.MethodGet {
			return
		}
		e := sandbox.Event{Time: began, Tool: "daytona " + pattern, Args: c.args, Outcome: "ok", Duration: time.Since(began), Bytes: c.w.bytes}
		if err != nil {
			e.Outcome, e.Error = "error", publicText(err, ref)
		}
		t.manager.Record(key, e)
	})
}

// guarded runs h; a panic becomes an error.
func (t *Toolbox) guarded(c *call, h func(*call) error) (err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler { //nolint:errorlint // a panic's value, compared as net/http does
			panic(p)
		}
		t.log.ErrorContext(c.ctx, "panic in a toolbox request", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		err = errors.New("panic")
	}()
	return h(c)
}
