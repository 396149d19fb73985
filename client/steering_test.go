package client

import (
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/config"
	"wmproxy/tunnel/carrier"
)

// steeredTo waits until new flows and streams go to u.
func steeredTo(t *testing.T, c *Client, u *upstream) time.Duration {
	t.Helper()
	began := time.Now()
	for !c.preferred.Is(u.session) {
		if time.Since(began) > time.Minute {
			t.Fatalf("nothing goes to %s within a minute", u.link.Address())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

func TestFlowsFollowTheServersThatWork(t *testing.T) {
	for _, kind := range bothKinds {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := newAwayServer(t), newAwayServer(t)
				first.start()
				second.start()
				timers := config.Timers{Suspect: time.Second, SuspectIdle: time.Second}
				c, _ := keepAll(t, []carrier.Kind{kind}, timers, first, second)
				attachedAfter(t, c.upstreams[0], kind)
				attachedAfter(t, c.upstreams[1], kind)
				time.Sleep(time.Minute)
				if !c.preferred.Is(c.upstreams[0].session) {
					t.Error("the first server is not preferred while both work")
				}

				first.kill()
				if took := steeredTo(t, c, c.upstreams[1]); took > 5*time.Second {
					t.Errorf("the second server is preferred %v after the first went, want at most 5s", took)
				}

				first.start()
				attachedAfter(t, c.upstreams[0], kind)
				if took := steeredTo(t, c, c.upstreams[0]); took < backAfter-time.Second || took > 2*backAfter {
					t.Errorf("the first server is preferred %v after it was back, want about %v", took, backAfter)
				}
			})
		})
	}
}

func TestDrainingServerIsLeftAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newAwayServer(t), newAwayServer(t)
		first.start()
		second.start()
		c, _ := keepAll(t, bothKinds, config.Timers{}, first, second)
		attachedAfter(t, c.upstreams[0], carrier.KindYamux)
		attachedAfter(t, c.upstreams[1], carrier.KindYamux)
		time.Sleep(time.Minute)
		first.host.Drain(time.Minute)
		if took := steeredTo(t, c, c.upstreams[1]); took > time.Second {
			t.Errorf("a draining server is left after %v, want at once", took)
		}
	})
}

func TestWithoutAnyServerRouteStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newAwayServer(t), newAwayServer(t)
		first.start()
		second.start()
		c, _ := keepAll(t, bothKinds, config.Timers{}, first, second)
		attachedAfter(t, c.upstreams[0], carrier.KindYamux)
		time.Sleep(time.Minute)
		second.kill()
		time.Sleep(time.Minute)
		first.kill()
		time.Sleep(10 * time.Minute)
		if !c.preferred.Is(c.upstreams[0].session) {
			t.Error("the route left the server that was used last, though no other works")
		}
		second.start()
		steeredTo(t, c, c.upstreams[1])
	})
}
