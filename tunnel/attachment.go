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
)

const (
	// receiveBatch is how many bundles are taken from a carrier at once.
	receiveBatch = 32

	// streamShare is the part of a packet, as a divisor, that bundles leave to streams
	// and control where the path is the limit, on QUIC, which sends datagrams before
	// all else: of each packet while there is a stream, of one in controlEvery else.
	streamShare  = 8
	controlEvery = 8
)

// Attachment is a carrier that serves a session, from attach to detach. Its
// goroutines belong to the session, which waits for them.
type Attachment struct {
	attachInfo
	s       *Session
	c       Carrier
	in      *incarnation
	snd     *sender
	out     outbox
	began   time.Duration // on the session's clock
	beat    heartbeats
	heard   atomic.Int64 // when something last arrived, on the session's clock
	rtt     atomic.Int64
	streams atomic.Int64
	carried carriedStreams
	bytes   byteCount                  // of bundles
	cause   atomic.Pointer[CloseError] // the peer's reason, or ours, before the end
	done    chan struct{}

	superseded time.Duration // since when a newer one makes it needless; 0 is not; guarded by Session.mu

	// Owned by receiveLoop: the datagrams of one flow that arrived in a row.
	reassembler reassembler
	run         uint64
	bodies      [][]byte
	passed      bool // something other than probes, in this batch
}

// Kind is the carrier's transport.
func (a *Attachment) Kind() Kind { return a.c.Kind() }

// RemoteAddr is the carrier's peer.
func (a *Attachment) RemoteAddr() net.Addr { return a.c.RemoteAddr() }

// LocalAddr is the carrier's own address.
func (a *Attachment) LocalAddr() net.Addr { return a.c.LocalAddr() }

// RTT is the last ping's round-trip time; 0 before the first.
func (a *Attachment) RTT() time.Duration { return time.Duration(a.rtt.Load()) }

// Resumed says whether the server knew the session already.
func (a *Attachment) Resumed() bool { return a.resumed }

// Done is closed once the carrier has ended and its goroutines with it.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// Err says why the carrier ended; nil while it lives. What the peer, or our own
// checks, gave as the reason is a *CloseError.
func (a *Attachment) Err() error {
	if e := a.cause.Load(); e != nil && a.c.Err() != nil {
		return e
	}
	return a.c.Err()
}

// Close ends the carrier.
func (a *Attachment) Close(code ErrorCode, reason string) { a.c.Close(code, reason) }

func (a *Attachment) execute() {
	defer close(a.done)
	defer a.s.detach(a)
	var wg sync.WaitGroup
	wg.Go(a.sendLoop)
	wg.Go(a.receiveLoop)
	wg.Go(a.controlReadLoop)
	wg.Go(a.controlWriteLoop)
	wg.Go(a.acceptLoop)
	wg.Go(a.heartbeat)
	<-a.c.Done()
	a.s.judged()            // out of service before it is detached
	a.c.Close(CodeNone, "") // wait for the carrier's own goroutines
	wg.Wait()
}

// fail ends the carrier because of what the peer did.
func (a *Attachment) fail(code ErrorCode, err error) {
	if a.c.Err() != nil {
		return
	}
	a.closeFor(code, err.Error())
}

// closeFor closes the carrier and keeps the reason.
func (a *Attachment) closeFor(code ErrorCode, reason string) {
	a.cause.CompareAndSwap(nil, &CloseError{Code: code, Reason: reason, Own: true})
	a.c.Close(code, reason)
}

// sendLoop sends probes, and pulls bundles from the session's queue for as long
// as this carrier serves it.
func (a *Attachment) sendLoop() {
	b := make([]byte, 0, MinBundle)
	for bundles := 0; ; bundles++ {
		limit, most := a.bundleLimit()
		if cap(b) < most {
			b = make([]byte, 0, most)
		}
		if a.snd.exact && a.snd.late && (a.streams.Load() > 0 || bundles%controlEvery == 0) {
			limit -= limit / streamShare
		}
		now := a.s.now()
		var least int
		b, least = a.appendProbe(b[:0], most)
		probe := len(b)
		b = a.s.q.fill(b, limit, a.snd, now)
		if len(b) == 0 {
			select {
			case <-a.snd.wake:
			case <-a.c.Done():
				return
			}
			continue
		}
		if len(b) > probe {
			a.touch(now)
		}
		if len(b) < least {
			b = pad(b, least)
		}
		if err := a.c.SendBundle(b); err != nil {
			if tooLarge := (*BundleTooLargeError)(nil); errors.As(err, &tooLarge) {
				a.s.drops.add(DropPathShrank, 1)
				continue
			}
			return
		}
		count(&a.beat.sent, len(b))
		a.bytes.up.Add(uint64(len(b)))
	}
}

// receiveLoop takes bundles from the carrier and hands out what is in them. It
// never waits for anything else, since over QUIC waiting is losing.
func (a *Attachment) receiveLoop() {
	defer a.reassembler.close()
	bundles := make([][]byte, receiveBatch)
	for {
		n, err := a.c.ReceiveBundles(bundles)
		if err != nil {
			return
		}
		now := a.s.now()
		a.heard.Store(int64(now))
		a.reassembler.expire(now)
		for _, b := range bundles[:n] {
			a.receiveBundle(b, now)
			count(&a.beat.received, len(b))
			a.bytes.down.Add(uint64(len(b)))
		}
		a.flush()
		if a.passed {
			a.passed = false
			a.touch(now)
		}
		clear(bundles[:n])
	}
}

