//go:build unix

package tools_test

import "berth/sandbox"

// keyOf is the key of a local caller's session.
func keyOf(id string) sandbox.Key {
	return sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.SessionID(id)}
}
