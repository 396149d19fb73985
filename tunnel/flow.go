package tunnel

import (
	"fmt"
	"sync"
	"sync/atomic"

	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel/queue"
)

// EndCode says why a flow ended; the numbers stand on the wire.
type EndCode uint64

// End codes.
const (
	EndNormal   EndCode = 0 // the association ended
	EndLimit    EndCode = 1 // a limit refused it
	EndUnknown  EndCode = 2 // the receiver has no such flow
	EndShutdown EndCode = 3 // the process or the session ends

	// EndRetry is not on the wire: an exit refuses a flow with it that the peer's next
	// datagram is to open again.
	EndRetry = ^EndCode(0)
)

func (c EndCode) String() string {
	switch c {
	case EndNormal:
		return "normal"
	case EndLimit:
		return "limit reached"
	case EndUnknown:
		return "unknown flow"
	case EndShutdown:
		return "shutdown"
	case EndRetry:
		return "no room yet"
	}
	return fmt.Sprintf("end code %d", uint64(c))
}

// FlowHandler takes what the peer sends on one flow.
type FlowHandler interface {
	// Receive takes datagrams in the order they arrived. The slices may be used,
	// and written to, until it returns. One goroutine at a time calls it, and it
	// must not wait. It may still be running when End or Forget returns.
	Receive(bodies [][]byte)

	// Ended says that the peer, or the session, ended the flow. It is called at
	// most once, never after End or Forget has returned, and must not wait.
	Ended(code EndCode)
}

// Flow is the tunnel's side of one UDP association. Its methods may be called
// from any goroutine.
type Flow struct {
	s       *Session
	in      *incarnation // that the peer opened it in; nil if we did
	q       queue.Flow
	over    atomic.Bool // whoever sets it ends the flow
	mu      sync.Mutex  // one receiver at a time, also across carriers
	handler FlowHandler // guarded by mu
}

// ID is the flow's number; it is never used twice in a client process's life.
func (f *Flow) ID() uint64 { return f.q.ID }

// Session is what the flow belongs to.
func (f *Flow) Session() *Session { return f.s }

// Send queues datagrams for the peer, in order: Head and Body of each one after
// the other; Addr is not looked at. It copies them and never waits. What the
// bounded queue has no room for pushes out the oldest and is counted.
func (f *Flow) Send(ms []udpio.Message) {
	if f.over.Load() {
		f.s.drops.Drop(stats.Ended, len(ms))
		return
	}
	f.s.q.Push(&f.q, ms, f.s.now())
}

// Dropped returns what the flow has lost in the queue so far, by reason.
func (f *Flow) Dropped() stats.Dropped { return f.q.Drops.Dropped() }

// End ends the flow on both sides. Further calls do nothing.
func (f *Flow) End(code EndCode) {
	if f.over.CompareAndSwap(false, true) {
		f.s.forget(f, true)
		f.s.sendEnd(f.in, f.ID(), code)
	}
}

// Forget frees our side of the flow without a word to the peer, whose next
// datagram makes it anew. Exits do this with idle flows.
func (f *Flow) Forget() {
	if f.over.CompareAndSwap(false, true) {
		f.s.forget(f, false)
	}
}

