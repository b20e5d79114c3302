package daytonaapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
)

// greetTime is how long a client of the event stream may take to greet.
const greetTime = 10 * time.Second

// noEvents refuses the event stream, in the words of Engine.IO 4 and Socket.IO 5:
// the transport opens, and joining the stream is refused. Clients poll then, at
// once. A plain 404 would do for that, too, but official SDKs try again after
// one, for three minutes, on timers that keep the program alive that uses them.
func (s *Server) noEvents(c *call) (any, error) {
	if !strings.EqualFold(c.r.Header.Get("Upgrade"), "websocket") || c.r.URL.Query().Get("EIO") != "4" {
		return nil, refuse(http.StatusNotFound, "Cannot %s %s: %s", c.r.Method, c.r.URL.Path, noEventsText)
	}
	// Who may come from where was decided already.
	ws, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return written{}, nil // it was answered
	}
	defer ws.CloseNow()
	ctx, cancel := context.WithTimeout(c.ctx(), greetTime)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	for _, m := range []struct {
		kind string // the packets of both layers
		body any
	}{
		{"0", map[string]any{"sid": uuid.NewString(), "upgrades": []string{}, "pingInterval": 25_000, "pingTimeout": 20_000, "maxPayload": maxBody}},
		{"44", map[string]string{"message": noEventsText}},
	} {
		b, _ := json.Marshal(m.body) // of these types it cannot fail
		if ws.Write(ctx, websocket.MessageText, append([]byte(m.kind), b...)) != nil {
			return written{}, nil // it is gone
		}
		if _, _, err := ws.Read(ctx); err != nil {
			return written{}, nil // it is gone, or asks for nothing
		}
	}
	return written{}, nil
}

const noEventsText = "there is no event stream on this server; ask for the state"
