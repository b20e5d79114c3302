//go:build linux

package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
)

// Hold opens the mount namespace of dir's running sandbox: its mounts stay as
// long as the file is open, also when the sandbox has ended. What an overlay
// does at its end, which is to write the whole file system below it to the disk,
// then waits for that.
func Hold(dir string) (*os.File, error) {
	r, err := journal.ReadRecord(dir)
	if err != nil {
		return nil, err
	}
	if r.Ready.InitPID <= 1 {
		return nil, fs.ErrNotExist
	}
	f, err := os.Open("/proc/" + strconv.Itoa(r.Ready.InitPID) + "/ns/mnt")
	if err != nil {
		return nil, err
	}
	// Asked after opening, so that it is of no other process.
	if start, err := journal.StartTime(r.Ready.InitPID); err != nil || start != r.Ready.InitStart {
		_ = f.Close()
		return nil, errors.Join(fs.ErrNotExist, err)
	}
	return f, nil
}

// Settle has what was written below dirs brought to the disk by a process of
// its own, which then makes the file wire.SyncedName in each of them. That
// process lets go of the namespaces before, which are closed here. It is not
// waited for, and ends by itself, whatever becomes of this process.
func Settle(box *os.File, namespaces []*os.File, dirs ...string) error {
	files := make([]*os.File, 0, len(dirs)+len(namespaces)+1)
	defer func() {
		closeFiles(files)
		closeFiles(namespaces)
	}()
	for _, d := range dirs {
		f, err := os.OpenFile(d, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	all := append(files[:len(files):len(files)], namespaces...)
	cmd, program, err := boxCommand(box, all, "settle", strconv.Itoa(len(files)), strconv.Itoa(len(namespaces)))
	if err != nil {
		return err
	}
	defer program.Close()
	gate, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	// The last to let go of a namespace has to wait. It must be that process.
	closeFiles(namespaces)
	namespaces = nil
	_ = gate.Close()
	go func() { _ = cmd.Wait() }() // reaped while this berth lives
	return nil
}
