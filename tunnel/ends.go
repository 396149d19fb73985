package tunnel

import (
	"errors"

	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/tunnel/wire"
)

var errEndNumber = errors.New("an end's number is out of bounds")

// endList is the flows whose end the peer has not acknowledged. They are numbered
// in order and travel on the carrier that serves streams; when another takes
// over, it sends all of them again. Guarded by Session.mu.
type endList struct {
	pending []flowEnd // numbers first, first+1, …
	first   uint64
	next    int // index of the next one to send
	on      *Path
}

type flowEnd struct {
	flow uint64
	code EndCode
}

func (l *endList) reset() { *l = endList{first: l.first + uint64(len(l.pending))} }

func (l *endList) add(e flowEnd) {
	if len(l.pending) == maxPendingEnds {
		l.ack(l.first + 1)
	}
	l.pending = append(l.pending, e)
}

// ack forgets the ends numbered below upTo.
func (l *endList) ack(upTo uint64) {
	if upTo <= l.first {
		return
	}
	n := int(min(upTo-l.first, uint64(len(l.pending))))
	l.pending = l.pending[n:]
	if len(l.pending) == 0 {
		l.pending = nil // give the memory back
	}
	l.first += uint64(n)
	l.next = max(0, l.next-n)
}

// sendEnd queues the end of a flow for the peer, unless the peer opened it in an
// incarnation that has been replaced.
func (s *Session) sendEnd(in *incarnation, flow uint64, code EndCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || in != nil && in != s.inc {
		return
	}
	s.ends.add(flowEnd{flow, code})
	if s.streamPath != nil {
		s.streamPath.out.wake.Wake()
	}
}

func (s *Session) endsAcked(next uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends.ack(next)
}

// appendEnds appends the ends that a has to send, if it is the carrier that does.
func (s *Session) appendEnds(b []byte, p *Path) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.ends
	if s.streamPath != p {
		return b
	}
	if l.on != p {
		l.on, l.next = p, 0
	}
	n := min(len(l.pending)-l.next, maxEndsPerMessage)
	if n == 0 {
		return b
	}
	payload := quicvarint.Append(make([]byte, 0, 16*n), l.first+uint64(l.next))
	for _, e := range l.pending[l.next : l.next+n] {
		payload = quicvarint.Append(quicvarint.Append(payload, e.flow), uint64(e.code))
	}
	l.next += n
	return wire.AppendMessage(b, wire.MsgEnd, payload)
}
