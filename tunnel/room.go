package tunnel

import (
	"slices"

	"wmproxy/tunnel/carrier"
)

// roomLocked returns the carrier for a new stream: the one that serves streams, or if that is full
// another that works, rather of another kind; nil if there is none.
func (s *Session) roomLocked(full []*Path) (room *Path) {
	may := func(p *Path) bool { return p.c.Err() == nil && !slices.Contains(full, p) }
	if p := s.streamPath; p != nil && may(p) {
		return p
	}
	if len(full) == 0 {
		return nil // the ended carrier is about to be replaced
	}
	for _, p := range slices.Backward(s.paths) {
		if may(p) && p.serviceable() && (room == nil || room.Kind() == full[0].Kind()) {
			room = p
		}
	}
	return room
}

// openLocked returns how many streams are open on all carriers.
func (s *Session) openLocked() (n int64) {
	for _, p := range s.paths {
		n += p.streams.Load()
	}
	return n
}

// widenLocked asks for another carrier, unless there are as many as may be, and reports whether it
// did. Then widened takes the request back.
func (s *Session) widenLocked() bool {
	if s.server || s.streamPath == nil || !s.mayWidenLocked(s.streamPath.Kind()) {
		return false
	}
	if s.widening++; s.widening == 1 {
		s.wakeWaitersLocked()
	}
	return true
}

func (s *Session) widened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.widening--
}

func (s *Session) mayWidenLocked(kind carrier.Kind) bool {
	n := 0
	for _, p := range s.paths {
		if p.Kind() == kind && p.c.Err() == nil {
			n++
		}
	}
	return n < maxPerKind
}

// wakeWaitersLocked wakes all goroutines that wait for a carrier to come or go.
func (s *Session) wakeWaitersLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// streamEnded wakes the goroutines that wait for room, to try again.
func (s *Session) streamEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.widening > 0 {
		s.wakeWaitersLocked()
	}
}

// Needs reports whether another carrier of the kind should be attached: none is good or on probation, or streams
// wait because all are full.
func (s *Session) Needs(kind carrier.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.healthyLocked(kind) ||
		s.widening > 0 && s.streamPath != nil && s.streamPath.Kind() == kind && s.mayWidenLocked(kind)
}
