package egress

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/config"
	"wmproxy/internal/share"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/socks"
	"wmproxy/tunnel"
	"wmproxy/tunnel/wire"
)

// downlink is the way back to the client.
type downlink interface {
	ID() uint64
	Send(ms []udpio.Message)
	End(code tunnel.EndCode)
	Forget()
	Dropped() stats.Dropped
}

var (
	_ downlink           = (*tunnel.Flow)(nil)
	_ tunnel.FlowHandler = (*flow)(nil)
)

// flow is a UDP association at its exit: one unconnected socket, so that every remote sees
// the same address (RFC 4787 REQ-1), unless others need its descriptor meanwhile. Thousands
// of flows are idle at any time, so that they have no goroutine, timer or buffer.
type flow struct {
	user  *UserExit
	link  downlink
	since time.Time

	sock  atomic.Pointer[udpio.Socket] // nil while others have its descriptor
	lease *share.Lease                 // of sock; guarded by mu
	tried uint32                       // the last request for a socket, +1, on the pool's clock; used by Receive only

	used   atomic.Uint32 // tick of the last datagram from the client
	heard  atomic.Uint32 // tick of the last one for it
	passed atomic.Uint32 // the last datagram in either direction, on the pool's clock
	ended  atomic.Bool

	up   lastVerdict // of destinations; used by Receive only
	down lastVerdict // of sources; used by the socket's reader only

	usesNames     atomic.Bool // the client has used a name, not only addresses
	answersByName atomic.Bool // the client has asked for a name in answers

	mu      sync.Mutex
	names   *nameTable  // nil until the client uses a name
	peers   peerTable   // the remotes that may answer; nil if all may
	answers answerTable // nil until answersByName

	counts stats.Datagrams
}

// OpenFlow opens a socket for a new flow.
func (u *UserExit) OpenFlow(tf *tunnel.Flow) (tunnel.FlowHandler, tunnel.EndCode) {
	f, code := u.openFlow(tf)
	if f == nil {
		return nil, code
	}
	return f, code
}

func (u *UserExit) openFlow(link downlink) (*flow, tunnel.EndCode) {
	e := u.exits
	f := &flow{user: u, link: link, since: time.Now()}
	f.counts.In(&u.Total)
	f.used.Store(e.tick.Load())
	if e.cfg.Filtering != config.EndpointIndependent {
		f.peers = make(peerTable)
	}
	if code := e.reserveFlow(u); code != tunnel.EndNormal {
		return nil, code
	}
	if code := f.openSocket(); code != tunnel.EndNormal {
		e.releaseFlow(u)
		return nil, code
	}
	if !e.addFlow(f) {
		f.closeSocket(nil)
		e.releaseFlow(u)
		return nil, tunnel.EndShutdown
	}
	return f, tunnel.EndNormal
}

// reserveFlow counts a flow, unless the user's limit is reached or Close was called.
func (e *Exits) reserveFlow(u *UserExit) tunnel.EndCode {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return tunnel.EndShutdown
	}
	if u.flows >= e.cfg.MaxUserFlows {
		e.mu.Unlock()
		if e.makeRoom(u) {
			return tunnel.EndRetry
		}
		e.refusedByLimit(u, "flow", errLimit)
		return tunnel.EndLimit
	}
	u.flows++
	e.wg.Add(1)
	e.mu.Unlock()
	return tunnel.EndNormal
}

// releaseFlow undoes reserveFlow for a flow that was not opened.
func (e *Exits) releaseFlow(u *UserExit) {
	e.mu.Lock()
	u.flows--
	e.mu.Unlock()
	e.wg.Done()
}

func (e *Exits) addFlow(f *flow) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.flows[f] = struct{}{}
	return true
}

// Ended closes the flow: the client or its session has ended it.
func (f *flow) Ended(code tunnel.EndCode) { f.close(code.String()) }

// close ends the flow, once. It does not wait for the socket's reader, which may be in
// link.Queue while its session is calling close.
func (f *flow) close(why string) {
	if !f.ended.CompareAndSwap(false, true) {
		return
	}
	f.leaveRoom()
	e := f.user.exits
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = append(e.ended, ending{f, why})
	f.user.closing++
	if e.closing++; e.closing == 1 {
		e.wg.Go(e.closeEnded)
	}
}

