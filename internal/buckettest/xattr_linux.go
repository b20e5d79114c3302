package buckettest

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// xattrs tells whether files below dir can have user attributes, which the S3
// server keeps metadata in.
func xattrs(dir string) bool {
	name := filepath.Join(dir, ".xattr")
	if os.WriteFile(name, nil, 0o600) != nil {
		return false
	}
	defer os.Remove(name)
	return unix.Setxattr(name, "user.berth", []byte("1"), 0) == nil
}
