//go:build linux

package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// clientEngine will be made of package client.
type clientEngine struct{ log *slog.Logger }

func newEngine(log *slog.Logger) engine { return &clientEngine{log} }

var errNoMonitor = &sandbox.UserError{Text: "this berth was built without its monitor", Err: sandbox.ErrUnavailable}

func (e *clientEngine) launch(context.Context, *wire.Launch, string) error { return errNoMonitor }
func (e *clientEngine) monitor(string) (wire.Record, bool, error) {
	return wire.Record{}, false, fs.ErrNotExist
}
func (e *clientEngine) connect(context.Context, string) (connection, error) {
	return nil, sandbox.ErrNotRunning
}
func (e *clientEngine) kill(context.Context, string) error            { return nil }
func (e *clientEngine) history(string) ([]sandbox.ProcessInfo, error) { return nil, nil }
func (e *clientEngine) historyProcess(string, sandbox.ProcessID) (sandbox.Process, error) {
	return nil, errors.Join(sandbox.ErrNoProcess)
}
func (e *clientEngine) close() error { return nil }
