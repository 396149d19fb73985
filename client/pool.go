package client

import (
	"context"
	"fmt"
	"time"

	"wmproxy/internal/config"
)

const (
	// goneAfter is how long a server may be of no use before its associations move
	// to another: a little longer than two carriers need to tell of a short pause.
	goneAfter = time.Second

	// backAfter is how long a server that was gone must have been of use before new
	// flows and streams return to it.
	backAfter = 5 * time.Second

	// fasterBy is how much lower another server's round-trip time must be for --pick
	// fastest to prefer it, and rttEvery how often that is looked at.
	fasterBy = 0.8
	rttEvery = 10 * time.Second

	// proveEvery is how often a server that is to take over is looked at until it
	// has answered.
	proveEvery = 20 * time.Millisecond
)

// member is a server as the pool sees it.
type member struct {
	usable bool
	since  time.Time // usable changed
	proved time.Time // the server was last proved to answer
	rtt    time.Duration
}

// pool decides which server new flows and streams go to, and when those of one
// that is gone move. It has no clock.
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

// set takes what is true of a server now.
func (p *pool) set(i int, usable bool, proved time.Time, rtt time.Duration, now time.Time) {
	m := &p.members[i]
	if m.usable != usable {
		m.usable, m.since = usable, now
	}
	m.proved, m.rtt = proved, rtt
}

// ready says whether new flows and streams may go to server i. When the present
// one fails, another must have answered since: both may be behind the same cut.
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

// choose returns the server for new flows and streams: -1 before any was usable.
// Where none is, it stays.
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

// doubtful says whether server i could take over if it answered.
func (p *pool) doubtful(i int) bool {
	return p.current >= 0 && i != p.current && p.members[i].usable &&
		!p.members[p.current].usable && !p.members[i].proved.After(p.members[p.current].since)
}

// better says whether server i is to be preferred to j, which stands before it.
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

// gone says whether the associations of server i should leave it, or in how long
// they may have to; 0 is not.
func (p *pool) gone(i int, leaving bool, now time.Time) (gone bool, in time.Duration) {
	m := &p.members[i]
	if m.usable || i == p.current || !p.members[p.current].usable {
		return false, 0 // nowhere is better
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

// steer looks at all servers once and returns when to look again.
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
	c.route.Prefer(c.upstreams[i].session)
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

// tell logs and keeps what an operator may want to know of.
func (c *Client) tell(sentence string) {
	c.cfg.Log.Info(sentence)
	c.events.Note(sentence)
}
