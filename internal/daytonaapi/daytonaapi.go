// Package daytonaapi serves the Daytona API over a sandbox.Manager, so that the
// official Daytona SDKs, and what is built on them, run against one berth with
// no cloud.
//
// It has the control plane, below /api, and hands /toolbox/{sandbox} to the
// toolbox. A Daytona sandbox is a session's sandbox: its id is the session's id
// (a UUID for those made here), its name the spec's name, unique among those of
// one owner that are made here. So every sandbox is reachable by MCP under its
// id, and the other way round. An API key is a bearer token of ours, an
// organization its owner.
//
// Paths, bodies, states and statuses are those of the open server's release
// 0.190, and what newer SDKs ask for beside them. What is not there answers 501
// with its name, see routes.go.
package daytonaapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"berth/internal/access"
	"berth/sandbox"
)

// Options of New.
type Options struct {
	Manager *sandbox.Manager
	// Access says who may call, as for MCP.
	Access access.Options
	// Toolbox serves what is below /toolbox/{sandbox}; nil: nothing is.
	Toolbox Toolbox
	// Previews makes ports reachable; nil: none can be.
	Previews Previews
	// State is a directory for what must outlive the server and is no
	// provider's: requests under way, failed builds, uploaded files. It is made
	// when it is missing, and is one server's alone.
	State   string
	Logger  *slog.Logger // nil discards
	Version string       // berth's, told by /api/config
}

// Toolbox serves the calls into one sandbox.
type Toolbox interface {
	// Serve answers a request whose URL.Path is what follows /toolbox/{sandbox}.
	// The caller may use the sandbox of key, which ran just now.
	Serve(w http.ResponseWriter, r *http.Request, key sandbox.Key)
}

// Server is an http.Handler. It is safe for concurrent use; Close ends what it
// does beside requests.
type Server struct {
	o       Options
	m       *sandbox.Manager
	log     *slog.Logger
	rules   *access.Rules
	handler http.Handler
	records *records
	storage *storage

	ctx    context.Context // the life of work that outlives its request
	cancel context.CancelFunc
	wg     sync.WaitGroup

	making sync.Mutex // held while a snapshot's or a volume's name is given or taken back

	mu      sync.Mutex
	closed  bool
	jobs    map[string]*job
	works   map[sandbox.Key]*work
	failed  map[sandbox.Key]string // why the last work on a sandbox failed
	names   map[sandbox.Owner]map[string]bool
	slots   chan struct{}
	started time.Time
}

// New checks o, takes the state directory, and goes on with what a former
// server was doing.
func New(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	rules, err := access.New(o.Access)
	if err != nil {
		return nil, err
	}
	rec, err := openRecords(o.State)
	if err != nil {
		return nil, err
	}
	store, err := openStorage(filepath.Join(o.State, "storage"), o.Logger)
	if err != nil {
		return nil, errors.Join(err, rec.close())
	}
	s := &Server{o: o, m: o.Manager, log: o.Logger, rules: rules, records: rec, storage: store, jobs: map[string]*job{}, works: map[sandbox.Key]*work{}, failed: map[sandbox.Key]string{},
		names: map[sandbox.Owner]map[string]bool{}, slots: make(chan struct{}, maxConcurrent), started: time.Now()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.handler = s.routes()
	s.resume()
	s.wg.Go(s.tidy)
	return s, nil
}

// ServeHTTP serves a request, of whatever path.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Close ends the work that outlives requests, as far as it is this server's,
// and waits for it. What was not finished goes on when the next server starts.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	return s.records.close()
}

// errClosing ends what a server that shuts down was asked for.
var errClosing = errors.New("the server is shutting down")
