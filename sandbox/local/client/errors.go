//go:build linux

package client

import (
	"berth/sandbox"
	"berth/sandbox/local/terms"
)

// ErrGone tells that no monitor serves the sandbox: it does not run. It is a
// sandbox.ErrNotRunning.
var ErrGone error = &terms.KindError{Text: "the sandbox has no live monitor", Kind: sandbox.ErrNotRunning}
