package daytonaapi

import (
	"cmp"
	"strings"

	"berth/sandbox"
)

// defaultSnapshot is the platform's name of what a sandbox is made of when it
// does not say.
const defaultSnapshot = "daytona-small"

// maxAutoArchive of the API, in minutes.
const maxAutoArchive = int(sandbox.MaxAutoArchive / 60e9)

type configBody struct {
	Version                string            `json:"version"`
	ProxyTemplateURL       string            `json:"proxyTemplateUrl"`
	ProxyToolboxURL        string            `json:"proxyToolboxUrl"`
	DefaultSnapshot        string            `json:"defaultSnapshot"`
	MaxAutoArchiveInterval int               `json:"maxAutoArchiveInterval"`
	Maintenance            bool              `json:"maintananceMode"` // as the platform spells it
	Environment            string            `json:"environment"`
	OIDC                   map[string]string `json:"oidc"`
	LinkedAccounts         bool              `json:"linkedAccountsEnabled"`
	Announcements          map[string]string `json:"announcements"`
	DashboardURL           string            `json:"dashboardUrl"`
}

func (s *Server) getConfig(c *call) (any, error) {
	return configBody{Version: cmp.Or(s.o.Version, "berth"), ProxyTemplateURL: c.base, ProxyToolboxURL: c.base + "/toolbox", DefaultSnapshot: defaultSnapshot,
		MaxAutoArchiveInterval: maxAutoArchive, Environment: "berth", OIDC: map[string]string{"issuer": "", "clientId": "", "audience": ""},
		Announcements: map[string]string{}}, nil
}

// keyBody is an API key. A bearer token of ours has no dates.
type keyBody struct {
	Name        string   `json:"name"`
	Value       string   `json:"value"`
	CreatedAt   string   `json:"createdAt"`
	Permissions []string `json:"permissions"`
	LastUsedAt  *string  `json:"lastUsedAt"`
	ExpiresAt   *string  `json:"expiresAt"`
	UserID      string   `json:"userId"`
}

// permissions are what an owner may do: everything that is here.
var permissions = []string{"write:sandboxes", "delete:sandboxes", "write:snapshots", "delete:snapshots", "read:volumes", "write:volumes", "delete:volumes"}

func (s *Server) currentKey(c *call) (any, error) {
	return keyBody{Name: string(c.owner), Value: strings.Repeat("*", 8), CreatedAt: stamp(s.started), Permissions: permissions, UserID: organization(c.owner)}, nil
}

func (s *Server) listKeys(c *call) (any, error) {
	k, err := s.currentKey(c)
	return []any{k}, err
}
