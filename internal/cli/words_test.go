package cli

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"berth/sandbox"
)

func TestForPeople(t *testing.T) {
	missing := &sandbox.FieldError{Field: "name", Problem: "there is no snapshot list_snapshots", Hint: "list_snapshots shows those there are, create_snapshot makes one"}
	const advice = "there is no snapshot list_snapshots; berth snapshot ls shows those there are, berth snapshot create makes one"
	used := &sandbox.UserError{Text: "the snapshot s is in use by the sandboxes of a; destroy_sandbox them first", Err: sandbox.ErrLimit}
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"field", missing, "name: " + advice},
		{"wrapped", fmt.Errorf("create: %w", missing), "create: name: " + advice},
		{"without_field", withoutField(missing), advice},
		{"wrapped_keeps_field", withoutField(fmt.Errorf("create: %w", missing)), "create: name: " + advice},
		{"user", used, "the snapshot s is in use by the sandboxes of a; berth rm them first"},
		{"other", errors.New("list_snapshots"), "list_snapshots"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := forPeople(c.err); got != c.want {
				t.Errorf("forPeople(%v) = %q, want %q", c.err, got, c.want)
			}
		})
	}
}

func TestCannotListen(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Op: "listen", Err: syscall.EADDRINUSE}, "choose another port"},
		{&net.OpError{Op: "listen", Err: syscall.EACCES}, "below 1024"},
		{&net.OpError{Op: "listen", Err: syscall.EADDRNOTAVAIL}, "no such address"},
		{errors.New("odd"), "cannot listen on 127.0.0.1:1: odd"},
	} {
		if got := cannotListen("127.0.0.1:1", c.err).Error(); !strings.Contains(got, c.want) || !strings.HasPrefix(got, "cannot listen on 127.0.0.1:1: ") {
			t.Errorf("cannotListen(%v) = %q, want it to begin with the address and to say %q", c.err, got, c.want)
		}
	}
}

func TestImagePath(t *testing.T) {
	for name, ok := range map[string]bool{
		"": true, "debian:12": true, "oci:./x:v1": true, "docker-archive:x.tar": true, "ghcr.io/a/b@sha256:1": true,
		"/srv/oci": false, "./oci": false, "~/oci": false, "oci:": false, "docker-archive:": false,
	} {
		err := imagePath("run: --image", name)
		if (err == nil) != ok {
			t.Errorf("imagePath(%q) = %v, want an error: %t", name, err, !ok)
		}
		if err != nil && (!strings.Contains(err.Error(), "oci:") || !strings.HasPrefix(err.Error(), "run: --image: ")) {
			t.Errorf("imagePath(%q) = %v, want the flag and how to write a path", name, err)
		}
	}
}
