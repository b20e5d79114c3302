//go:build linux

package resident

import (
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

func parseAddr(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	return a.Unmap(), err == nil
}

// file does one operation on a file.
func (r *caller) file(f *wire.CallFile) error {
	switch f.Kind {
	case wire.FileStat:
		r.answer.File = &wire.File{}
		return r.ask(wire.OpStat, wire.Path{Path: f.Path, User: f.User}, r.answer.File)
	case wire.FileReadDir:
		r.answer.Files = &wire.Files{}
		return r.ask(wire.OpReadDir, wire.Path{Path: f.Path, User: f.User}, r.answer.Files)
	case wire.FileMkdir:
		return r.ask(wire.OpMkdir, wire.Mkdir{Path: f.Path, User: f.User, Mode: uint32(f.Mode)}, nil)
	case wire.FileSymlink:
		return r.ask(wire.OpSymlink, wire.Symlink{Path: f.Path, User: f.User, Target: f.Target}, nil)
	case wire.FileRead:
		return r.readFile(f)
	case wire.FileWrite:
		return r.writeFile(f)
	}
	return &wire.Error{Code: wire.CodeUnsupported, Text: "berth's helper does not know this operation on files"}
}

// one takes the one descriptor out of an answer.
func one(fr *wire.Frame) (*os.File, error) {
	if len(fr.Files) != 1 {
		closeFiles(fr)
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "berth's helper sent no file"}
	}
	return fr.Files[0], nil
}

func (r *caller) readFile(f *wire.CallFile) error {
	kept := wire.Kept{Token: f.Token}
	if f.Most <= 0 {
		return r.ask(wire.OpUnkeep, kept, nil)
	}
	var fr *wire.Frame
	var err error
	if f.Path != "" {
		fr, err = r.request(wire.Header{Op: wire.OpOpen}, wire.Path{Path: f.Path, User: f.User}, nil)
	} else {
		fr, err = r.request(wire.Header{Op: wire.OpKept}, kept, nil)
	}
	if err != nil {
		return err
	}
	file, err := one(fr)
	if err != nil {
		return err
	}
	defer file.Close()
	if f.Path != "" {
		r.answer.File = &wire.File{}
		if err := json.Unmarshal(fr.Body, r.answer.File); err != nil {
			return err
		}
	}
	buf := make([]byte, f.Most)
	n, err := file.ReadAt(buf, f.At)
	if err != nil && err != io.EOF {
		return failed("read", err)
	}
	r.out, r.answer.More = buf[:n], err == nil
	if r.answer.More && f.Path != "" {
		_, err = r.request(wire.Header{Op: wire.OpKeep}, kept, nil, file)
		return err
	}
	return nil // kept until it is closed: an answer may be lost, and be asked for again
}

func (r *caller) writeFile(f *wire.CallFile) error {
	if r.call.Again {
		// The first one may have come to its end.
		fr, err := r.request(wire.Header{Op: wire.OpRecall, Once: r.call.ID}, struct{}{}, nil)
		if err == nil {
			return r.written(f, fr)
		}
		if e, ok := err.(*wire.Error); !ok || e.Code != wire.CodeNotExist {
			return err
		}
	}
	if f.Staged != "" {
		clearTemp(r.dir+"/"+tempDir, staleUpload)
	}
	source, err := r.source(f)
	if err != nil {
		return err
	}
	defer source.Close()
	create := wire.Create{Path: f.Path, User: f.User, Append: f.Append, Mode: f.Mode}
	var files []*os.File
	if f.Append {
		create.Source, files = true, []*os.File{source}
	}
	fr, err := r.request(wire.Header{Op: wire.OpCreate}, create, nil, files...)
	if err != nil {
		return err
	}
	to, err := one(fr)
	if err != nil {
		return err
	}
	defer to.Close()
	var made wire.Created
	if err := json.Unmarshal(fr.Body, &made); err != nil {
		return err
	}
	if !f.Append {
		if n, err := io.Copy(to, source); err != nil {
			if pe, ok := err.(*os.PathError); ok && (pe.Err == unix.ENOSPC || pe.Err == unix.EDQUOT) {
				return &wire.Error{Code: wire.CodeNoSpace, Text: "no space left", Path: f.Path}
			}
			return failed("write "+f.Path, err)
		} else if n != f.Size {
			return &wire.Error{Code: wire.CodeTorn, Text: "the upload changed under the write; nothing was written"}
		}
	}
	fr, err = r.request(wire.Header{Op: wire.OpCommit, Once: r.call.ID}, wire.Commit{Token: made.Token}, nil)
	if err != nil {
		return err
	}
	return r.written(f, fr)
}

func (r *caller) written(f *wire.CallFile, fr *wire.Frame) error {
	closeFiles(fr)
	r.answer.File, r.answer.Bytes = &wire.File{}, f.Size
	if err := json.Unmarshal(fr.Body, r.answer.File); err != nil {
		return err
	}
	r.answer.Fresh = r.answer.File.Fresh
	if f.Staged != "" {
		_ = os.Remove(f.Staged)
	}
	return nil
}

// staleUpload is how old an upload is that nobody will come back for.
const staleUpload = time.Hour

// source is a file that holds what is to be written, all of it, from its
// beginning.
func (r *caller) source(f *wire.CallFile) (*os.File, error) {
	if f.Staged == "" {
		fd, err := unix.MemfdCreate("write", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, failed("memory for the write", err)
		}
		file := os.NewFile(uintptr(fd), "write")
		if _, err := file.Write(r.data); err != nil {
			_ = file.Close()
			return nil, failed("memory for the write", err)
		}
		_, err = file.Seek(0, io.SeekStart)
		return file, err
	}
	file, err := os.OpenFile(f.Staged, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeTorn, Text: "the upload is not there: " + err.Error()}
	}
	sum, size, buf := uint32(0), int64(0), make([]byte, 128<<10)
	for {
		n, err := file.Read(buf)
		sum, size = wire.Sum(sum, buf[:n]), size+int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			_ = file.Close()
			return nil, failed("read the upload", err)
		}
	}
	if size != f.Size || sum != f.Sum {
		_ = file.Close()
		return nil, &wire.Error{Code: wire.CodeTorn, Text: "the upload did not come whole; nothing was written"}
	}
	_, err = file.Seek(0, io.SeekStart)
	return file, err
}
