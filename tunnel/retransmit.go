package tunnel

import "time"

const (
	// lossWindow is over how long the retransmissions of a TCP connection are
	// judged, and lossSegments how many segments must have been sent in it.
	lossWindow   = 5 * time.Second
	lossSegments = 50

	// A connection that resends more than one in lossBad segments loses new streams
	// to QUIC; it gets them back after lossRest, doubled by each relapse up to
	// maxLossRest: without streams there is little to judge it by.
	lossBad     = 50
	lossRest    = 30 * time.Second
	maxLossRest = 10 * time.Minute
)

// tcpCounts is what a TCP connection has sent in segments with data, and how many of
// them again.
type tcpCounts struct{ segments, resent uint64 }

func (c tcpCounts) minus(d tcpCounts) tcpCounts {
	if c.segments < d.segments || c.resent < d.resent {
		return tcpCounts{} // the peer's, from before it said anything
	}
	return tcpCounts{c.segments - d.segments, c.resent - d.resent}
}

func (c tcpCounts) bad() bool { return c.segments >= lossSegments && c.resent*lossBad > c.segments }

// tcpLoss judges whether streams should rather travel over QUIC. The zero value works.
type tcpLoss struct {
	peer    tcpCounts // the newest that the peer told
	lossy   bool
	checked time.Duration
	own     tcpCounts // at the last check
	theirs  tcpCounts
	since   time.Duration // lossy changed
	rest    time.Duration
}

// judge takes our counters and says whether lossy changed.
func (l *tcpLoss) judge(now time.Duration, own tcpCounts) (changed bool) {
	if now-l.checked < lossWindow {
		return false
	}
	bad := own.minus(l.own).bad() || l.theirs.segments > 0 && l.peer.minus(l.theirs).bad()
	l.checked, l.own, l.theirs = now, own, l.peer
	switch {
	case bad && !l.lossy:
		if l.rest = min(2*l.rest, maxLossRest); l.rest == 0 || now-l.since > 10*l.rest {
			l.rest = lossRest
		}
	case bad:
		l.since = now // still: the rest begins again
		return false
	case !l.lossy || now-l.since < l.rest:
		return false
	}
	l.lossy, l.since = bad, now
	return true
}
