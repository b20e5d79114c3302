package cloud

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth/mounts/objects"
)

// transport is shared by all that one process asks of one service.
func transport(publicOnly bool) *http.Transport {
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}
	if publicOnly {
		dialer.Control = refusePrivate
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          64,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       30 * time.Second,
		// HTTP/2 would put all reads on one connection, and its windows in
		// our memory.
		ForceAttemptHTTP2:  false,
		TLSNextProto:       map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableCompression: true,
		WriteBufferSize:    32 << 10,
		ReadBufferSize:     8 << 10,
	}
	if publicOnly {
		t.Proxy = nil // it would go wherever it is asked to
	}
	return t
}

// privateError is a connection that PublicOnly forbids.
type privateError struct{ addr string }

func (e *privateError) Error() string {
	return fmt.Sprintf("%s is no address of the public internet", e.addr)
}

// special are the ranges that are no hosts of the internet, beside those that
// netip knows (RFC 6890 and its successors).
var special = func() (list []netip.Prefix) {
	for _, p := range []string{"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "240.0.0.0/4", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10", "::/96"} {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}()

// refusePrivate is called with the address that is about to be connected to,
// after names were resolved and redirects followed.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return &privateError{address}
	}
	ip := ap.Addr().Unmap().WithZone("")
	if b := ip.As16(); ip.Is6() && netip.MustParsePrefix("64:ff9b::/96").Contains(ip) {
		ip = netip.AddrFrom4([4]byte(b[12:])) // NAT64: what it stands for
	}
	bad := !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast()
	for _, p := range special {
		bad = bad || p.Contains(ip)
	}
	if bad {
		return &privateError{ap.Addr().String()}
	}
	return nil
}

// watched ends the attempts that stand still, so that they are tried again, and
// tells the call's patience of bytes that move.
type watched struct{ next http.RoundTripper }

// An attempt that shows no sign of life for this long is ended. One with a long
// body gets all of Patience, since megabytes of it may wait in the kernel.
const (
	stall    = 3500 * time.Millisecond
	longBody = 256 << 10
)

var errSilent = errors.New("the service fell silent")

func (w *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	p, _ := r.Context().Value(patienceKey{}).(*patience)
	watch := &watch{limit: stall, ctx: ctx, cancel: cancel, patience: p, begun: time.Now()}
	switch {
	case p != nil && p.probe != nil:
		watch.limit = slowLimit
	case r.ContentLength > longBody || r.ContentLength < 0:
		watch.limit = objects.Patience
	}
	watch.timer = time.AfterFunc(watch.limit, func() { cancel(errSilent) })
	r = r.Clone(ctx)
	if r.Body != nil && r.Body != http.NoBody && (r.ContentLength > longBody || r.ContentLength < 0) {
		if p != nil {
			watch.again = p.sendsAgain()
		}
		r.Body = &sending{ReadCloser: r.Body, w: watch}
	}
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		p.failed()
		err = watch.err(err)
		watch.stop()
		cancel(nil)
		return nil, err
	}
	if c, ok := r.Context().Value(clockKey{}).(*clock); ok {
		c.saw(resp)
	}
	// An answer that says no is no sign of life: those come in storms.
	watch.well.Store(resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests)
	if !watch.well.Load() {
		p.failed()
	}
	watch.alive(watch.well.Load())
	resp.Body = &receiving{ReadCloser: resp.Body, w: watch}
	return resp, nil
}

// stalledError is a time-out in the eyes of the SDKs, which retry those.
type stalledError struct{}

func (stalledError) Error() string   { return errSilent.Error() }
func (stalledError) Timeout() bool   { return true }
func (stalledError) Temporary() bool { return true }

type watch struct {
	limit    time.Duration
	timer    *time.Timer
	ctx      context.Context
	cancel   context.CancelCauseFunc
	patience *patience
	begun    time.Time
	again    bool        // what was sent before counts once more
	well     atomic.Bool // the answer is none that says no
	last     atomic.Int64
}