// ending is a flow that has ended, and the reason.
type ending struct {
	*flow
	why string
}

// closeEnded closes the sockets of ended flows, one after the other, and returns when there
// are no more.
func (e *Exits) closeEnded() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.ended) > 0 {
		ended := e.ended
		e.ended = nil
		for _, f := range ended {
			e.mu.Unlock()
			f.finish(f.why)
			e.mu.Lock()
			e.closing--
			f.user.closing--
			f.user.flows--
			e.wg.Done()
		}
	}
}

// finish closes the socket and logs the flow's only line.
func (f *flow) finish(why string) {
	f.closeSocket(nil)
	f.mu.Lock()
	f.forgetNames()
	f.mu.Unlock()
	e := f.user.exits
	e.mu.Lock()
	delete(e.flows, f)
	e.mu.Unlock()
	counted := f.counted()
	e.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "flow ended", append([]slog.Attr{
		slog.String("user", f.user.Name), slog.Uint64("flow", f.link.ID()), slog.String("why", why),
		slog.Duration("duration", time.Since(f.since).Round(time.Millisecond)),
	}, counted.Attrs()...)...)
}

// counted returns the flow's counters, with the datagrams that the tunnel dropped of it.
func (f *flow) counted() stats.Snapshot {
	s := f.counts.Snapshot()
	s.Drops.Add(f.link.Dropped())
	return s
}

// batchSize bounds the datagrams that go to a socket or to the tunnel at once.
const batchSize = 128

// batch is the scratch memory of one call. Idle flows have none.
type batch struct {
	ms    [batchSize]udpio.Message
	heads [batchSize*maxAddrHead + socks.MaxAddrLen]byte // so that addresses always fit
}

// maxAddrHead is the longest address before a reply, in bytes: type, IPv6, port. Names are
// longer, up to socks.MaxAddrLen.
const maxAddrHead = 1 + 16 + 2

var batches = sync.Pool{New: func() any { return new(batch) }}

// Receive sends the client's datagrams to their destinations:
//
//	+------+----------+------+---------+
//	| ATYP | DST.ADDR | PORT | payload |   RFC 1928 section 7, from ATYP on
//	+------+----------+------+---------+
//
// ATYP is wire.TypeNameAnswered if answers should carry the name.
func (f *flow) Receive(bodies [][]byte) {
	if f.ended.Load() {
		f.counts.Drop(stats.Ended, len(bodies))
		return
	}
	e := f.user.exits
	f.used.Store(e.tick.Load())
	f.passed.Store(e.cfg.Room.Now())
	if f.sock.Load() == nil && !f.reopen() {
		f.counts.Drop(stats.NoRoom, len(bodies))
		return
	}
	b := batches.Get().(*batch)
	for len(bodies) > 0 {
		n := min(len(bodies), batchSize)
		f.forward(b, bodies[:n])
		bodies = bodies[n:]
	}
	batches.Put(b)
}

// forward sends at most batchSize datagrams in one write.
func (f *flow) forward(b *batch, bodies [][]byte) {
	n := 0
	for _, body := range bodies {
		if to, payload, ok := f.destination(body); ok {
			b.ms[n] = udpio.Message{Body: payload, Addr: to}
			n++
		}
	}
	f.write(b.ms[:n])
}

func (f *flow) write(ms []udpio.Message) {
	if len(ms) == 0 {
		return
	}
	size := 0
	for i := range ms {
		size += len(ms[i].Body)
	}
	sent := 0
	if sock := f.sock.Load(); sock != nil { // otherwise it has just been taken
		// The error is ignored: even if one datagram fails, the next may pass.
		sent, _ = sock.Write(ms)
	}
	if sent < len(ms) {
		size = size * sent / len(ms) // an estimate: the socket does not return which ones
	}
	f.counts.Up(sent, size)
	if sent < len(ms) {
		f.counts.Drop(stats.Send, len(ms)-sent)
	}
	clear(ms) // the pool must not keep the payloads alive
}

