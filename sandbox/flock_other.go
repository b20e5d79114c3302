//go:build !linux && !darwin

package sandbox

// tryLock locks nothing where files have no such locks: several processes must
// not share an event directory there.
func tryLock(string) (release func(), err error) { return func() {}, nil }
