//go:build linux

package guest

import (
	"encoding/json"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
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
		{unix.EROFS, wire.CodeReadOnly, "read-only file system"},
		{unix.ETXTBSY, wire.CodePermission, "the program is running"},
		{unix.ENOSPC, wire.CodeNoSpace, "no space left"},
		{unix.EDQUOT, wire.CodeNoSpace, "no space left"},
		{unix.EFBIG, wire.CodeNoSpace, "the file would be too large"},
		{unix.ENAMETOOLONG, wire.CodeInvalid, "the name is too long: 255 bytes a component, 4095 the path"},
		{unix.ELOOP, wire.CodeInvalid, "too many symbolic links, or one that only its process can follow"},
		{unix.ENXIO, wire.CodeNotRegular, "not a regular file"},
		{unix.ENOTEMPTY, wire.CodeNotEmpty, "directory not empty"},
		{unix.EXDEV, wire.CodeOtherDevice, "it cannot be moved between file systems by renaming"},
		{unix.EBUSY, wire.CodeBusy, "it is in use: something is mounted there"},
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

// startError tells why a command did not start.
func (g *guest) startError(c *command, e raw.Event) error {
	errno := unix.Errno(e.Value)
	program := "bash or sh"
	if len(c.argv) > 0 {
		program = c.argv[0]
	}
	switch {
	case e.Stage == stageCgroup:
		return &wire.Error{Code: wire.CodeUnsupported, Text: "a cgroup namespace was refused: " + errno.Error() + "; as root: sysctl user.max_cgroup_namespaces=100000"}
	case errno == unix.EAGAIN && g.launch.Limits.PIDs <= 0:
		return &wire.Error{Code: wire.CodeLimit, Text: "the sandbox has as many processes and threads as it may have; end some of them"}
	case errno == unix.EAGAIN:
		return &wire.Error{Code: wire.CodeLimit, Text: "process limit " + strconv.FormatInt(g.launch.Limits.PIDs, 10) + " reached: the sandbox has as many processes and threads as it may have; end some of them"}
	case errno == unix.ENOMEM:
		return &wire.Error{Code: wire.CodeLimit, Text: "there is not enough memory to start a process; end some that run"}
	case e.Stage == stageCwd:
		err := pathError(c.cwd, errno)
		if errno != unix.EACCES && errno != unix.EPERM {
			err.Code = wire.CodeBadCwd
		}
		err.Text = "working directory " + err.Text
		return err
	case e.Stage == stageUser:
		return &wire.Error{Code: wire.CodeNoUser, Text: "user " + c.user.Name + " has ids that this sandbox does not have: " + errno.Error()}
	case e.Stage == stageExec && (errno == unix.ENOENT || errno == unix.ENOTDIR) && len(c.argv) == 0:
		return &wire.Error{Code: wire.CodeNoProgram, Path: program, Text: program + ": no such program on the PATH; give a program and its arguments as argv, or use an image with a shell"}
	case e.Stage == stageExec && (errno == unix.ENOENT || errno == unix.ENOTDIR):
		return &wire.Error{Code: wire.CodeNoProgram, Path: program, Text: program + ": no such program on the PATH; install it or give its whole path"}
	case e.Stage == stageExec && errno == unix.ENOEXEC:
		return &wire.Error{Code: wire.CodePermission, Path: program, Text: program + ": not a program that can run here; a script needs a first line such as #!/bin/sh"}
	case e.Stage == stageExec && errno == unix.E2BIG:
		return invalid("arguments and environment are too large: 128 KiB each at most, and about 2 MiB together")
	case e.Stage == stageExec:
		return pathError(program, errno)
	}
	return &wire.Error{Code: wire.CodeInternal, Text: "start of " + program + ", stage " + strconv.Itoa(int(e.Stage)) + ": " + errno.Error()}
}
