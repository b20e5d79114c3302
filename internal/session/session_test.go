package session_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"berth/internal/session"
	"berth/sandbox"
)

var never = func(sandbox.SessionID) bool { return true }

func TestCallerInContext(t *testing.T) {
	ctx := t.Context()
	if got := session.From(ctx); got.Owner != sandbox.LocalOwner || session.Present(ctx) {
		t.Errorf("From(empty) = %+v, present %v", got, session.Present(ctx))
	}
	ctx = session.With(context.Background(), session.Caller{Owner: "ann", Connection: "c"})
	if got := session.From(ctx); got.Owner != "ann" || got.Connection != "c" || !session.Present(ctx) {
		t.Errorf("From = %+v", got)
	}
}

func TestDerive(t *testing.T) {
	a := session.Derive("ann", "c1")
	if a != session.Derive("ann", "c1") {
		t.Error("Derive is not stable")
	}
	for _, other := range []sandbox.SessionID{session.Derive("bob", "c1"), session.Derive("ann", "c2")} {
		if a == other {
			t.Errorf("Derive gave %s twice", a)
		}
	}
	if _, err := sandbox.ParseSessionID(string(a)); err != nil || len(a) != len(sandbox.NewSessionID()) {
		t.Errorf("Derive = %q: %v", a, err)
	}
}

func TestChoosePrecedence(t *testing.T) {
	conn := session.Caller{Connection: "c"}
	bound := session.Caller{Connection: "c", DefaultSession: "bound"}
	header := session.Caller{Connection: "c", HeaderSession: "head"}
	cases := []struct {
		name, fallback, argument string
		caller                   session.Caller
		want                     sandbox.SessionID
		made                     bool
	}{
		{"argument", "fall", "arg", header, "arg", false},
		{"header", "fall", "", header, "head", false},
		{"fallback", "fall", "", bound, "fall", false},
		{"bound", "", "", bound, "bound", true},
		{"derived", "", "", conn, session.Derive("", "c"), true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := session.NewBook(sandbox.SessionID(c.fallback))
			want := c.want
			if c.name == "derived" {
				want = session.Derive(sandbox.LocalOwner, "c")
			}
			got, err := b.Choose(c.caller, c.argument)
			if err != nil || got.ID != want || got.Made != c.made {
				t.Errorf("Choose = %+v, %v; want %s made %v", got, err, want, c.made)
			}
		})
	}
	one, _ := session.NewBook("").Choose(session.Caller{}, "")
	two, _ := session.NewBook("").Choose(session.Caller{}, "")
	if one.ID == two.ID || !one.Made || !one.Fresh {
		t.Errorf("without a connection: %+v, %+v; want two new ids", one, two)
	}
}

func TestChooseRefusesBadIDs(t *testing.T) {
	b := session.NewBook("")
	var fe *sandbox.FieldError
	if _, err := b.Choose(session.Caller{}, "../x"); !errors.As(err, &fe) || fe.Field != "session_id" {
		t.Errorf("bad argument: %v", err)
	}
	if _, err := b.Choose(session.Caller{HeaderSession: "a b"}, ""); !errors.As(err, &fe) || fe.Field != "header Berth-Session" {
		t.Errorf("bad header: %v", err)
	}
}

func TestTwoSessionsMakeTheDefaultAmbiguous(t *testing.T) {
	b := session.NewBook("")
	c := session.Caller{Connection: "c"}
	d, err := b.Choose(c, "")
	if err != nil {
		t.Fatal(err)
	}
	b.Used(c, d.ID)
	b.Used(c, d.ID)
	if _, err := b.Choose(c, ""); err != nil {
		t.Fatalf("one session used: %v", err)
	}
	b.Used(c, "other")
	_, err = b.Choose(c, "")
	if err == nil || !strings.Contains(err.Error(), string(d.ID)) || !strings.Contains(err.Error(), "other") {
		t.Errorf("two sessions used: %v; want a refusal with both", err)
	}
	if _, err := b.Choose(c, "other"); err != nil {
		t.Errorf("a named session: %v", err)
	}
	if _, err := b.Choose(session.Caller{Connection: "c", HeaderSession: "h"}, ""); err != nil {
		t.Errorf("the header's session: %v", err)
	}
	if _, err := b.Choose(session.Caller{Connection: "c2"}, ""); err != nil {
		t.Errorf("another connection: %v", err)
	}
	if _, err := b.Choose(session.Caller{Connection: "c", Owner: "bob"}, ""); err != nil {
		t.Errorf("another owner: %v", err)
	}
	for id, want := range map[sandbox.SessionID][]bool{"one": {true, false}, "two": {true, false}} {
		for i, w := range want {
			if got := b.Tell(c, id); got != w {
				t.Errorf("Tell(%s), time %d = %v", id, i+1, got)
			}
		}
	}
	if b.Forget(c); !b.Tell(c, "two") || !b.Tell(session.Caller{}, "x") || !b.Tell(session.Caller{}, "x") {
		t.Error("not told to a new connection, or to one without")
	}
	if _, err := b.Choose(c, ""); err != nil {
		t.Errorf("after Forget: %v", err)
	}
}

func TestChooseNew(t *testing.T) {
	b := session.NewBook("")
	c := session.Caller{Connection: "c"}
	first, _ := b.ChooseNew(c, "", never)
	if want := session.Derive(sandbox.LocalOwner, "c"); first.ID != want || !first.Made {
		t.Errorf("first = %+v, want the connection's default %s", first, want)
	}
	second, _ := b.ChooseNew(c, "", never)
	if second.ID == first.ID || !second.Fresh {
		t.Errorf("second = %+v, want a new id", second)
	}
	known, _ := session.NewBook("").ChooseNew(c, "", func(sandbox.SessionID) bool { return false })
	if known.ID == first.ID {
		t.Error("a default that exists already was taken for new")
	}
	used := session.NewBook("")
	used.Used(c, "a")
	if got, _ := used.ChooseNew(c, "", never); got.ID == first.ID {
		t.Error("on a connection with a session in use the default was taken")
	}
	if got, _ := b.ChooseNew(c, "mine", never); got.ID != "mine" || got.Made {
		t.Errorf("named = %+v", got)
	}
}

func TestBookIsBoundedAndConcurrent(t *testing.T) {
	b := session.NewBook("")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 3000 {
				c := session.Caller{Connection: fmt.Sprintf("%d-%d", g, i)}
				for n := range 3 {
					b.Used(c, sandbox.SessionID(fmt.Sprint("s", n)))
				}
				_, _ = b.Choose(c, "")
			}
		})
	}
	wg.Wait()
	c := session.Caller{Connection: "many"}
	for i := range 100 {
		b.Used(c, sandbox.SessionID(fmt.Sprint("s", i)))
	}
	if got := len(b.Sessions(c)); got != 20 {
		t.Errorf("%d sessions remembered, want 20", got)
	}
	forgotten := 0
	for g := range 4 {
		for i := range 3000 {
			if b.Sessions(session.Caller{Connection: fmt.Sprintf("%d-%d", g, i)}) == nil {
				forgotten++
			}
		}
	}
	if forgotten != 2001 {
		t.Errorf("%d connections forgotten, want 2001", forgotten)
	}
}
