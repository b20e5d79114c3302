package server

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// A protocol session id is, in base64url without padding:
//
//	kind (1 byte) | random (16) | issued, Unix seconds (4) | MAC (20)
//
// The MAC covers what stands before it and the owner, so an id is good only
// with the token of the owner who opened the session, and on every server that
// has the key, without a store.
const (
	idRandom = 16
	idHead   = 1 + idRandom + 4
	idMAC    = 20
)

// The kinds of protocol sessions.
const (
	kindHTTP  = 'h'
	kindSSE   = 's'
	kindStdio = 'p'
)

// errSession is for ids that are forged, somebody else's, too old or ended;
// the difference is nobody's business.
var errSession = errors.New("no such protocol session")

// errEnded is errSession for an id that was this owner's and was ended, maybe
// on another server.
var errEnded = fmt.Errorf("%w: it was ended", errSession)

// ids makes and checks protocol session ids.
type ids struct {
	key    []byte
	maxAge time.Duration
	dir    string // of ended ids; may be empty

	mu    sync.Mutex
	ended map[string]time.Time // until when the id could still be good
}

func newIDs(key []byte, maxAge time.Duration, dir string) *ids {
	return &ids{key: key, maxAge: maxAge, dir: dir, ended: make(map[string]time.Time)}
}

func (d *ids) mac(purpose string, head []byte, owner sandbox.Owner) []byte {
	h := hmac.New(sha256.New, d.key)
	h.Write([]byte(purpose + "\x00"))
	h.Write(head)
	h.Write([]byte(owner))
	return h.Sum(nil)
}

// make returns a new id and the berth session bound to it.
func (d *ids) make(kind byte, owner sandbox.Owner) (string, sandbox.SessionID) {
	head := make([]byte, idHead)
	head[0] = kind
	_, _ = rand.Read(head[1 : 1+idRandom]) // never fails, see crypto/rand
	binary.BigEndian.PutUint32(head[1+idRandom:], uint32(time.Now().Unix()))
	raw := append(head, d.mac("berth protocol session", head, owner)[:idMAC]...)
	return base64.RawURLEncoding.EncodeToString(raw), d.berthSession(head, owner)
}

// berthSession is the same on every server with the key, cannot be computed
// without it, and looks like any id made by sandbox.NewSessionID.
func (d *ids) berthSession(head []byte, owner sandbox.Owner) sandbox.SessionID {
	sum := d.mac("berth default session", head, owner)
	enc := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum)
	return sandbox.SessionID("s-" + strings.ToLower(enc[:26]))
}

// check returns the berth session of a good id, or errSession.
func (d *ids) check(kind byte, id string, owner sandbox.Owner) (sandbox.SessionID, error) {
	// The decoder skips line ends: only the length makes the spelling unique,
	// without which an ended id would come back in another one.
	if len(id) != base64.RawURLEncoding.EncodedLen(idHead+idMAC) {
		return "", errSession
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(id)
	if err != nil || len(raw) != idHead+idMAC || raw[0] != kind {
		return "", errSession
	}
	head := raw[:idHead]
	if !hmac.Equal(raw[idHead:], d.mac("berth protocol session", head, owner)[:idMAC]) {
		return "", errSession
	}
	issued := time.Unix(int64(binary.BigEndian.Uint32(head[1+idRandom:])), 0)
	// A minute of difference between the clocks of two servers is allowed.
	if age := time.Since(issued); age > d.maxAge || age < -time.Minute {
		return "", errSession
	}
	if d.isEnded(id) {
		return "", errEnded
	}
	return d.berthSession(head, owner), nil
}

// end makes id bad, here and on servers that share the directory. An error
// means that those were not told.
func (d *ids) end(id string) error {
	d.mu.Lock()
	d.ended[id] = time.Now().Add(d.maxAge)
	d.mu.Unlock()
	if d.dir == "" {
		return nil
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(d.file(id), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// file names an ended id by its hash: the directory holds no usable ids.
func (d *ids) file(id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(d.dir, hex.EncodeToString(sum[:16]))
}

func (d *ids) isEnded(id string) bool {
	d.mu.Lock()
	_, ended := d.ended[id]
	d.mu.Unlock()
	if ended || d.dir == "" {
		return ended
	}
	_, err := os.Lstat(d.file(id))
	return err == nil
}

// sweep forgets ended ids that are too old to be good anyway.
func (d *ids) sweep(now time.Time) {
	d.mu.Lock()
	for id, until := range d.ended {
		if now.After(until) {
			delete(d.ended, id)
		}
	}
	d.mu.Unlock()
	if d.dir == "" {
		return
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return // not made yet, or not ours to read: nothing is lost by waiting
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > d.maxAge {
			_ = os.Remove(filepath.Join(d.dir, e.Name())) // another server may have been faster
		}
	}
}
