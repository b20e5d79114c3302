package cloud

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"berth/mounts/objects"
)

// taker takes bodies at a speed, and says what it is to say of each.
type taker struct {
	second int // bytes
	say    func(try int, took int) (*http.Response, error)
	works  bool // after it has all
	tries  int
}

func (s *taker) RoundTrip(r *http.Request) (*http.Response, error) {
	s.tries++
	took := 0
	buf := make([]byte, s.second/10)
	for {
		n, err := r.Body.Read(buf)
		took += n
		if resp, serr := s.say(s.tries, took); resp != nil || serr != nil {
			return resp, serr
		}
		if err != nil && !s.works {
			return nil, errors.New("the connection ends without an answer")
		}
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(time.Second / 10):
		}
	}
}

func answered(status int) *http.Response {
	return &http.Response{StatusCode: status, Body: http.NoBody}
}

// A service that takes what it is sent again and again is given up as fast as one
// that is silent; a slow way is no reason to.
func TestPatienceWithLongBodies(t *testing.T) {
	const size = 16 << 20
	whole := func(say func(try int) (*http.Response, error)) func(int, int) (*http.Response, error) {
		return func(try, took int) (*http.Response, error) {
			if took < size {
				return nil, nil
			}
			return say(try)
		}
	}
	deaf := whole(func(int) (*http.Response, error) { return nil, errors.New("cut") })
	for _, c := range []struct {
		name   string
		second int
		say    func(try, took int) (*http.Response, error)
		well   bool
		most   time.Duration
	}{
		{"fast_and_deaf", 64 << 20, deaf, false, 9 * time.Second},
		{"fast_and_failing", 64 << 20, whole(func(int) (*http.Response, error) { return answered(503), nil }), false, 9 * time.Second},
		{"slow_and_deaf", 1 << 20, deaf, false, 45 * time.Second},
		{"slow", 1 << 20, whole(func(int) (*http.Response, error) { return answered(200), nil }), true, 17 * time.Second},
		{"slow_and_cut_once", 1 << 20, func(try, took int) (*http.Response, error) {
			if try == 1 && took > size*3/4 {
				return nil, errors.New("cut")
			}
			return whole(func(int) (*http.Response, error) { return answered(200), nil })(try, took)
		}, true, 31 * time.Second},
		{"fast_and_cut_often", 16 << 20, func(try, took int) (*http.Response, error) {
			if try < 5 && took > size*3/4 {
				return nil, errors.New("cut")
			}
			return whole(func(int) (*http.Response, error) { return answered(200), nil })(try, took)
		}, true, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				w := &watched{next: &taker{second: c.second, say: c.say}}
				well := tries(t, w, size, nil)
				if took := time.Since(begun); well != c.well || took > c.most {
					t.Errorf("well = %v after %v, want %v within %v", well, took, c.well, c.most)
				}
			})
		})
	}
}

// tries sends a body until it is taken, or patience is at its end.
func tries(t *testing.T, w *watched, size int64, probe func(context.Context) error) bool {
	ctx, done := patient(t.Context(), probe)
	defer done()
	for ctx.Err() == nil {
		body := make([]byte, size)
		r, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://bucket.test/", io.NopCloser(bytes.NewReader(body)))
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = size
		resp, err := w.RoundTrip(r)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode < 300 {
				return true
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return false
}

// Calls that a service is at work on wait for as long as it answers others, but
// not for one that refuses them again and again.
func TestPatienceWithWork(t *testing.T) {
	answers := func(context.Context) error { return nil }
	for _, c := range []struct {
		name   string
		second func() *taker
		probe  func(context.Context) error
		well   bool
		least  time.Duration
		most   time.Duration
	}{
		{"at_work_for_a_minute", func() *taker { return working(time.Minute, 0) }, answers, true, time.Minute, 62 * time.Second},
		{"cut_and_at_work_again", func() *taker { return working(time.Minute, 2) }, answers, true, 3 * time.Minute, 190 * time.Second},
		{"failing", func() *taker { return working(0, 1000) }, answers, false, objects.Patience / 2, 13 * time.Second},
		{"answers_nobody", func() *taker { return working(time.Hour, 0) }, func(context.Context) error { return errSilent }, false, objects.Patience / 2, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				well := tries(t, &watched{next: c.second()}, 100, c.probe)
				if took := time.Since(begun); well != c.well || took < c.least || took > c.most {
					t.Errorf("well = %v after %v, want %v after %v to %v", well, took, c.well, c.least, c.most)
				}
			})
		})
	}
}

// working answers each request after a time: the first ones that it failed.
func working(each time.Duration, fails int) *taker {
	begun := map[int]time.Time{}
	return &taker{second: 1 << 20, works: true, say: func(try, _ int) (*http.Response, error) {
		if _, ok := begun[try]; !ok {
			begun[try] = time.Now()
		}
		for time.Since(begun[try]) < each {
			return nil, nil
		}
		if try <= fails {
			return answered(500), nil
		}
		return answered(200), nil
	}}
}
