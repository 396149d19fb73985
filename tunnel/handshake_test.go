package tunnel

import (
	"testing"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/queue"
	"wmproxy/tunnel/wire"
)

// FuzzControl feeds control messages to a session as its peer would.
func FuzzControl(f *testing.F) {
	f.Add(uint64(wire.MsgEnd), []byte{0, 2, 0, 4, 1})
	f.Add(uint64(wire.MsgEnd), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0})
	f.Add(uint64(wire.MsgEndAck), []byte{5})
	f.Add(uint64(wire.MsgPrefer), []byte{1, 2, 3})
	f.Add(uint64(wire.MsgDrain), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, kind uint64, payload []byte) {
		s := NewSession(SessionConfig{})
		defer s.Close(carrier.CodeNone, "")
		p := &Path{s: s, snd: queue.NewSender(false)}
		p.out.wake = make(chan struct{}, 1)
		_ = p.control(wire.MessageType(kind), payload)
		_, _ = p.out.append(nil, 0)
	})
}

func TestEndedFlowsAreRememberedInBoundedMemory(t *testing.T) {
	var e endedSet
	const n = (maxEndedPages + 4) * endedPageBits
	for id := uint64(2); id < 2*n; id += 2 {
		e.add(id)
	}
	if len(e.pages) != maxEndedPages {
		t.Errorf("%d pages, want %d", len(e.pages), maxEndedPages)
	}
	for _, c := range []struct {
		id   uint64
		want bool
	}{{2*n - 2, true}, {2*n - 2*endedPageBits*30, true}, {2, false}, {2*n + 2, false}, {2*n - 1, false}} {
		if got := e.has(c.id); got != c.want {
			t.Errorf("flow %d ended: %v, want %v", c.id, got, c.want)
		}
	}
}

func TestAcknowledgedEndsAreForgottenAndOthersSentAgain(t *testing.T) {
	var l endList
	for i := range uint64(10) {
		l.add(flowEnd{flow: 2 * i})
	}
	l.next = 10
	l.ack(4)
	l.ack(2) // late
	if l.first != 4 || len(l.pending) != 6 || l.next != 6 || l.pending[0].flow != 8 {
		t.Errorf("first %d, %d pending, next %d", l.first, len(l.pending), l.next)
	}
	l.ack(1 << 60) // a peer that makes things up
	if len(l.pending) != 0 || l.first != 10 || l.next != 0 {
		t.Errorf("first %d, %d pending, next %d", l.first, len(l.pending), l.next)
	}
	for i := range uint64(maxPendingEnds + 5) {
		l.add(flowEnd{flow: i})
	}
	if len(l.pending) != maxPendingEnds || l.first != 15 {
		t.Errorf("%d pending from %d, want %d from 15", len(l.pending), l.first, maxPendingEnds)
	}
}
