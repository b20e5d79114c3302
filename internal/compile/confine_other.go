//go:build !linux

package compile

// confine does nothing: Go's own limits, of stack and memory, and the time are
// what holds here.
func confine() error { return nil }

// keepDescriptors does nothing: what Go opens is not inherited.
func keepDescriptors() {}
