// Package health judges a carrier from what its probes report.
package health

import (
	"fmt"
	"math"
	"time"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/wire"
)

// Timers say how soon a carrier is doubted. The zero value of a field is its default.
type Timers struct {
	// Suspect is how long a carrier in use may go without proof that it works
	// before datagrams and new streams leave it, and the window over which loss is
	// judged. Default 2 s.
	Suspect time.Duration

	// SuspectIdle is the same for a carrier that nobody uses. Default 20 s.
	SuspectIdle time.Duration

	// Dead is how long a carrier may go without proof before it is closed and its
	// streams are reset. Default 30 s, at most MaxDead.
	Dead time.Duration

	// Steady is how long a suspect must have worked well before it is used again.
	// Each relapse doubles it, up to a minute. Default 5 s.
	Steady time.Duration
}

// WithDefaults returns t with the defaults in place of zero.
func (t Timers) WithDefaults() Timers {
	for _, d := range []struct {
		value    *time.Duration
		byItself time.Duration
	}{
		{&t.Suspect, 2 * time.Second},
		{&t.SuspectIdle, 20 * time.Second},
		{&t.Dead, carrier.DefaultDead},
		{&t.Steady, 5 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.byItself
		}
	}
	t.Dead = min(t.Dead, carrier.MaxDead)
	return t
}

// Health judges one carrier from what its pings and pongs say, both directions
// apart. It has no clock and no lock; the client keeps one for each carrier.
//
//	          bad                              well for Steady × 2^relapses
//	good ────────────▶ suspect ───────────────────────────────────────────▶ good
//	                      │ no proof for Dead
//	                      ▼
//	                     dead
//
// bad is one of: a ping unanswered for Suspect; over as long, less than half of
// judgedBundles or more arrived in one direction; of the bundles above some size
// none did, while smaller ones did.
type Health struct {
	t Timers

	pings    [openPings]ping // by id
	next     uint64          // id of the next ping; the first is 1
	answered uint64          // id of the last one answered
	openAt   time.Duration   // when the one after it was asked, if any was
	RTT      time.Duration   // of the last one; 0 before
	lost     float64         // share of bundles lost lately, the worse direction
	Doubted  bool            // after a suspend: until the next answer

	samples [keptSamples]sample // ring, oldest at first
	first   int
	n       int
	newest  sample

	Suspect   bool
	Probation bool          // suspect only because the one before it was
	why       string        // while suspect; reason returns the text to show
	silence   bool          // it is suspect because it was silent
	longest   time.Duration // the longest ended silence of this suspicion
	since     time.Duration // of the present state
	relapses  int
	Limit     int // largest bundle in bytes that the path takes; 0 is any
}

// ping is one that was asked for. sent is from when it left, if it has.
type ping struct {
	id   uint64
	at   time.Duration
	sent wire.Counts
	left bool
}

// sample is what an answered ping said of both directions.
type sample struct {
	at                 time.Duration // of the ping
	sent, peerReceived wire.Counts
	peerSent, received wire.Counts
}

// New returns the health of a carrier that is attached now.
func New(t Timers, now time.Duration) *Health { return &Health{t: t, next: 1, since: now} }

// Follow begins where a suspect of the same kind has got to: that a connection
// can be made on a path says little of what the path loses.
func (h *Health) Follow(before *Health) {
	h.Suspect, h.Probation, h.why, h.silence = true, true, "has yet to prove itself", false
	h.relapses, h.Limit = before.relapses, before.Limit
}

// Ask notes that a ping is due now and returns its id.
func (h *Health) Ask(now time.Duration) uint64 {
	id := h.next
	h.next++
	h.pings[id%openPings] = ping{id: id, at: now}
	if id == h.answered+1 {
		h.openAt = now
	}
	return id
}

// Sent notes what had been sent when the ping left.
func (h *Health) Sent(id uint64, c wire.Counts) {
	if p := &h.pings[id%openPings]; p.id == id {
		p.sent, p.left = c, true
	}
}

