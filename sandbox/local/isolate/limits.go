//go:build linux

package isolate

import (
	"slices"

	"berth/sandbox/local/guest"
	"berth/sandbox/local/wire"
)

// refuse is the error of the limits that must hold and do not.
func refuse(must []string, setup *guest.Setup) error {
	text := ""
	for _, l := range []struct {
		name string
		held wire.Held
	}{{wire.LimitCPU, setup.CPU}, {wire.LimitMemory, setup.Memory}, {wire.LimitPIDs, setup.PIDs}} {
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
