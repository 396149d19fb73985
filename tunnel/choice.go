package tunnel

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"wmproxy/tunnel/carrier"
)

// A rank returns the order in which transports are preferred for one class of traffic.
type rank func(carrier.Traits) int

func byDatagrams(t carrier.Traits) int { return t.DatagramRank }
func byStreams(t carrier.Traits) int   { return t.StreamRank }

// highest returns the transport of the highest rank among those that may, of all that the
// session knows of; zero if none may.
func (s *Session) highest(by rank, may ...func(carrier.Traits) bool) (best carrier.Traits) {
	look := func(t carrier.Traits) {
		if by(t) > by(best) || best.Kind == 0 {
			for _, ok := range may {
				if !ok(t) {
					return
				}
			}
			best = t
		}
	}
	for _, t := range s.cfg.Transports {
		look(t)
	}
	for _, p := range s.paths {
		look(p.traits)
	}
	return best
}

// chooseLocked decides which carrier serves what, after attached, a verdict or
// the client's preference has changed.
func (s *Session) chooseLocked() {
	s.wakeWaitersLocked()
	if s.server {
		s.datagramPath = s.named(s.prefer.datagrams, byDatagrams)
		s.streamPath = s.named(s.prefer.streams, byStreams)
	} else {
		s.decideLocked()
	}
	if s.datagramPath != nil {
		s.q.Use(s.datagramPath.snd)
	} else {
		s.q.Use(nil)
	}
	if s.streamPath != nil {
		s.streamPath.out.wake.Wake() // it may have ends to send
	}
}

// decideLocked is the client's choice, which it tells the server.
func (s *Session) decideLocked() {
	preferred := s.highest(byDatagrams)
	d := s.best(preferred.Kind, s.datagramPath)
	s.tellMove("datagrams", s.datagramPath, d, s.reason(d, preferred))
	s.datagramPath = d
	preferred, _ = s.streamTransport()
	st := s.best(preferred.Kind, s.streamPath)
	s.tellMove("streams", s.streamPath, st, s.streamsWhy(st))
	s.streamPath = st
	wants := preference{epoch: s.prefer.epoch + 1}
	if d != nil {
		wants.datagrams = d.number
	}
	if st != nil {
		wants.streams = st.number
	}
	s.prefer = wants
	for _, p := range s.paths {
		p.out.sendPrefer(wants)
	}
}

// streamTransport returns the transport that new streams prefer now, and why, unless that
// is its rank or a setting.
func (s *Session) streamTransport() (t carrier.Traits, why string) {
	if s.cfg.Streams != 0 {
		return s.highest(byStreams, func(t carrier.Traits) bool { return t.Kind == s.cfg.Streams }), ""
	}
	t = s.highest(byStreams)
	for _, p := range s.paths {
		if p.Kind() == t.Kind && p.resends() {
			other := s.highest(byStreams, func(o carrier.Traits) bool { return o.Kind != t.Kind })
			if other.Kind != 0 {
				return other, t.Kind.String() + " has to send too much again"
			}
		}
	}
	return t, ""
}

// streamsWhy returns why st, and no other carrier, serves new streams.
func (s *Session) streamsWhy(st *Path) string {
	t, why := s.streamTransport()
	if why != "" && st != nil && st.Kind() == t.Kind {
		return why
	}
	return s.reason(st, t)
}

// best returns the carrier for a class that prefers kind and is now on current: a good one before one on probation before a suspect, then
// the preferred kind, then the newest. Among suspects it stays where it is.
func (s *Session) best(kind carrier.Kind, current *Path) (best *Path) {
	top := -1
	for _, p := range s.paths {
		if p.c.Err() != nil {
			continue
		}
		rank := 0
		if good, _ := p.good(); good {
			rank = 8
		} else if p.serviceable() {
			rank = 4
		} else if p == current {
			rank = 2
		}
		if p.Kind() == kind {
			rank++
		}
		if rank >= top {
			best, top = p, rank
		}
	}
	return best
}

// reason returns why p, and not the newest carrier of the preferred transport, serves a class.
func (s *Session) reason(p *Path, preferred carrier.Traits) string {
	switch {
	case p == nil:
		return "nothing is attached"
	case p.Kind() == preferred.Kind:
		if good, why := p.good(); !good {
			return fmt.Sprintf("%s, but nothing is better", why)
		}
		return "preferred"
	}
	for _, b := range slices.Backward(s.paths) {
		if b.Kind() == preferred.Kind && b.c.Err() == nil {
			_, why := b.good()
			return fmt.Sprintf("%s %s", b.Kind(), why)
		}
	}
	return fmt.Sprintf("%s is not attached", preferred.Kind)
}

