package server

import (
	"errors"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"berth/sandbox"
)

func TestValuesAreCountedOutsideOfText(t *testing.T) {
	commas := strings.Repeat(",", maxValues+1)
	for name, c := range map[string]struct {
		raw  string
		many bool
	}{
		"text":                {`{"a":"` + commas + `"}`, false},
		"text with quotes":    {`{"a":"\"` + commas + `\\\"` + commas + `"}`, false},
		"text that ends":      {`{"a":"\\"` + commas, true},
		"open text":           {`{"a":"` + commas, false},
		"opens with a quote":  {`"` + commas, false},
		"list":                {`{"a":[` + strings.Repeat("0,", maxValues) + `0]}`, true},
		"empty lists":         {`[` + strings.Repeat("[]", maxValues) + `]`, true},
		"nested":              {strings.Repeat(`{"":`, maxValues+1), true},
		"as many as may be":   {`[` + strings.Repeat("0,", maxValues-1) + `0]`, false},
		"nothing":             {``, false},
		"slashes from outset": {`\\"` + commas, false},
	} {
		if got := tooManyValues([]byte(c.raw)); got != c.many {
			t.Errorf("%s: too many values = %v, want %v", name, got, c.many)
		}
	}
}

func TestAnOwnerHoldsHalf(t *testing.T) {
	h := newHeld(100)
	takes := func(owner sandbox.Owner, n int64, want bool) {
		t.Helper()
		if got := h.take(owner, n); got != want {
			t.Errorf("take(%s, %d) = %v, want %v", owner, n, got, want)
		}
	}
	takes("ann", 50, true)
	takes("ann", 1, false)
	takes("bob", 40, true)
	takes("eve", 11, false)
	takes("eve", 10, true)
	h.give("ann", 50)
	takes("ann", 50, true)
	for owner, n := range map[sandbox.Owner]int64{"ann": 50, "bob": 40, "eve": 10} {
		h.give(owner, n)
	}
	if h.all != 0 || len(h.owner) != 0 {
		t.Errorf("held at the end: %d of %v", h.all, h.owner)
	}
}

// What waits for a client that does not read is bounded by its size, too.
func TestLargeEventsWaitForTheirClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer("x", new(atomic.Int64))
		c := &sseConn{duplex: &duplex{peer: p}, queue: make(chan []byte, sseQueue), large: make(chan struct{}, sseLarge)}
		large := make([]byte, largeEvent+1)
		var sent atomic.Int64
		for range sseLarge + 2 {
			go func() {
				if c.enqueue(large) == nil {
					sent.Add(1)
				}
			}()
		}
		synctest.Wait()
		if got := sent.Load(); got != sseLarge {
			t.Errorf("%d large messages are queued, want %d", got, sseLarge)
		}
		if err := c.enqueue([]byte("small")); err != nil {
			t.Errorf("a small one: %v", err)
		}
		if err := c.put(newEvents(httptest.NewRecorder()), <-c.queue); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := sent.Load(); got != sseLarge+1 {
			t.Errorf("%d large messages are queued after one was read, want %d", got, sseLarge+1)
		}
		p.end()
		synctest.Wait()
		if err := c.enqueue(large); !errors.Is(err, errDisconnected) {
			t.Errorf("after the client's end: %v", err)
		}
	})
}
