package access_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"berth/internal/access"
	"berth/internal/secret"
)

func TestOwnerNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "ann@example.com": true, "A-1._x": true, strings.Repeat("a", 63): true,
		"": false, ".a": false, "a b": false, "a/b": false, "ä": false, "a\x00": false, strings.Repeat("a", 64): false,
	} {
		_, err := access.New(access.Options{Tokens: []access.Token{{Name: name, Token: secret.New("0123456789abcdef")}}})
		if got := err == nil; got != want {
			t.Errorf("owner %q: accepted %v, want %v (%v)", name, got, want, err)
		}
	}
}

func TestOwner(t *testing.T) {
	r, err := access.New(access.Options{Tokens: []access.Token{
		{Name: "a", Token: secret.New("first-token-of-16")},
		{Name: "b", SHA256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}, // test
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		header   []string
		owner    string
		sent, ok bool
	}{
		{nil, "", false, false},
		{[]string{"Bearer first-token-of-16"}, "a", true, true},
		{[]string{"bearer  test "}, "b", true, true},
		{[]string{"Bearer other"}, "", true, false},
		{[]string{"Basic first-token-of-16"}, "", true, false},
		{[]string{"Bearer test", "Bearer first-token-of-16"}, "", true, false},
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		req.Header["Authorization"] = tt.header
		owner, sent, ok := r.Owner(req)
		if string(owner) != tt.owner || sent != tt.sent || ok != tt.ok {
			t.Errorf("Owner(%q) = %q, %v, %v; want %q, %v, %v", tt.header, owner, sent, ok, tt.owner, tt.sent, tt.ok)
		}
	}
}
