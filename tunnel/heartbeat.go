package tunnel

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/notify"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/health"
	"wmproxy/tunnel/wire"
)

// heartbeats is what a path sends and knows of probes.
type heartbeats struct {
	due      atomic.Bool // something is in the mailbox: ping or pongs
	sent     [len(wire.Counts{})]atomic.Uint64
	received [len(wire.Counts{})]atomic.Uint64
	used     atomic.Int64 // when something other than a probe last passed, on the session's clock
	resting  atomic.Bool  // the heartbeat sleeps for long: use wakes it
	wake     notify.Signal
	own      atomic.Int64 // largest bundle in bytes that arrives, as we judge; 0 is any
	limit    atomic.Int64 // the same, as the peer says

	mu       sync.Mutex
	h        *health.Health // nil on the server
	ping     uint64         // id of the ping that is due; 0 is none
	pingFull bool
	pongs    []pong
	tcp      health.Resends
}

// pong is an answer that is due.
type pong struct {
	id       uint64
	size     int // of the ping's bundle
	received wire.Counts
}

func load(c *[len(wire.Counts{})]atomic.Uint64) (out wire.Counts) {
	for i := range c {
		out[i] = c[i].Load()
	}
	return out
}

// count counts one bundle of n bytes.
func count(c *[len(wire.Counts{})]atomic.Uint64, n int) {
	c[0].Add(1)
	for i, size := range wire.SizeClasses {
		if n <= size {
			return
		}
		c[i+1].Add(1)
	}
}

// touch notes that the carrier is in use.
func (p *Path) touch(now time.Duration) {
	p.beat.used.Store(int64(now))
	if p.beat.resting.Load() && p.beat.resting.CompareAndSwap(true, false) {
		p.beat.wake.Wake()
	}
}

// inUse says whether something passed lately, or wants to.
func (p *Path) inUse(now time.Duration) bool {
	used := p.beat.used.Load()
	return used != 0 && now-time.Duration(used) < p.s.cfg.Timers.Suspect
}

// wakeSender makes the send loop look into the mailbox.
func (p *Path) wakeSender() {
	p.beat.due.Store(true)
	p.snd.Wake.Wake()
}

// heartbeat judges the carrier until it ends: on the client by pings, on the
// server by whether anything comes at all.
func (p *Path) heartbeat() {
	if p.beat.h == nil {
		p.awaitSigns()
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	c := clocks{steady: p.s.now(), wall: p.s.wall(), due: p.s.now()}
	for {
		select {
		case <-timer.C:
		case <-p.beat.wake:
		case <-p.c.Done():
			return
		}
		now := p.s.now()
		slept, stood := c.look(now, p.s.wall())
		next, changed, err := p.probe(now, slept, stood)
		if err != nil {
			p.fail(carrier.CodeTimeout, err)
			return
		}
		if changed {
			p.s.judged()
		}
		c.due = now + next
		timer.Reset(next)
	}
}

// clocks is what they said at the last heartbeat.
type clocks struct {
	steady time.Duration
	wall   time.Time
	due    time.Duration // the next heartbeat, on the steady clock
}

// look takes what they say now. slept says that the machine has been asleep, and
// stood that the process stood still while the steady clock went on: what arrived meanwhile
// has yet to be read. A wall clock that is set forward looks like sleep.
func (c *clocks) look(steady time.Duration, wall time.Time) (slept, stood bool) {
	slept = wall.Sub(c.wall)-(steady-c.steady) > asleepAfter
	stood = steady-c.due > asleepAfter
	c.steady, c.wall = steady, wall
	return slept, stood
}

// probe asks for a ping where one is due, judges, and says when to look again.
func (p *Path) probe(now time.Duration, slept, stood bool) (next time.Duration, changed bool, err error) {
	loss := p.tcpStats()
	b := &p.beat
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resting.Store(false)
	inUse := p.inUse(now)
	if stood {
		b.h.Forgive()
		b.ping = 0 // it is excused too
	}
	if slept || stood {
		b.h.Doubt()
	}
	if b.h.Silence(now) >= p.s.cfg.Timers.Dead {
		return 0, false, fmt.Errorf("no sign of life for %v", p.s.cfg.Timers.Dead)
	}
	changed = p.judgeLocked(now)
	changed = b.tcp.Judge(now, loss) || changed
	since := now - b.h.LastAsked()
	every := b.h.Interval(now, inUse)
	if since >= every || b.h.Doubted {
		if b.ping == 0 { // else the send loop is stuck with the one before
			b.ping = b.h.Ask(now)
			b.pingFull = b.h.Full(b.ping, inUse)
			p.wakeSender()
		}
		since = 0
	}
	// Doubt and the verdict come between pings.
	next = max(min(every-since, p.s.cfg.Timers.Suspect/4), time.Millisecond)
	if every > p.s.cfg.Timers.Suspect && b.h.Silence(now) == 0 {
		b.resting.Store(true)
		if !p.inUse(p.s.now()) { // else it was touched before it rested
			next = max(every-since, time.Millisecond)
		}
	}
	return next, changed, nil
}

// judgeLocked brings the verdict up to now; beat.mu is held.
func (p *Path) judgeLocked(now time.Duration) (changed bool) {
	changed = p.beat.h.Judge(now)
	p.beat.own.Store(int64(p.beat.h.Limit))
	return changed
}

// awaitSigns ends the carrier when nothing arrives any more.
func (p *Path) awaitSigns() {
	due := p.s.now() + p.s.cfg.Timers.Dead
	timer := time.NewTimer(p.s.cfg.Timers.Dead)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-p.c.Done():
			return
		}
		now := p.s.now()
		left, err := p.signs(now, due)
		if err != nil {
			p.fail(carrier.CodeTimeout, err)
			return
		}
		due = now + left
		timer.Reset(left)
	}
}

