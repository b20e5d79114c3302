//go:build linux

package bucketfs_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

// What close acknowledged is in the bucket, byte for byte, however it was written.
func TestContent(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		m := mount(t, b, bucketfs.Options{})
		for _, size := range []int{0, 1, 4096, 70_000, 18<<20 + 5} {
			name := fmt.Sprintf("f%d", size)
			content := noise(size)
			m.write(name, string(content))
			want(t, b, name, content)
			if got := m.read(name); got != string(content) {
				t.Fatalf("read %s: %s", name, firstDifference([]byte(got), content))
			}
		}
		content := noise(70_000)
		f, err := os.OpenFile(m.path("f70000"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("tail"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		content = append(content, "tail"...)
		want(t, b, "f70000", content)
		f, err = os.OpenFile(m.path("f70000"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("middle"), 33_333); err != nil {
			t.Fatal(err)
		}
		copy(content[33_333:], "middle")
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		want(t, b, "f70000", content)
		if err := f.Truncate(50_000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, b, "f70000", content[:50_000])
		// Far into a long object that this mount has not read.
		m.unmount()
		m = mount(t, b, bucketfs.Options{})
		long := noise(18<<20 + 5)
		f, err = os.Open(m.path(fmt.Sprintf("f%d", len(long))))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, off := range []int{17 << 20, 5, 9<<20 + 1} {
			got := make([]byte, 100_000)
			if _, err := f.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, long[off:off+len(got)]) {
				t.Fatalf("read at %d: %v, %s", off, err, firstDifference(got, long[off:off+len(got)]))
			}
		}
	})
}

// A file of several parts is changed after some of them were sent.
func TestLongFilesAreRewritten(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		m := mount(t, b, bucketfs.Options{})
		content := noise(40<<20 + 5)
		m.write("file", "before")
		f, err := os.OpenFile(m.path("file"), os.O_RDWR|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for off := 0; off < len(content); off += 1 << 20 {
			if _, err := f.Write(content[off:min(off+1<<20, len(content))]); err != nil {
				t.Fatal(err)
			}
		}
		want(t, b, "file", []byte("before"))
		saved := func(size int) {
			t.Helper()
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			want(t, b, "file", content[:size])
		}
		if _, err := f.WriteAt([]byte("changed"), 1000); err != nil {
			t.Fatal(err)
		}
		copy(content[1000:], "changed")
		saved(len(content))
		content = append(content, noise(17<<20)...)
		if _, err := f.Write(content[40<<20+5:]); err != nil {
			t.Fatal(err)
		}
		saved(len(content))
		if err := f.Truncate(33 << 20); err != nil {
			t.Fatal(err)
		}
		saved(33 << 20)
	})
}
