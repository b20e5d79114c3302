//go:build unix && !linux

package buckettest

// xattrs: elsewhere the S3 server keeps metadata in files of its own.
func xattrs(string) bool { return false }
