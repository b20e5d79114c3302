//go:build linux

package isolate

import (
	"slices"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/disk"
	"berth/sandbox/local/guest"
	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// refuse is the error of the limits that must hold and do not.
func refuse(must []string, setup *guest.Setup) error {
	text := ""
	for _, l := range []struct {
		name string
		held wire.Held
	}{{wire.LimitCPU, setup.CPU}, {wire.LimitMemory, setup.Memory}, {wire.LimitPIDs, setup.PIDs}, {wire.LimitDisk, setup.Disk}} {
		if l.held.State == enforced || !slices.Contains(must, l.name) {
			continue
		}
		if text != "" {
			text += "; "
		}
		text += l.name + ": the limit cannot be held on this machine, it would be " + l.held.State + " (" + l.held.Detail + ")"
	}
	if text == "" {
		return nil
	}
	return &wire.Error{Code: wire.CodeUnsupported, Text: text + "; or leave it out, or let the operator set best_effort: true"}
}

// diskHeld tells how the disk limit of l holds.
func diskHeld(l *wire.Launch) wire.Held {
	switch d := l.Disk; {
	case l.Limits.Disk <= 0 || d == nil:
		return wire.Held{State: notEnforced, Detail: "no limit was asked for"}
	case d.Kind == wire.DiskImage:
		return wire.Held{State: enforced, Detail: "a file system of its own in one file"}
	case d.Kind == wire.DiskTmpfs:
		return wire.Held{State: enforced, Detail: "files are kept in memory, until it stops"}
	default:
		return wire.Held{State: soft, Detail: "looked at every few seconds, and processes are killed beyond it; " + d.Detail}
	}
}

// limit mounts, in the caller's own mount namespace, the file system that
// limits what is written, and returns a descriptor of it; -1 where there is none.
func limit(l *wire.Launch) (int, error) {
	d := l.Disk
	switch {
	case d != nil && d.Kind == wire.DiskImage:
		fd, err := disk.Mount(d.Image)
		if err != nil {
			return -1, rootfs.Explain("mount the sandbox's file system "+d.Image, err)
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, d.Dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			_ = unix.Close(fd)
			return -1, rootfs.Explain("mount the sandbox's file system on "+d.Dir, err)
		}
		return fd, nil
	case d != nil && d.Kind == wire.DiskTmpfs:
		if err := rootfs.Scarce(d.Dir, l.Limits.Disk); err != nil {
			return -1, err
		}
	}
	return -1, nil
}
