//go:build linux

// Package filter holds the seccomp filters that commands run under: Docker's
// default list for its 14 default capabilities, compiled ahead of time. A call
// that is not on the list fails with EPERM; clone3, whose flags a filter
// cannot read, and the x32 and 32-bit call tables fail with ENOSYS. One rule is
// added to Docker's: prlimit sets the caller's own limits only, not init's.
package filter

import "golang.org/x/sys/unix"

//go:generate go run ./gen

// Default is the filter of ordinary commands. Do not change it.
func Default() []unix.SockFilter { return standard[:] }

// FakeOwner is Default, but answers success to the calls that change a file's
// owner or the caller's ids: for root where no other id exists, so that
// package managers work.
func FakeOwner() []unix.SockFilter { return fakeOwner[:] }
