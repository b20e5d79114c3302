package session

import (
	"container/list"
	"errors"
	"strings"
	"sync"

	"berth/sandbox"
)

// The Book's bounds: connections remembered, and session ids remembered and
// shown for each.
const (
	maxConnections = 10_000
	maxSessions    = 20
)

// Choice is the session a call is for.
type Choice struct {
	ID sandbox.SessionID
	// Made tells that nobody named the session: the server chose the id, and
	// the answer must say so.
	Made bool
	// Fresh tells that the id was made for this very call, so that nothing
	// can exist under it yet.
	Fresh bool
}

// Book remembers which sessions each connection has used, and so decides what
// a call without a session_id means. It is safe for concurrent use.
type Book struct {
	fallback sandbox.SessionID

	mu    sync.Mutex
	byKey map[connKey]*list.Element // of *page
	order list.List                 // newest first
}

type connKey struct {
	owner      sandbox.Owner
	connection string
}

type page struct {
	key     connKey
	used    []sandbox.SessionID // oldest first
	told    sandbox.SessionID   // last told to be made by the server
	claimed bool                // start_sandbox has taken the default
}

// NewBook returns an empty Book. fallback is the operator's session
// (--session), for calls that name none; it may be empty.
func NewBook(fallback sandbox.SessionID) *Book {
	return &Book{fallback: fallback, byKey: make(map[connKey]*list.Element)}
}

// named finds a session that somebody named: the argument, the header, or the
// operator.
func (b *Book) named(c Caller, argument string) (sandbox.SessionID, bool, error) {
	if argument != "" {
		id, err := sandbox.ParseSessionID(argument)
		return id, true, err
	}
	if c.HeaderSession != "" {
		id, err := sandbox.ParseSessionID(c.HeaderSession)
		if fe, ok := errors.AsType[*sandbox.FieldError](err); ok {
			fe.Field = "header Berth-Session"
		}
		return id, true, err
	}
	return b.fallback, b.fallback != "", nil
}

// Choose returns the session of a call: the argument (empty when the call
// gave none), else the header's, else the operator's, else the connection's
// default, else a new one. Once the connection has used two sessions, a call
// without a named one is refused with the list.
func (b *Book) Choose(c Caller, argument string) (Choice, error) {
	id, ok, err := b.named(c, argument)
	if ok || err != nil {
		return Choice{ID: id}, err
	}
	if c.Connection == "" && c.DefaultSession == "" {
		return Choice{ID: sandbox.NewSessionID(), Made: true, Fresh: true}, nil
	}
	if used := b.Sessions(c); len(used) > 1 {
		return Choice{}, Ambiguous(used)
	}
	return Choice{ID: b.standard(c), Made: true}, nil
}

// ChooseNew is Choose for start_sandbox: without a named session it makes a
// new one. The first time on a connection the new one is the connection's
// default, if unused tells that nothing ever existed under it; so the calls
// that follow without a session_id mean the sandbox just started.
func (b *Book) ChooseNew(c Caller, argument string, unused func(sandbox.SessionID) bool) (Choice, error) {
	id, ok, err := b.named(c, argument)
	if ok || err != nil {
		return Choice{ID: id}, err
	}
	fresh := Choice{ID: sandbox.NewSessionID(), Made: true, Fresh: true}
	if c.Connection == "" && c.DefaultSession == "" {
		return fresh, nil
	}
	b.mu.Lock()
	p := b.page(c)
	first := !p.claimed && len(p.used) == 0
	p.claimed = true
	b.mu.Unlock()
	if id := b.standard(c); first && unused(id) {
		return Choice{ID: id, Made: true}, nil
	}
	return fresh, nil
}

// Used notes that a call on the connection reached session id.
func (b *Book) Used(c Caller, id sandbox.SessionID) {
	if c.Connection == "" && c.DefaultSession == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.page(c)
	for _, u := range p.used {
		if u == id {
			return
		}
	}
	if len(p.used) < maxSessions {
		p.used = append(p.used, id)
	}
}

// Tell reports whether an answer must say that the server made id, and notes
// that it does: the connection was not told so before, or was told of another
// one since. Requests without a connection are always told.
func (b *Book) Tell(c Caller, id sandbox.SessionID) bool {
	if c.Connection == "" && c.DefaultSession == "" {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.page(c)
	again := p.told == id
	p.told = id
	return !again
}

// Sessions returns the sessions the connection has used, oldest first, at
// most 20.
func (b *Book) Sessions(c Caller) []sandbox.SessionID {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.byKey[keyOf(c)]
	if !ok {
		return nil
	}
	return append([]sandbox.SessionID(nil), e.Value.(*page).used...)
}

// Forget drops what is known of c's connection. Transports call it when the
// connection has ended for good; without it the oldest connection is dropped
// when 10,000 newer ones have come.
func (b *Book) Forget(c Caller) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.byKey[keyOf(c)]; ok {
		b.order.Remove(e)
		delete(b.byKey, keyOf(c))
	}
}

// page returns the connection's page, a new one if need be. b.mu is held.
func (b *Book) page(c Caller) *page {
	k := keyOf(c)
	if e, ok := b.byKey[k]; ok {
		b.order.MoveToFront(e)
		return e.Value.(*page)
	}
	if b.order.Len() >= maxConnections {
		last := b.order.Back()
		b.order.Remove(last)
		delete(b.byKey, last.Value.(*page).key)
	}
	p := &page{key: k}
	b.byKey[k] = b.order.PushFront(p)
	return p
}

func (b *Book) standard(c Caller) sandbox.SessionID {
	if c.DefaultSession != "" {
		return c.DefaultSession
	}
	return Derive(ownerOf(c), c.Connection)
}

func keyOf(c Caller) connKey {
	k := connKey{ownerOf(c), c.Connection}
	if k.connection == "" {
		k.connection = string(c.DefaultSession)
	}
	return k
}

func ownerOf(c Caller) sandbox.Owner {
	if c.Owner == "" {
		return sandbox.LocalOwner
	}
	return c.Owner
}

// Ambiguous is the refusal of a call without a session_id on a connection that
// has used several.
func Ambiguous(used []sandbox.SessionID) error {
	names := make([]string, len(used))
	for i, u := range used {
		names[i] = string(u)
	}
	return &sandbox.FieldError{
		Field:   "session_id",
		Problem: "missing, and this connection has used more than one session",
		Allowed: strings.Join(names, ", ") + ", or a new id of your choice",
		Hint:    "pass the session_id of the sandbox you mean; list_sandboxes shows all, start_sandbox makes a new one",
	}
}
