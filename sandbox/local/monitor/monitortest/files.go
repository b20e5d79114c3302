//go:build linux

package monitortest

import (
	"encoding/json"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// file answers the requests for files.
func (g *Guest) file(f *wire.Frame) {
	var p wire.Path
	_ = json.Unmarshal(f.Body, &p)
	switch f.Op {
	case wire.OpStat:
		i, err := stat(p.Path)
		g.answer(f.ID, i, err)
	case wire.OpOpen:
		i, err := stat(p.Path)
		if err == nil && i.Mode&unix.S_IFMT != unix.S_IFREG {
			err = &wire.Error{Code: wire.CodeNotRegular, Text: p.Path + " is no regular file"}
			if i.Mode&unix.S_IFMT == unix.S_IFDIR {
				err = &wire.Error{Code: wire.CodeIsDir, Text: p.Path + " is a directory"}
			}
		}
		if err != nil {
			g.answer(f.ID, nil, err)
			return
		}
		file, err := os.Open(p.Path)
		if err != nil {
			g.answer(f.ID, nil, err)
			return
		}
		g.answer(f.ID, i, nil, file)
		file.Close()
	case wire.OpReadDir:
		entries, err := os.ReadDir(p.Path)
		all := wire.Files{Files: []wire.File{}}
		for _, e := range entries {
			if i, err := stat(p.Path + "/" + e.Name()); err == nil {
				all.Files = append(all.Files, i)
			}
		}
		g.answer(f.ID, all, err)
	case wire.OpMkdir:
		var m wire.Mkdir
		_ = json.Unmarshal(f.Body, &m)
		g.answer(f.ID, nil, os.MkdirAll(m.Path, os.FileMode(m.Mode)))
	case wire.OpSymlink:
		var l wire.Symlink
		_ = json.Unmarshal(f.Body, &l)
		g.answer(f.ID, nil, os.Symlink(l.Target, l.Path))
	case wire.OpCreate:
		g.create(f)
	case wire.OpCommit:
		var c wire.Commit
		_ = json.Unmarshal(f.Body, &c)
		g.mu.Lock()
		w := g.writes[c.Token]
		delete(g.writes, c.Token)
		g.mu.Unlock()
		var err error
		if c.Abort {
			if w.tmp != "" {
				_ = os.Remove(w.tmp)
			}
			g.answer(f.ID, wire.File{}, nil)
			return
		}
		if w.tmp != "" {
			err = os.Rename(w.tmp, w.path)
		}
		var i wire.File
		if err == nil {
			i, err = stat(w.path)
		}
		g.answer(f.ID, i, err)
	default:
		g.answer(f.ID, nil, &wire.Error{Code: wire.CodeUnsupported, Text: "unknown request"})
	}
}

func (g *Guest) create(f *wire.Frame) {
	var c wire.Create
	_ = json.Unmarshal(f.Body, &c)
	_, serr := os.Stat(c.Path)
	g.mu.Lock()
	g.token++
	token := g.token
	g.mu.Unlock()
	w := write{path: c.Path}
	flags, name := os.O_WRONLY|os.O_CREATE|os.O_APPEND, c.Path
	if !c.Append {
		w.tmp = c.Path + ".tmp" + strconv.FormatUint(token, 10)
		flags, name = os.O_WRONLY|os.O_CREATE|os.O_EXCL, w.tmp
	}
	mode := os.FileMode(0o644)
	if c.Mode >= 0 {
		mode = os.FileMode(c.Mode)
	}
	file, err := os.OpenFile(name, flags, mode)
	if err != nil {
		g.answer(f.ID, nil, err)
		return
	}
	g.mu.Lock()
	g.writes[token] = w
	g.mu.Unlock()
	g.answer(f.ID, wire.Created{Token: token, Fresh: serr != nil}, nil, file)
	file.Close()
}

func stat(path string) (wire.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return wire.File{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return wire.File{Path: path, Mode: st.Mode, Size: st.Size, ModTime: st.Mtim.Nano()}, nil
}
