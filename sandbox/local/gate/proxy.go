//go:build linux

package gate

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// proxy is the HTTP proxy through which the host itself reaches the world.
type proxy struct {
	host   string
	port   uint16
	auth   string // the value of Proxy-Authorization
	direct []string
}

// parseProxy reads "http://[user:password@]host[:port]", which was checked
// where it was configured; nil without one.
func parseProxy(url string, direct []string) *proxy {
	rest, ok := strings.CutPrefix(url, "http://")
	if !ok {
		return nil
	}
	rest, _, _ = strings.Cut(rest, "/")
	p := &proxy{port: 80, direct: direct}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		p.auth = "Basic " + base64.StdEncoding.EncodeToString([]byte(unescape(rest[:at])))
		rest = rest[at+1:]
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.HasSuffix(rest, "]") {
		n, err := strconv.ParseUint(rest[i+1:], 10, 16)
		if err != nil {
			return nil
		}
		p.port, rest = uint16(n), rest[:i]
	}
	p.host = strings.Trim(rest, "[]")
	return p
}

// unescape resolves %XX.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// without tells whether host, a name or an address, is reached directly.
func (p *proxy) without(host string) bool {
	addr, err := netip.ParseAddr(host)
	for _, d := range p.direct {
		if prefix, perr := netip.ParsePrefix(d); perr == nil {
			if err == nil && prefix.Contains(addr) {
				return true
			}
			continue
		}
		d = strings.TrimPrefix(strings.ToLower(d), "*")
		if d == "" || host == strings.TrimPrefix(d, ".") || strings.HasSuffix(host, "."+strings.TrimPrefix(d, ".")) {
			return true
		}
	}
	return false
}

// connect asks the proxy for a connection to host.
func (p *proxy) connect(r *resolver, host string, port uint16, limit time.Duration) (*sock, error) {
	addrs, err := r.lookup(p.host)
	if err != nil {
		return nil, errors.New("the proxy " + p.host + " is not found: " + err.Error())
	}
	var s *sock
	for _, a := range addrs {
		if s, err = connect(netip.AddrPortFrom(a, p.port), limit/2); err == nil {
			break
		}
	}
	if err != nil {
		return nil, errors.New("the proxy " + p.host + " does not answer: " + err.Error())
	}
	_ = s.SetDeadline(time.Now().Add(limit))
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	to := host + ":" + strconv.Itoa(int(port))
	ask := "CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n"
	if p.auth != "" {
		ask += "Proxy-Authorization: " + p.auth + "\r\n"
	}
	if _, err := s.Write([]byte(ask + "\r\n")); err != nil {
		_ = s.Close()
		return nil, err
	}
	// Byte by byte, as what follows the head is the other side's. It is short.
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		var b [1]byte
		if _, err := s.readFull(b[:], 1); err != nil || len(head) > 16<<10 {
			_ = s.Close()
			return nil, errors.New("the proxy's answer is not understood")
		}
		head = append(head, b[0])
	}
	if len(head) < 12 || !bytes.HasPrefix(head, []byte("HTTP/1.")) || head[9] != '2' {
		_ = s.Close()
		return nil, &proxyError{hostDigits(head)}
	}
	_ = s.SetDeadline(time.Time{})
	return s, nil
}

func hostDigits(head []byte) string {
	code := ""
	for _, c := range head[min(len(head), 9):min(len(head), 12)] {
		if c >= '0' && c <= '9' {
			code += string(rune(c))
		}
	}
	return code
}

// proxyError is a refusal by the host's proxy.
type proxyError struct{ code string }

func (e *proxyError) Error() string { return "the host's proxy refused it with status " + e.code }
