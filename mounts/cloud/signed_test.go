package cloud

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"testing"

	"berth/mounts"
	"berth/mounts/objects"
)

// hears keeps what a request says of its body's hash.
type hears struct{ hash string }

func (h *hears) RoundTrip(r *http.Request) (*http.Response, error) {
	h.hash = r.Header.Get("X-Amz-Content-Sha256")
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Etag": {`"e"`}}, Body: http.NoBody, Request: r}, nil
}

// Only Amazon is trusted to refuse a body that ends early; all others verify its
// hash. (TestKilledInEachPhase shows what a service keeps that does not.)
func TestSignedBodies(t *testing.T) {
	body := []byte("body")
	sum := sha256.Sum256(body)
	for endpoint, want := range map[string]string{
		"":                       "UNSIGNED-PAYLOAD",
		"https://s3.example.com": hex.EncodeToString(sum[:]),
		"http://127.0.0.1:9000":  hex.EncodeToString(sum[:]),
	} {
		j := mounts.Job{Bucket: "b", Service: mounts.Service{Kind: mounts.S3, Endpoint: endpoint, Region: "us-east-1", AccessKeyID: "k", SecretAccessKey: "s"}}
		h := &hears{}
		b, err := openS3(t.Context(), j, h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Put(t.Context(), "key", bytes.NewReader(body), int64(len(body)), objects.Options{}); err != nil {
			t.Fatal(err)
		}
		if h.hash != want {
			t.Errorf("%s: X-Amz-Content-Sha256 is %q, want %q", endpoint, h.hash, want)
		}
	}
}
