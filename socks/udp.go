package socks

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"wmproxy/internal/udpio"
)

// Bounds of an association.
const (
	// maxControlJunk is how many bytes a client may send on the control
	// connection of an association, which has no use for any.
	maxControlJunk = 64 << 10

	// maxUDPPayload4 and maxUDPPayload6 are the largest UDP payloads in bytes,
	// SOCKS5 header included: 65,535 less the UDP header, and less the IPv4 header,
	// which IPv6 does not count.
	maxUDPPayload4 = 65535 - 8 - 20
	maxUDPPayload6 = 65535 - 8

	// writeBatch is how many datagrams Deliver hands to the system at once.
	writeBatch = 64
)

// A datagram between client and server (RFC 1928 section 7):
//
//	+-----+------+------+----------+----------+------+
//	| RSV | FRAG | ATYP | DST.ADDR | DST.PORT | DATA |
//	+-----+------+------+----------+----------+------+
//	|  2  |  1   |  1   | variable |    2     |      |
//	+-----+------+------+----------+----------+------+
const (
	fragAt       = 2
	udpHeaderLen = 3 // RSV and FRAG
)

// noFragment is RSV and FRAG of every datagram to a client; it is never written to.
var noFragment = make([]byte, udpHeaderLen)

// udpHeader checks the header of a datagram and returns how many bytes the
// address after RSV and FRAG takes. RSV may be anything: some clients use it.
func udpHeader(b []byte) (addrLen int, err error) {
	if len(b) < udpHeaderLen {
		return 0, ErrShortAddr
	}
	return AddrLen(b[udpHeaderLen:])
}

// Uplink is where the datagrams of an association go.
type Uplink interface {
	// Send takes datagrams, in order, one call for each read: Head and Body of a
	// message, one after the other, are the SOCKS5 datagram from ATYP onward, with
	// a well-formed address. They are valid, and may be written to, until Send
	// returns. One goroutine at a time calls it, and it must not wait.
	Send(ms []udpio.Message)

	// End says that the association has ended. It is called once, and Send not
	// after it.
	End()
}

// DropReporter is an Uplink that drops datagrams and can tell how many, as log
// attributes, after End. They go into the association's line in the log.
type DropReporter interface {
	DropAttrs() []any
}

// Association is a UDP ASSOCIATE: a UDP socket for one client, for as long as
// its control connection lasts. sources.go has the rules of who may send to it and gets
// its answers. Any goroutine may call its methods.
type Association struct {
	server *Server
	up     Uplink
	conn   udpio.Conn     // the control connection
	client netip.AddrPort // its remote address
	bound  netip.AddrPort // what the client is told
	user   string
	start  time.Time

	sock   *udpio.Socket
	shared *sharedPort  // the owner of sock, if it is not ours alone
	place  *sharedPlace // guarded by shared.mu

	// mu is held while a batch is read and while answers are addressed. After
	// shared.mu, and before reassemblyMu.
	mu           sync.Mutex
	sources      sources
	controlUser  socketUser // if controlAsked
	controlAsked bool
	warned       uint8 // a bit for each ruling that was logged
	counters

	reassemblyMu sync.Mutex
	reassembly   *reassembly // nil unless fragments are waiting
}

// A reassembly is a fragment queue in use.
type reassembly struct {
	fragmentQueue
	timer *time.Timer
}

// User is the authenticated user; empty when there is no authentication.
func (a *Association) User() string { return a.user }

// Client is where the control connection comes from.
func (a *Association) Client() netip.AddrPort { return a.client }

// Bound is where the client was told to send its datagrams (BND.ADDR and BND.PORT).
func (a *Association) Bound() netip.AddrPort { return a.bound }

// LocalAddr is what the UDP socket is bound to.
func (a *Association) LocalAddr() netip.AddrPort { return a.sock.LocalAddr() }

// Age is how long ago the association was asked for.
func (a *Association) Age() time.Duration { return time.Since(a.start) }

// Stats returns what has been counted so far.
func (a *Association) Stats() Stats { return a.snapshot() }

