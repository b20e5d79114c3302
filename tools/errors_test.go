//go:build unix

package tools_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"

	"berth/internal/mcptest"
	"berth/sandbox"
)

// broken is a provider whose List goes wrong in a chosen way.
type broken struct {
	sandbox.Provider
	list func() error
}

func (b *broken) List(context.Context, sandbox.Owner) ([]sandbox.Info, error) { return nil, b.list() }

func TestErrorsBecomeTexts(t *testing.T) {
	cases := []struct {
		name string
		err  error
		want string
	}{
		{"limit", sandbox.ErrLimit, "a limit of this server is reached"},
		{"unavailable", sandbox.ErrUnavailable, "does not answer at the moment"},
		{"unsupported", sandbox.ErrUnsupported, "provider cannot do that"},
		{"closed", sandbox.ErrClosed, "shutting down"},
		{"user", &sandbox.UserError{Text: "a sentence for the model", Err: sandbox.ErrLimit}, "a sentence for the model"},
		{"field", &sandbox.FieldError{Field: "limit", Problem: "is odd", Allowed: "even", Hint: "add one"}, "limit: is odd; allowed: even; add one"},
		{"fields", errors.Join(&sandbox.FieldError{Field: "a", Problem: "x"}, &sandbox.FieldError{Field: "b", Problem: "y"}), "a: x\nb: y"},
		{"time", context.DeadlineExceeded, "not finished within 50 s"},
	}
	b := &broken{Provider: mcptest.Provider(t)}
	c := mcptest.New(t, mcptest.Options{Provider: b}).Client(t, mcptest.InProcess)
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			b.list = func() error { return tc.err }
			if text := c.Refused("list_sandboxes", nil); !strings.Contains(text, tc.want) || strings.Contains(text, "internal error") {
				t.Errorf("got %q, want %q", text, tc.want)
			}
		})
	}
}

func TestUnknownErrorsAndPanicsHaveAReference(t *testing.T) {
	b := &broken{Provider: mcptest.Provider(t)}
	s := mcptest.New(t, mcptest.Options{Provider: b})
	c := s.Client(t, mcptest.InProcess)
	for name, list := range map[string]func() error{
		"error": func() error { return errors.New("dial /var/lib/secret.sock: broken") },
		"panic": func() error { panic("at /var/lib/secret.sock") },
	} {
		t.Run(name, func(t *testing.T) {
			b.list = list
			text := c.Refused("list_sandboxes", nil)
			m := regexp.MustCompile(`^internal error, reference ([0-9a-f]{10}): `).FindStringSubmatch(text)
			if m == nil || strings.Contains(text, "secret.sock") {
				t.Fatalf("the text is %q", text)
			}
			if !s.Log.Contains(m[1]) || !s.Log.Contains("secret.sock") {
				t.Errorf("the log does not tell what %s means:\n%s", m[1], s.Log)
			}
		})
	}
	b.list = func() error { return nil }
	c.Must("list_sandboxes", nil)
}
