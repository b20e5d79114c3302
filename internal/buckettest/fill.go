//go:build unix

package buckettest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"berth/mounts/objects"
)

// Fill stores objects of size random bytes each, the same at every call.
func (s *Server) Fill(t testing.TB, size int, keys ...string) {
	t.Helper()
	b := s.Bucket(t)
	const atOnce = 8
	errs := make([]error, atOnce)
	var wg sync.WaitGroup
	for w := range atOnce {
		wg.Go(func() {
			data := make([]byte, size)
			for i := w; i < len(keys); i += atOnce {
				random := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)})
				_, _ = random.Read(data) // never fails
				if _, err := b.Put(context.Background(), keys[i], bytes.NewReader(data), int64(size), objects.Options{}); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("fill the bucket: %v", err)
	}
}