// Close ends the association by cutting its control connection. It does not
// wait for the end, of which the Uplink hears.
func (a *Association) Close() { a.conn.HangUp() }

// associate opens the socket of an association and answers the request, which was for
// dst. On error nothing is left of it, unless the association is returned too.
func (v *visit) associate(dst []byte) (*Association, error) {
	sv := v.sv
	a := &Association{
		server: sv.Server,
		conn:   v.conn,
		client: v.conn.RemoteAddr(),
		user:   v.user(),
		start:  time.Now(),
	}
	a.sources.named = namedSource(dst, a.client.Addr())
	if err := a.open(v.conn.LocalAddr().Addr()); err != nil {
		sv.makeRoom(err)
		sv.log().Warn("no UDP socket for an association", "user", a.user, "client", a.client, "err", err)
		return nil, v.refuse(ReplyGeneralFailure, fmt.Errorf("socks: opening a UDP socket: %w", err))
	}
	up, code := sv.Associate(a)
	if up == nil {
		a.closeSocket()
		if code == ReplySucceeded {
			code = ReplyGeneralFailure
		}
		return nil, v.refuse(code, fmt.Errorf("socks: association refused with reply %d", code))
	}
	a.up = up
	if a.bound.Addr().IsLoopback() && !a.client.Addr().IsLoopback() {
		sv.log().Warn("a client elsewhere is told to send datagrams to a loopback address; --udp sets another",
			"client", a.client, "bound", a.bound)
	}
	if a.shared != nil {
		a.shared.enter(a)
	} else {
		a.sock.Start(a.relayUp)
	}
	return a, v.say(nil, AppendReply(make([]byte, 0, MaxReplyLen), ReplySucceeded, a.bound)...)
}

// open binds the socket: to the address the client came to, so that answers leave from
// there, or to the wildcard when another address is advertised. From the wildcard they
// leave from the address that the client's last datagram was sent to.
func (a *Association) open(ip netip.Addr) (err error) {
	s := a.server
	if s.UDPAdvertise.IsValid() {
		ip = netip.IPv6Unspecified() // carries IPv4 too
	}
	if !ip.IsValid() {
		return errControlLocal
	}
	cfg := udpio.Config{NoOffload: s.NoOffload, Beside: a.conn, TellLocal: ip.IsUnspecified()}
	if s.UDPPorts.single() {
		if a.shared, err = s.ports.join(s, netip.AddrPortFrom(ip, s.UDPPorts.First), cfg); err != nil {
			return err
		}
		a.sock = a.shared.sock
	} else if a.sock, err = s.ports.open(ip, s.UDPPorts, cfg); err != nil {
		return err
	}
	a.bound = a.sock.LocalAddr()
	if s.UDPAdvertise.IsValid() {
		a.bound = netip.AddrPortFrom(s.UDPAdvertise.Unmap(), a.bound.Port())
	}
	return nil
}

// closeSocket gives up the socket. Once it returns, relayUp is not called.
func (a *Association) closeSocket() {
	if a.shared == nil {
		a.sock.Close()
		return
	}
	a.shared.exit(a)
	a.server.ports.leave(a.shared)
}

// end frees everything and writes the association's line in the log.
func (a *Association) end() {
	a.conn.Close()
	a.closeSocket()
	a.dropFragments()
	a.up.End()
	a.mu.Lock()
	a.sources = sources{} // a shared socket is still open
	a.mu.Unlock()
	stats := a.Stats()
	var more []any
	if up, ok := a.up.(DropReporter); ok {
		more = up.DropAttrs()
	}
	attrs := append([]slog.Attr{
		slog.String("user", a.user),
		slog.Any("client", a.client),
		slog.Duration("duration", time.Since(a.start)),
	}, stats.logAttrs(more)...)
	a.server.log().LogAttrs(context.Background(), slog.LevelInfo, "association ended", attrs...)
}

