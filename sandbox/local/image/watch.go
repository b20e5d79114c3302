//go:build linux

package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// watching ends answers that stand still, or nearly so: manifests, layers, tokens
// and errors alike. A pull goes on when its call has ended, and would for good.
type watching struct {
	http.RoundTripper
	stall time.Duration
}

func (w watching) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	resp, err := w.RoundTripper.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	b := &watched{ReadCloser: resp.Body, stall: w.stall, cancel: cancel}
	b.timer = time.AfterFunc(w.stall, func() {
		b.stalled.Store(true)
		cancel()
	})
	resp.Body = b
	return resp, nil
}

var errStalled = errors.New("it has stopped sending")

type watched struct {
	io.ReadCloser
	stall   time.Duration
	cancel  func()
	timer   *time.Timer
	got     int // since the timer began
	stalled atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if w.got += n; w.got >= stallBytes {
		w.got = 0
		w.timer.Reset(w.stall)
	}
	if err != nil && err != io.EOF && w.stalled.Load() {
		err = errStalled
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.ReadCloser.Close()
	w.cancel()
	return err
}
