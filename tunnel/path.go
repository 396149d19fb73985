package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/queue"
	"wmproxy/tunnel/wire"
)

// Path is a carrier attached to a session. Its
// goroutines belong to the session, which waits for them.
type Path struct {
	handshakeResult
	s       *Session
	c       carrier.Carrier
	traits  carrier.Traits
	in      *incarnation
	snd     *queue.Sender
	out     outbox
	began   time.Duration // on the session's clock
	beat    heartbeats
	heard   atomic.Int64 // when something last arrived, on the session's clock
	rtt     atomic.Int64
	streams atomic.Int64
	carried carriedStreams
	bytes   byteCount                          // of bundles
	cause   atomic.Pointer[carrier.CloseError] // the peer's reason, or ours, before the end
	done    chan struct{}

	superseded time.Duration // since when a newer one makes it needless; 0 is not; guarded by Session.mu

	// Owned by receiveLoop: the datagrams of one flow that arrived in a row.
	reassembler wire.Reassembler
	run         uint64
	bodies      [][]byte
	passed      bool // something other than probes, in this batch
}

// Kind is the carrier's transport.
func (p *Path) Kind() carrier.Kind { return p.traits.Kind }

// RemoteAddr is the carrier's peer.
func (p *Path) RemoteAddr() net.Addr { return p.c.RemoteAddr() }

// LocalAddr is the carrier's own address.
func (p *Path) LocalAddr() net.Addr { return p.c.LocalAddr() }

// RTT is the last ping's round-trip time; 0 before the first.
func (p *Path) RTT() time.Duration { return time.Duration(p.rtt.Load()) }

// Resumed says whether the server knew the session already.
func (p *Path) Resumed() bool { return p.resumed }

// Done is closed once the carrier has ended and its goroutines with it.
func (p *Path) Done() <-chan struct{} { return p.done }

// Err says why the carrier ended; nil while it lives. What the peer, or our own
// checks, gave as the reason is a *CloseError.
func (p *Path) Err() error {
	if e := p.cause.Load(); e != nil && p.c.Err() != nil {
		return e
	}
	return p.c.Err()
}

func (p *Path) execute() {
	defer close(p.done)
	defer p.s.detach(p)
	var wg sync.WaitGroup
	wg.Go(p.sendLoop)
	wg.Go(p.receiveLoop)
	wg.Go(p.controlReadLoop)
	wg.Go(p.controlWriteLoop)
	wg.Go(p.acceptLoop)
	wg.Go(p.heartbeat)
	<-p.c.Done()
	p.s.judged()                    // out of service before it is detached
	p.c.Close(carrier.CodeNone, "") // wait for the carrier's own goroutines
	wg.Wait()
}

// fail ends the carrier because of what the peer did.
func (p *Path) fail(code carrier.ErrorCode, err error) {
	if p.c.Err() != nil {
		return
	}
	p.closeFor(code, err.Error())
}

// closeFor closes the carrier and keeps the reason.
func (p *Path) closeFor(code carrier.ErrorCode, reason string) {
	p.cause.CompareAndSwap(nil, &carrier.CloseError{Code: code, Reason: reason, Own: true})
	p.c.Close(code, reason)
}

// sendLoop sends probes, and pulls bundles from the session's queue for as long
// as this carrier serves it.
func (p *Path) sendLoop() {
	b := make([]byte, 0, carrier.MinBundle)
	for bundles := 0; ; bundles++ {
		limit, most := p.bundleLimit()
		if cap(b) < most {
			b = make([]byte, 0, most)
		}
		if p.snd.Exact && p.snd.Late && (p.streams.Load() > 0 || bundles%controlEvery == 0) {
			limit -= limit / streamShare
		}
		now := p.s.now()
		var least int
		b, least = p.appendProbe(b[:0], most)
		probe := len(b)
		b = p.s.q.Fill(b, limit, p.snd, now)
		if len(b) == 0 {
			select {
			case <-p.snd.Wake:
			case <-p.c.Done():
				return
			}
			continue
		}
		if len(b) > probe {
			p.touch(now)
		}
		if len(b) < least {
			b = queue.Pad(b, least)
		}
		if err := p.c.SendBundle(b); err != nil {
			if tooLarge := (*carrier.BundleTooLargeError)(nil); errors.As(err, &tooLarge) {
				p.s.drops.Drop(stats.PathShrank, 1)
				continue
			}
			return
		}
		count(&p.beat.sent, len(b))
		p.bytes.up.Add(uint64(len(b)))
	}
}

// receiveLoop takes bundles from the carrier and hands out what is in them. It
// never waits for anything else, since over QUIC waiting is losing.
func (p *Path) receiveLoop() {
	defer p.reassembler.Close()
	bundles := make([][]byte, receiveBatch)
	for {
		n, err := p.c.ReceiveBundles(bundles)
		if err != nil {
			return
		}
		now := p.s.now()
		p.heard.Store(int64(now))
		p.reassembler.Expire(now)
		for _, b := range bundles[:n] {
			p.receiveBundle(b, now)
			count(&p.beat.received, len(b))
			p.bytes.down.Add(uint64(len(b)))
		}
		p.flush()
		if p.passed {
			p.passed = false
			p.touch(now)
		}
		clear(bundles[:n])
	}
}

