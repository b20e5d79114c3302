// Package secret holds values that must not be printed: tokens, keys and
// passwords. A Text shows itself as REDACTED to fmt, log/slog and every
// encoder; the only way to its value is Reveal, which is easy to search for.
package secret

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what stands in place of a Text that is not empty.
const Redacted = "REDACTED"

// Text is a secret string. The zero Text is empty and means "not set"; an empty
// Text prints as nothing, so that logs tell a missing secret from a present
// one. A Text is safe for concurrent use and is passed by value.
//
// Texts are compared with Equal; == does not compile.
type Text struct {
	_ [0]func() // forbids ==, which would compare addresses
	// A pointer, since fmt cannot call methods on unexported fields of
	// others' structs and would print a plain string that lies in them.
	value *string
}

// New returns s as a secret.
func New(s string) Text {
	if s == "" {
		return Text{}
	}
	return Text{value: &s}
}

// Reveal returns the secret itself. Hand it to what needs it, and to nothing
// that prints, stores or passes it on a command line.
func (t Text) Reveal() string {
	if t.value == nil {
		return ""
	}
	return *t.value
}

// IsZero reports whether the secret is empty. Encoders use it for omitzero.
func (t Text) IsZero() bool { return t.value == nil }

// Equal compares in a time that does not depend on the contents or lengths.
func (t Text) Equal(u Text) bool {
	a, b := sha256.Sum256([]byte(t.Reveal())), sha256.Sum256([]byte(u.Reveal()))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// String returns Redacted, or "" when empty.
func (t Text) String() string {
	if t.IsZero() {
		return ""
	}
	return Redacted
}

// GoString returns what String returns.
func (t Text) GoString() string { return t.String() }

// Format writes what String returns, whatever the verb is, so that %x and %q
// show no more than %s.
func (t Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue returns what String returns, for log/slog.
func (t Text) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText returns what String returns; encoding/json, encoding/xml and
// YAML libraries use it.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText takes the secret from a config file or a JSON string.
func (t *Text) UnmarshalText(b []byte) error {
	*t = New(string(b))
	return nil
}
