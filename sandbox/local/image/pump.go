//go:build linux

package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"berth/sandbox/local/tree"
)

// pump decompresses and hashes beside whoever reads it.
type pump struct {
	full, empty chan []byte
	stop        chan struct{}
	ended       chan struct{}
	once        sync.Once
	now         []byte // what is being read
	at          int

	err         error // set before full is closed
	diff        string
	transferred string
}

// newPump reads a layer, compressed with gzip, zstd or not at all; limit bounds
// what comes out, and room is asked now and then whether there is still space.
func newPump(ctx context.Context, r io.Reader, hashRaw bool, limit int64, room func() error) (*pump, error) {
	p := &pump{full: make(chan []byte, 8), empty: make(chan []byte, 10), stop: make(chan struct{}), ended: make(chan struct{})}
	raw := sha256.New()
	if hashRaw {
		r = io.TeeReader(r, raw)
	}
	br := bufio.NewReaderSize(r, 128<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var plain io.Reader = br
	var end func()
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, &damagedError{"it is not what its first bytes say, gzip"}
		}
		plain = z
	case len(magic) == 4 && magic[0] == 0x28 && magic[1] == 0xb5 && magic[2] == 0x2f && magic[3] == 0xfd:
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, &damagedError{"it is not what its first bytes say, zstd"}
		}
		plain, end = z, z.Close
	}
	go func() {
		defer close(p.ended)
		defer close(p.full)
		if end != nil {
			defer end()
		}
		sum := sha256.New()
		p.err = p.run(ctx, plain, sum, limit, room)
		if p.err != nil {
			return
		}
		// What follows the compressed stream belongs to the digest, too.
		if _, err := io.Copy(io.Discard, br); err != nil {
			p.err = err
			return
		}
		p.diff = "sha256:" + hex.EncodeToString(sum.Sum(nil))
		p.transferred = "sha256:" + hex.EncodeToString(raw.Sum(nil))
	}()
	return p, nil
}

const pumpPiece = 256 << 10

var errStopped = errors.New("stopped")

func (p *pump) run(ctx context.Context, r io.Reader, sum hash.Hash, limit int64, room func() error) error {
	made := 0
	var looked int64
	for {
		var buf []byte
		select {
		case buf = <-p.empty:
		default:
			if made < cap(p.empty) {
				made++
				buf = make([]byte, pumpPiece)
				break
			}
			select {
			case buf = <-p.empty:
			case <-p.stop:
				return errStopped
			}
		}
		n, err := io.ReadFull(r, buf[:pumpPiece])
		if limit -= int64(n); limit < 0 {
			return &tree.LayerError{Text: "it unpacks to more than the limit allows; it seems to be made to fill the disk"}
		}
		if looked -= int64(n); looked < 0 {
			looked = lookEvery
			if err := room(); err != nil {
				return err
			}
		}
		_, _ = sum.Write(buf[:n])
		if n > 0 {
			select {
			case p.full <- buf[:n]:
			case <-p.stop:
				return errStopped
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF && n < pumpPiece && cleanEnd(r):
			return nil
		case errors.Is(err, fs.ErrClosed):
			return errStopped
		case err != nil:
			var pe *fs.PathError
			if errors.As(err, &pe) {
				return err
			}
			return &damagedError{"it cannot be decompressed: " + err.Error()}
		}
	}
}

// cleanEnd tells the end of a stream from an end in the middle, which io.ReadFull
// calls by the same name.
func cleanEnd(r io.Reader) bool {
	var one [1]byte
	n, err := r.Read(one[:])
	return n == 0 && err == io.EOF
}

func (p *pump) Read(b []byte) (int, error) {
	if p.at == len(p.now) {
		if p.now != nil {
			p.empty <- p.now[:pumpPiece]
			p.now, p.at = nil, 0
		}
		next, ok := <-p.full
		if !ok {
			if p.err != nil {
				return 0, p.err
			}
			return 0, io.EOF
		}
		p.now, p.at = next, 0
	}
	n := copy(b, p.now[p.at:])
	p.at += n
	return n, nil
}

// failed is why the stream ended early, if it has.
func (p *pump) failed() error {
	select {
	case <-p.ended:
		if errors.Is(p.err, errStopped) {
			return nil
		}
		return p.err
	default:
		return nil
	}
}

// sums are the digests, after the end of the stream.
func (p *pump) sums() (diff, transferred string) { return p.diff, p.transferred }

// Close ends the pump, and waits until it has.
func (p *pump) Close() {
	p.once.Do(func() { close(p.stop) })
	<-p.ended
}
