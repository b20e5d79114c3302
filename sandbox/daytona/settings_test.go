//go:build linux

package daytona_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"berth/sandbox"
	"berth/sandbox/daytona"
)

// What the operator sets of the account goes to it: the address, the key, the
// region.
func TestSettingsReachTheAccount(t *testing.T) {
	a := newAccount(t)
	p := a.open(t, func(o *daytona.Options) { o.Target = "eu" })
	m, err := sandbox.NewManager(p, sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var body struct{ Target string }
	var bearer string
	a.faults.set(on("POST", "/api/sandbox", 1, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		b, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(b, &body)
		}
		if err != nil {
			t.Error(err)
		}
		bearer = r.Header.Get("Authorization")
		r.Body = io.NopCloser(bytes.NewReader(b))
		next.ServeHTTP(w, r)
	}))
	if _, err := m.StartSandbox(t.Context(), who, sandbox.Spec{}); err != nil {
		t.Fatal(err)
	}
	if body.Target != "eu" || bearer != "Bearer "+a.token {
		t.Errorf("the account was asked for target %q, with the right key: %t", body.Target, bearer == "Bearer "+a.token)
	}
}

// A size without an image is the snapshot's own; whoever asks for one is told.
func TestSizesWithoutAnImage(t *testing.T) {
	a := newAccount(t)
	m, err := sandbox.NewManager(a.open(t, quick), sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	res, err := m.StartSandbox(t.Context(), who, sandbox.Spec{Resources: sandbox.Resources{CPU: 2, Memory: 4 << 30}})
	if err != nil {
		t.Fatal(err)
	}
	told := strings.Join(res.Notice.Warnings, "\n")
	for _, want := range []string{"resources.cpu", "resources.memory_gib", "not enforced"} {
		if !strings.Contains(told, want) {
			t.Errorf("StartSandbox warns %q, without %q", told, want)
		}
	}
	if _, err := m.ExecuteCommand(t.Context(), who, sandbox.RunRequest{Command: "true"}); err != nil {
		t.Errorf("ExecuteCommand: %v", err)
	}
}
