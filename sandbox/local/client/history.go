//go:build linux

package client

import (
	"errors"
	"io/fs"

	"berth/sandbox"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/logs"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// History lists the processes of a sandbox that does not run, oldest first.
// Those that were running when its monitor was last alive are lost.
func History(dir string) ([]sandbox.ProcessInfo, error) {
	ps, err := past(dir, "")
	if err != nil {
		return nil, err
	}
	return terms.Processes(ps), nil
}

// HistoryProcess finds a process of a sandbox that does not run;
// sandbox.ErrNoProcess when it is not kept.
func HistoryProcess(dir string, id sandbox.ProcessID) (sandbox.Process, error) {
	if _, err := recall(dir, id); err != nil {
		return nil, err
	}
	return &process{dir: dir, id: id}, nil
}

func recall(dir string, id sandbox.ProcessID) (sandbox.ProcessInfo, error) {
	ps, err := past(dir, string(id))
	if err != nil {
		return sandbox.ProcessInfo{}, err
	}
	if len(ps) == 0 {
		return sandbox.ProcessInfo{}, sandbox.ErrNoProcess
	}
	return terms.Process(&ps[0]), nil
}

// past reads the journal, and from the logs what it cannot know; of process
// id, or of all when id is empty.
func past(dir, id string) ([]wire.Process, error) {
	all, err := journal.Load(dir)
	if err != nil {
		return nil, err
	}
	ps := all
	if id != "" {
		ps = nil
		for i := range all {
			if all[i].ID == id {
				ps = all[i : i+1]
			}
		}
	}
	r, err := journal.ReadRecord(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r = nil // the journal alone tells enough
	}
	journal.Lose(ps, journal.LostReason(r))
	out := dir + "/" + journal.OutputDir
	for i := range ps {
		p := &ps[i]
		p.StdinOpen, p.Leftovers = false, nil
		p.Stdout, p.StdoutKept = extent(out, p.ID, logs.Stdout, p.Stdout, p.StdoutKept)
		p.Stderr, p.StderrKept = extent(out, p.ID, logs.Stderr, p.Stderr, p.StderrKept)
	}
	return ps, nil
}

func extent(dir, id string, s logs.Stream, produced, kept int64) (int64, int64) {
	r, err := logs.Stat(dir, id, s)
	if err != nil {
		return produced, kept
	}
	return max(produced, r.End), r.Oldest
}
