//go:build unix

package buckettest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Keyed lets a Google server in only who has a token, and returns the JSON text
// of a service account's key that gets one (RFC 7523).
func (s *Server) Keyed(t testing.TB) (key string, p *Proxy) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	const email = "berth@test.iam.gserviceaccount.com"
	token := rand.Text()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := assertion(r.FormValue("assertion"), email, &private.PublicKey); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_grant", "error_description": err.Error()})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600})
	}))
	t.Cleanup(tokens.Close)
	out, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "test", "private_key_id": "1", "client_email": email, "token_uri": tokens.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})),
	})
	if err != nil {
		t.Fatal(err)
	}
	p = s.Proxied(t)
	p.Job.Service.Anonymous, p.Job.Service.ServiceAccountKey = false, string(out)
	p.Break(func(r *http.Request) Fault {
		if r.Header.Get("Authorization") == "Bearer "+token {
			return Fault{}
		}
		return Fault{Status: http.StatusUnauthorized, Body: `{"error":{"code":401,"errors":[{"reason":"authError"}]}}`}
	})
	return string(out), p
}

// assertion checks the signature and the issuer of a token request.
func assertion(jwt, email string, key *rsa.PublicKey) error {
	signed, signature, _ := cutLast(jwt, ".")
	_, claims, _ := strings.Cut(signed, ".")
	sig, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(signed))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig); err != nil {
		return err
	}
	text, err := base64.RawURLEncoding.DecodeString(claims)
	if err != nil {
		return err
	}
	var c struct {
		Issuer string `json:"iss"`
		Scope  string `json:"scope"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	if c.Issuer != email || !strings.Contains(c.Scope, "devstorage") {
		return fmt.Errorf("it is for %q by %q", c.Scope, c.Issuer)
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