// tellMove makes an event of a class that moves from one kind of carrier to another.
func (s *Session) tellMove(class string, from, to *Path, why string) {
	if from == nil || to == nil || from.Kind() == to.Kind() || s.closed {
		return
	}
	if why == "preferred" {
		why = to.Kind().String() + " works"
	}
	s.event(slog.LevelInfo, "%s, %s moved to %s", why, class, to.Kind())
}

// pendingEvent is an event that has yet to be told, and the level that it is logged at.
type pendingEvent struct {
	level    slog.Level
	sentence string
}

// event has notify tell a sentence, which is not done with s.mu held: a log may wait
// for whoever reads it.
func (s *Session) event(level slog.Level, format string, args ...any) {
	s.pendingEvents = append(s.pendingEvents, pendingEvent{level, fmt.Sprintf(format, args...)})
}

// named returns the carrier that the client asked for if that is attached,
// else the newest of the highest rank.
func (s *Session) named(number uint64, by rank) *Path {
	var best *Path
	for _, p := range s.paths {
		if p.c.Err() != nil {
			continue
		}
		if number != 0 && p.number == number {
			return p
		}
		if best == nil || by(p.traits) >= by(best.traits) {
			best = p
		}
	}
	return best
}

// judged is called when the verdict on a carrier has changed, or one has ended.
func (s *Session) judged() {
	s.mu.Lock()
	s.chooseLocked()
	s.mu.Unlock()
	s.retire()
	s.notify()
}

// retire closes the client's carriers that a newer good one of their kind has
// superseded for retireGrace and whose streams have ended. A stream goes where its
// carrier goes, so one with streams stays for as long as it lives.
func (s *Session) retire() {
	if s.server {
		return
	}
	var retired []*Path
	now := s.now()
	s.mu.Lock()
	newest := make(map[carrier.Kind]bool)
	for _, p := range slices.Backward(s.paths) {
		switch {
		case !newest[p.Kind()]:
			p.superseded = 0
		case p.superseded == 0:
			p.superseded = now
			time.AfterFunc(retireGrace, s.retire)
		case now-p.superseded >= retireGrace && p.streams.Load() == 0:
			retired = append(retired, p)
		}
		if good, _ := p.good(); good && p.c.Err() == nil {
			newest[p.Kind()] = true
		}
	}
	if !s.closed {
		for _, p := range retired {
			// Not here: closing waits, and the caller may be what receives.
			s.wg.Go(func() { p.closeFor(carrier.CodeReplaced, "a newer connection of the same kind took its place") })
		}
	}
	s.mu.Unlock()
}

// surplusLocked returns the carriers to close when another of the kind is attached: the oldest
// without streams beyond maxPerKind, and the oldest of all beyond maxWithStreams.
func (s *Session) surplusLocked(kind carrier.Kind) (surplus []*Path) {
	n := 0
	for _, p := range slices.Backward(s.paths) {
		if p.Kind() != kind {
			continue
		}
		if n++; n >= maxWithStreams || n >= maxPerKind && p.streams.Load() == 0 {
			surplus = append(surplus, p)
		}
	}
	return surplus
}

// Healthy says whether a carrier of the kind is attached that is good or on
// probation; 0 is any kind.
func (s *Session) Healthy(kind carrier.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.healthyLocked(kind)
}

func (s *Session) healthyLocked(kind carrier.Kind) bool {
	for _, p := range s.paths {
		if kind != 0 && p.Kind() != kind || p.c.Err() != nil {
			continue
		}
		if p.serviceable() {
			return true
		}
	}
	return false
}

// ProvedAt returns when a carrier was last proved to work in both directions: at its
// start, or when the last answered ping left. It is zero before the first.
func (s *Session) ProvedAt() (latest time.Time) {
	for _, p := range s.Paths() {
		if at := s.start.Add(p.provedAt()); at.After(latest) {
			latest = at
		}
	}
	return latest
}

// ProbeNow makes every carrier prove at once that it works.
func (s *Session) ProbeNow() {
	for _, p := range s.Paths() {
		p.probeNow()
	}
}

// Changes returns a channel that is closed at the next change of what is
// attached or how good it is.
func (s *Session) Changes() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}
