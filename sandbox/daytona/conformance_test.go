//go:build linux

package daytona_test

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona"
	"berth/sandbox/providertest"
)

// TestConformance holds the provider against the promises of its contract, with
// berth's own Daytona API at the other end.
func TestConformance(t *testing.T) {
	at := map[sandbox.Provider]*account{}
	var last *account
	h := harness(t, func(t *testing.T) daytona.Options {
		last = newAccount(t)
		return last.options()
	})
	open := h.Open
	h.Open = func(t *testing.T) sandbox.Provider {
		p := open(t)
		at[p] = last
		return p
	}
	for _, again := range []*func(*testing.T, sandbox.Provider) sandbox.Provider{&h.Reopen, &h.Crash, &h.Another} {
		f := *again
		*again = func(t *testing.T, p sandbox.Provider) sandbox.Provider {
			q := f(t, p)
			at[q] = at[p]
			return q
		}
	}
	h.Kill = func(t *testing.T, p sandbox.Provider, key sandbox.Key) { at[p].kill(t, native(t, p, key)) }
	h.Break = func(t *testing.T, p sandbox.Provider, key sandbox.Key) { at[p].spoil(t, native(t, p, key)) }
	providertest.Run(t, h)
}

func native(t *testing.T, p sandbox.Provider, key sandbox.Key) string {
	t.Helper()
	in, err := p.Lookup(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return in.(*daytona.Instance).ID()
}

// spoil has the platform say of a sandbox that it is broken, until it is deleted.
func (a *account) spoil(t *testing.T, id string) {
	t.Helper()
	broken := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		var body map[string]any
		if json.Unmarshal(rec.Body.Bytes(), &body) == nil && body["id"] == id && r.Method == http.MethodGet {
			body["state"], body["errorReason"], body["recoverable"] = "error", "its runner is on fire", false
		}
		w.WriteHeader(rec.Code)
		_ = json.NewEncoder(w).Encode(body)
	}
	in, err := beneath.Lookup(t.Context(), sandbox.Key{Owner: a.owner, Session: sandbox.SessionID(id)})
	if err != nil {
		t.Fatal(err)
	}
	info, err := in.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.faults.set(on("GET", "/"+id, 1<<30, broken), on("GET", "/"+info.Name, 1<<30, broken))
}

// harness of providers whose options account gives: for one account each. They are
// closed when all ends: one that a test opened again serves those that follow.
func harness(all *testing.T, account func(*testing.T) daytona.Options) providertest.Harness {
	options := map[sandbox.Provider]daytona.Options{}
	open := func(t *testing.T, o daytona.Options) sandbox.Provider {
		p, err := daytona.New(o)
		if err != nil {
			t.Fatal(err)
		}
		options[p] = o
		all.Cleanup(func() { _ = p.Close() })
		return p
	}
	return providertest.Harness{
		Open: func(t *testing.T) sandbox.Provider {
			return open(t, account(t).InSpace("test-"+strings.ToLower(rand.Text())[:10]))
		},
		Reopen: func(t *testing.T, p sandbox.Provider) sandbox.Provider {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			return open(t, options[p])
		},
		Crash:   func(t *testing.T, p sandbox.Provider) sandbox.Provider { return open(t, options[p]) },
		Another: func(t *testing.T, p sandbox.Provider) sandbox.Provider { return open(t, options[p]) },
		Timeout: time.Minute,
		Cannot: map[providertest.Ability]string{
			providertest.Mounts:          "TestMounts shows it, where sandboxes reach a bucket service",
			providertest.Afterlife:       "logs lie in the sandbox, which does not run then",
			providertest.Usages:          "asking inside costs a call, which every look at a sandbox would",
			providertest.Tombstones:      "the platform forgets what was destroyed",
			providertest.Accounts:        "who the ordinary user is, the snapshot says",
			providertest.Builds:          "a build at the platform stands on an image, of which there is none here",
			providertest.AnyRule:         "the platform limits by IPv4 ranges alone",
			providertest.ReadOnlyVolumes: "the platform attaches volumes to be written to",
			providertest.Resources:       "sizes come from the snapshot, and only those of images can be asked for",
			providertest.Ports:           "the platform shows ports at addresses of its own: LinkPort",
		},
	}
}
