package tunnel

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/netsim"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
)

func TestEndedUsersAreToldAndOthersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		near, _ := w.mustAttach(netsim.Config{})
		bob := NewSession(SessionConfig{})
		defer bob.Close(carrier.CodeShutdown, "done")
		stays, _, errNear, errFar := w.attach(bob, Credentials{User: "bob", Token: "right"}, netsim.Config{})
		if errNear != nil || errFar != nil {
			t.Fatal(errNear, errFar)
		}
		n := w.host.EndSessions(func(u *user.User) bool { return u.Name == "alice" }, carrier.CodeAuth, "the token was removed")
		synctest.Wait()
		var end *carrier.CloseError
		if n != 1 || !errors.As(near.Err(), &end) || end.Code != carrier.CodeAuth || end.Reason != "the token was removed" {
			t.Errorf("%d sessions ended, alice's with %v", n, near.Err())
		}
		if stays.Err() != nil || len(w.host.Sessions()) != 1 {
			t.Errorf("bob has %v, and %d sessions are left, want 1", stays.Err(), len(w.host.Sessions()))
		}
	})
}

// The token is removed between the check of Hello and the session's making.
func TestHandshakeWithRemovedTokenIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		registry := NewRegistry(RegistryConfig{Authenticate: func(c Credentials) *user.User {
			if asked.Add(1) > 1 {
				return nil
			}
			return named(c.User)
		}})
		defer registry.Close(carrier.CodeShutdown, "done")
		session := NewSession(SessionConfig{})
		defer session.Close(carrier.CodeShutdown, "done")
		near, far := netsim.New(netsim.Config{}, netsim.Config{})
		go func() { _, _ = registry.Attach(context.Background(), far) }()
		_, err := session.Attach(context.Background(), near, alice)
		var refusal *carrier.CloseError
		if !errors.As(err, &refusal) || refusal.Code != carrier.CodeAuth || len(registry.Sessions()) != 0 {
			t.Errorf("got %v and %d sessions, want a refusal", err, len(registry.Sessions()))
		}
	})
}

func TestRegistryServesTheUsersAttachedSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t, time.Minute)
		defer p.close()
		u := named("alice")
		if s := p.host.For(u); s != nil {
			t.Errorf("%v before anybody came", s.ID())
		}
		near, _ := p.join(lossyPath)
		first := p.host.For(u)
		second := NewSession(SessionConfig{})
		defer second.Close(carrier.CodeShutdown, "done")
		time.Sleep(time.Second)
		p.world.attach(second, alice, orderedPath)
		newer := p.host.For(u)
		if first == nil || newer == nil || newer == first {
			t.Fatal("the newer session does not serve")
		}
		second.Close(carrier.CodeShutdown, "done")
		synctest.Wait()
		if p.host.For(u) != first {
			t.Error("the first session does not serve once the newer has ended")
		}
		near.Break(errors.New("cut"))
		synctest.Wait()
		if p.host.For(u) != first {
			t.Error("the held session does not serve though there is no other")
		}
		time.Sleep(2 * time.Minute)
		if p.host.For(u) != nil {
			t.Error("a session serves after its end")
		}
	})
}
