package daytona

import (
	"context"

	"berth/sandbox"
)

func (b *box) helper() helper {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.help == nil {
		b.help = none{}
	}
	return b.help
}

type none struct{}

func (none) Spawn(context.Context, sandbox.Command) (sandbox.Process, error) {
	return nil, sandbox.ErrUnsupported
}
func (none) Process(context.Context, sandbox.ProcessID) (sandbox.Process, error) {
	return nil, sandbox.ErrUnsupported
}
func (none) Processes(context.Context) ([]sandbox.ProcessInfo, error) {
	return nil, sandbox.ErrUnsupported
}
func (none) Files() sandbox.Files { return nil }
