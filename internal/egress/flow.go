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

// flow is one UDP association at its exit: one unconnected socket, so that every
// remote sees the same address (RFC 4787 REQ-1), unless others need its descriptor
// meanwhile. Thousands of them are idle at any time:
// it has no goroutine, timer or buffer of its own.
type flow struct {
	user  *UserExit
	link  downlink
	since time.Time

	sock  atomic.Pointer[udpio.Socket] // nil while others have its descriptor
	lease *share.Lease                 // of sock; guarded by mu
	tried uint32                       // when a socket was last asked for, +1, on the pool's clock; belongs to Receive

	used   atomic.Uint32 // tick of the last datagram from the client
	heard  atomic.Uint32 // tick of the last one for it
	passed atomic.Uint32 // when something last passed, either way, on the pool's clock
	ended  atomic.Bool

	up   lastVerdict // of destinations; belongs to Receive
	down lastVerdict // of sources; belongs to the socket's reader

	usesNames     atomic.Bool // the client has used a name, not only addresses
	answersByName atomic.Bool // the client has asked for a name in answers

	mu      sync.Mutex
	names   *nameTable  // nil until the client uses a name
	peers   peerTable   // whom the flow has sent to; nil if everyone may answer
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

// reserveFlow counts a flow in, unless the user's limit is reached or Close was called.
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

// releaseFlow counts a flow out that was never open.
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

// Ended frees the socket: the client, or its session, is done with the flow.
func (f *flow) Ended(code tunnel.EndCode) { f.close(code.String()) }

// close frees the flow, once. It does not wait for the socket's reader, which
// may be inside link.Queue while its session is calling us.
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

// ending is a flow that has ended and why.
type ending struct {
	*flow
	why string
}

// closeEnded closes the sockets of flows that have ended, one after the other, and
// returns when there are no more.
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

// finish closes the socket and writes the flow's one line in the log.
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

// counted returns what the flow has counted, with what the tunnel dropped of it.
func (f *flow) counted() stats.Snapshot {
	s := f.counts.Snapshot()
	s.Drops.Add(f.link.Dropped())
	return s
}

// batchSize is how many datagrams go to a socket or to the tunnel at once.
const batchSize = 128

// batch is the scratch of one call. Flows share a few; an idle one holds none.
type batch struct {
	ms    [batchSize]udpio.Message
	heads [batchSize*maxAddrHead + socks.MaxAddrLen]byte // so that addresses always fit
}

// maxAddrHead is the longest address before a reply, in bytes: type, IPv6, port. Names are
// longer, up to socks.MaxAddrLen.
const maxAddrHead = 1 + 16 + 2

var batches = sync.Pool{New: func() any { return new(batch) }}

// Receive sends the client's datagrams to where each says:
//
//	+------+----------+------+---------+
//	| ATYP | DST.ADDR | PORT | payload |   RFC 1928 section 7, from ATYP on
//	+------+----------+------+---------+
//
// ATYP is tunnel.TypeNameAnswered for a name that answers are to carry.
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
	if sock := f.sock.Load(); sock != nil { // else it has just been taken
		// The error is ignored: even if one datagram fails, the next may pass.
		sent, _ = sock.Write(ms)
	}
	if sent < len(ms) {
		size = size * sent / len(ms) // which ones, the socket does not say
	}
	f.counts.Up(sent, size)
	if sent < len(ms) {
		f.counts.Drop(stats.Send, len(ms)-sent)
	}
	clear(ms) // the pool must not keep the payloads alive
}

// destination says where body goes now; not ok means that it was dropped, or
// that it waits for its name.
func (f *flow) destination(body []byte) (to netip.AddrPort, payload []byte, ok bool) {
	asked := len(body) > 0 && body[0] == tunnel.TypeNameAnswered
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

// replies sends what the socket has read to the client, each datagram behind its
// true source, or the name that the client has asked for.
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
	var head []byte // of the datagram before, whose source is often the same
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

// queue hands replies to the tunnel and clears ms.
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

// mayReply holds a source to the policy and to the filtering behaviour.
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

// lastVerdict is the policy's verdict on the last address seen. A flow mostly
// talks to one; for another, judging costs less than a bigger table's upkeep.
type lastVerdict struct {
	ip   netip.Addr
	v    verdict
	host *hostAddrs // what v was found with
}

func (l *lastVerdict) permits(p *policy, ap netip.AddrPort) bool {
	if host := p.host.Load(); l.host != host || l.ip != ap.Addr() {
		*l = lastVerdict{ip: ap.Addr(), v: p.judge(ap.Addr()), host: host}
	}
	return p.permitsAt(l.v, ap)
}
