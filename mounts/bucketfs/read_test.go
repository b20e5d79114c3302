//go:build linux

package bucketfs_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

// distant is a bucket that takes its time before it answers a read, and notes how
// much each asks for.
type distant struct {
	*objects.Memory
	answers time.Duration
	mu      sync.Mutex
	asked   []int64
}

func (b *distant) Read(ctx context.Context, key, version string, off, size int64) (io.ReadCloser, error) {
	b.mu.Lock()
	b.asked = append(b.asked, size)
	b.mu.Unlock()
	time.Sleep(b.answers)
	return b.Memory.Read(ctx, key, version, off, size)
}

// A file that is read from its front is asked for in long pieces where the service
// is near, and in more and shorter ones at a time where it is not; each byte once.
func TestPiecesOfAFile(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 32<<20/16)
	for _, c := range []struct {
		name    string
		answers time.Duration
		longest int64
	}{{"near", 0, 4 << 20}, {"far", 25 * time.Millisecond, 2 << 20}} {
		t.Run(c.name, func(t *testing.T) {
			b := &distant{Memory: &objects.Memory{}, answers: c.answers}
			if _, err := b.Put(t.Context(), "big", bytes.NewReader(content), int64(len(content)), objects.Options{}); err != nil {
				t.Fatal(err)
			}
			m := mount(t, b, bucketfs.Options{})
			got, err := os.ReadFile(m.path("big"))
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("%d bytes of %d, or others: %v", len(got), len(content), err)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			var all, longest int64
			for _, n := range b.asked {
				all, longest = all+n, max(longest, n)
			}
			if all != int64(len(content)) || longest != c.longest {
				t.Errorf("%d bytes were asked for in %d pieces, the longest of %d; want %d, and %d", all, len(b.asked), longest, len(content), c.longest)
			}
		})
	}
}
