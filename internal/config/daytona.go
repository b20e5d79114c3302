package config

import (
	"fmt"
	"net/netip"
	"net/url"

	"berth/internal/secret"
)

// DaytonaAccess says how to reach Daytona: what the settings give, and the
// DAYTONA_* variables beneath.
type DaytonaAccess struct {
	URL          string // "": the public cloud
	Key, JWT     secret.Text
	Organization string
	Target       string
	// From tells people where the key, or the JWT, came from.
	From string
	// Warnings are remarks for the log.
	Warnings []string
}

// Set tells that there is a credential.
func (d DaytonaAccess) Set() bool { return !d.Key.IsZero() || !d.JWT.IsZero() }

// The variables that Daytona's own programs read.
const (
	daytonaKey = "DAYTONA_API_KEY"
	daytonaJWT = "DAYTONA_JWT_TOKEN"
	daytonaURL = "DAYTONA_API_URL"
	daytonaOld = "DAYTONA_SERVER_URL" // the former name of daytonaURL
	daytonaOrg = "DAYTONA_ORGANIZATION_ID"
	daytonaTo  = "DAYTONA_TARGET"
)

// DaytonaAccess puts together how to reach Daytona. An address from a .env file
// is used with a credential of the same file alone: the directory may be
// somebody else's repository.
func (c *Config) DaytonaAccess() DaytonaAccess {
	d := DaytonaAccess{URL: c.Daytona.URL, Key: c.Daytona.APIKey, JWT: c.Daytona.JWT, Organization: c.Daytona.Organization, Target: c.Daytona.Target, From: "the settings (daytona.api_key)"}
	text := func(to *string, name string) {
		if v, ok := c.Environment.Lookup(name); ok && *to == "" {
			*to = v.Reveal()
		}
	}
	credential := "" // where it came from; "": the settings
	switch {
	case !d.Key.IsZero():
	case !d.JWT.IsZero():
		d.From = "the settings (daytona.jwt)"
	default:
		for _, v := range []struct {
			name string
			to   *secret.Text
		}{{daytonaKey, &d.Key}, {daytonaJWT, &d.JWT}} {
			if value, ok := c.Environment.Lookup(v.name); ok {
				*v.to, credential = value, c.Environment.Source(v.name)
				d.From = v.name + " of " + credential
				break
			}
		}
	}
	if !d.Key.IsZero() {
		d.JWT = secret.Text{} // it would have no effect
	}
	for _, name := range []string{daytonaURL, daytonaOld} {
		from := c.Environment.Source(name)
		if d.URL != "" || from == "" {
			continue
		}
		if from != realEnvironment && from != credential {
			d.Warnings = append(d.Warnings, fmt.Sprintf("%s in %s is ignored: an address from such a file is used only with a key from the same file", name, from))
			continue
		}
		text(&d.URL, name)
		if name == daytonaOld {
			d.Warnings = append(d.Warnings, daytonaOld+" is the former name of "+daytonaURL+"; use that")
		}
	}
	text(&d.Organization, daytonaOrg)
	text(&d.Target, daytonaTo)
	return d
}

// validateDaytona checks what is given; that nothing is given is no fault until
// a sandbox is to be made.
func (l *loader) validateDaytona() {
	c := l.config
	d := c.DaytonaAccess()
	c.Warnings = append(c.Warnings, d.Warnings...)
	if d.URL != "" {
		u, err := url.Parse(d.URL)
		key := "daytona.url"
		if c.Daytona.URL == "" {
			key = daytonaURL
		}
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			l.wrong(key, "it is no address of a Daytona API", "such as https://app.daytona.io/api, with its path", "")
		} else if u.Scheme == "http" && !Loopback(u.Hostname()) && d.Set() {
			c.Warnings = append(c.Warnings, key+": the key goes to "+u.Hostname()+" unencrypted; use https")
		}
	}
	if d.Key.IsZero() && !d.JWT.IsZero() && d.Organization == "" {
		l.wrong("daytona.organization", "a JWT needs the id of its organization", "", "set it, or "+daytonaOrg)
	}
	if a, err := netip.ParseAddrPort(c.Daytona.Probe); err != nil || !a.Addr().Is4() || a.Port() == 0 {
		l.wrong("daytona.probe", l.quote("daytona.probe", c.Daytona.Probe)+" is no address", "an IPv4 address and port, such as 1.1.1.1:443", "")
	}
}
