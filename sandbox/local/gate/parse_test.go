//go:build linux

package gate

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzDNS(f *testing.F) {
	f.Add(newQuery(1, "example.com", typeA), []byte{})
	q := newQuery(1, "example.com", typeA)
	pq, _ := parseQuery(q)
	f.Add(q, pq.answer(q, 0, 30, mustAddr("192.0.2.1"), mustAddr("192.0.2.2")))
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), []byte("x"))
	f.Fuzz(func(t *testing.T, query, answer []byte) {
		q, err := parseQuery(query)
		if err != nil {
			return
		}
		if len(q.name) > 253 || q.name != strings.ToLower(q.name) || strings.ContainsAny(q.name, "\x00\n\x1b ") {
			t.Errorf("name %q", q.name)
		}
		again, err := parseQuery(q.answer(query, rcodeOK, 1)[:q.end])
		_ = again
		if err == nil {
			t.Errorf("an answer passes for a query")
		}
		if r, err := parseReply(query, answer); err == nil && len(r.addrs) > 16 {
			t.Errorf("%d addresses", len(r.addrs))
		}
	})
}

func FuzzTLSName(f *testing.F) {
	f.Add([]byte(hello("example.com")))
	f.Add([]byte(hello("")))
	f.Add([]byte(hello("a\nb")))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, err := tlsName(b)
		if err == nil && hostName([]byte(name)) != name || err == nil && name == "" {
			t.Errorf("name %q", name)
		}
		for n := range min(len(b), 64) { // a shorter beginning never tells another name
			if part, perr := tlsName(b[:n]); perr == nil && (err != nil || part != name) {
				t.Errorf("%d bytes tell %q, all tell %q %v", n, part, name, err)
			}
		}
	})
}

// In none of these may the gate see one host, and a server that is less strict
// another.
func TestHeadsWithTwoHosts(t *testing.T) {
	for _, head := range []string{
		"GET / HTTP/1.1\nHost: evil\n\n\r\nHost: good\r\n\r\n",
		"GET / HTTP/1.1\nHost:evil\r\nX: y\r\nHost: good\r\n\r\n",
		"GET\t/\tHTTP/1.1\nHost:evil\n\nGET / HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET /\tHTTP/1.1\nHost:evil\nX: HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET /\rHost:evil HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET  HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET / HTTP/1.1 \r\nHost: good\r\n\r\n",
		"GET / HTTP/1.12\r\nHost: good\r\n\r\n",
		"GET http://good:x@evil/ HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET http://good:@evil/ HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET http://good@evil/ HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET http://evil/ HTTP/1.1\r\nHost: good\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good:x@evil\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good\r\nX: y\x0bHost: evil\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good\r\nHost\x0c: evil\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good\r\n Host: evil\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good\r\nHost : evil\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good\r\nHost: evil\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good\r\nX: \nHost: evil\r\n\r\n",
	} {
		if name, _, err := httpName([]byte(head)); err == nil {
			t.Errorf("%q is taken for %s", head, name)
		}
	}
	for _, head := range []string{
		"GET / HTTP/1.1\r\nHost: good\r\n\r\n", "GET /\xc3\xa4 HTTP/1.0\r\nhOST:\tGood.:8080\r\nX:\r\nY: \xc3\xa4\t \r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: good:\r\n\r\n", "GET http://good:80/?a@b HTTP/1.1\r\nHost: good\r\n\r\n",
	} {
		if name, _, err := httpName([]byte(head)); err != nil || name != "good" {
			t.Errorf("%q: %q %v", head, name, err)
		}
	}
}

func TestNumeric(t *testing.T) {
	for _, s := range []string{"2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "127.1", "127.0x1", "a.0x", "1.2.3.4"} {
		if !numeric(s) {
			t.Errorf("%s is no number", s)
		}
	}
	for _, s := range []string{"example.com", "1e100.net", "0x.org", "127.a", "0xag", "xn--0xa", "a1"} {
		if numeric(s) {
			t.Errorf("%s is a number", s)
		}
	}
}

func FuzzHTTPName(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: example.com:80\r\n\r\nrest"))
	f.Add([]byte("GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, head, err := httpName(b)
		if err == nil && (head > len(b) || bytes.Count(bytes.ToLower(b[:head]), []byte("host:")) == 0 || name == "") {
			t.Errorf("%q %d of %q", name, head, b)
		}
		// What is passed on is what came in, in whatever pieces it came.
		whole, one := &requests{name: name}, &requests{name: name}
		all, err1 := whole.feed(b)
		var pieces []byte
		var err2 error
		for i := range b {
			p, e := one.feed(b[i : i+1])
			pieces = append(pieces, p...)
			if err2 = e; e != nil {
				break
			}
		}
		if !bytes.HasPrefix(b, all) || !bytes.Equal(all, pieces) || (err1 == nil) != (err2 == nil) {
			t.Errorf("at once %q %v, in pieces %q %v, of %q", all, err1, pieces, err2, b)
		}
	})
}
