package main

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// What passes a distance comes whole and in order, and not before the time that the
// way takes.
func TestDistance(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // sends back what comes, when all of it is there
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, err := io.ReadAll(c)
			if err == nil {
				_, _ = c.Write(b) // the other side tells what is missing
			}
			c.Close()
		}
	}()
	const trip = 30 * time.Millisecond
	d, err := far(t.Context(), l.Addr().String(), trip)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	c, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 40_000)
	begin := time.Now()
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back, %v; want the %d that were sent", len(got), err, len(want))
	}
	// To connect, and there and back.
	if took := time.Since(begin); took < 2*trip {
		t.Errorf("it took %v, want at least %v", took, 2*trip)
	}
}
