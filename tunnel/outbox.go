package tunnel

import (
	"sync"
	"time"

	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/internal/notify"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/wire"
)

// outbox is what is due on one carrier's control stream. Each kind of message
// has one place, where the newest replaces what was not yet sent, so nothing a
// peer does makes it grow.
type outbox struct {
	wake notify.Signal

	mu       sync.Mutex
	ack      uint64 // the sequence number after the last end received
	acked    uint64
	prefer   preference
	preferOK bool   // prefer is due
	heard    uint64 // the epoch of the peer's preference, for pongs
	pong     bool   // pong is due
	pongID   uint64
	drain    time.Duration
	drainOK  bool // drain is due
	away     *carrier.CloseError
	awayDone chan struct{}
}

func (o *outbox) set(f func()) {
	o.mu.Lock()
	f()
	o.mu.Unlock()
	o.wake.Wake()
}

func (o *outbox) sendAck(next uint64)     { o.set(func() { o.ack = next }) }
func (o *outbox) sendPrefer(p preference) { o.set(func() { o.prefer, o.preferOK = p, true }) }

func (o *outbox) sendDrain(d time.Duration) { o.set(func() { o.drain, o.drainOK = d, true }) }

func (o *outbox) sendPong(id uint64) { o.set(func() { o.pong, o.pongID = true, id }) }

// hear notes the epoch of the newest preference.
func (o *outbox) hear(epoch uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heard = epoch
}

func (o *outbox) heardEpoch() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.heard
}

// sendGoAway returns a channel that is closed once the message was written.
func (o *outbox) sendGoAway(e *carrier.CloseError) <-chan struct{} {
	done := make(chan struct{})
	o.set(func() {
		if o.awayDone == nil {
			o.away, o.awayDone = e, done
		} else {
			done = o.awayDone
		}
	})
	return done
}

// told closes the channel of sendGoAway.
func (o *outbox) told() { close(o.awayDone) }

// append appends the messages that are due; last says that go-away is among them.
func (o *outbox) append(b []byte, bundles uint64) (_ []byte, last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var p [40]byte
	if o.acked != o.ack {
		o.acked = o.ack
		b = wire.AppendMessage(b, wire.MsgEndAck, quicvarint.Append(p[:0], o.ack))
	}
	if o.preferOK {
		o.preferOK = false
		v := quicvarint.Append(p[:0], o.prefer.epoch)
		v = quicvarint.Append(quicvarint.Append(v, o.prefer.datagrams), o.prefer.streams)
		b = wire.AppendMessage(b, wire.MsgPrefer, v)
	}
	if o.pong {
		o.pong = false
		v := quicvarint.Append(quicvarint.Append(p[:0], o.pongID), bundles)
		b = wire.AppendMessage(b, wire.MsgPong, quicvarint.Append(v, o.heard))
	}
	if o.drainOK {
		o.drainOK = false
		b = wire.AppendMessage(b, wire.MsgDrain, quicvarint.Append(p[:0], uint64(o.drain.Milliseconds())))
	}
	if o.away != nil {
		b = wire.AppendMessage(b, wire.MsgGoAway, wire.AppendSentence(nil, uint64(o.away.Code), o.away.Reason))
		o.away, last = nil, true
	}
	return b, last
}
