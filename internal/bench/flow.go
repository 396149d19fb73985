package bench

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"wmproxy/internal/udpio"
)

// socketBuffer is the size of the buffers of each socket, in bytes, large enough for the
// bursts of a relay.
const socketBuffer = 4 << 20

// flow is an association of a load of datagrams, or a socket without a proxy.
type flow struct {
	load    *udpLoad
	index   uint16
	control *net.TCPConn // nil without a proxy
	socket  *udpio.Socket
	to      netip.AddrPort // the relay, or the target

	mu       sync.Mutex
	primed   bool
	sequence uint64 // of the last datagram sent
	slots    []slot // of a window; nil for a rate
	tally    tally
	counts   counts
	out      []udpio.Message
	heads    []byte // of the messages in out, or of the slots
	rtts     []int64
	composed int64 // when the messages in out were, ns
}

// slot is a place in the window.
type slot struct {
	sequence uint64 // of the datagram in flight; 0 if there is none
	sent     int64  // ns
}

// counts counts datagrams.
type counts struct {
	sent, unsent                int64
	inTime, late                int64
	reordered, duplicate, alien int64
}

func (c *counts) add(d counts) {
	c.sent += d.sent
	c.unsent += d.unsent
	c.inTime += d.inTime
	c.late += d.late
	c.reordered += d.reordered
	c.duplicate += d.duplicate
	c.alien += d.alien
}

// lost returns the number of datagrams that did not come back in time.
func (c *counts) lost() int64 { return c.sent - c.inTime }

// receive is the socket's callback.
func (f *flow) receive(ms []udpio.Message) {
	now := f.load.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out, f.rtts = f.out[:0], f.rtts[:0]
	for i := range ms {
		f.arrived(&ms[i], now)
	}
	f.flush()
	f.load.recorder.add(f.rtts)
}

// arrived counts a datagram and adds the one that replaces it to out.
func (f *flow) arrived(m *udpio.Message, now int64) {
	body := m.Body
	if f.control != nil {
		body = payloadOf(body)
	}
	s, ok := readStamp(body)
	if !ok || s.run != f.load.run || s.index != f.index || len(body) != f.load.size {
		f.counts.alien++
		return
	}
	if s.sequence == 0 {
		f.prime()
		return
	}
	switch f.tally.arrived(s.sequence) {
	case duplicate:
		f.counts.duplicate++
		return
	case reordered:
		f.counts.reordered++
	case inOrder:
	}
	rtt := now - s.sent
	if s.sent < f.load.from {
		f.replace(s, now)
		return
	}
	if rtt > f.load.timeoutNS {
		f.counts.late++
		return // another datagram has its place in the window
	}
	f.counts.inTime++
	f.rtts = append(f.rtts, rtt)
	f.replace(s, now)
}

// replace sends another datagram in the place of the one that arrived, of a window.
func (f *flow) replace(s stamp, now int64) {
	if int(s.slot) < len(f.slots) && f.slots[s.slot].sequence == s.sequence {
		f.slots[s.slot].sequence = 0
		if f.load.sending.Load() {
			f.compose(int(s.slot), now)
		}
	}
}

// prime notes that the first reply has arrived.
func (f *flow) prime() {
	if !f.primed {
		f.primed = true
		f.load.unprimed.Done()
	}
}

// compose adds the next datagram, of a slot of the window, to out.
func (f *flow) compose(at int, now int64) {
	f.sequence++
	f.composed = now
	if f.slots != nil {
		f.slots[at] = slot{f.sequence, now}
	}
	f.put(at, stamp{run: f.load.run, index: f.index, slot: uint16(at), sequence: f.sequence, sent: now})
}

// put adds a message with the stamp s to out. Its head is at this index in heads.
func (f *flow) put(at int, s stamp) {
	size := len(f.load.header) + MinSize
	head := f.heads[at*size:][:size:size]
	s.put(head[len(f.load.header):])
	f.out = append(f.out, udpio.Message{Head: head, Body: f.load.body, Addr: f.to})
}

// flush writes out. The slots of messages that the system did not take stay in use until
// they time out.
func (f *flow) flush() {
	if len(f.out) == 0 {
		return
	}
	sent, err := f.socket.Write(f.out)
	if f.composed >= f.load.from {
		f.counts.sent += int64(sent)
		f.counts.unsent += int64(len(f.out) - sent)
	}
	if err != nil {
		f.load.fail(err)
	}
	f.out = f.out[:0]
}

// fill sends a datagram for each slot that is free or has timed out.
func (f *flow) fill(now int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out = f.out[:0]
	for i := range f.slots {
		if f.slots[i].sequence == 0 || now-f.slots[i].sent > f.load.timeoutNS {
			f.compose(i, now)
		}
	}
	f.flush()
}

// send sends n datagrams.
func (f *flow) send(n int, now int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out = f.out[:0]
	for range n {
		f.compose(len(f.out), now)
		if len(f.out) == rateBatch {
			f.flush()
		}
	}
	f.flush()
}

// sendPrimer sends a datagram with sequence number 0, unless one has come back.
func (f *flow) sendPrimer() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.primed {
		return
	}
	f.out = f.out[:0]
	f.put(0, stamp{run: f.load.run, index: f.index})
	if _, err := f.socket.Write(f.out); err != nil {
		f.load.fail(err)
	}
	f.out = f.out[:0]
}

// read returns the counts so far.
func (f *flow) read() counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

// open opens the association and its socket.
func (f *flow) open(ctx context.Context, way *Way, cfg udpio.Config) (err error) {
	if f.control, f.to, err = way.associate(ctx); err != nil {
		return err
	}
	f.socket, err = udpio.Listen(localAddr(f.control, f.to), cfg)
	return err
}

func (f *flow) close() {
	if f.socket != nil {
		_ = f.socket.Close()
		f.socket.Wait()
	}
	if f.control != nil {
		_ = f.control.Close()
	}
}
