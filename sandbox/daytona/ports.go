package daytona

import (
	"context"
	"net/url"
	"time"

	"berth/sandbox"
)

// The platform's names for what opens a port that is not public.
const (
	tokenHeader = "X-Daytona-Preview-Token"
	tokenQuery  = "DAYTONA_SANDBOX_AUTH_KEY"
)

// signedLasts is the longest that the platform lets a signed address last.
const signedLasts = 24 * time.Hour

// LinkPort tells where a port is reached. The platform opens either all ports of
// a sandbox or none, so one port of a private sandbox is made public by an address
// that nobody can guess.
func (i *Instance) LinkPort(ctx context.Context, number uint16, public *bool) (sandbox.PortLink, error) {
	at, err := i.p.at()
	if err != nil {
		return sandbox.PortLink{}, err
	}
	sb, err := i.look(ctx)
	if err != nil {
		return sandbox.PortLink{}, err
	}
	link := sandbox.PortLink{Public: sb.Public, Until: "the sandbox is destroyed; it answers while the sandbox runs"}
	if public != nil {
		link.Public = *public
	}
	switch {
	case sb.Public && !link.Public:
		return sandbox.PortLink{}, &sandbox.FieldError{Field: "public", Problem: "the sandbox is public, and so is each of its ports", Allowed: "true", Hint: "start_sandbox with public false closes them"}
	case !sb.Public && link.Public:
		v, err := at.SignedPreview(ctx, i.id, number, signedLasts)
		if err != nil {
			return sandbox.PortLink{}, i.p.fail("open the port", err)
		}
		link.URL, link.Until = v.URL, "24 hours from now: then call expose_port again; whoever knows the address may use it; it answers while the sandbox runs"
		return link, nil
	}
	v, err := at.Preview(ctx, i.id, number)
	if err != nil {
		return sandbox.PortLink{}, i.p.fail("open the port", err)
	}
	link.URL = v.URL
	if link.Public {
		return link, nil
	}
	link.Token, link.Header = v.Token, tokenHeader
	link.Until = "the sandbox stops: then call expose_port again, which tells a new token"
	if u, err := url.Parse(v.URL); err == nil {
		q := u.Query()
		q.Set(tokenQuery, v.Token)
		u.RawQuery = q.Encode()
		link.VisitURL = u.String()
	}
	return link, nil
}
