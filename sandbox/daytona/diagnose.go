package daytona

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// Check is one line of what holds between berth and Daytona.
type Check struct {
	Name   string // snake_case
	OK     bool
	Detail string // what was found
	Remedy string // what to do, when not OK
}

// needed are the permissions of a key without which something berth does fails.
var needed = []string{"write:sandboxes", "delete:sandboxes", "write:snapshots", "delete:snapshots", "read:volumes", "write:volumes", "delete:volumes"}

// Diagnose finds out whether sandboxes can be made. It makes none.
func (p *Provider) Diagnose(ctx context.Context) []Check {
	at, err := p.at()
	if err != nil {
		return []Check{{Name: "daytona_key", Detail: "there is none", Remedy: err.Error()}}
	}
	what := "an API key"
	if p.o.Key.IsZero() {
		what = "a JWT"
	}
	checks := []Check{{Name: "daytona_key", OK: true, Detail: what + from(p.o.KeyFrom)}}
	add := func(name string, err error, detail, remedy string) bool {
		c := Check{Name: name, OK: err == nil, Detail: detail}
		if err != nil {
			c.Detail, c.Remedy = err.Error(), remedy
		}
		checks = append(checks, c)
		return err == nil
	}
	config, err := at.Config(ctx)
	detail := fmt.Sprintf("%s answers, version %s", at.URL(), cmp.Or(config.Version, "not told"))
	if err == nil && config.Maintenance {
		err = errors.New("it says that it is under maintenance")
	}
	if !add("daytona_api", err, detail, "look at daytona.url or DAYTONA_API_URL, which must be complete, such as "+api.DefaultURL+", and whether this machine reaches it") {
		return checks
	}
	key, err := at.Key(ctx)
	switch {
	case errors.Is(err, api.ErrNotFound) || p.o.Key.IsZero() && !errors.Is(err, api.ErrUnauthorized):
		// A JWT is no key that it could tell about.
		_, err = p.sandboxes(ctx, sandbox.LocalOwner)
		add("daytona_access", err, "the sandboxes can be listed", "make a new key in Daytona's dashboard")
		return checks
	case err != nil:
		add("daytona_access", p.fail("ask about the key", err), "", "make a new key in Daytona's dashboard")
		return checks
	}
	var lacks []string
	for _, n := range needed {
		if len(key.Permissions) > 0 && !slices.Contains(key.Permissions, n) {
			lacks = append(lacks, n)
		}
	}
	if len(lacks) > 0 {
		err = fmt.Errorf("key %q may not: %s", key.Name, strings.Join(lacks, ", "))
	}
	add("daytona_access", err, fmt.Sprintf("key %q may do what berth asks for", key.Name), "make a key with these permissions in Daytona's dashboard; without the ones of snapshots and volumes only those fail")
	return checks
}
