//go:build linux

package gate

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"berth/sandbox/local/wire"
)

// A web socket passes when the server takes it. An offer that is not taken
// opens no way to another host on the same connection.
func TestWebSockets(t *testing.T) {
	nameServer(t, map[string][]string{"takes.example.com": {"198.51.100.7"}, "leaves.example.com": {"198.51.100.8"}, "hangs.example.com": {"198.51.100.9"}})
	answer := func(addr, first string, then func(net.Conn, *bufio.Reader)) {
		listen(t, addr+":80", func(c net.Conn) {
			r := bufio.NewReader(c)
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			for _, b := range []byte(first) { // in the smallest pieces
				_, _ = c.Write([]byte{b})
			}
			then(c, r)
		})
	}
	answer("198.51.100.7", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(c, r) })
	second := make(chan string, 10)
	answer("198.51.100.8", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", func(c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			second <- req.Host
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	answer("198.51.100.9", "", func(net.Conn, *bufio.Reader) {})
	b := newBox(t, wire.Network{Domains: []string{"*.example.com"}})
	ask := func(host string) string {
		return "GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	}
	exchange := func(host, more string) (string, error) {
		return b.exchange(b.resolve(host, typeA)+":80", ask(host)+more)
	}
	if got, err := exchange("takes.example.com", "\x81\x05hello, no HTTP"); err != nil || got != "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello, no HTTP" {
		t.Errorf("taken: got %q %v", got, err)
	}
	if got, err := exchange("leaves.example.com", "GET / HTTP/1.1\r\nHost: evil.net\r\n\r\n"); err == nil {
		t.Errorf("not taken, another host: got %q", got)
	}
	b.wantRefused("leaves.example.com", "later HTTP request is evil.net")
	if got, err := exchange("leaves.example.com", "GET / HTTP/1.1\r\nHost: leaves.example.com\r\n\r\n"); err != nil {
		t.Errorf("not taken, the same host: got %q %v", got, err)
	}
	if host := <-second; host != "leaves.example.com" {
		t.Errorf("the server was asked for %s", host)
	}
	// Only the first request may ask.
	if got, err := exchange("leaves.example.com", ask("leaves.example.com")+"GET / HTTP/1.1\r\nHost: evil.net\r\n\r\n"); err == nil {
		t.Errorf("asked twice: got %q", got)
	}
	// A server that hangs up leaves nothing behind.
	_, _ = exchange("hangs.example.com", "GET / HTTP/1.1\r\nHost: evil.net\r\n\r\n")
	wantIdle(t)
}
