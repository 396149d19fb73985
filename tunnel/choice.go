package tunnel

import (
	"fmt"
	"log/slog"
	"slices"
	"time"
)

const (
	// maxPerKind bounds the carriers of one kind in a session, but for those that
	// have streams, which maxWithStreams bounds with them.
	maxPerKind     = 2
	maxWithStreams = 4
)

// retireGrace is how long a carrier that is of no more use is kept for what is
// under way on it.
const retireGrace = 500 * time.Millisecond

// name is a carrier's kind as an operator knows it.
func (k Kind) name() string {
	if k == KindQUIC {
		return "QUIC"
	}
	return k.String()
}

// chooseLocked decides which carrier serves what, after attached, a verdict or
// the client's preference has changed.
func (s *Session) chooseLocked() {
	s.wakeWaitersLocked()
	if s.server {
		s.datagramPath = s.named(s.prefer.datagrams, KindQUIC)
		s.streamPath = s.named(s.prefer.streams, KindYamux)
	} else {
		s.decideLocked()
	}
	if s.datagramPath != nil {
		s.q.use(s.datagramPath.snd)
	} else {
		s.q.use(nil)
	}
	if s.streamPath != nil {
		s.streamPath.out.wake.Wake() // it may have ends to send
	}
}

// decideLocked is the client's choice, which it tells the server.
func (s *Session) decideLocked() {
	d := s.best(KindQUIC, s.datagramPath)
	s.tellMove("datagrams", s.datagramPath, d, s.reason(d, KindQUIC))
	s.datagramPath = d
	kind, _ := s.streamKind()
	st := s.best(kind, s.streamPath)
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

// streamKind is the kind of carrier that new streams prefer now, and why where
// that is not a setting.
func (s *Session) streamKind() (kind Kind, why string) {
	if s.cfg.Streams != 0 {
		return s.cfg.Streams, ""
	}
	for _, p := range s.paths {
		if p.Kind() == KindYamux && p.resends() {
			return KindQUIC, "yamux has to send too much again"
		}
	}
	return KindYamux, ""
}

// streamsWhy returns why st, and no other carrier, serves new streams.
func (s *Session) streamsWhy(st *Path) string {
	kind, why := s.streamKind()
	if why != "" && st != nil && st.Kind() == kind {
		return why
	}
	return s.reason(st, kind)
}

// best returns the carrier for a class that prefers kind and is now on current: a good one before one on probation before a suspect, then
// the preferred kind, then the newest. Among suspects it stays where it is.
func (s *Session) best(kind Kind, current *Path) (best *Path) {
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

// reason says why a, and not the newest carrier of the preferred kind, serves a class.
func (s *Session) reason(p *Path, kind Kind) string {
	switch {
	case p == nil:
		return "nothing is attached"
	case p.Kind() == kind:
		if good, why := p.good(); !good {
			return fmt.Sprintf("%s, but nothing is better", why)
		}
		return "preferred"
	}
	for _, b := range slices.Backward(s.paths) {
		if b.Kind() == kind && b.c.Err() == nil {
			_, why := b.good()
			return fmt.Sprintf("%s %s", kind.name(), why)
		}
	}
	return fmt.Sprintf("%s is not attached", kind.name())
}

// tellMove makes an event of a class that moves from one kind of carrier to another.
func (s *Session) tellMove(class string, from, to *Path, why string) {
	if from == nil || to == nil || from.Kind() == to.Kind() || s.closed {
		return
	}
	if why == "preferred" {
		why = to.Kind().name() + " works"
	}
	s.event(slog.LevelInfo, "%s, %s moved to %s", why, class, to.Kind().name())
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

// named returns the carrier that the client asked for, where that is attached,
// else the newest of the preferred kind, else the newest.
func (s *Session) named(number uint64, kind Kind) *Path {
	var best *Path
	for _, p := range s.paths {
		if p.c.Err() != nil {
			continue
		}
		if number != 0 && p.number == number {
			return p
		}
		if best == nil || p.Kind() == kind || best.Kind() != kind {
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
	newest := make(map[Kind]bool)
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
			s.wg.Go(func() { p.closeFor(CodeReplaced, "a newer connection of the same kind took its place") })
		}
	}
	s.mu.Unlock()
}

// surplusLocked is the carriers of c's kind that go when c is attached: the oldest
// without streams beyond maxPerKind, and whatever is oldest beyond maxWithStreams.
func (s *Session) surplusLocked(c Carrier) (surplus []*Path) {
	n := 0
	for _, p := range slices.Backward(s.paths) {
		if p.Kind() != c.Kind() {
			continue
		}
		if n++; n >= maxWithStreams || n >= maxPerKind && p.streams.Load() == 0 {
			surplus = append(surplus, p)
		}
	}
	return surplus
}

// Serving returns the carriers that serve datagrams and new streams; nil is none.
func (s *Session) Serving() (datagrams, streams *Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.datagramPath, s.streamPath
}

// Healthy says whether a carrier of the kind is attached that is good or on
// probation; 0 is any kind.
func (s *Session) Healthy(kind Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.healthyLocked(kind)
}

func (s *Session) healthyLocked(kind Kind) bool {
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