func (f *Flow) receive(bodies [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over.Load() {
		f.s.drops.Drop(stats.Ended, len(bodies))
		return
	}
	f.handler.Receive(bodies)
}

// ended tells the handler; the caller has set over. The lock waits for an exit
// that is still making the handler.
func (f *Flow) ended(code EndCode) {
	f.s.q.Clear(&f.q)
	f.mu.Lock()
	h := f.handler
	f.mu.Unlock()
	if h != nil {
		h.Ended(code)
	}
}

// FlowNumbers gives out the numbers of flows, which rise and are never used twice.
// The zero value works.
type FlowNumbers struct{ n atomic.Uint64 }

// next is the next number; bit 0 names the side that opens the flow.
func (f *FlowNumbers) next(server bool) uint64 {
	n := f.n.Add(1) << 1
	if server {
		n |= 1
	}
	return n
}

// OpenFlow makes a flow that the peer learns of with its first datagram.
func (s *Session) OpenFlow(h FlowHandler) (*Flow, error) {
	s.flowsMu.Lock()
	defer s.flowsMu.Unlock()
	if s.ctx.Err() != nil {
		return nil, ErrSessionClosed
	}
	if len(s.flows) >= MaxFlows {
		return nil, fmt.Errorf("tunnel: %d flows are open already", MaxFlows)
	}
	f := s.newFlow(s.numbers.next(s.server), nil)
	f.handler = h
	s.flows[f.q.ID] = f
	return f, nil
}

func (s *Session) newFlow(id uint64, in *incarnation) *Flow {
	f := &Flow{s: s, in: in}
	f.q.ID = id
	f.q.Drops.In(&s.drops)
	return f
}

// ours says whether our side opened the flow of this number.
func (s *Session) ours(id uint64) bool { return id&1 == 1 == s.server }

// deliver hands datagrams of one flow to its handler, and opens the flow if the
// peer may. in is the incarnation of the carrier that they came on.
func (s *Session) deliver(in *incarnation, id uint64, bodies [][]byte) {
	s.flowsMu.RLock()
	f, stale := s.flows[id], s.stale(in, id)
	s.flowsMu.RUnlock()
	switch {
	case stale:
		s.drops.Drop(stats.Ended, len(bodies))
		return
	case f == nil && s.ours(id):
		s.drops.Drop(stats.Unknown, len(bodies))
		s.answerUnknown(id)
		return
	case f == nil:
		if f = s.openIncoming(in, id, len(bodies)); f == nil {
			return
		}
	}
	f.receive(bodies)
}

// stale reports whether the flow was opened by a server process that has been replaced, whose
// numbers the present one uses again. s.flowsMu is held.
func (s *Session) stale(in *incarnation, id uint64) bool { return in != s.peerOf && !s.ours(id) }

// takePeerFlows returns the flows that the peer opened and takes them off the table:
// from now on its flows are those of incarnation next.
func (s *Session) takePeerFlows(next *incarnation) map[uint64]*Flow {
	s.flowsMu.Lock()
	defer s.flowsMu.Unlock()
	theirs := make(map[uint64]*Flow)
	for id, f := range s.flows {
		if !s.ours(id) {
			theirs[id] = f
			delete(s.flows, id)
		}
	}
	s.ended, s.peerOf = endedSet{}, next
	return theirs
}

// openIncoming makes the flow that the peer opened with its first datagram; n is
// how many datagrams are lost where that fails.
func (s *Session) openIncoming(in *incarnation, id uint64, n int) *Flow {
	f := s.newFlow(id, in)
	f.mu.Lock() // others that find it wait until it has its handler
	defer f.mu.Unlock()
	s.flowsMu.Lock()
	stale := s.stale(in, id)
	if other := s.flows[id]; other != nil && !stale {
		s.flowsMu.Unlock()
		return other
	}
	if stale || s.ended.has(id) || s.ctx.Err() != nil {
		s.flowsMu.Unlock()
		s.drops.Drop(stats.Ended, n)
		return nil
	}
	full := s.cfg.Exit == nil || len(s.flows) >= MaxFlows
	if !full {
		s.flows[id] = f
	}
	s.flowsMu.Unlock()
	code := EndLimit
	if !full {
		f.handler, code = s.cfg.Exit.OpenFlow(f)
	}
	if f.handler == nil {
		s.drops.Drop(stats.Refused, n)
		if code == EndRetry {
			f.Forget()
		} else {
			f.End(code)
		}
		return nil
	}
	return f
}

// forget takes f off the table; done remembers that its number is used up.
func (s *Session) forget(f *Flow, done bool) {
	s.flowsMu.Lock()
	if s.flows[f.ID()] == f {
		delete(s.flows, f.ID())
	}
	if done && f.in != nil && f.in == s.peerOf {
		s.ended.add(f.ID())
	}
	s.flowsMu.Unlock()
	s.q.Clear(&f.q)
}

// peerEnded is called for each flow that the peer ended.
func (s *Session) peerEnded(in *incarnation, id uint64, code EndCode) {
	s.flowsMu.Lock()
	if s.stale(in, id) {
		s.flowsMu.Unlock()
		return
	}
	f := s.flows[id]
	delete(s.flows, id)
	if !s.ours(id) {
		s.ended.add(id)
	}
	s.flowsMu.Unlock()
	if f != nil && f.over.CompareAndSwap(false, true) {
		f.ended(code)
	}
}

// answerUnknown tells the peer, at a bounded rate, that its flow is of no use.
func (s *Session) answerUnknown(id uint64) {
	now := int64(s.now())
	last := s.unknownAt.Load()
	if last != 0 && now-last < int64(unknownFlowInterval) || !s.unknownAt.CompareAndSwap(last, now) {
		return
	}
	s.sendEnd(nil, id, EndUnknown)
}

const (
	endedPageBits  = 1 << 15 // flows per page
	maxEndedPages  = 32      // one million flows of one side
	endedPageWords = endedPageBits / 64
)

// endedSet remembers the numbers of flows that have ended, one bit for each, so
// that a late datagram raises no ghost. Numbers rise by two for each side; the
// pages made longest ago are forgotten. The zero value works.
type endedSet struct {
	pages []endedPage
}

type endedPage struct {
	number uint64
	bits   *[endedPageWords]uint64
}

func endedBit(id uint64) (page, word, bit uint64) {
	page = ((id>>1)/endedPageBits)<<1 | id&1
	n := (id >> 1) % endedPageBits
	return page, n / 64, 1 << (n % 64)
}

func (e *endedSet) find(page uint64) *[endedPageWords]uint64 {
	for i := len(e.pages) - 1; i >= 0; i-- {
		if e.pages[i].number == page {
			return e.pages[i].bits
		}
	}
	return nil
}

func (e *endedSet) has(id uint64) bool {
	page, word, bit := endedBit(id)
	b := e.find(page)
	return b != nil && b[word]&bit != 0
}

func (e *endedSet) add(id uint64) {
	page, word, bit := endedBit(id)
	b := e.find(page)
	if b == nil {
		if len(e.pages) == maxEndedPages { // used again: a peer decides how often this happens
			b = e.pages[0].bits
			clear(b[:])
			e.pages = append(e.pages[:0], e.pages[1:]...)
		} else {
			b = new([endedPageWords]uint64)
		}
		e.pages = append(e.pages, endedPage{page, b})
	}
	b[word] |= bit
}