// signs says how long the carrier may stay silent yet, or that it is dead. due is
// when it was to be asked.
func (p *Path) signs(now, due time.Duration) (left time.Duration, err error) {
	if now-due > asleepAfter {
		p.heard.Store(int64(now)) // the process stood still: what arrived has yet to be read
	}
	dead := p.s.cfg.Timers.Dead
	if left = time.Duration(p.heard.Load()) + dead - now; left <= 0 {
		return 0, fmt.Errorf("nothing was received for %v", dead)
	}
	return left, nil
}

// receiveProbe takes the body of a record of flow 0 in a bundle of size bytes.
func (p *Path) receiveProbe(body []byte, size int, now time.Duration) {
	pr, ok := wire.ParseProbe(body)
	if !ok {
		return
	}
	received := load(&p.beat.received)
	b := &p.beat
	if !pr.Pong {
		b.limit.Store(int64(min(pr.Limit, carrier.MaxBundleSize)))
		b.mu.Lock()
		if len(b.pongs) == maxPongs {
			b.pongs = append(b.pongs[:0], b.pongs[1:]...)
		}
		b.pongs = append(b.pongs, pong{id: pr.ID, size: min(size, wire.FullProbe), received: received})
		b.mu.Unlock()
		p.wakeSender()
		return
	}
	if b.h == nil {
		return
	}
	b.mu.Lock()
	changed := false
	if b.h.Answer(now, &pr, received) {
		p.rtt.Store(int64(b.h.RTT))
		b.tcp.Hear(health.Segments{Segments: pr.Segments, Resent: pr.Resent})
		changed = p.judgeLocked(now)
	}
	b.mu.Unlock()
	if changed {
		p.s.judged()
	}
}

// appendProbe begins a bundle with the probe that is due, if any. least is the
// size that the whole bundle must have.
func (p *Path) appendProbe(buf []byte, limit int) (_ []byte, least int) {
	b := &p.beat
	if !b.due.Load() {
		return buf, 0
	}
	stats := p.tcpStats()
	b.mu.Lock()
	defer b.mu.Unlock()
	pr := wire.Probe{Sent: load(&b.sent), Segments: stats.Segments, Resent: stats.Resent}
	switch {
	case len(b.pongs) > 0:
		pr.Pong, pr.ID, pr.Received, pr.Epoch = true, b.pongs[0].id, b.pongs[0].received, p.out.heardEpoch()
		least = b.pongs[0].size
		b.pongs = append(b.pongs[:0], b.pongs[1:]...)
	case b.ping != 0:
		pr.ID, pr.Received, pr.Limit = b.ping, load(&b.received), uint64(b.h.Limit)
		b.h.Sent(pr.ID, pr.Sent)
		if b.pingFull {
			least = wire.FullProbe
		}
		b.ping = 0
	}
	b.due.Store(len(b.pongs) > 0 || b.ping != 0)
	if pr.ID == 0 {
		return buf, 0
	}
	return pr.Append(buf), min(least, limit)
}

// bundleLimit is the largest bundle to send now in bytes, and the largest that the
// transport takes, which probes may have.
func (p *Path) bundleLimit() (limit, most int) {
	most = min(p.c.MaxBundle(), carrier.MaxBundleSize)
	limit = most
	for _, n := range [...]int64{p.beat.own.Load(), p.beat.limit.Load()} {
		if n > 0 {
			limit = min(limit, max(int(n), carrier.MinBundle))
		}
	}
	return limit, most
}

// good reports whether the carrier may be relied on, and returns the reason if it currently may not.
func (p *Path) good() (good bool, why string) {
	b := &p.beat
	if b.h == nil {
		return true, ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.h.Suspect, b.h.Reason(p.s.now(), time.Duration(p.heard.Load()))
}

// openPing returns how long the oldest unanswered ping has been open; 0 is none.
func (p *Path) openPing(now time.Duration) time.Duration {
	if p.beat.h == nil {
		return 0
	}
	p.beat.mu.Lock()
	defer p.beat.mu.Unlock()
	return p.beat.h.Silence(now)
}

// provedAt returns when a ping left that was answered, or when the carrier began.
func (p *Path) provedAt() time.Duration {
	if p.beat.h == nil {
		return p.began
	}
	p.beat.mu.Lock()
	defer p.beat.mu.Unlock()
	return max(p.began, p.beat.h.ProvedAt())
}

// probeNow has the carrier pinged at once and again until it answers.
func (p *Path) probeNow() {
	if p.beat.h == nil {
		return
	}
	p.beat.mu.Lock()
	p.beat.h.Doubt()
	p.beat.mu.Unlock()
	p.beat.wake.Wake()
}

// serviceable says whether the carrier is worth keeping as the one of its kind:
// good, or on probation.
func (p *Path) serviceable() bool {
	b := &p.beat
	if b.h == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.h.Suspect || b.h.Probation
}

// inherit puts the carrier on probation where before, of the same kind, is suspect.
func (p *Path) inherit(before *Path) {
	b := &before.beat
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.h.Suspect {
		p.beat.h.Follow(b.h)
		p.beat.own.Store(int64(b.h.Limit))
	}
}

// resends says whether the TCP connection sends too much again.
func (p *Path) resends() bool {
	p.beat.mu.Lock()
	defer p.beat.mu.Unlock()
	return p.beat.tcp.Lossy
}

// tcpStats returns the counts of a carrier that sends again what was lost, and is slow then; zero on
// others.
func (p *Path) tcpStats() health.Segments {
	if !p.traits.InOrder || p.traits.LossTolerant {
		return health.Segments{}
	}
	s := p.c.Stats()
	return health.Segments{Segments: s.PacketsUp, Resent: s.PacketsLost}
}
