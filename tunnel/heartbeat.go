package tunnel

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPongs bounds the pings that wait for their answer; an honest client has
	// no more open than it sends in a round trip, and the newest matter.
	maxPongs = 8

	// asleepAfter is how much further than the steady clock, which stops in suspend, the wall
	// clock must have moved between two heartbeats for the machine to have slept, and how
	// late one must come for the process to have stood still.
	asleepAfter = 3 * time.Second
)

// heartbeats is what an attachment sends and knows of probes.
type heartbeats struct {
	due      atomic.Bool // something is in the mailbox: ping or pongs
	sent     [len(counts{})]atomic.Uint64
	received [len(counts{})]atomic.Uint64
	used     atomic.Int64  // when something other than a probe last passed, on the session's clock
	resting  atomic.Bool   // the heartbeat sleeps for long: use wakes it
	stir     chan struct{} // one slot
	own      atomic.Int64  // largest bundle in bytes that arrives, as we judge; 0 is any
	limit    atomic.Int64  // the same, as the peer says

	mu       sync.Mutex
	h        *health // nil on the server
	ping     uint64  // id of the ping that is due; 0 is none
	pingFull bool
	pongs    []pong
	tcp      tcpLoss
}

// pong is an answer that is due.
type pong struct {
	id       uint64
	size     int // of the ping's bundle
	received counts
}

func load(c *[len(counts{})]atomic.Uint64) (out counts) {
	for i := range c {
		out[i] = c[i].Load()
	}
	return out
}

// count counts one bundle of n bytes.
func count(c *[len(counts{})]atomic.Uint64, n int) {
	c[0].Add(1)
	for i, size := range sizeClasses {
		if n <= size {
			return
		}
		c[i+1].Add(1)
	}
}

// touch notes that the carrier is in use.
func (a *Attachment) touch(now time.Duration) {
	a.beat.used.Store(int64(now))
	if a.beat.resting.Load() && a.beat.resting.CompareAndSwap(true, false) {
		wake(a.beat.stir)
	}
}

// inUse says whether something passed lately, or wants to.
func (a *Attachment) inUse(now time.Duration) bool {
	used := a.beat.used.Load()
	return used != 0 && now-time.Duration(used) < a.s.cfg.Timers.Suspect
}

// poke has the send loop look into the mailbox.
func (a *Attachment) poke() {
	a.beat.due.Store(true)
	wake(a.snd.wake)
}

