//go:build linux

package guest

import (
	"encoding/json"
	"errors"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

func decode(f *wire.Frame, v any) error {
	if err := json.Unmarshal(f.Body, v); err != nil {
		return &wire.Error{Code: wire.CodeInvalid, Text: "malformed " + f.Op}
	}
	return nil
}

func invalid(text string) error { return &wire.Error{Code: wire.CodeInvalid, Text: text} }

// wireError is for errors that no place knew better.
func wireError(err error) *wire.Error {
	var we *wire.Error
	if errors.As(err, &we) {
		return we
	}
	return pathError("", err)
}

// pathError tells in words what errno says about path.
func pathError(path string, err error) *wire.Error {
	var we *wire.Error
	if errors.As(err, &we) {
		return we
	}
	e := &wire.Error{Code: wire.CodeInternal, Text: err.Error(), Path: path}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return e
	}
	for _, known := range []struct {
		errno unix.Errno
		code  string
		text  string
	}{
		{unix.ENOENT, wire.CodeNotExist, "no such file or directory"},
		{unix.ENOTDIR, wire.CodeNotDir, "not a directory"},
		{unix.EISDIR, wire.CodeIsDir, "is a directory"},
		{unix.EEXIST, wire.CodeExist, "exists already"},
		{unix.EACCES, wire.CodePermission, "permission denied"},
		{unix.EPERM, wire.CodePermission, "permission denied"},
		{unix.EROFS, wire.CodePermission, "read-only file system"},
		{unix.ETXTBSY, wire.CodePermission, "the program is running"},
		{unix.ENOSPC, wire.CodeNoSpace, "no space left"},
		{unix.EDQUOT, wire.CodeNoSpace, "no space left"},
		{unix.EFBIG, wire.CodeNoSpace, "the file would be too large"},
		{unix.ENAMETOOLONG, wire.CodeInvalid, "the name is too long: 255 bytes a component, 4095 the path"},
		{unix.ELOOP, wire.CodeInvalid, "too many symbolic links, or one that only its process can follow"},
		{unix.ENXIO, wire.CodeNotRegular, "not a regular file"},
		{unix.EMFILE, wire.CodeLimit, "too many open files"},
		{unix.ENFILE, wire.CodeLimit, "too many open files"},
	} {
		if errno == known.errno {
			e.Code, e.Text = known.code, known.text
			break
		}
	}
	if path != "" {
		e.Text = path + ": " + e.Text
	}
	return e
}
