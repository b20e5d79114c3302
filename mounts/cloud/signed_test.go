//go:build unix

package cloud_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"berth/internal/buckettest"
	"berth/mounts/cloud"
	"berth/mounts/objects"
)

// What goes over a network without TLS is signed with its hash, which the service
// verifies; what stays on this machine is not.
func TestSignedBodies(t *testing.T) {
	p := buckettest.S3(t).Proxied(t)
	body := bytes.Repeat([]byte("body"), 100<<10)
	sum := sha256.Sum256(body)
	for host, want := range map[string]string{
		"127.0.0.1": "UNSIGNED-PAYLOAD",
		"localhost": "UNSIGNED-PAYLOAD",
		"0.0.0.0":   hex.EncodeToString(sum[:]), // leads here too, and does not say so
	} {
		t.Run(host, func(t *testing.T) {
			var said atomic.Value
			p.Break(func(r *http.Request) buckettest.Fault {
				if r.Method == http.MethodPut {
					said.Store(r.Header.Get("X-Amz-Content-Sha256"))
				}
				return buckettest.Fault{}
			})
			defer p.Heal()
			job := p.Job
			job.Service.Endpoint = strings.Replace(job.Service.Endpoint, "127.0.0.1", host, 1)
			b, err := cloud.Open(t.Context(), job)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Put(t.Context(), "signed/"+host, bytes.NewReader(body), int64(len(body)), objects.Options{}); err != nil {
				t.Fatal(err)
			}
			if said.Load() != want {
				t.Errorf("X-Amz-Content-Sha256 is %v, want %s", said.Load(), want)
			}
			r, err := b.Read(t.Context(), "signed/"+host, "", 0, int64(len(body)))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes come back, %v", len(got), err)
			}
		})
	}
}
