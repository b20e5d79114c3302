package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

// What is on a read-only file system is not what another user may do.
func TestFileErrorTellsReadOnlyFromDenied(t *testing.T) {
	for _, c := range []struct {
		err, kind error
		want, not string
	}{
		{fmt.Errorf("x: %w", ErrReadOnly), ErrReadOnly, "path: /ro/x is on a read-only file system, for root too", "user root may"},
		{fmt.Errorf("x: %w", fs.ErrPermission), fs.ErrPermission, "path: permission denied for /ro/x; a command with user root may", "read-only"},
	} {
		err := fileError(c.err, "/ro/x")
		if !errors.Is(err, c.kind) || !errors.Is(err, fs.ErrPermission) || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), c.not) {
			t.Errorf("fileError(%v) = %q, want %q at its beginning", c.err, err, c.want)
		}
	}
}
