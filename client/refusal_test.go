package client

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/config"
	"wmproxy/tunnel/carrier"
)

var bothKinds = []carrier.Kind{carrier.KindQUIC, carrier.KindYamux}

// A server that does not know the token will hardly know it a second later. It is asked
// again nevertheless, since it let us in before.
func TestRefusedClientAsksOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAwayServer(t)
		s.start()
		c, ended := keepAll(t, []carrier.Kind{carrier.KindYamux}, config.Timers{}, s)
		u := c.upstreams[0]
		attachedAfter(t, u, carrier.KindYamux)
		s.refuses(true)
		s.kill()
		s.start()
		time.Sleep(refusedBackoff / 2)
		s.dialed()
		time.Sleep(10 * refusedBackoff)
		if n := s.dialed(); n < 9 || n > 11 {
			t.Errorf("%d dials in %v, want 10", n, 10*refusedBackoff)
		}
		if err := ended(); err != nil {
			t.Errorf("the client ended although it was let in before: %v", err)
		}
		s.refuses(false)
		if took := attachedAfter(t, u, carrier.KindYamux); took > refusedBackoff {
			t.Errorf("attached after %v, want at most %v", took, refusedBackoff)
		}
	})
}

func TestClientEndsOnceEveryServerHasRefusedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newAwayServer(t), newAwayServer(t)
		first.start()
		first.refuses(true)
		second.refuses(true)
		_, ended := keepAll(t, bothKinds, config.Timers{}, first, second)
		time.Sleep(time.Hour)
		if err := ended(); err != nil {
			t.Errorf("the client ended while one server was away: %v", err)
		}
		second.start()
		time.Sleep(2 * lastBackoff)
		err := ended()
		if err == nil || !strings.Contains(err.Error(), "does not know this user and token") {
			t.Errorf("the client ended with %v, want the refusal", err)
		}
		if err != nil && strings.Contains(err.Error(), testLink.Secret) {
			t.Errorf("the secret is in the error %v", err)
		}
	})
}

func TestRefusalByOneServerLeavesTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newAwayServer(t), newAwayServer(t)
		first.start()
		first.refuses(true)
		second.start()
		c, ended := keepAll(t, bothKinds, config.Timers{}, first, second)
		attachedAfter(t, c.upstreams[1], carrier.KindYamux)
		time.Sleep(time.Hour)
		if err := ended(); err != nil || !c.preferred.Is(c.upstreams[1].session) {
			t.Errorf("ended: %v; the other server is preferred: %v", err, c.preferred.Is(c.upstreams[1].session))
		}
	})
}