func (p *Path) receiveBundle(b []byte, now time.Duration) {
	size := len(b)
	for len(b) > 0 {
		rec, rest, err := wire.ParseRecord(b)
		if err != nil {
			p.s.drops.Drop(stats.Malformed, 1)
			return
		}
		if rec.Padding() {
			return
		}
		b = rest
		switch {
		case rec.Flow == 0:
			p.receiveProbe(rec.Body, size, now)
		case rec.Fragment:
			p.receiveFragment(&rec, now)
		case len(rec.Body) > 0:
			p.collect(rec.Flow, rec.Body)
		}
	}
}

func (p *Path) receiveFragment(rec *wire.Record, now time.Duration) {
	p.passed = true
	before := p.reassembler.Drops
	whole := p.reassembler.Add(rec, now)
	if lost := p.reassembler.Drops - before; lost > 0 {
		p.s.drops.Drop(stats.Reassembly, int(lost))
	}
	if whole != nil {
		p.collect(rec.Flow, whole)
		p.flush() // the buffer is the reassembler's
	}
}

// collect gathers datagrams of one flow that follow each other, so that the
// handler can send them on with one system call.
func (p *Path) collect(flow uint64, body []byte) {
	p.passed = true
	if flow != p.run {
		p.flush()
		p.run = flow
	}
	p.bodies = append(p.bodies, body)
}

func (p *Path) flush() {
	if len(p.bodies) == 0 {
		return
	}
	p.s.deliver(p.in, p.run, p.bodies)
	clear(p.bodies)
	p.bodies = p.bodies[:0]
}

// controlReadLoop acts on the peer's control messages.
func (p *Path) controlReadLoop() {
	r := bufio.NewReaderSize(p.c.Control(), 1<<10)
	var buf []byte
	for {
		t, payload, err := wire.ReadMessage(r, buf)
		if err != nil {
			if errors.Is(err, wire.ErrMessageTooLong) {
				p.fail(carrier.CodeProtocol, err)
			}
			// The end of the control stream is the end of the carrier.
			p.c.Close(carrier.CodeNone, "")
			return
		}
		buf = payload
		p.heard.Store(int64(p.s.now()))
		if err := p.control(t, payload); err != nil {
			p.fail(carrier.CodeProtocol, err)
			return
		}
	}
}

func (p *Path) control(t wire.MessageType, payload []byte) error {
	f := wire.Fields{B: payload}
	switch t {
	case wire.MsgEnd:
		seq := f.Varint()
		for len(f.B) > 0 {
			flow, code := f.Varint(), EndCode(f.Varint())
			if f.Err != nil {
				break
			}
			p.s.peerEnded(p.in, flow, code)
			seq++
		}
		if f.Err == nil && seq > maxEndNumber {
			return errEndNumber
		}
		if f.Err == nil {
			p.out.sendAck(seq)
		}
	case wire.MsgEndAck:
		p.s.endsAcked(f.Varint())
	case wire.MsgPrefer:
		wants := preference{f.Varint(), f.Varint(), f.Varint()}
		if f.Err == nil {
			p.s.preferred(wants)
		}
	case wire.MsgPing:
		if id := f.Varint(); f.Err == nil {
			p.out.sendPong(id)
		}
	case wire.MsgDrain:
		if left := f.Varint(); f.Err == nil && !p.s.server {
			p.s.drain(time.Duration(min(left, 1<<40)) * time.Millisecond)
		}
	case wire.MsgGoAway:
		code, reason, err := wire.ParseSentence(payload)
		if err != nil {
			return err
		}
		p.cause.Store(&carrier.CloseError{Code: carrier.ErrorCode(code), Reason: reason})
		if p.s.server {
			p.s.leave()
		}
	default:
		if t&1 == 1 {
			return fmt.Errorf("unknown control message of type %d", uint64(t))
		}
	}
	return f.Err
}

// controlWriteLoop writes what is due on the control stream.
func (p *Path) controlWriteLoop() {
	var b []byte
	for {
		last := false
		b, last = p.out.append(b[:0], p.beat.received[0].Load())
		b = p.s.appendEnds(b, p)
		if len(b) > 0 {
			if _, err := p.c.Control().Write(b); err != nil {
				return
			}
			if last {
				p.out.told()
			}
			continue
		}
		select {
		case <-p.out.wake:
		case <-p.c.Done():
			return
		}
	}
}

// acceptLoop takes the streams that the peer opens.
func (p *Path) acceptLoop() {
	ctx := context.Background() // the carrier's end ends AcceptStream
	for {
		st, err := p.c.AcceptStream(ctx)
		if err != nil {
			return
		}
		if p.s.streams.Add(1) > p.s.maxStreams || p.s.crowded.Load() {
			p.s.streams.Add(-1)
			p.s.cfg.Log.Warn("too many streams")
			st.Reset(carrier.CodeLimit)
			continue
		}
		carried := p.carry(st)
		if !p.s.goStream(carried) {
			carried.Reset(carrier.CodeShutdown)
		}
	}
}

// goAway tells the peer why the session ends and waits a little for the message
// to be written.
func (p *Path) goAway(e *carrier.CloseError) {
	select {
	case <-p.out.sendGoAway(e):
	case <-p.c.Done():
	case <-time.After(goAwayWait):
	}
}

// Session returns the session that the carrier serves.
func (p *Path) Session() *Session { return p.s }
