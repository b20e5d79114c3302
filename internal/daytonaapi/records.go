package daytonaapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// records are what this server keeps beside the Manager's own: what the
// platform tells of its objects and the Manager has no place for, requests that
// are not done yet, and what became of those that failed. They are few and
// small, and all in memory; a change is on the disk before its caller is told.
type records struct {
	dir       string
	sandboxes *table[sandboxRecord]
	snapshots *table[snapshotRecord]
	volumes   *table[volumeRecord]
	unlock    func()
}

// phase is how far the server is with something that it was asked for.
type phase string

const (
	phaseDone    phase = ""         // the Manager knows the rest
	phasePending phase = "pending"  // asked for, and goes on after a restart
	phaseFailed  phase = "failed"   // for good; kept until it is deleted
	phaseNoBuild phase = "no build" // likewise, as its build failed
)

// sandboxRecord is kept of each sandbox made here.
type sandboxRecord struct {
	ID       sandbox.SessionID `json:"id"`
	Owner    sandbox.Owner     `json:"owner"`
	Name     string            `json:"name"`
	Created  time.Time         `json:"created"`
	Target   string            `json:"target,omitempty"`
	User     string            `json:"user,omitempty"`
	Snapshot string            `json:"snapshot,omitempty"` // as the platform names it
	// From and Image are the Manager's snapshot or image that it is made of.
	From    string                `json:"from,omitempty"`
	Image   string                `json:"image,omitempty"`
	Volumes []sandbox.VolumeMount `json:"volumes,omitempty"`
	Build   *buildInfo            `json:"build,omitempty"`
	Parent  string                `json:"parent,omitempty"` // id of the one it was forked from
	Phase   phase                 `json:"phase,omitempty"`
	Reason  string                `json:"reason,omitempty"`
	// Request is what is to be made; nil once it is.
	Request *createRequest `json:"request,omitempty"`
}

func (r sandboxRecord) key() sandbox.Key { return sandbox.Key{Owner: r.Owner, Session: r.ID} }

// openRecords reads the records in dir and keeps other servers from them.
func openRecords(dir string) (*records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state of the Daytona API: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	r := &records{dir: dir, unlock: unlock}
	var e1, e2, e3 error
	r.sandboxes, e1 = openTable[sandboxRecord](filepath.Join(dir, "sandboxes"))
	r.snapshots, e2 = openTable[snapshotRecord](filepath.Join(dir, "snapshots"))
	r.volumes, e3 = openTable[volumeRecord](filepath.Join(dir, "volumes"))
	if err := errors.Join(e1, e2, e3); err != nil {
		unlock()
		return nil, fmt.Errorf("state of the Daytona API: %w", err)
	}
	return r, nil
}

func (r *records) close() error {
	r.unlock()
	return nil
}

// lockWait is how long a server waits for one that is about to end.
const lockWait = 5 * time.Second

// lock takes a file against all other processes.
func lock(path string) (unlock func(), err error) {
	for end := time.Now().Add(lockWait); ; time.Sleep(50 * time.Millisecond) {
		unlock, err = sandbox.TryLock(path)
		if unlock != nil || err != nil {
			return unlock, err
		}
		if time.Now().After(end) {
			return nil, &sandbox.FieldError{Field: "daytona_api", Problem: "another berth serves the Daytona API over this state directory", Hint: "end that one, or give this one a state directory of its own"}
		}
	}
}

// row is something of an owner's.
type row interface{ owner() sandbox.Owner }

func (r sandboxRecord) owner() sandbox.Owner  { return r.Owner }
func (r snapshotRecord) owner() sandbox.Owner { return r.Owner }
func (r volumeRecord) owner() sandbox.Owner   { return r.Owner }

// maxRows is how many rows of a kind an owner may have: those of what failed stay
// until somebody deletes them.
const maxRows = 5000

// table is rows of one kind, a file each, by id. It is safe for concurrent use.
type table[T row] struct {
	dir string

	mu   sync.Mutex
	rows map[string]T
}

func openTable[T row](dir string) (*table[T], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	t := &table[T]{dir: dir, rows: map[string]T{}}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			_ = os.Remove(filepath.Join(dir, e.Name())) // of a server that was killed while writing
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var row T
		if err := json.Unmarshal(b, &row); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, e.Name()), err)
		}
		t.rows[id] = row
	}
	return t, nil
}

func (t *table[T]) get(id string) (T, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	row, ok := t.rows[id]
	return row, ok
}

// all are the rows that want takes, in no order.
func (t *table[T]) all(want func(T) bool) []T {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []T
	for _, row := range t.rows {
		if want(row) {
			list = append(list, row)
		}
	}
	return list
}

// maxRow bounds a row, as it is kept: rows are in memory, those of what failed
// until somebody deletes them, and what they hold of a request has no bound else.
const maxRow = 256 << 10

// put keeps a row, and refuses one that is too large; id names a file, and is
// one of ours.
func (t *table[T]) put(id string, row T) error {
	if b, err := json.Marshal(row); err == nil && len(b) > maxRow {
		return refuse(http.StatusBadRequest, "the request has %d bytes as it is kept; allowed: at most %d. Upload what a Dockerfile holds, and COPY it", len(b), maxRow)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.rows[id]; !known {
		n := 0
		for _, r := range t.rows {
			if r.owner() == row.owner() {
				n++
			}
		}
		if n >= maxRows {
			return refuse(http.StatusBadRequest, "there are %d already, with those that failed, which is the most; delete some", n)
		}
	}
	return t.keep(id, row)
}

// keep is put; mu is held.
func (t *table[T]) keep(id string, row T) error {
	b, err := json.Marshal(row)
	if err == nil {
		err = writeFile(filepath.Join(t.dir, id+".json"), b)
	}
	if err != nil {
		return fmt.Errorf("state of the Daytona API: %w", err)
	}
	t.rows[id] = row
	return nil
}

// change applies f to a row, if it is there, and keeps it.
func (t *table[T]) change(id string, f func(*T)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	row, ok := t.rows[id]
	if !ok {
		return nil
	}
	f(&row)
	return t.keep(id, row)
}

// drop removes a row, if it is there.
func (t *table[T]) drop(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.rows[id]; !ok {
		return nil
	}
	if err := os.Remove(filepath.Join(t.dir, id+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state of the Daytona API: %w", err)
	}
	delete(t.rows, id)
	return nil
}

// writeFile replaces a file as a whole, and has it on the disk.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}