// Answer takes a pong; received is what had been received before it. It says
// whether the pong answers something.
func (h *Health) Answer(now time.Duration, p *wire.Probe, received wire.Counts) bool {
	q := h.pings[p.ID%openPings]
	if q.id != p.ID || !q.left || p.ID <= h.answered {
		return false // late, twice or made up
	}
	h.longest = max(h.longest, h.Silence(now))
	h.answered, h.Doubted = p.ID, false
	h.openAt = h.pings[(p.ID+1)%openPings].at // where that was asked
	h.RTT = now - q.at
	if h.Suspect && h.RTT >= h.t.Suspect {
		h.since = now // what was late did not work well
	}
	h.newest = sample{at: q.at, sent: q.sent, peerReceived: p.Received, peerSent: p.Sent, received: received}
	last := h.first + h.n - 1
	if h.n > 0 && q.at-h.samples[last%keptSamples].at < max(h.t.Suspect/16, h.steady()/100) {
		return true
	}
	if h.n == keptSamples {
		h.first = (h.first + 1) % keptSamples
		h.n--
	}
	h.samples[(h.first+h.n)%keptSamples] = h.newest
	h.n++
	return true
}

// LastAsked is when the last ping was due.
func (h *Health) LastAsked() time.Duration {
	if h.next == 1 {
		return -idleProbe * openPings // never: one is due
	}
	return h.pings[(h.next-1)%openPings].at
}

// Silence is how long the oldest ping that is still open has waited, also where it
// is too old to be answered.
func (h *Health) Silence(now time.Duration) time.Duration {
	if h.answered+1 == h.next {
		return 0
	}
	return now - h.openAt
}

// over returns what was sent and received in the two directions between the
// newest sample and the one that is at least span before it; the latest such one,
// or the oldest within span where that is asked for.
func (h *Health) over(span time.Duration, within bool) (up, down flowed, covered time.Duration) {
	base := -1
	for i := range h.n {
		age := h.newest.at - h.samples[(h.first+i)%keptSamples].at
		if within && age <= span {
			base = i
			break
		}
		if !within && age >= span {
			base = i
		}
	}
	if base < 0 {
		return up, down, 0
	}
	s := &h.samples[(h.first+base)%keptSamples]
	up = flowed{h.newest.sent.Minus(s.sent), h.newest.peerReceived.Minus(s.peerReceived)}
	down = flowed{h.newest.peerSent.Minus(s.peerSent), h.newest.received.Minus(s.received)}
	return up, down, h.newest.at - s.at
}

// flowed is what happened in one direction.
type flowed struct{ sent, got wire.Counts }

// arrived is the share of bundles that arrived, 1 where none was sent.
func (f *flowed) arrived() float64 {
	if f.sent[0] == 0 {
		return 1
	}
	return min(1, float64(f.got[0])/float64(f.sent[0]))
}

// eaten returns a size in bytes above which nothing arrives although smaller
// bundles do; 0 is none.
func (f *flowed) eaten() int {
	for i, size := range wire.SizeClasses {
		sent, got := f.sent[i+1], f.got[i+1]
		if got > 0 {
			continue
		}
		small := f.sent[0] - sent
		if small == 0 {
			return 0
		}
		loss := max(leastLoss, 1-float64(f.got[0])/float64(small))
		if loss <= 1-badShare && math.Pow(loss, float64(sent)) <= eatenChance {
			return size
		}
		return 0
	}
	return 0
}

// Judge brings the state up to now and says whether it changed.
func (h *Health) Judge(now time.Duration) (changed bool) {
	if h.Suspect && !h.Probation {
		h.learnLimit()
		return h.recover(now)
	}
	why, silence := h.complaint(now)
	if why == "" && h.Probation {
		return h.recover(now)
	}
	if why == "" {
		return false
	}
	if !h.Suspect && h.relapses > 0 && now-h.since > 10*h.steady() {
		h.relapses = 0
	}
	h.Suspect, h.Probation, h.why, h.since = true, false, why, now
	h.silence, h.longest = silence, 0
	return true
}

// Reason returns why a carrier is suspect now, "" if it is not. heard is when anything last arrived.
func (h *Health) Reason(now, heard time.Duration) string {
	silent := h.Silence(now)
	switch {
	case !h.Suspect:
		return ""
	case !h.silence:
		return h.why
	case silent == 0:
		return fmt.Sprintf("was silent for %.1f s", h.longest.Seconds())
	case now-heard >= silent/2: // answers to earlier pings came after this one was asked
		return fmt.Sprintf("silent for %.1f s", (now - heard).Seconds())
	}
	return fmt.Sprintf("has answered nothing for %.1f s", silent.Seconds())
}

