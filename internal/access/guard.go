package access

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// CORS is what pages of allowed origins may send and see, as the headers of
// that name have it.
type CORS struct {
	Methods string // "GET, POST"
	Expose  string // names of headers
}

// Refusal is why a request is not served: an answer of status 403.
type Refusal struct {
	Reason string // host, origin: for counting
	Text   string
}

// Guard refuses what a hostile web page could send through a browser: requests
// to a host name that is not ours (a rebound name), and requests of a foreign
// origin, whatever their method. ok: the request may go on. Else it was a
// browser's question beforehand, and is answered, or refused says why not, and
// the caller answers.
func (r *Rules) Guard(w http.ResponseWriter, req *http.Request, c CORS) (ok bool, refused *Refusal) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	host, scheme := r.Addressed(req)
	if !r.hostAllowed(host) {
		return false, &Refusal{"host", "requests to this host name are not accepted; add it to allowed_hosts"}
	}
	origins := req.Header.Values("Origin")
	if len(origins) == 0 {
		return true, nil
	}
	origin, known := normalOrigin(origins[0])
	if len(origins) > 1 || !known || origin != strings.ToLower(scheme+"://"+host) && !r.origins[origin] {
		return false, &Refusal{"origin", "requests from this web origin are not accepted; add it to allowed_origins"}
	}
	h.Set("Access-Control-Allow-Origin", origins[0])
	h.Set("Access-Control-Expose-Headers", c.Expose)
	h.Add("Vary", "Origin")
	if req.Method == http.MethodOptions && req.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Methods", c.Methods)
		h.Set("Access-Control-Allow-Headers", req.Header.Get("Access-Control-Request-Headers"))
		h.Set("Access-Control-Max-Age", "600")
		w.WriteHeader(http.StatusNoContent)
		return false, nil
	}
	return true, nil
}

// Addressed returns the host (with its port) and scheme that the client used,
// as told by a trusted proxy if one is in between.
func (r *Rules) Addressed(req *http.Request) (host, scheme string) {
	host, scheme = req.Host, "http"
	if req.TLS != nil {
		scheme = "https"
	}
	if r.proxied(req) {
		if h := req.Header.Get("X-Forwarded-Host"); h != "" {
			host = lastOf(h)
		}
		if p := req.Header.Get("X-Forwarded-Proto"); p != "" {
			scheme = lastOf(p)
		}
	}
	return host, scheme
}

// lastOf returns what the nearest proxy added to a list.
func lastOf(list string) string {
	if i := strings.LastIndexByte(list, ','); i >= 0 {
		list = list[i+1:]
	}
	return strings.TrimSpace(list)
}

// proxied reports whether the request comes from a trusted proxy.
func (r *Rules) proxied(req *http.Request) bool {
	if len(r.proxies) == 0 {
		return false
	}
	ap, err := netip.ParseAddrPort(req.RemoteAddr)
	return err == nil && slices.ContainsFunc(r.proxies, func(p netip.Prefix) bool { return p.Contains(ap.Addr().Unmap()) })
}

// hostAllowed accepts localhost, every IP address, and the configured names.
// Addresses are safe: what is rebound is always a name.
func (r *Rules) hostAllowed(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if _, err := netip.ParseAddr(name); err == nil || name == "localhost" {
		return true
	}
	return r.hosts[name] || r.hosts["*"] && name != ""
}
