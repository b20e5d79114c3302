package toolbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"berth/sandbox"
)

const (
	pingEvery  = 25 * time.Second
	sendTime   = 30 * time.Second // in which a client must take a message
	maxMessage = 64 << 10         // that a client sends, in bytes
)

// isWebSocket tells a request to become a WebSocket.
func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// protocols are the subprotocols that the client offers.
func protocols(r *http.Request) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
			for p := range strings.SplitSeq(line, ",") {
				if p = strings.TrimSpace(p); p != "" && !yield(p) {
					return
				}
			}
		}
	}
}

func offers(r *http.Request, protocol string) bool {
	for p := range protocols(r) {
		if p == protocol {
			return true
		}
	}
	return false
}

// errUpgrade is answered already.
var errUpgrade = errors.New("no WebSocket")

// accept makes a WebSocket of the request. Of the offered subprotocols the
// preferred one is chosen, or else the first, since clients that offer any
// insist on one. Who may come from where was decided by the caller of Serve.
func (t *Toolbox) accept(c *call, preferred ...string) (*websocket.Conn, error) {
	if !isWebSocket(c.r) {
		return nil, &apiError{status: http.StatusUpgradeRequired, code: codeBadRequest, text: "this is a WebSocket; ask for an upgrade"}
	}
	choice := preferred
	for p := range protocols(c.r) {
		choice = append(choice, p)
	}
	ws, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{Subprotocols: choice, InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUpgrade, err)
	}
	c.w.status = http.StatusSwitchingProtocols
	ws.SetReadLimit(maxMessage)
	return ws, nil
}

// send writes one message; a client that does not take it loses the connection.
func send(ctx context.Context, ws *websocket.Conn, kind websocket.MessageType, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	return ws.Write(ctx, kind, b)
}

// keepAlive pings the peer, so that what is between keeps the connection, and
// one that is gone is noticed; and while it is there, the sandbox is in use.
// Something must read from ws meanwhile.
func (t *Toolbox) keepAlive(ctx context.Context, key sandbox.Key, ws *websocket.Conn) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pingEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			pctx, pcancel := context.WithTimeout(ctx, pingEvery)
			err := ws.Ping(pctx)
			if err == nil {
				_ = t.manager.TouchSandbox(pctx, key) // at the worst it ends as if nobody used it
			}
			pcancel()
			if err != nil {
				_ = ws.CloseNow()
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}
