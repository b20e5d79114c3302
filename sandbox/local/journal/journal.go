//go:build linux

package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"sync"

	"berth/sandbox/local/logs"
	"berth/sandbox/local/wire"
)

// FileName of the process journal.
const FileName = "processes.jsonl"

// The states of wire.Process.
const (
	Running = "running"
	Exited  = "exited"
	Lost    = "lost"
)

// maxFile bounds what is read of a journal; the newest lines count.
const maxFile = 64 << 20

// line is one line of the journal: a process's state, or an id to forget.
type line struct {
	Process *wire.Process `json:"p,omitempty"`
	Drop    string        `json:"drop,omitempty"`
}

// Parse reads journal text. Later lines about a process replace earlier ones;
// lines that cannot be understood, such as a half-written last one, are passed
// over. The order is that of the first lines.
func Parse(b []byte) []wire.Process {
	var order []string
	byID := map[string]*wire.Process{}
	for len(b) > 0 {
		var text []byte
		text, b, _ = bytes.Cut(b, []byte("\n"))
		var l line
		if len(text) == 0 || json.Unmarshal(text, &l) != nil {
			continue
		}
		if l.Drop != "" {
			delete(byID, l.Drop)
			continue
		}
		p := l.Process
		if p == nil || !sound(p) {
			continue
		}
		if byID[p.ID] == nil {
			order = append(order, p.ID)
		}
		byID[p.ID] = p
	}
	ps := make([]wire.Process, 0, len(byID))
	for _, id := range order {
		if p := byID[id]; p != nil {
			ps = append(ps, *p)
			delete(byID, id) // an id may be in order twice, around a drop
		}
	}
	return ps
}

func sound(p *wire.Process) bool {
	switch p.State {
	case Running, Exited, Lost:
	default:
		return false
	}
	return logs.ValidID(p.ID) && p.Stdout >= 0 && p.Stderr >= 0 && p.StdoutKept >= 0 && p.StderrKept >= 0
}

// Load reads dir's journal as it is, without an absent one being an error.
func Load(dir string) ([]wire.Process, error) {
	f, err := os.Open(dir + "/" + FileName)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, st.Size()-maxFile)
	b := make([]byte, st.Size()-from)
	n, err := f.ReadAt(b, from)
	if n < len(b) && err != nil && n == 0 {
		return nil, err
	}
	return Parse(b[:n]), nil
}

// Lose turns the running ones of ps into lost ones with reason.
func Lose(ps []wire.Process, reason string) {
	for i := range ps {
		if ps[i].State == Running {
			ps[i].State, ps[i].Reason, ps[i].StdinOpen, ps[i].CPUNS, ps[i].Memory = Lost, reason, false, -1, -1
		}
	}
}

// Journal appends to a process journal. It is safe for concurrent use.
type Journal struct {
	dir string

	mu    sync.Mutex
	f     *os.File
	lines int
	bad   bool // a line is missing or half there
	shut  bool
}

// Open makes dir's journal hold ps, and opens it for appending.
func Open(dir string, ps []wire.Process) (*Journal, error) {
	j := &Journal{dir: dir}
	if err := j.Compact(ps); err != nil {
		return nil, err
	}
	return j, nil
}

// Put appends a process's state. When that fails, the journal is Stale.
func (j *Journal) Put(p *wire.Process) { j.add(line{Process: p}) }

// Drop forgets a process.
func (j *Journal) Drop(id string) { j.add(line{Drop: id}) }

func (j *Journal) add(l line) {
	b, err := json.Marshal(l)
	if err != nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.bad {
		b = append([]byte("\n"), b...) // after half a line
	}
	if j.shut {
		return
	}
	if _, err := j.f.Write(append(b, '\n')); err != nil {
		j.bad = true
	}
	j.lines++
}

// Stale reports whether the journal should be compacted, with live processes
// to be kept.
func (j *Journal) Stale(live int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.shut && (j.bad || j.lines > 4*live+1000)
}

// Compact rewrites the journal to hold ps alone. When that fails, the old
// one stays in use.
func (j *Journal) Compact(ps []wire.Process) error {
	var b bytes.Buffer
	for i := range ps {
		text, err := json.Marshal(line{Process: &ps[i]})
		if err != nil {
			return err
		}
		b.Write(append(text, '\n'))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.shut {
		return nil
	}
	path := j.dir + "/" + FileName
	if err := replace(path, b.Bytes()); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if j.f != nil {
		_ = j.f.Close()
	}
	j.f, j.lines, j.bad = f, len(ps), false
	return nil
}

// Close lets go of the file; later changes are not kept.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.shut {
		return nil
	}
	j.shut = true
	return j.f.Close()
}

// LostReason says why processes that were running when old's monitor was last
// seen are lost; nil stands for a monitor that left no record.
func LostReason(old *wire.Record) string {
	boot, err := BootID()
	switch {
	case old != nil && err == nil && old.Boot != boot:
		return "the machine was restarted"
	case old != nil && old.Stopped != 0 && old.Reason != "":
		return "the sandbox ended: " + old.Reason
	}
	return "the sandbox's monitor ended unexpectedly"
}
