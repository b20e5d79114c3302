package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// distance stands between clients and a server as far away as a round trip takes:
// each byte arrives half of it late, and the first one of a connection another
// whole one, which connecting would have taken. It bounds no bandwidth, and knows
// no slow start.
type distance struct {
	trip time.Duration
	to   string
	l    net.Listener
	wg   sync.WaitGroup
	ctx  context.Context
	end  context.CancelFunc
}

// far starts it before a server's address; close ends it.
func far(ctx context.Context, to string, trip time.Duration) (*distance, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &distance{trip: trip, to: to, l: l}
	d.ctx, d.end = context.WithCancel(ctx)
	d.wg.Go(d.serve)
	return d, nil
}

func (d *distance) addr() string { return d.l.Addr().String() }

func (d *distance) close() {
	d.end()
	d.l.Close()
	d.wg.Wait()
}

func (d *distance) serve() {
	for {
		near, err := d.l.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() { d.pass(near) })
	}
}

func (d *distance) pass(near net.Conn) {
	defer near.Close()
	server, err := (&net.Dialer{}).DialContext(d.ctx, "tcp", d.to)
	if err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(d.ctx, func() { near.Close(); server.Close() })
	defer stop()
	begun := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { late(server, near, d.trip/2, begun.Add(d.trip)) })
	wg.Go(func() { late(near, server, d.trip/2, begun) })
	wg.Wait()
}

// piece is what was read at once, and when it arrives.
type piece struct {
	data []byte
	at   time.Time
}

// inFlight bounds the pieces on their way in one direction; so many that they
// bound nothing.
const inFlight = 512

// late copies what comes, by a delay, and nothing before a time.
func late(to, from net.Conn, by time.Duration, first time.Time) {
	pieces := make(chan piece, inFlight)
	gone := make(chan struct{})
	go func() {
		defer close(pieces)
		for {
			data := buffers.Get().(*[]byte)
			n, err := from.Read(*data)
			if n > 0 {
				at := time.Now()
				if at.Before(first) {
					at = first
				}
				select {
				case pieces <- piece{(*data)[:n], at.Add(by)}:
				case <-gone:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	defer close(gone)
	for p := range pieces {
		time.Sleep(time.Until(p.at))
		_, err := to.Write(p.data)
		whole := p.data[:cap(p.data)]
		buffers.Put(&whole)
		if err != nil {
			from.Close() // what reads from it ends
			return
		}
	}
	if c, ok := to.(*net.TCPConn); ok {
		if err := c.CloseWrite(); err != nil && !errors.Is(err, io.EOF) {
			c.Close()
		}
	}
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}
