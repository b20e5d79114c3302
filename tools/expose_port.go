package tools

import (
	"context"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// Previews makes exposed ports reachable; package internal/preview does.
type Previews interface {
	// Open makes p reachable and returns its addresses, the best first.
	Open(ctx context.Context, p sandbox.Port) ([]string, error)
	// URLs are the addresses as far as they are known; it opens nothing.
	URLs(p sandbox.Port) []string
}

type exposePortArguments struct {
	Port   int   `json:"port" doc:"Of the server inside." schema:"required;min=1;max=65535"`
	Public *bool `json:"public" doc:"No token needed. Default: the sandbox's."`
	sessionArgument
}

// exposedPort is a port in lists: without its token, which expose_port tells.
type exposedPort struct {
	Port     int    `json:"port"`
	URL      string `json:"url,omitempty"`
	PlainURL string `json:"plain_url,omitempty"`
	Public   bool   `json:"public"`
}

type exposeAnswer struct {
	SessionID string `json:"session_id"`
	exposedPort
	Token     string `json:"token,omitempty"`
	VisitURL  string `json:"visit_url,omitempty"`
	HowToPass string `json:"how_to_pass_the_token,omitempty"`
	Until     string `json:"until"`
	Notice    string `json:"notice,omitempty"`
}

func exposePort() tool {
	t := tool{
		name: "expose_port", toolset: "sandbox", previews: true,
		description: "Gives a URL for a server inside: HTTP and WebSocket, for people and programs on this machine or, if the operator set a public one, anywhere. Needs its token unless public. The server may start later.",
		idempotent:  true, openWorld: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *exposePortArguments) (*mcp.CallToolResult, error) {
		res, err := c.manager.ExposePort(c.ctx, c.key, sandbox.PortRequest{Port: a.Port, Public: a.Public})
		if err != nil {
			return nil, err
		}
		if l := res.Link; l != nil {
			return recordAnswer(linkAnswer(c, res, l))
		}
		urls, err := c.options.Previews.Open(c.ctx, res.Port)
		if err != nil {
			return nil, err
		}
		out := exposeAnswer{SessionID: string(c.key.Session), exposedPort: exposedPortOf(res.Port, urls), Notice: c.noticeText(res.Notice),
			Until: "the sandbox is destroyed; it answers while the sandbox runs and berth serves"}
		if !res.Port.Public {
			out.Token, out.VisitURL = res.Port.Token, out.URL+"/?berth_token="+res.Port.Token
			out.HowToPass = "people open visit_url once; programs send the header Berth-Preview-Token"
		}
		return recordAnswer(out)
	})
	return t
}

// linkAnswer is the answer about a port that the provider itself shows.
func linkAnswer(c *call, res *sandbox.PortResult, l *sandbox.PortLink) exposeAnswer {
	out := exposeAnswer{SessionID: string(c.key.Session), Notice: c.noticeText(res.Notice), Until: l.Until,
		exposedPort: exposedPort{Port: int(res.Port.Number), URL: l.URL, Public: l.Public}}
	if !l.Public {
		out.Token, out.VisitURL = l.Token, l.VisitURL
		out.HowToPass = "people open visit_url once; programs send the header " + l.Header
	}
	return out
}

func exposedPortOf(p sandbox.Port, urls []string) exposedPort {
	out := exposedPort{Port: int(p.Number), Public: p.Public}
	if len(urls) > 0 {
		out.URL = urls[0]
	}
	if len(urls) > 1 {
		out.PlainURL = urls[1]
	}
	return out
}
