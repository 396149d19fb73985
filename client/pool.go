package client

import (
	"context"
	"fmt"
	"time"

	"wmproxy/internal/config"
)

const (
	// goneAfter is the time without a usable carrier after which associations move to another
	// server: a little longer than a short pause of two carriers.
	goneAfter = time.Second

	// backAfter is the time with a usable carrier after which new flows and streams return to
	// a server that was gone.
	backAfter = 5 * time.Second

	// With --pick fastest another server is preferred if its round-trip time is lower by the
	// factor fasterBy, which is checked every rttEvery.
	fasterBy = 0.8
	rttEvery = 10 * time.Second

	// proveEvery is the interval of checks whether a server that should take over has answered.
	proveEvery = 20 * time.Millisecond
)

// member is the state of a server in the pool.
type member struct {
	usable bool
	since  time.Time // the last change of usable
	proved time.Time // the last proof that the server answers
	rtt    time.Duration
}

// pool decides which server new flows and streams use, and when associations leave a server.
// It has no clock.
type pool struct {
	fastest bool
	members []member
	current int // -1 before the first
}

func newPool(n int, fastest bool, now time.Time) *pool {
	p := &pool{fastest: fastest, members: make([]member, n), current: -1}
	for i := range p.members {
		p.members[i].since = now
	}
	return p
}

// set sets the state of a server.
func (p *pool) set(i int, usable bool, proved time.Time, rtt time.Duration, now time.Time) {
	m := &p.members[i]
	if m.usable != usable {
		m.usable, m.since = usable, now
	}
	m.proved, m.rtt = proved, rtt
}

// ready reports whether new flows and streams may use server i. If the current one fails,
// another must have answered since: both may be behind the same cut.
func (p *pool) ready(i int, now time.Time) bool {
	m := &p.members[i]
	if !m.usable || i == p.current || p.current < 0 {
		return m.usable
	}
	if c := &p.members[p.current]; !c.usable {
		return m.proved.After(c.since)
	}
	return now.Sub(m.since) >= backAfter
}

// choose returns the server for new flows and streams, or -1 before any was usable. If none
// is usable the server stays the same.
func (p *pool) choose(now time.Time) int {
	best := -1
	for i := range p.members {
		if p.ready(i, now) && (best < 0 || p.better(i, best)) {
			best = i
		}
	}
	if best >= 0 {
		p.current = best
	}
	return p.current
}

// doubtful reports whether server i could take over if it answered.
func (p *pool) doubtful(i int) bool {
	return p.current >= 0 && i != p.current && p.members[i].usable &&
		!p.members[p.current].usable && !p.members[i].proved.After(p.members[p.current].since)
}

// better reports whether server i is preferred to j, which is before it in the list.
func (p *pool) better(i, j int) bool {
	if !p.fastest {
		return false
	}
	a, b := p.members[i].rtt, p.members[j].rtt
	if a == 0 || b == 0 {
		return false
	}
	switch p.current {
	case i:
		return float64(b) > float64(a)*fasterBy
	case j:
		return float64(a) < float64(b)*fasterBy
	}
	return a < b
}

// gone reports whether the associations of server i should leave it, or the time after which
// they may have to, 0 if never.
func (p *pool) gone(i int, leaving bool, now time.Time) (gone bool, in time.Duration) {
	m := &p.members[i]
	if m.usable || i == p.current || !p.members[p.current].usable {
		return false, 0 // no other server is better
	}
	if wait := goneAfter - now.Sub(m.since); wait > 0 && !leaving {
		return false, wait
	}
	return true, 0
}

// steerAll keeps the route on the best server until ctx ends.
func (c *Client) steerAll(ctx context.Context) {
	p := newPool(len(c.upstreams), c.cfg.Pick == config.PickFastest, time.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.steering:
		case <-timer.C:
		}
		timer.Reset(c.steer(p, time.Now()))
	}
}

// steer updates the pool and the route once and returns the time until the next call.
func (c *Client) steer(p *pool, now time.Time) (again time.Duration) {
	again = rttEvery
	for i, u := range c.upstreams {
		p.set(i, u.usable(), u.session.ProvedAt(), u.rtt(), now)
	}
	before := p.current
	i := p.choose(now)
	for j, u := range c.upstreams {
		if p.doubtful(j) {
			u.session.ProbeNow()
			again = proveEvery
		}
	}
	if i < 0 {
		return again
	}
	c.preferred.Set(c.upstreams[i].session)
	if before >= 0 && before != i {
		c.tell(fmt.Sprintf("new flows and streams go to %s", c.upstreams[i].link.Address()))
	}
	for j, u := range c.upstreams {
		leave, in := p.gone(j, u.session.Leaving(), now)
		if leave {
			if n := c.route.Leave(u.session); n > 0 {
				what := fmt.Sprintf("%d associations", n)
				if n == 1 {
					what = "an association"
				}
				c.tell(fmt.Sprintf("%s moved from %s to %s", what, u.link.Address(), c.upstreams[i].link.Address()))
			}
		}
		if in > 0 {
			again = min(again, in)
		}
		if m := &p.members[j]; m.usable && j != i {
			if wait := backAfter - now.Sub(m.since); wait > 0 {
				again = min(again, wait)
			}
		}
	}
	return again
}

// tell logs an event and adds it to those of wmproxy status.
func (c *Client) tell(sentence string) {
	c.cfg.Log.Info(sentence)
	c.events.Note(sentence)
}
