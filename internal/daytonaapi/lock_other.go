//go:build !linux && !darwin

package daytonaapi

// tryLock cannot keep other processes away here.
func tryLock(string) (unlock func(), err error) { return func() {}, nil }

// syncDir does nothing where directories cannot be synced.
func syncDir(string) error { return nil }
