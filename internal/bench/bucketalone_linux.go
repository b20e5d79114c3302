package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"berth/internal/buckettest"
	"berth/mounts/objects"
)

// alone is what a service takes by itself, asked by its vendor's client as fast as
// it answers, with no file system between: no mount can be faster.
const alone = "the service alone"

// askAlone does a job so; false when it is none that compares.
func askAlone(ctx context.Context, s *service, j job) (took time.Duration, ok bool, err error) {
	do := map[string]func(context.Context, objects.Bucket, job) error{"write": putAlone, "read": readAlone, "list": listAlone}[j.op]
	if do == nil {
		return 0, false, nil
	}
	var b objects.Bucket
	t := &lent{}
	defer t.end()
	if err := t.try(func() { b = (&buckettest.Server{Job: s.job}).Bucket(t) }); err != nil {
		return 0, false, err
	}
	j.path = s.path(j)
	begin := time.Now()
	err = do(ctx, b, j)
	took = time.Since(begin)
	if err == nil && j.writes {
		err = s.drop(aloneWrites)
	}
	return took, true, err
}

const aloneWrites = "written-alone/"

func putAlone(ctx context.Context, b objects.Bucket, j job) error {
	size := int64(j.n) << 20
	data := make([]byte, b.PartSize())
	_, _ = rand.NewChaCha8([32]byte{2}).Read(data) // never fails
	up, err := b.Upload(ctx, aloneWrites+j.path, objects.Options{})
	if errors.Is(err, errors.ErrUnsupported) {
		_, err = b.Put(ctx, aloneWrites+j.path, bytes.NewReader(make([]byte, size)), size, objects.Options{})
		return err
	}
	if err != nil {
		return err
	}
	parts := int((size + b.PartSize() - 1) / b.PartSize())
	err = parallel(4, func(k int) error {
		for i := k; i < parts; i += 4 {
			if err := up.Part(ctx, i, bytes.NewReader(data), 0, min(b.PartSize(), size-int64(i)*b.PartSize())); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = up.Complete(ctx, parts)
	return err
}

func readAlone(ctx context.Context, b objects.Bucket, j job) error {
	const piece = 2 << 20
	size := int64(j.n) << 20
	return parallel(4, func(k int) error {
		buf := make([]byte, 64<<10)
		for off := int64(k) * piece; off < size; off += 4 * piece {
			r, err := b.Read(ctx, j.path, "", off, min(piece, size-off))
			if err != nil {
				return err
			}
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf)
			r.Close()
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func listAlone(ctx context.Context, b objects.Bucket, j job) error {
	for n, token := 0, ""; ; {
		page, err := b.List(ctx, j.path+"/", false, token, 1000)
		if err != nil {
			return err
		}
		if n += len(page.Objects); page.Next == "" {
			if n < j.n {
				return fmt.Errorf("%d names of %d", n, j.n)
			}
			return nil
		}
		token = page.Next
	}
}
