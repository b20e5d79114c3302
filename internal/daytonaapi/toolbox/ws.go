package toolbox

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
)

const (
	pingEvery       = 25 * time.Second
	sendTime        = 30 * time.Second // in which a client must take a message
	maxInputMessage = 64 << 10
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

// accept makes a WebSocket of the request. Of the offered subprotocols the
// preferred one is chosen, or else the first, since clients that offer any
// insist on one. Who may come from where was decided by the caller of Serve.
func (t *Toolbox) accept(c *call, preferred []string) (*websocket.Conn, context.Context, error) {
	if !isWebSocket(c.r) {
		return nil, nil, &apiError{status: http.StatusUpgradeRequired, code: codeBadRequest, text: "this is a WebSocket; ask for an upgrade"}
	}
	var offered []string
	for p := range protocols(c.r) {
		offered = append(offered, p)
	}
	o := &websocket.AcceptOptions{Subprotocols: append(preferred, offered...), InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled}
	ws, err := websocket.Accept(c.w, c.r, o)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errUpgrade, err)
	}
	c.w.status = http.StatusSwitchingProtocols
	ws.SetReadLimit(maxInputMessage)
	// The request's context ends with the request; t's does with the server.
	return ws, c.ctx, nil
}

// errUpgrade is answered already.
var errUpgrade = fmt.Errorf("no WebSocket")

// send writes one message; a client that does not take it loses the connection.
func send(ctx context.Context, ws *websocket.Conn, kind websocket.MessageType, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	return ws.Write(ctx, kind, b)
}

// keepAlive pings the peer, so that what is between keeps the connection, and a
// peer that is gone is noticed; something must read from ws meanwhile.
func keepAlive(ctx context.Context, ws *websocket.Conn) (stop func()) {
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
			pcancel()
			if err != nil {
				_ = ws.CloseNow()
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}
