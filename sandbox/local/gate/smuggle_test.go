//go:build linux

package gate

import "testing"

// Where a server sees the end of a request elsewhere than the gate does, what
// the gate takes for a body is the server's next request, for any host.
func TestNoRequestHidesInABody(t *testing.T) {
	const chunks = "ac ;/ HTTP/1.1\r\nHost: evil\r\n\r\n"
	for _, test := range []struct{ name, request string }{
		// To an old server it has no body (RFC 9112 6.1).
		{"chunks_of_HTTP_1.0", "POST / HTTP/1.0\r\nHost: good\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks},
		{"two_lengths", "POST / HTTP/1.1\r\nHost: good\r\nContent-Length: 30\r\nContent-Length: 0\r\n\r\n"},
		{"length_and_chunks", "POST / HTTP/1.1\r\nHost: good\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks},
		{"two_encodings", "POST / HTTP/1.1\r\nHost: good\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunks},
		{"signed_length", "POST / HTTP/1.1\r\nHost: good\r\nContent-Length: +30\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &requests{name: "good"}
			if pass, err := r.feed([]byte(test.request)); err == nil || len(pass) > 0 {
				t.Errorf("feed(%q) passes on %q, %v; want nothing, and an error", test.request, pass, err)
			}
		})
	}
}

// A server that is offered two protocols may take the one that carries other
// hosts' requests, such as h2c.
func TestOneOfferOfAWebSocket(t *testing.T) {
	const head = "GET / HTTP/1.1\r\nHost: good\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
	for _, test := range []struct {
		name, upgrade string
		wait          bool
	}{
		{"one", "Upgrade: WebSocket\r\n", true},
		{"two", "Upgrade: h2c\r\nUpgrade: websocket\r\n", false},
		{"two_turned", "Upgrade: websocket\r\nUpgrade: h2c\r\n", false},
		{"two_in_one", "Upgrade: websocket, h2c\r\n", false},
		{"other", "Upgrade: h2c\r\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &requests{name: "good"}
			if _, err := r.feed([]byte(head + test.upgrade + "\r\n")); err != nil || r.wait != test.wait {
				t.Errorf("feed(%q): waits for the server: %v, %v; want %v", test.upgrade, r.wait, err, test.wait)
			}
		})
	}
}
