package daytona_test

import (
	"strings"
	"testing"

	"berth/mounts"
	"berth/sandbox/daytona"
)

// The way to a service at Daytona begins in the sandbox: a reader who tries the
// address here finds it well.
func TestFaultsFromInside(t *testing.T) {
	for kind, inside := range map[mounts.FaultKind]bool{mounts.FaultUnreachable: true, mounts.FaultResolve: true, mounts.FaultCredentials: false, mounts.FaultNoBucket: false} {
		f := daytona.FromInside(&mounts.Fault{Kind: kind, Message: "nobody answers at http://127.0.0.1:9"})
		if f.Kind != kind || !strings.Contains(f.Message, "nobody answers at http://127.0.0.1:9") || strings.Contains(f.Message, "from inside the sandbox") != inside {
			t.Errorf("a fault of kind %s becomes %s: %s", kind, f.Kind, f.Message)
		}
	}
}