// complaint returns the fault of a carrier that was good, "" if none, and reports whether it is silence.
func (h *Health) complaint(now time.Duration) (why string, silence bool) {
	patience := h.t.Suspect
	if h.Doubted {
		patience = max(patience/4, 3*h.RTT)
	}
	if silent := h.Silence(now); silent >= patience {
		return fmt.Sprintf("silent for %.1f s", silent.Seconds()), true
	}
	// Pings come every quarter of that time, so this covers most of it to all of it.
	up, down, covered := h.over(h.t.Suspect*3/4, false)
	if covered == 0 {
		return "", false
	}
	h.lost = 1 - min(up.arrived(), down.arrived())
	for _, d := range []struct {
		name string
		f    flowed
	}{{"there", up}, {"back", down}} {
		// First, because a path that eats large packets also loses most where most are large.
		if size := d.f.eaten(); size > 0 {
			h.Limit = size
			return fmt.Sprintf("loses all above %d bytes on the way %s", size, d.name), false
		}
		if d.f.sent[0] >= judgedBundles && d.f.arrived() < badShare {
			return fmt.Sprintf("loses %.0f %% on the way %s", 100*(1-d.f.arrived()), d.name), false
		}
	}
	return "", false
}

// learnLimit finds out about a suspect what it was not suspected for: where nothing
// is better it stays in use, and bundles that fit are then all that arrives.
func (h *Health) learnLimit() {
	if h.Limit > 0 {
		return
	}
	up, down, _ := h.over(h.t.Suspect*3/4, false)
	h.Limit = max(up.eaten(), down.eaten())
}

// recover says whether a suspect has worked well for long enough.
func (h *Health) recover(now time.Duration) bool {
	steady := h.steady()
	if now-h.since >= eagerFor {
		steady = max(steady, 2*h.t.Steady) // there are fewer pings to judge by
	}
	if now-h.since < steady || h.Silence(now) >= h.t.Suspect/2 || now-h.newest.at > steady {
		return false
	}
	up, down, covered := h.over(steady, true)
	if covered < steady*4/5 {
		return false
	}
	for _, d := range []*flowed{&up, &down} {
		if d.sent[0] < steadyBundles || d.arrived() < goodShare {
			return false
		}
		for i := range wire.SizeClasses {
			if sent, got := d.sent[i+1], d.got[i+1]; sent > 1 && float64(got) < badShare*float64(sent) {
				return false
			}
		}
	}
	h.lost = 1 - min(up.arrived(), down.arrived())
	h.Suspect, h.Probation, h.why, h.since, h.Limit = false, false, "", now, 0
	h.silence = false
	h.relapses++
	return true
}

// steady is how long a suspect has to work well.
func (h *Health) steady() time.Duration {
	steady := h.t.Steady
	for range h.relapses {
		if steady >= maxSteady {
			break
		}
		steady = min(2*steady, maxSteady)
	}
	return steady
}

// Interval is how long after the last ping the next one is due.
func (h *Health) Interval(now time.Duration, inUse bool) time.Duration {
	often, eager := h.t.Suspect/4, h.t.Suspect/20
	switch {
	case h.Suspect && now-h.since < eagerFor:
		return min(eager, h.t.Steady/(steadyBundles+10))
	case h.Suspect:
		return min(h.t.Suspect/8, 2*h.t.Steady/(steadyBundles+10))
	case h.Doubted || h.Silence(now) > eager+2*h.RTT:
		return eager // in doubt: more pings, so that a lost one means little
	case inUse:
		return often
	}
	return min(h.t.SuspectIdle/2, idleProbe, h.t.Dead/3) // the server ends what is silent for Dead
}

// Full says whether the ping of this id goes in a bundle of the largest size.
func (h *Health) Full(id uint64, inUse bool) bool {
	if inUse || h.Suspect {
		return id%4 == 0
	}
	return id%2 == 0
}

// Doubt is called after the process may have been asleep: nothing that was true
// before need be true now.
func (h *Health) Doubt() { h.Doubted = true }

// Forgive forgets the pings that are open: their answers may wait to be read.
func (h *Health) Forgive() { h.answered = h.next - 1 }

// ProvedAt returns when the newest ping left that was answered.
func (h *Health) ProvedAt() time.Duration { return h.newest.at }

// Loss returns the share of bundles that got lost lately in the worse direction, if that is known.
func (h *Health) Loss() (share float64, known bool) { return h.lost, h.n > 1 }
