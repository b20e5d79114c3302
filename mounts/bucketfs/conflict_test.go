//go:build linux

package bucketfs_test

import (
	"os"
	"syscall"
	"testing"
	"time"

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

// A writer that was told so does not get through by trying again: what it appends
// would stand in the middle of what others wrote. Opened anew it is appended to
// their end, though the kernel knows the old one.
func TestToldOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, b objects.Bucket) {
		put(t, b, "file", "old")
		m := mount(t, b, bucketfs.Options{})
		f, err := os.OpenFile(m.path("file"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, "file", "longer, and theirs")
		for range 3 {
			_, err := f.WriteString("mine")
			is(t, "write", err, syscall.ESTALE)
		}
		is(t, "fsync", f.Sync(), syscall.ESTALE)
		is(t, "close", f.Close(), syscall.ESTALE)
		want(t, b, "file", []byte("longer, and theirs"))
		f, err = os.OpenFile(m.path("file"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{", then", " mine"} {
			if _, err := f.WriteString(text); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		const all = "longer, and theirs, then mine"
		want(t, b, "file", []byte(all))
		// The kernel is told right after the write was answered.
		var got []byte
		for end := time.Now().Add(20 * time.Second); string(got) != all && time.Now().Before(end); time.Sleep(time.Millisecond) {
			if got, err = os.ReadFile(m.path("file")); err != nil {
				t.Fatal(err)
			}
		}
		if string(got) != all {
			t.Errorf("read: %q, want %q", got, all)
		}
	})
}

// A file that is made shorter while a part of it is under way is saved as it is then:
// that the part met the end of the file is nobody's failure.
func TestTruncatedUnderWay(t *testing.T) {
	sending, send := make(chan struct{}, 10), make(chan struct{})
	b := &objects.Memory{Part: 1 << 16, Before: func(call, _ string) error {
		if call == "part" {
			sending <- struct{}{}
			<-send
		}
		return nil
	}}
	m := mount(t, b, bucketfs.Options{})
	long, err := os.Create(m.path("file"))
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	if _, err := long.Write(make([]byte, 3<<16)); err != nil {
		t.Fatal(err)
	}
	<-sending
	if err := long.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := long.WriteAt([]byte("short"), 0); err != nil {
		t.Fatal(err)
	}
	saved := make(chan error)
	go func() { saved <- long.Sync() }()
	time.Sleep(50 * time.Millisecond) // it waits for the parts, most of the time
	close(send)
	if err := <-saved; err != nil {
		t.Errorf("fsync: %v", err)
	}
	want(t, b, "file", []byte("short"))
}