// destination returns the destination of body. ok is false if body was dropped or waits for
// its name.
func (f *flow) destination(body []byte) (to netip.AddrPort, payload []byte, ok bool) {
	asked := len(body) > 0 && body[0] == wire.TypeNameAnswered
	if asked {
		body[0] = socks.TypeName
	}
	to, name, n, err := socks.SplitAddr(body)
	if err != nil {
		f.counts.Drop(stats.Malformed, 1)
		return to, nil, false
	}
	payload = body[n:]
	if to.Port() == 0 {
		f.counts.Drop(stats.PortZero, 1)
		return to, nil, false
	}
	if name != nil {
		ip, ok := f.named(name, to.Port(), payload, asked)
		if !ok {
			return to, nil, false
		}
		to = netip.AddrPortFrom(ip, to.Port())
	} else {
		f.noteAddress(to)
	}
	if !f.up.permits(f.user.exits.policy, to) {
		f.counts.Drop(stats.Policy, 1)
		return to, nil, false
	}
	if f.peers != nil {
		f.mu.Lock()
		f.peers.add(f.filterKey(to), f.used.Load())
		f.mu.Unlock()
	}
	return to, payload, true
}

// replies sends the datagrams that the socket has read to the client, each behind its true
// source, or the name that the client has asked for.
func (f *flow) replies(ms []udpio.Message) {
	f.passed.Store(f.user.exits.cfg.Room.Now())
	b := batches.Get().(*batch)
	for len(ms) > 0 {
		n := min(len(ms), batchSize)
		f.reply(b, ms[:n])
		ms = ms[n:]
	}
	batches.Put(b)
}

func (f *flow) reply(b *batch, ms []udpio.Message) {
	n := 0
	heads := b.heads[:0]
	var head []byte // of the previous datagram, which often has the same source
	var from netip.AddrPort
	for i := range ms {
		if !f.mayReply(ms[i].Addr) {
			continue
		}
		if head == nil || ms[i].Addr != from {
			if len(heads)+socks.MaxAddrLen > cap(heads) { // long names
				f.queue(b.ms[:n])
				n, heads = 0, b.heads[:0]
			}
			from = ms[i].Addr
			f.noteHeard(from.Addr())
			start := len(heads)
			heads = f.appendSource(heads, from)
			head = heads[start:]
		}
		b.ms[n] = udpio.Message{Head: head, Body: ms[i].Body, Addr: from}
		n++
	}
	f.queue(b.ms[:n])
}

// queue passes replies to the tunnel and clears ms.
func (f *flow) queue(ms []udpio.Message) {
	if len(ms) == 0 {
		return
	}
	f.heard.Store(f.user.exits.tick.Load())
	size := 0
	for i := range ms {
		size += len(ms[i].Body)
	}
	f.counts.Down(len(ms), size)
	f.link.Send(ms)
	clear(ms)
}

// mayReply reports whether the policy and the filtering permit a source.
func (f *flow) mayReply(from netip.AddrPort) bool {
	if !f.down.permits(f.user.exits.policy, from) {
		f.counts.Drop(stats.Source, 1)
		return false
	}
	if f.peers == nil {
		return true
	}
	f.mu.Lock()
	_, known := f.peers[f.filterKey(from)]
	f.mu.Unlock()
	if !known {
		f.counts.Drop(stats.Filtered, 1)
	}
	return known
}

// lastVerdict is the policy's verdict on the last address. A flow mostly has one. For
// others it is cheaper to judge again than to keep a larger table.
type lastVerdict struct {
	ip   netip.Addr
	v    verdict
	host *hostAddrs // the addresses that v is based on
}

func (l *lastVerdict) permits(p *policy, ap netip.AddrPort) bool {
	if host := p.host.Load(); l.host != host || l.ip != ap.Addr() {
		*l = lastVerdict{ip: ap.Addr(), v: p.judge(ap.Addr()), host: host}
	}
	return p.permitsAt(l.v, ap)
}
