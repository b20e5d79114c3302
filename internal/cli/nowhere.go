//go:build !linux

package cli

import (
	"context"

	"berth/sandbox"
)

// nowhere is the provider of a machine that can make no sandbox: MCP clients
// connect and see the tools, and the first call says what to do.
type nowhere struct{ reason error }

func (n nowhere) fail() error {
	return &sandbox.UserError{Text: n.reason.Error(), Err: sandbox.ErrUnavailable}
}

func (nowhere) Name() string { return "none" }

func (n nowhere) Create(context.Context, sandbox.Key, sandbox.Spec) (sandbox.Instance, error) {
	return nil, n.fail()
}

func (n nowhere) Lookup(context.Context, sandbox.Key) (sandbox.Instance, error) {
	return nil, n.fail()
}

func (n nowhere) List(context.Context, sandbox.Owner) ([]sandbox.Info, error) { return nil, n.fail() }

func (n nowhere) Describe(context.Context, sandbox.Spec) (sandbox.Info, error) {
	return sandbox.Info{}, n.fail()
}

func (nowhere) Close() error { return nil }