// alive starts the attempt's time limit anew, and the call's where that is a sign
// of life, at most every tenth of a second.
func (w *watch) alive(life bool) {
	now := time.Now().UnixNano()
	if last := w.last.Load(); now-last > int64(100*time.Millisecond) && w.last.CompareAndSwap(last, now) {
		w.timer.Reset(w.limit)
		if life && w.patience != nil {
			w.patience.extend()
		}
	}
}

func (w *watch) stop() { w.timer.Stop() }

func (w *watch) err(err error) error {
	if errors.Is(context.Cause(w.ctx), errSilent) {
		return stalledError{}
	}
	return err
}

type sending struct {
	io.ReadCloser
	w    *watch
	sent int64
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.sent += int64(n)
	life := s.w.again
	if c := s.w.patience; c != nil && c.further(s.sent, time.Since(s.w.begun)) {
		life = true
	}
	s.w.alive(life)
	return n, err
}

type receiving struct {
	io.ReadCloser
	w *watch
}

func (r *receiving) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.w.alive(r.w.well.Load())
	}
	if err != nil {
		r.w.stop()
		if !errors.Is(err, io.EOF) {
			err = r.w.err(err)
		}
	}
	return n, err
}

func (r *receiving) Close() error {
	r.w.stop()
	err := r.ReadCloser.Close()
	r.w.cancel(nil)
	return err
}

// patience is how long a call goes on although nothing moves.
type patience struct {
	timer  *time.Timer
	begin  time.Time
	cancel context.CancelCauseFunc
	// probe asks the service something small; set for calls that a live
	// service works on for long before it answers.
	probe func(context.Context) error

	// Of a long body, which each try sends from the start: how much was sent at
	// the most, what a try took for it, and whether a second one has counted.
	mu       sync.Mutex
	furthest int64
	moving   time.Duration
	resent   bool
	// How many tries have failed, and when the first did.
	fails int
	since time.Time
}

// failed notes that a try did. p may be nil.
func (p *patience) failed() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails++; p.fails == 1 {
		p.since = time.Now()
	}
}

// hopeless reports whether tries fail one after the other, and have for so long
// that it is no use that the service answers others. One or two may be accidents,
// and the next at work.
func (p *patience) hopeless() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fails > 2 && time.Since(p.since) > objects.Patience*3/4
}

// further reports whether a try has sent more than any did before. A service that
// takes the same megabytes again and again, and never says that it has them, is no
// better than a silent one.
func (p *patience) further(sent int64, took time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moving = max(p.moving, took)
	if sent <= p.furthest {
		return false
	}
	p.furthest = sent
	return true
}

// sendsAgain reports whether a try may take its time although it sends what was
// sent before: once, where the way is so slow that it needs it.
func (p *patience) sendsAgain() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resent || p.moving < objects.Patience/2 {
		return false
	}
	p.resent = true
	return true
}

type patienceKey struct{}

// Calls that a service works on for long, such as copies and the completion of
// uploads, may take this long while it answers others.
const slowLimit = 10 * time.Minute

// patient returns a context that ends when the service has been silent for
// Patience, with a probe: when it does not answer that either.
func patient(ctx context.Context, probe func(context.Context) error) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &patience{begin: time.Now(), cancel: cancel, probe: probe}
	ctx = context.WithValue(ctx, patienceKey{}, p)
	wait := objects.Patience
	if probe != nil {
		wait = objects.Patience / 2
	}
	p.timer = time.AfterFunc(wait, func() { p.expired(ctx) })
	return ctx, func() {
		p.timer.Stop()
		cancel(nil)
	}
}

func (p *patience) extend() {
	if p.probe == nil {
		p.timer.Reset(objects.Patience)
	}
}

func (p *patience) expired(ctx context.Context) {
	if p.probe != nil && time.Since(p.begin) < slowLimit && ctx.Err() == nil && !p.hopeless() {
		// Without the value of ctx: the probe has little patience.
		short, cancel := context.WithTimeout(context.Background(), objects.Patience/2)
		defer cancel()
		if p.probe(short) == nil && ctx.Err() == nil {
			p.timer.Reset(objects.Patience / 2)
			return
		}
	}
	p.cancel(errSilent)
}
