//go:build linux

package client

import (
	"context"
	"os"

	"berth/mounts"
	"berth/sandbox/local/wire"
)

// Mount has a bucket as o says, served by program with job. Its error is a
// *mounts.Fault when the bucket cannot be used.
func (c *Conn) Mount(ctx context.Context, o wire.MountOrder, job []byte, program *os.File) (wire.Mounted, error) {
	var files []*os.File
	if program != nil {
		files = append(files, program)
	}
	var m wire.Mounted
	_, err := c.once(ctx, wire.OpMount, o, job, &m, files...)
	if err == nil && m.Fault != nil {
		err = &mounts.Fault{Kind: mounts.FaultKind(m.Fault.Kind), Message: m.Fault.Message}
	}
	return m, err
}

// Unmount takes the bucket at path away.
func (c *Conn) Unmount(ctx context.Context, path string) error {
	_, err := c.call(ctx, wire.OpUnmount, wire.Unmount{Path: path}, nil)
	return err
}

// Mounts lists the buckets that the monitor has been told of.
func (c *Conn) Mounts(ctx context.Context) ([]wire.MountState, error) {
	var m wire.Mounts
	_, err := c.call(ctx, wire.OpMounts, nil, &m)
	return m.Mounts, err
}
