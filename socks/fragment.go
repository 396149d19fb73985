package socks

import (
	"bytes"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
)

// Bounds of reassembly.
const (
	// reassemblyTime is how long a sequence of fragments may take, from its
	// first one on. RFC 1928 section 7 wants no less than 5 s.
	reassemblyTime = 5 * time.Second

	// maxReassembled bounds a reassembled datagram in bytes, ATYP onward: the most
	// that one UDP datagram over IPv6 could have carried after RSV and FRAG.
	maxReassembled = udpio.MaxDatagram6 - udpHeaderLen

	// maxReassembling bounds what all associations of a server hold in
	// unfinished sequences, in bytes.
	maxReassembling = 16 << 20
)

// The FRAG byte (RFC 1928 section 7):
//
//	 7   6 … 0
//	+-----+----------+     0        a datagram by itself
//	| END | POSITION |     1 … 127  position in a sequence
//	+-----+----------+     END      the last of the sequence
const (
	fragEnd      = 0x80
	fragPosition = 0x7f
)

// A fragmentQueue puts one sequence of fragments together. It has no clock and
// no lock; the zero value is empty.
//
// RFC 1928 abandons a sequence when a fragment arrives that is lower than the
// highest seen, so a gap can never be filled: only fragments in order make a
// datagram. Datagrams by themselves may come in between.
type fragmentQueue struct {
	deadline time.Time
	buf      []byte // the address of the first fragment, then the data of all
	addrLen  int
	lastData int  // where in buf the last fragment's data starts
	position byte // of the last fragment; 0 when empty
}

// add takes a fragment whose FRAG is not 0 and whose body (ATYP onward) starts
// with an address of addrLen bytes. It returns the whole datagram, which is the
// caller's, when this was the last one, and how many fragments were given up,
// this one included.
func (q *fragmentQueue) add(frag byte, body []byte, addrLen int, now time.Time) (whole []byte, dropped int) {
	dropped = q.expire(now)
	position := frag & fragPosition
	switch {
	case position != 0 && position == q.position && q.repeats(body, addrLen):
		return nil, dropped // the network's copy of what is here already
	case position == 1 && len(body) <= maxReassembled:
		dropped += q.abandon()
		q.start(body, addrLen, now)
	case position <= 1 || position != q.position+1,
		!bytes.Equal(body[:addrLen], q.buf[:q.addrLen]),
		len(q.buf)+len(body)-addrLen > maxReassembled:
		return nil, dropped + q.abandon() + 1
	default:
		q.lastData = len(q.buf)
		q.buf = append(q.buf, body[addrLen:]...)
		q.position = position
	}
	if frag&fragEnd == 0 {
		return nil, dropped
	}
	whole = q.buf
	*q = fragmentQueue{}
	return whole, dropped
}

// start begins a sequence with its first fragment.
func (q *fragmentQueue) start(body []byte, addrLen int, now time.Time) {
	*q = fragmentQueue{
		deadline: now.Add(reassemblyTime),
		buf:      bytes.Clone(body),
		addrLen:  addrLen,
		lastData: addrLen,
		position: 1,
	}
}

// repeats reports whether body is the last fragment once more.
func (q *fragmentQueue) repeats(body []byte, addrLen int) bool {
	return bytes.Equal(body[:addrLen], q.buf[:q.addrLen]) &&
		bytes.Equal(body[addrLen:], q.buf[q.lastData:])
}

// abandon empties q and returns how many fragments it held.
func (q *fragmentQueue) abandon() int {
	n := int(q.position)
	*q = fragmentQueue{}
	return n
}

// expire empties q when its time is over and returns how many fragments it held.
func (q *fragmentQueue) expire(now time.Time) int {
	if q.empty() || now.Before(q.deadline) {
		return 0
	}
	return q.abandon()
}

func (q *fragmentQueue) empty() bool { return q.position == 0 }

// size is the memory q holds, in bytes.
func (q *fragmentQueue) size() int { return cap(q.buf) }

// reassembly is a fragment queue in use.
type reassembly struct {
	fragmentQueue
	timer *time.Timer
}

// reassemble adds a fragment and returns the whole datagram if it was the last.
func (a *Association) reassemble(frag byte, body []byte, addrLen int) []byte {
	a.reassemblyMu.Lock()
	defer a.reassemblyMu.Unlock()
	if frag&fragPosition == 0 || a.server.reassembling.Load() > maxReassembling {
		a.counts.Drop(stats.Fragment, 1)
		return nil
	}
	q := a.reassembly
	if q == nil {
		if frag&fragPosition != 1 {
			a.counts.Drop(stats.Fragment, 1)
			return nil
		}
		q = &reassembly{timer: time.AfterFunc(reassemblyTime, a.expireFragments)}
		a.reassembly = q
	}
	before := q.size()
	started := q.deadline
	whole, dropped := q.add(frag, body, addrLen, time.Now())
	a.server.reassembling.Add(int64(q.size() - before))
	if dropped > 0 {
		a.counts.Drop(stats.Fragment, dropped)
	}
	if q.empty() {
		q.timer.Stop()
		a.reassembly = nil
	} else if q.deadline != started {
		q.timer.Reset(time.Until(q.deadline))
	}
	return whole
}

// expireFragments frees a sequence whose time is over.
func (a *Association) expireFragments() {
	a.reassemblyMu.Lock()
	defer a.reassemblyMu.Unlock()
	q := a.reassembly
	if q == nil {
		return
	}
	before := q.size()
	if n := q.expire(time.Now()); n > 0 {
		a.counts.Drop(stats.Fragment, n)
		a.server.reassembling.Add(-int64(before))
		a.reassembly = nil
	}
}

// dropFragments frees what is waiting when the association ends.
func (a *Association) dropFragments() {
	a.reassemblyMu.Lock()
	defer a.reassemblyMu.Unlock()
	if q := a.reassembly; q != nil {
		q.timer.Stop()
		a.server.reassembling.Add(-int64(q.size()))
		a.counts.Drop(stats.Fragment, q.abandon())
		a.reassembly = nil
	}
}
