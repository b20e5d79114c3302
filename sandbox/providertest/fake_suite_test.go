//go:build unix

package providertest_test

import (
	"crypto/rand"
	"strings"
	"testing"

	"berth/mounts"
	"berth/sandbox"
	"berth/sandbox/providertest"
)

// TestFake holds the fake against the suite, and the suite against something
// that passes it.
func TestFake(t *testing.T) {
	providertest.Run(t, providertest.Harness{
		Open: func(t *testing.T) sandbox.Provider {
			f := providertest.NewFake(t.TempDir(), providertest.FakeOptions{LogLimit: 1 << 20})
			t.Cleanup(f.Shutdown)
			return f
		},
		Reopen: func(t *testing.T, p sandbox.Provider) sandbox.Provider {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			return p.(*providertest.Fake).Reopen()
		},
		Another: func(_ *testing.T, p sandbox.Provider) sandbox.Provider { return p.(*providertest.Fake).Reopen() },
		Kill: func(_ *testing.T, p sandbox.Provider, key sandbox.Key) {
			p.(*providertest.Fake).SetStatus(key, sandbox.StatusStopped, "killed by the test")
		},
		Break: func(_ *testing.T, p sandbox.Provider, key sandbox.Key) {
			p.(*providertest.Fake).SetStatus(key, sandbox.StatusError, "broken by the test")
		},
		Bucket: func(t *testing.T, p sandbox.Provider) providertest.Bucket {
			name := "bucket-" + strings.ToLower(rand.Text())
			dir, err := p.(*providertest.Fake).MakeBucket(name, "fake-key")
			if err != nil {
				t.Fatal(err)
			}
			return providertest.DirBucket(dir, mounts.Job{Service: mounts.Service{Kind: mounts.S3, SecretAccessKey: "fake-key"}, Bucket: name})
		},
		LogLimit: 1 << 20,
		Cannot: map[providertest.Ability]string{
			providertest.Resources:  "its commands run on the host, without limits",
			providertest.OneInstant: "it copies while processes run", providertest.ReadOnlyVolumes: "its volumes are links",
			providertest.Terminals: "host processes get pipes", providertest.Isolation: "its commands run on the host",
			providertest.RootUser: "its users are names only", providertest.CountsRead: "it does not count",
			providertest.Builds: "it has no layers", providertest.RealMounts: "its buckets are links",
		},
	})
}