// heartbeat judges the carrier until it ends: on the client by pings, on the
// server by whether anything comes at all.
func (a *Attachment) heartbeat() {
	if a.beat.h == nil {
		a.awaitSigns()
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	c := clocks{steady: a.s.now(), wall: a.s.wall(), due: a.s.now()}
	for {
		select {
		case <-timer.C:
		case <-a.beat.stir:
		case <-a.c.Done():
			return
		}
		now := a.s.now()
		slept, stood := c.look(now, a.s.wall())
		next, changed, err := a.probe(now, slept, stood)
		if err != nil {
			a.fail(CodeTimeout, err)
			return
		}
		if changed {
			a.s.judged()
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
func (a *Attachment) probe(now time.Duration, slept, stood bool) (next time.Duration, changed bool, err error) {
	loss := a.tcpStats()
	b := &a.beat
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resting.Store(false)
	inUse := a.inUse(now)
	if stood {
		b.h.excuse()
		b.ping = 0 // it is excused too
	}
	if slept || stood {
		b.h.hurry()
	}
	if b.h.silent(now) >= a.s.cfg.Timers.Dead {
		return 0, false, fmt.Errorf("no sign of life for %v", a.s.cfg.Timers.Dead)
	}
	changed = a.judgeLocked(now)
	changed = b.tcp.judge(now, loss) || changed
	since := now - b.h.lastAsked()
	every := b.h.interval(now, inUse)
	if since >= every || b.h.hurried {
		if b.ping == 0 { // else the send loop is stuck with the one before
			b.ping = b.h.ask(now)
			b.pingFull = b.h.full(b.ping, inUse)
			a.poke()
		}
		since = 0
	}
	// Doubt and the verdict come between pings.
	next = max(min(every-since, a.s.cfg.Timers.Suspect/4), time.Millisecond)
	if every > a.s.cfg.Timers.Suspect && b.h.silent(now) == 0 {
		b.resting.Store(true)
		if !a.inUse(a.s.now()) { // else it was touched before it rested
			next = max(every-since, time.Millisecond)
		}
	}
	return next, changed, nil
}

// judgeLocked brings the verdict up to now; beat.mu is held.
func (a *Attachment) judgeLocked(now time.Duration) (changed bool) {
	changed = a.beat.h.judge(now)
	a.beat.own.Store(int64(a.beat.h.limit))
	return changed
}

// awaitSigns ends the carrier when nothing arrives any more.
func (a *Attachment) awaitSigns() {
	due := a.s.now() + a.s.cfg.Timers.Dead
	timer := time.NewTimer(a.s.cfg.Timers.Dead)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-a.c.Done():
			return
		}
		now := a.s.now()
		left, err := a.signs(now, due)
		if err != nil {
			a.fail(CodeTimeout, err)
			return
		}
		due = now + left
		timer.Reset(left)
	}
}

// signs says how long the carrier may stay silent yet, or that it is dead. due is
// when it was to be asked.
func (a *Attachment) signs(now, due time.Duration) (left time.Duration, err error) {
	if now-due > asleepAfter {
		a.heard.Store(int64(now)) // the process stood still: what arrived has yet to be read
	}
	dead := a.s.cfg.Timers.Dead
	if left = time.Duration(a.heard.Load()) + dead - now; left <= 0 {
		return 0, fmt.Errorf("nothing was received for %v", dead)
	}
	return left, nil
}

// receiveProbe takes the body of a record of flow 0 in a bundle of size bytes.
func (a *Attachment) receiveProbe(body []byte, size int, now time.Duration) {
	p, ok := parseProbe(body)
	if !ok {
		return
	}
	received := load(&a.beat.received)
	b := &a.beat
	if !p.pong {
		b.limit.Store(int64(min(p.limit, MaxBundleSize)))
		b.mu.Lock()
		if len(b.pongs) == maxPongs {
			b.pongs = append(b.pongs[:0], b.pongs[1:]...)
		}
		b.pongs = append(b.pongs, pong{id: p.id, size: min(size, fullProbe), received: received})
		b.mu.Unlock()
		a.poke()
		return
	}
	if b.h == nil {
		return
	}
	b.mu.Lock()
	changed := false
	if b.h.answer(now, &p, received) {
		a.rtt.Store(int64(b.h.rtt))
		b.tcp.peer = tcpCounts{segments: p.segments, resent: p.resent}
		changed = a.judgeLocked(now)
	}
	b.mu.Unlock()
	if changed {
		a.s.judged()
	}
}

// appendProbe begins a bundle with the probe that is due, if any. least is the
// size that the whole bundle must have.
func (a *Attachment) appendProbe(buf []byte, limit int) (_ []byte, least int) {
	b := &a.beat
	if !b.due.Load() {
		return buf, 0
	}
	stats := a.tcpStats()
	b.mu.Lock()
	defer b.mu.Unlock()
	p := probe{sent: load(&b.sent), segments: stats.segments, resent: stats.resent}
	switch {
	case len(b.pongs) > 0:
		p.pong, p.id, p.received, p.epoch = true, b.pongs[0].id, b.pongs[0].received, a.out.heardEpoch()
		least = b.pongs[0].size
		b.pongs = append(b.pongs[:0], b.pongs[1:]...)
	case b.ping != 0:
		p.id, p.received, p.limit = b.ping, load(&b.received), uint64(b.h.limit)
		b.h.sent(p.id, p.sent)
		if b.pingFull {
			least = fullProbe
		}
		b.ping = 0
	}
	b.due.Store(len(b.pongs) > 0 || b.ping != 0)
	if p.id == 0 {
		return buf, 0
	}
	return p.append(buf), min(least, limit)
}

// bundleLimit is the largest bundle to send now in bytes, and the largest that the
// transport takes, which probes may have.
func (a *Attachment) bundleLimit() (limit, most int) {
	most = min(a.c.MaxBundle(), MaxBundleSize)
	limit = most
	for _, n := range [...]int64{a.beat.own.Load(), a.beat.limit.Load()} {
		if n > 0 {
			limit = min(limit, max(int(n), MinBundle))
		}
	}
	return limit, most
}

// good reports whether the carrier may be relied on, and returns the reason if it currently may not.
func (a *Attachment) good() (good bool, why string) {
	b := &a.beat
	if b.h == nil {
		return true, ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.h.suspect, b.h.reason(a.s.now(), time.Duration(a.heard.Load()))
}

// openPing returns how long the oldest unanswered ping has been open; 0 is none.
func (a *Attachment) openPing(now time.Duration) time.Duration {
	if a.beat.h == nil {
		return 0
	}
	a.beat.mu.Lock()
	defer a.beat.mu.Unlock()
	return a.beat.h.silent(now)
}

// proved is when a ping left that was answered, or when the carrier began.
func (a *Attachment) proved() time.Duration {
	if a.beat.h == nil {
		return a.began
	}
	a.beat.mu.Lock()
	defer a.beat.mu.Unlock()
	return max(a.began, a.beat.h.newest.at)
}

// nudge has the carrier pinged at once and again until it answers.
func (a *Attachment) nudge() {
	if a.beat.h == nil {
		return
	}
	a.beat.mu.Lock()
	a.beat.h.hurry()
	a.beat.mu.Unlock()
	wake(a.beat.stir)
}

// serviceable says whether the carrier is worth keeping as the one of its kind:
// good, or on probation.
func (a *Attachment) serviceable() bool {
	b := &a.beat
	if b.h == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.h.suspect || b.h.probation
}

// inherit puts the carrier on probation where before, of the same kind, is suspect.
func (a *Attachment) inherit(before *Attachment) {
	b := &before.beat
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.h.suspect {
		a.beat.h.succeed(b.h)
		a.beat.own.Store(int64(b.h.limit))
	}
}

// resends says whether the TCP connection sends too much again.
func (a *Attachment) resends() bool {
	a.beat.mu.Lock()
	defer a.beat.mu.Unlock()
	return a.beat.tcp.lossy
}

// tcpStats is what the carrier's TCP connection counts; zero on others.
func (a *Attachment) tcpStats() tcpCounts {
	if y, ok := a.c.(*yamuxCarrier); ok {
		s := y.PathStats()
		return tcpCounts{segments: s.PacketsUp, resent: s.PacketsLost}
	}
	return tcpCounts{}
}
