package bench

import "time"

// Bounds of the pacing.
const (
	// minStep is the shortest pause between two sends. Above 20,000 datagrams/s several
	// are sent at once.
	minStep = 50 * time.Microsecond
	// maxDebt bounds the time by which a delayed sender catches up. The datagrams of
	// longer delays are skipped, since a burst would be another load.
	maxDebt = 5 * time.Millisecond
)

// pace computes the number of datagrams that are due at a time, to send rate of them per
// second. It has no clock: times are in ns since the start.
type pace struct {
	rate int64 // per second
	sent int64 // due so far, including those skipped

	skipped int64
}

// due returns the number of datagrams to send now.
func (p *pace) due(now int64) int {
	// In two parts, because now*rate overflows after half an hour at 5 million.
	second := int64(time.Second)
	owed := now/second*p.rate + now%second*p.rate/second - p.sent
	limit := max(1, p.rate*int64(maxDebt)/second)
	if owed > limit {
		p.skipped += owed - limit
		p.sent += owed - limit
		owed = limit
	}
	owed = max(owed, 0)
	p.sent += owed
	return int(owed)
}

// next returns the time at which the next one is due, at least minStep after now.
func (p *pace) next(now int64) int64 {
	second := int64(time.Second)
	n := p.sent + 1
	at := n/p.rate*second + (n%p.rate*second+p.rate-1)/p.rate
	return max(at, now+int64(minStep))
}