func (a *Attachment) receiveBundle(b []byte, now time.Duration) {
	size := len(b)
	for len(b) > 0 {
		rec, rest, err := parseRecord(b)
		if err != nil {
			a.s.drops.add(DropMalformed, 1)
			return
		}
		if rec.padding() {
			return
		}
		b = rest
		switch {
		case rec.flow == 0:
			a.receiveProbe(rec.body, size, now)
		case rec.fragment:
			a.receiveFragment(&rec, now)
		case len(rec.body) > 0:
			a.collect(rec.flow, rec.body)
		}
	}
}

func (a *Attachment) receiveFragment(rec *record, now time.Duration) {
	a.passed = true
	before := a.reassembler.drops
	whole := a.reassembler.add(rec, now)
	if lost := a.reassembler.drops - before; lost > 0 {
		a.s.drops.add(DropReassembly, lost)
	}
	if whole != nil {
		a.collect(rec.flow, whole)
		a.flush() // the buffer is the reassembler's
	}
}

// collect gathers datagrams of one flow that follow each other, so that the
// handler can send them on with one system call.
func (a *Attachment) collect(flow uint64, body []byte) {
	a.passed = true
	if flow != a.run {
		a.flush()
		a.run = flow
	}
	a.bodies = append(a.bodies, body)
}

func (a *Attachment) flush() {
	if len(a.bodies) == 0 {
		return
	}
	a.s.deliver(a.in, a.run, a.bodies)
	clear(a.bodies)
	a.bodies = a.bodies[:0]
}

// controlReadLoop acts on the peer's control messages.
func (a *Attachment) controlReadLoop() {
	r := bufio.NewReaderSize(a.c.Control(), 1<<10)
	var buf []byte
	for {
		t, payload, err := readMessage(r, buf)
		if err != nil {
			if errors.Is(err, errMessageTooLong) {
				a.fail(CodeProtocol, err)
			}
			// The end of the control stream is the end of the carrier.
			a.c.Close(CodeNone, "")
			return
		}
		buf = payload
		a.heard.Store(int64(a.s.now()))
		if err := a.control(t, payload); err != nil {
			a.fail(CodeProtocol, err)
			return
		}
	}
}

func (a *Attachment) control(t messageType, payload []byte) error {
	f := fields{b: payload}
	switch t {
	case msgEnd:
		seq := f.varint()
		for len(f.b) > 0 {
			flow, code := f.varint(), EndCode(f.varint())
			if f.err != nil {
				break
			}
			a.s.peerEnded(a.in, flow, code)
			seq++
		}
		if f.err == nil && seq > maxEndNumber {
			return errEndNumber
		}
		if f.err == nil {
			a.out.sendAck(seq)
		}
	case msgEndAck:
		a.s.endsAcked(f.varint())
	case msgPrefer:
		p := preference{f.varint(), f.varint(), f.varint()}
		if f.err == nil {
			a.s.preferred(p)
		}
	case msgPing:
		if id := f.varint(); f.err == nil {
			a.out.sendPong(id)
		}
	case msgDrain:
		if left := f.varint(); f.err == nil && !a.s.server {
			a.s.drain(time.Duration(min(left, 1<<40)) * time.Millisecond)
		}
	case msgGoAway:
		e, err := parseSentence(payload)
		if err != nil {
			return err
		}
		a.cause.Store(e)
		if a.s.server {
			a.s.leave()
		}
	default:
		if t&1 == 1 {
			return fmt.Errorf("unknown control message of type %d", uint64(t))
		}
	}
	return f.err
}

// controlWriteLoop writes what is due on the control stream.
func (a *Attachment) controlWriteLoop() {
	var b []byte
	for {
		last := false
		b, last = a.out.append(b[:0], a.beat.received[0].Load())
		b = a.s.appendEnds(b, a)
		if len(b) > 0 {
			if _, err := a.c.Control().Write(b); err != nil {
				return
			}
			if last {
				a.out.told()
			}
			continue
		}
		select {
		case <-a.out.wake:
		case <-a.c.Done():
			return
		}
	}
}

// acceptLoop takes the streams that the peer opens.
func (a *Attachment) acceptLoop() {
	ctx := context.Background() // the carrier's end ends AcceptStream
	for {
		st, err := a.c.AcceptStream(ctx)
		if err != nil {
			return
		}
		if a.s.streams.Add(1) > a.s.maxStreams || a.s.crowded.Load() {
			a.s.streams.Add(-1)
			a.s.cfg.Log.Warn("too many streams")
			st.Reset(CodeLimit)
			continue
		}
		carried := a.carry(st)
		if !a.s.goStream(carried) {
			carried.Reset(CodeShutdown)
		}
	}
}

// goAway tells the peer why the session ends and waits a little for the message
// to be written.
func (a *Attachment) goAway(e *CloseError) {
	select {
	case <-a.out.sendGoAway(e):
	case <-a.c.Done():
	case <-time.After(goAwayWait):
	}
}

// User is the name the client authenticated with; "" on the client.
func (a *Attachment) User() string { return a.s.user }
