package preview

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// MaxSigned bounds for how long a signed address is good.
const MaxSigned = 24 * time.Hour

// signedLength is that of the random label of a signed address, in characters
// of base32: 80 bits. An exposed port's own label is longer.
const signedLength = 16

// signed are addresses that are good for a while: a host name PORT-LABEL whose
// random label is all that a request needs to bring. They are kept in the state
// directory, so that they hold over a restart.
type signed struct {
	file string

	mu     sync.Mutex
	read   bool
	labels map[string]grant
}

// grant is what a signed label stands for.
type grant struct {
	Port    string    `json:"port"` // the exposed port's label
	Expires time.Time `json:"expires"`
}

// load reads the file once; s.mu is held.
func (s *signed) load() error {
	if s.read {
		return nil
	}
	s.labels = map[string]grant{}
	b, err := os.ReadFile(s.file)
	if err == nil {
		err = json.Unmarshal(b, &s.labels)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("signed addresses: %w", err)
	}
	s.read = true
	return nil
}

// change applies f, forgets what has expired, and writes the file.
func (s *signed) change(f func(map[string]grant)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(); err != nil {
		return err
	}
	f(s.labels)
	now := time.Now()
	for label, g := range s.labels {
		if now.After(g.Expires) {
			delete(s.labels, label)
		}
	}
	b, err := json.Marshal(s.labels)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o700); err != nil {
		return err
	}
	tmp := s.file + "." + rand.Text()[:8]
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.file); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// port is the label of the exposed port that a signed label opens.
func (s *signed) port(label string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.load() != nil {
		return "", false
	}
	g, ok := s.labels[label]
	return g.Port, ok && time.Now().Before(g.Expires)
}

// Sign makes an address of p that needs no token and is good until it expires,
// or Revoke is called with its label. The URL is a host name's: below localhost
// where the operator has no public URL.
func (s *Server) Sign(ctx context.Context, p sandbox.Port, valid time.Duration) (url, label string, err error) {
	if valid <= 0 || valid > MaxSigned {
		return "", "", &sandbox.FieldError{Field: "expires_in_seconds", Problem: valid.String() + " does not fit", Allowed: "1 to 86400 seconds"}
	}
	if s.o.State == "" {
		return "", "", &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "no place to remember signed addresses: berth has no state directory; set BERTH_STATE"}
	}
	if _, err := s.Open(ctx, p); err != nil {
		return "", "", err
	}
	var b [signedLength * 5 / 8]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	label = strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
	err = s.signed.change(func(m map[string]grant) { m[label] = grant{Port: p.Label, Expires: time.Now().Add(valid)} })
	if err != nil {
		return "", "", err
	}
	name := strconv.Itoa(int(p.Number)) + "-" + label
	if s.public != nil {
		return s.public.Scheme + "://" + name + "." + s.public.Host, label, nil
	}
	return "http://" + name + ".localhost:" + strconv.Itoa(int(s.namesPort())), label, nil
}

// Revoke ends a signed address of the port p before it expires; false when
// there is none of that label.
func (s *Server) Revoke(p sandbox.Port, label string) (bool, error) {
	if at, ok := s.signed.port(label); !ok || at != p.Label {
		return false, nil
	}
	return true, s.signed.change(func(m map[string]grant) { delete(m, label) })
}