// relayUp takes what the socket read and passes the good ones on, in place: a
// datagram loses RSV and FRAG and is otherwise what the tunnel carries.
func (a *Association) relayUp(ms []udpio.Message) {
	now := time.Since(a.start)
	kept, size := 0, 0
	a.mu.Lock()
	for i := range ms {
		body := ms[i].Body
		at := a.speaker(&ms[i], now)
		if at < 0 {
			continue
		}
		addrLen, err := udpHeader(body)
		if err != nil {
			a.drop(DropMalformed, 1)
			continue
		}
		frag := body[fragAt]
		body = body[udpHeaderLen:]
		a.sources.spoke(at, body[:addrLen], now, ms[i].Local)
		if frag != 0 {
			if body = a.reassemble(frag, body, addrLen); body == nil {
				continue
			}
		}
		size += len(body) - addrLen
		ms[kept].Head, ms[kept].Body, ms[kept].Addr = nil, body, ms[i].Addr
		kept++
	}
	a.mu.Unlock()
	if kept > 0 {
		a.upDatagrams.Add(uint64(kept))
		a.upBytes.Add(uint64(size))
		a.up.Send(ms[:kept])
	}
}

// speaker returns the index of m's source, and adds it if it is admitted; else it
// counts m as dropped and returns -1. The caller has a.mu.
func (a *Association) speaker(m *udpio.Message, now time.Duration) int {
	at := a.sources.find(m.Addr)
	if at >= 0 {
		e := &a.sources.list[at]
		if a.maySpeakOn(e, m, now) {
			return at
		}
		a.forget(e.addr)
		a.sources.remove(at)
	}
	if m.Addr.Port() == 0 {
		a.refuse(m, refusedPort)
		return -1
	}
	if c := a.claim(m.Addr, now); c.ofClient || c.allowed {
		if _, err := udpHeader(m.Body); err != nil {
			a.drop(DropMalformed, 1)
			return -1
		}
	}
	r, sure := a.judge(m, now)
	if r != admitted {
		a.refuse(m, r)
		return -1
	}
	return a.join(m, now, sure)
}

// maySpeakOn reports whether m's source, which is e, needs no new ruling. The caller has a.mu.
func (a *Association) maySpeakOn(e *source, m *udpio.Message, now time.Duration) bool {
	if e.sure {
		if now-e.asked < ownerMemory {
			return true
		}
		e.asked = now
		return a.owner(m.Addr, m.Local) == ownerSame // the port may be another user's by now
	}
	if now-e.heard < sourceSilence || !a.sources.isNamed(e.addr) {
		return true
	}
	_, err := udpHeader(m.Body)
	return err != nil // a good one takes the association back, as that of a new source does
}

// judge applies the rules to a source that is not known. The caller has a.mu.
func (a *Association) judge(m *udpio.Message, now time.Duration) (r ruling, sure bool) {
	return a.claim(m.Addr, now).judge(func() owner { return a.owner(m.Addr, m.Local) })
}

// claim returns the facts that the rules go by for a source that is not known. The caller
// has a.mu.
func (a *Association) claim(addr netip.AddrPort, now time.Duration) claim {
	ip := addr.Addr().WithZone("")
	c := claim{
		ofClient: ip == a.client.Addr().WithZone(""),
		allowed:  a.server.fromAllowed(ip),
		named:    a.sources.isNamed(addr),
	}
	c.rival = !c.named && a.sources.rival(now)
	return c
}

// join lets the source of m in and returns its index. The caller has a.mu.
func (a *Association) join(m *udpio.Message, now time.Duration, sure bool) int {
	e := source{addr: m.Addr, to: m.Addr, local: m.Local, heard: now, asked: now, sure: sure}
	if e.addr.Addr().WithZone("") == a.client.Addr().WithZone("") {
		// Link-local addresses need the zone of the control connection to be written to.
		e.to = netip.AddrPortFrom(a.client.Addr(), e.addr.Port())
	}
	at, out := a.sources.add(e)
	for _, addr := range out.addrs[:out.n] {
		a.forget(addr)
	}
	if a.shared != nil {
		a.shared.bySource[e.addr] = a
	}
	return at
}

// forget removes a source from the shared port, if there is one; the port's mu is held then.
func (a *Association) forget(addr netip.AddrPort) {
	if a.shared != nil {
		delete(a.shared.bySource, addr)
	}
}

