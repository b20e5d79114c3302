//go:build !linux && !darwin

package daytonaapi

// syncDir does nothing where directories cannot be synced.
func syncDir(string) error { return nil }
