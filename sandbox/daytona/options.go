package daytona

import (
	"cmp"
	"log/slog"
	"net/netip"
	"time"

	"berth/internal/secret"
	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// Options of New. The zero value works as far as calls that need no key.
type Options struct {
	// URL of the control plane; "": api.DefaultURL.
	URL string
	// Key is an API key. JWT is used where there is none, with Organization.
	Key          secret.Text
	JWT          secret.Text
	Organization string
	// KeyFrom says where the credential came from, for people.
	KeyFrom string
	// Target is the region of new sandboxes; "": the organization's default.
	Target string
	// Adopt lets a session be a sandbox that berth did not make: the one whose
	// id or name at Daytona is the session's id.
	Adopt bool
	// Seal is what sessions' environment variables are sealed with where they
	// are kept, in labels of their sandboxes; all servers of an account share
	// it. Empty: the API key.
	Seal secret.Text
	// BestEffort makes sandboxes also where what was asked for cannot be held.
	BestEffort bool
	// Probe is an address that no sandbox with a limited network may reach: a
	// new one is used once connections to it fail. The zero value: 1.1.1.1:443.
	Probe netip.AddrPort
	// Agent names the program to the platform, "berth/1.2".
	Agent  string
	Logger *slog.Logger // nil discards
	// Bucketd returns the program that shows buckets in sandboxes, for Linux on an
	// architecture ("amd64"), or an error that says how to get it; nil: there is none.
	Bucketd func(goarch string) ([]byte, error)
	// Times bound waiting; zero fields: the built-in ones.
	Times Times

	// space keeps what tests make apart from all else in an account; "" outside
	// of tests.
	space string
}

// Times bound how long the provider waits, and how often it looks.
type Times struct {
	Look    time.Duration // the longest pause between two looks at a state; 0: 2 s
	Change  time.Duration // of a start, a stop, a removal; 0: 120 s
	Create  time.Duration // of a sandbox of a snapshot; 0: 10 min
	Build   time.Duration // of an image or a snapshot; 0: 60 min
	Archive time.Duration // 0: 60 min
	Doubt   time.Duration // looking for what a broken connection may have made; 0: 20 s
	Probe   time.Duration // for the network to be closed; 0: 60 s
}

func (t Times) withDefaults() Times {
	return Times{Look: cmp.Or(t.Look, 2*time.Second), Change: cmp.Or(t.Change, 120*time.Second), Create: cmp.Or(t.Create, 10*time.Minute),
		Build: cmp.Or(t.Build, time.Hour), Archive: cmp.Or(t.Archive, time.Hour), Doubt: cmp.Or(t.Doubt, 20*time.Second), Probe: cmp.Or(t.Probe, time.Minute)}
}

var defaultProbe = netip.MustParseAddrPort("1.1.1.1:443")

// noKey is what every call says where no credential is set.
var noKey = &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "there is no key for Daytona: put one into the environment variable DAYTONA_API_KEY, " +
	"into a file .env in the directory where berth starts, or into daytona.api_key in berth's config file; app.daytona.io/dashboard/keys makes them"}

// connect makes the client; nil without a credential.
func (o Options) connect() (platform, error) {
	if o.Key.IsZero() && o.JWT.IsZero() {
		return nil, nil //nolint:nilnil // no client is no fault until one is needed
	}
	return api.New(api.Options{URL: o.URL, Key: o.Key, JWT: o.JWT, Organization: o.Organization, Agent: o.Agent, Logger: o.Logger})
}