// refuse drops m and logs each reason once: nothing else would show why UDP does not
// work. The caller has a.mu.
func (a *Association) refuse(m *udpio.Message, r ruling) {
	a.drop(DropSource, 1)
	var why string
	switch r {
	case refusedAddress:
		// Docker's proxy, or a second address of the client.
		why = "dropping datagrams that do not come from the client's address; --udp-from lets their source in"
	case refusedUser:
		why = "dropping datagrams from a socket that is not of the user of this machine who opened the association"
	case refusedNamed:
		why = "dropping datagrams from another port of the client than the one that its UDP ASSOCIATE named and that it uses"
	default:
		return
	}
	if a.warned&(1<<r) == 0 {
		a.warned |= 1 << r
		a.server.log().Warn(why, "source", m.Addr, "client", a.client)
	}
}

// fromAllowed reports whether ip, which has no zone, is in UDPFrom.
func (s *Server) fromAllowed(ip netip.Addr) bool {
	for _, prefix := range s.UDPFrom {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

// reassemble adds a fragment and returns the whole datagram if it was the last.
func (a *Association) reassemble(frag byte, body []byte, addrLen int) []byte {
	a.reassemblyMu.Lock()
	defer a.reassemblyMu.Unlock()
	if frag&fragPosition == 0 || a.server.reassembling.Load() > maxReassembling {
		a.drop(DropFragment, 1)
		return nil
	}
	q := a.reassembly
	if q == nil {
		if frag&fragPosition != 1 {
			a.drop(DropFragment, 1)
			return nil
		}
		q = &reassembly{timer: time.AfterFunc(ReassemblyTime, a.expireFragments)}
		a.reassembly = q
	}
	before := q.size()
	started := q.deadline
	whole, dropped := q.add(frag, body, addrLen, time.Now())
	a.server.reassembling.Add(int64(q.size() - before))
	if dropped > 0 {
		a.drop(DropFragment, dropped)
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
		a.drop(DropFragment, n)
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
		a.drop(DropFragment, q.abandon())
		a.reassembly = nil
	}
}

// batches are what Deliver lays messages out in.
var batches = sync.Pool{New: func() any { return new([writeBatch]udpio.Message) }}

// Deliver sends datagrams to the client, in order. Each one is from ATYP
// onward, the address being where it came from. It never waits and keeps
// nothing; what cannot be sent is dropped and counted.
func (a *Association) Deliver(bodies [][]byte) {
	batch := batches.Get().(*[writeBatch]udpio.Message)
	n, size := 0, 0
	a.mu.Lock()
	for _, body := range bodies {
		addrLen, err := AddrLen(body)
		if err != nil {
			a.drop(DropMalformed, 1)
			continue
		}
		to := a.sources.answerTo(body[:addrLen])
		if to == nil {
			a.drop(DropNoPort, 1)
			continue
		}
		limit := maxUDPPayload6
		if to.to.Addr().Is4() {
			limit = maxUDPPayload4
		}
		if udpHeaderLen+len(body) > limit {
			a.drop(DropTooLarge, 1)
			continue
		}
		batch[n] = udpio.Message{Head: noFragment, Body: body, Addr: to.to, Local: to.local}
		size += len(body) - addrLen
		if n++; n == writeBatch {
			a.mu.Unlock()
			a.write(batch[:n], size)
			n, size = 0, 0
			a.mu.Lock()
		}
	}
	a.mu.Unlock()
	a.write(batch[:n], size)
	batches.Put(batch)
}

// write sends ms, whose payloads are size bytes together, and counts what the
// system took. When that is a part, it does not say which: the bytes are then an estimate.
func (a *Association) write(ms []udpio.Message, size int) {
	if len(ms) == 0 {
		return
	}
	sent, _ := a.sock.Write(ms)
	if sent < len(ms) {
		a.drop(DropSystem, len(ms)-sent)
		size = size * sent / len(ms)
	}
	a.downDatagrams.Add(uint64(sent))
	a.downBytes.Add(uint64(size))
	clear(ms) // the pool must not keep the bodies alive
}
