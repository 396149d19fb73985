package health

import "time"

// Segments is what a TCP connection has sent in segments with data, and how many of
// them again.
type Segments struct{ Segments, Resent uint64 }

func (c Segments) minus(d Segments) Segments {
	if c.Segments < d.Segments || c.Resent < d.Resent {
		return Segments{} // the peer's, from before it said anything
	}
	return Segments{c.Segments - d.Segments, c.Resent - d.Resent}
}

func (c Segments) bad() bool { return c.Segments >= lossSegments && c.Resent*lossBad > c.Segments }

// Resends judges whether streams should rather travel over QUIC. The zero value works.
type Resends struct {
	peer    Segments // the newest that the peer told
	Lossy   bool
	checked time.Duration
	own     Segments // at the last check
	theirs  Segments
	since   time.Duration // lossy changed
	rest    time.Duration
}

// Judge takes our counters and says whether lossy changed.
func (l *Resends) Judge(now time.Duration, own Segments) (changed bool) {
	if now-l.checked < lossWindow {
		return false
	}
	bad := own.minus(l.own).bad() || l.theirs.Segments > 0 && l.peer.minus(l.theirs).bad()
	l.checked, l.own, l.theirs = now, own, l.peer
	switch {
	case bad && !l.Lossy:
		if l.rest = min(2*l.rest, maxLossRest); l.rest == 0 || now-l.since > 10*l.rest {
			l.rest = lossRest
		}
	case bad:
		l.since = now // still: the rest begins again
		return false
	case !l.Lossy || now-l.since < l.rest:
		return false
	}
	l.Lossy, l.since = bad, now
	return true
}

// Hear takes the newest counts of the peer.
func (l *Resends) Hear(peer Segments) { l.peer = peer }
