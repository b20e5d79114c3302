//go:build linux

package bucketfs_test

import (
	"os"
	"syscall"
	"testing"

	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

// A file that somebody else wrote meanwhile is not overwritten.
func TestLostUpdate(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		put(t, b, "file", "old")
		m := mount(t, b, bucketfs.Options{})
		f, err := os.OpenFile(m.path("file"), os.O_RDWR|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(" and ours"); err != nil {
			t.Fatal(err)
		}
		put(t, b, "file", "theirs")
		is(t, "fsync", f.Sync(), syscall.ESTALE)
		is(t, "close", f.Close(), syscall.ESTALE)
		want(t, b, "file", []byte("theirs"))
		// Opened anew it is theirs at once, and who writes to it sees what they do.
		f, err = os.OpenFile(m.path("file"), os.O_RDWR|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 100)
		if n, err := f.ReadAt(got, 0); string(got[:n]) != "theirs" {
			t.Errorf("opened anew: %q, %v", got[:n], err)
		}
		if _, err := f.WriteString(" and ours"); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		want(t, b, "file", []byte("theirs and ours"))
		// So it is when a write that lost is followed by one without looking.
		f, err = os.OpenFile(m.path("file"), os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, "file", "theirs again")
		is(t, "close", f.Close(), syscall.ESTALE)
		f, err = os.OpenFile(m.path("file"), os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, "file", "theirs, the third")
		is(t, "close", f.Close(), syscall.ESTALE)
		want(t, b, "file", []byte("theirs, the third"))
		// One that both made anew.
		f, err = os.Create(m.path("new"))
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, "new", "theirs")
		is(t, "close of a new file", f.Close(), syscall.ESTALE)
		want(t, b, "new", []byte("theirs"))
	})
}
