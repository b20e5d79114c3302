//go:build linux

package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var ipcProbes = []probe{
	{name: "namespaces", refused: "sharing a namespace with the host", run: namespaces},
	{name: "shared_memory", refused: "the host's System V shared memory", run: sharedMemory},
	{name: "message_queues", refused: "the host's POSIX message queues", run: messageQueues},
	{name: "host_name", refused: "the host's name, and changing it", run: hostName},
}

func namespaces(t *target) escape.Finding {
	var ways []string
	for name, outside := range t.Namespaces {
		inside, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			return broken("%v", err)
		}
		if inside == outside {
			ways = append(ways, "same "+inside)
		}
	}
	if len(t.Namespaces) < 7 {
		return broken("only %d namespaces given", len(t.Namespaces))
	}
	return found(ways, "%d namespaces of our own", len(t.Namespaces))
}

func sharedMemory(t *target) escape.Finding {
	if t.Shm == 0 {
		return impossible("no segment was made outside")
	}
	var ways []string
	if id, err := unix.SysvShmGet(t.Shm, 0, 0); err == nil {
		ways = append(ways, "found the segment by its key")
		if b, err := unix.SysvShmAttach(id, 0, unix.SHM_RDONLY); err == nil {
			ways = append(ways, "attached it")
			_ = unix.SysvShmDetach(b)
		}
	}
	return found(ways, "the key is unknown here")
}

func messageQueues(t *target) escape.Finding {
	if t.Queue == "" {
		return impossible("no queue was made outside")
	}
	var ways []string
	name, _ := unix.BytePtrFromString(t.Queue)
	if fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_RDONLY|unix.O_NONBLOCK, 0, 0, 0, 0); e == 0 {
		ways = append(ways, "opened the queue")
		_ = unix.Close(int(fd))
	}
	if _, err := os.Stat("/dev/mqueue/" + t.Queue); err == nil {
		ways = append(ways, "saw it in /dev/mqueue")
	}
	return found(ways, "the queue is unknown here")
}

func hostName(t *target) escape.Finding {
	name, err := os.Hostname()
	if err != nil {
		return broken("%v", err)
	}
	if name == t.Hostname {
		return escaped("the name is the host's: %s", name)
	}
	// Whether a change stays inside, the test looks at from outside.
	err = unix.Sethostname([]byte("escaped"))
	if err == nil {
		_ = unix.Sethostname([]byte(name))
		if t.user != "root" {
			return escaped("the user changed the host name")
		}
	}
	if err := unix.Setdomainname([]byte("escaped")); err == nil && t.user != "root" {
		return escaped("the user changed the domain name")
	}
	return held("%s; change: %v", name, err)
}
