package tunnel

import (
	"fmt"
	"math"
	"time"
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

// MaxDead bounds Timers.Dead.
const MaxDead = 4 * time.Minute

// leastPatience is the least time after which a transport gives a silent connection
// up by itself.
const leastPatience = 30 * time.Second

// patience is that time where Timers.Dead is dead, 0 its default: later than the
// session's own verdict, which says why.
func patience(dead time.Duration) time.Duration {
	dead = Timers{Dead: dead}.withDefaults().Dead
	return max(leastPatience, dead+dead/4)
}

func (t Timers) withDefaults() Timers {
	for _, d := range []struct {
		value    *time.Duration
		byItself time.Duration
	}{
		{&t.Suspect, 2 * time.Second},
		{&t.SuspectIdle, 20 * time.Second},
		{&t.Dead, 30 * time.Second},
		{&t.Steady, 5 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.byItself
		}
	}
	t.Dead = min(t.Dead, MaxDead)
	return t
}

const (
	// maxSteady bounds what relapses make of Timers.Steady.
	maxSteady = time.Minute

	// eagerFor is how long a suspect is probed eagerly.
	eagerFor = 30 * time.Second

	// idleProbe is the longest time between two pings; NAT mappings live longer.
	idleProbe = 10 * time.Second

	// How many bundles must have been sent for their loss to mean something, to
	// leave a carrier and to come back to it.
	judgedBundles = 10
	steadyBundles = 40

	// A carrier that loses more than half is left; it is taken back when it loses
	// less than three in ten.
	badShare, goodShare = 0.5, 0.7

	// Large bundles are eaten when it is less likely than this that ordinary loss,
	// taken to be leastLoss at least, met all of them: four where nothing else is lost.
	eatenChance = 1e-5
	leastLoss   = 0.05

	openPings   = 64  // that may still be answered
	keptSamples = 128 // answered pings that loss is judged by
)

// health judges one carrier from what its pings and pongs say, both directions
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
type health struct {
	t Timers

	pings    [openPings]ping // by id
	next     uint64          // id of the next ping; the first is 1
	answered uint64          // id of the last one answered
	openAt   time.Duration   // when the one after it was asked, if any was
	rtt      time.Duration   // of the last one; 0 before
	lost     float64         // share of bundles lost lately, the worse direction
	hurried  bool            // after a suspend: until the next answer

	samples [keptSamples]sample // ring, oldest at first
	first   int
	n       int
	newest  sample

	suspect   bool
	probation bool          // suspect only because the one before it was
	why       string        // while suspect; reason returns the text to show
	silence   bool          // it is suspect because it was silent
	longest   time.Duration // the longest ended silence of this suspicion
	since     time.Duration // of the present state
	relapses  int
	limit     int // largest bundle in bytes that the path takes; 0 is any
}

// ping is one that was asked for. sent is from when it left, if it has.
type ping struct {
	id   uint64
	at   time.Duration
	sent counts
	left bool
}

// sample is what an answered ping said of both directions.
type sample struct {
	at                 time.Duration // of the ping
	sent, peerReceived counts
	peerSent, received counts
}

func newHealth(t Timers, now time.Duration) *health { return &health{t: t, next: 1, since: now} }

// succeed begins where a suspect of the same kind has got to: that a connection
// can be made on a path says little of what the path loses.
func (h *health) succeed(before *health) {
	h.suspect, h.probation, h.why, h.silence = true, true, "has yet to prove itself", false
	h.relapses, h.limit = before.relapses, before.limit
}

// ask notes that a ping is due now and returns its id.
func (h *health) ask(now time.Duration) uint64 {
	id := h.next
	h.next++
	h.pings[id%openPings] = ping{id: id, at: now}
	if id == h.answered+1 {
		h.openAt = now
	}
	return id
}

// sent notes what had been sent when the ping left.
func (h *health) sent(id uint64, c counts) {
	if p := &h.pings[id%openPings]; p.id == id {
		p.sent, p.left = c, true
	}
}

// answer takes a pong; received is what had been received before it. It says
// whether the pong answers something.
func (h *health) answer(now time.Duration, p *probe, received counts) bool {
	q := h.pings[p.id%openPings]
	if q.id != p.id || !q.left || p.id <= h.answered {
		return false // late, twice or made up
	}
	h.longest = max(h.longest, h.silent(now))
	h.answered, h.hurried = p.id, false
	h.openAt = h.pings[(p.id+1)%openPings].at // where that was asked
	h.rtt = now - q.at
	if h.suspect && h.rtt >= h.t.Suspect {
		h.since = now // what was late did not work well
	}
	h.newest = sample{at: q.at, sent: q.sent, peerReceived: p.received, peerSent: p.sent, received: received}
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

// lastAsked is when the last ping was due.
func (h *health) lastAsked() time.Duration {
	if h.next == 1 {
		return -idleProbe * openPings // never: one is due
	}
	return h.pings[(h.next-1)%openPings].at
}

// silent is how long the oldest ping that is still open has waited, also where it
// is too old to be answered.
func (h *health) silent(now time.Duration) time.Duration {
	if h.answered+1 == h.next {
		return 0
	}
	return now - h.openAt
}

// over returns what was sent and received in the two directions between the
// newest sample and the one that is at least span before it; the latest such one,
// or the oldest within span where that is asked for.
func (h *health) over(span time.Duration, within bool) (up, down flowed, covered time.Duration) {
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
	up = flowed{h.newest.sent.minus(s.sent), h.newest.peerReceived.minus(s.peerReceived)}
	down = flowed{h.newest.peerSent.minus(s.peerSent), h.newest.received.minus(s.received)}
	return up, down, h.newest.at - s.at
}

// flowed is what happened in one direction.
type flowed struct{ sent, got counts }

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
	for i, size := range sizeClasses {
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

// judge brings the state up to now and says whether it changed.
func (h *health) judge(now time.Duration) (changed bool) {
	if h.suspect && !h.probation {
		h.learnLimit()
		return h.recover(now)
	}
	why, silence := h.complaint(now)
	if why == "" && h.probation {
		return h.recover(now)
	}
	if why == "" {
		return false
	}
	if !h.suspect && h.relapses > 0 && now-h.since > 10*h.steady() {
		h.relapses = 0
	}
	h.suspect, h.probation, h.why, h.since = true, false, why, now
	h.silence, h.longest = silence, 0
	return true
}

// reason returns why a carrier is suspect now, "" if it is not. heard is when anything last arrived.
func (h *health) reason(now, heard time.Duration) string {
	silent := h.silent(now)
	switch {
	case !h.suspect:
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
func (h *health) complaint(now time.Duration) (why string, silence bool) {
	patience := h.t.Suspect
	if h.hurried {
		patience = max(patience/4, 3*h.rtt)
	}
	if silent := h.silent(now); silent >= patience {
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
			h.limit = size
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
func (h *health) learnLimit() {
	if h.limit > 0 {
		return
	}
	up, down, _ := h.over(h.t.Suspect*3/4, false)
	h.limit = max(up.eaten(), down.eaten())
}

// recover says whether a suspect has worked well for long enough.
func (h *health) recover(now time.Duration) bool {
	steady := h.steady()
	if now-h.since >= eagerFor {
		steady = max(steady, 2*h.t.Steady) // there are fewer pings to judge by
	}
	if now-h.since < steady || h.silent(now) >= h.t.Suspect/2 || now-h.newest.at > steady {
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
		for i := range sizeClasses {
			if sent, got := d.sent[i+1], d.got[i+1]; sent > 1 && float64(got) < badShare*float64(sent) {
				return false
			}
		}
	}
	h.lost = 1 - min(up.arrived(), down.arrived())
	h.suspect, h.probation, h.why, h.since, h.limit = false, false, "", now, 0
	h.silence = false
	h.relapses++
	return true
}

// steady is how long a suspect has to work well.
func (h *health) steady() time.Duration {
	steady := h.t.Steady
	for range h.relapses {
		if steady >= maxSteady {
			break
		}
		steady = min(2*steady, maxSteady)
	}
	return steady
}

// interval is how long after the last ping the next one is due.
func (h *health) interval(now time.Duration, inUse bool) time.Duration {
	often, eager := h.t.Suspect/4, h.t.Suspect/20
	switch {
	case h.suspect && now-h.since < eagerFor:
		return min(eager, h.t.Steady/(steadyBundles+10))
	case h.suspect:
		return min(h.t.Suspect/8, 2*h.t.Steady/(steadyBundles+10))
	case h.hurried || h.silent(now) > eager+2*h.rtt:
		return eager // in doubt: more pings, so that a lost one means little
	case inUse:
		return often
	}
	return min(h.t.SuspectIdle/2, idleProbe)
}

// full says whether the ping of this id goes in a bundle of the largest size.
func (h *health) full(id uint64, inUse bool) bool {
	if inUse || h.suspect {
		return id%4 == 0
	}
	return id%2 == 0
}

// hurry is called after the process may have been asleep: nothing that was true
// before need be true now.
func (h *health) hurry() { h.hurried = true }

// excuse forgets the pings that are open: their answers may wait to be read.
func (h *health) excuse() { h.answered = h.next - 1 }
