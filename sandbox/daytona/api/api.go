// Package api is a thin client of the Daytona API: of its control plane, and of
// the toolbox in each sandbox. A method is one endpoint; what several calls
// together mean is package daytona's business.
//
// It speaks to the last open server (0.190) and to the present cloud: unknown
// fields and states are carried along, any 2xx is a success, and errors are
// read in all the shapes that they come in.
//
// A request is sent again by itself only when that cannot do a thing twice:
// when it changes nothing, sets something to what it is then, was refused for
// now (429), or surely never left. Everything else fails with ErrMaybeDone, and
// the caller looks.
package api

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"time"

	"berth/internal/secret"
)

// DefaultURL is the public cloud.
const DefaultURL = "https://app.daytona.io/api"

// level is the level of the protocol that toolboxes are told: from 0.167 on
// they answer with split output.
const level = "0.205.1"

// Options of New.
type Options struct {
	// URL of the control plane, its path included; "": DefaultURL.
	URL string
	// Key is an API key, bound to one organization. JWT is used where there is
	// none, with Organization.
	Key          secret.Text
	JWT          secret.Text
	Organization string
	// Agent names the program, "berth/1.2".
	Agent  string
	Logger *slog.Logger // nil discards
	// Timeout of one try of a request that names none; 0: 60 s. Starting a
	// sandbox holds the connection for up to 30.
	Timeout time.Duration
	// Pause is how long the first retry waits, each later one twice as long;
	// 0: 500 ms.
	Pause time.Duration
}

// Client calls one Daytona server with one credential. It is safe for concurrent
// use; the caller closes it.
type Client struct {
	o       Options
	base    string // without a slash at its end
	http    *http.Client
	log     *slog.Logger
	headers http.Header
	secrets []string // never shown
}

// New checks o and connects to nothing yet.
func New(o Options) (*Client, error) {
	o.URL = cmp.Or(strings.TrimRight(o.URL, "/"), DefaultURL)
	o.Timeout = cmp.Or(o.Timeout, 60*time.Second)
	o.Pause = cmp.Or(o.Pause, 500*time.Millisecond)
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("the address of the API is none; it is such as " + DefaultURL)
	}
	credential := o.Key
	if credential.IsZero() {
		credential = o.JWT
	}
	if credential.IsZero() {
		return nil, errors.New("there is neither an API key nor a JWT")
	}
	if o.Key.IsZero() && o.Organization == "" {
		return nil, errors.New("a JWT needs the id of its organization")
	}
	if strings.ContainsFunc(credential.Reveal()+o.Organization, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("the credential holds white space or other characters that no key has")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   128, // one host carries every sandbox's toolbox
		IdleConnTimeout:       60 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
	c := &Client{o: o, base: o.URL, log: o.Logger, secrets: []string{credential.Reveal()}, headers: http.Header{}}
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the key goes nowhere else
	}}
	c.headers.Set("Authorization", "Bearer "+credential.Reveal())
	if o.Key.IsZero() {
		c.headers.Set("X-Daytona-Organization-ID", o.Organization)
	}
	agent := cmp.Or(o.Agent, "berth")
	c.headers.Set("User-Agent", fmt.Sprintf("%s (%s; %s)", agent, runtime.GOOS, runtime.GOARCH))
	c.headers.Set("X-Daytona-Source", "berth")
	c.headers.Set("X-Daytona-SDK-Version", level)
	return c, nil
}

// URL is the control plane's address.
func (c *Client) URL() string { return c.base }

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }
