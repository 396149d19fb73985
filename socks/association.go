package socks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"wmproxy/internal/entrance"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
)

// maxControlJunk is how many bytes an application may send on the control
// connection of an association, which has no use for any.
const maxControlJunk = 64 << 10

var errControlJunk = errors.New("socks: too much data on the control connection of an association")

// Association is a UDP ASSOCIATE: a UDP socket for one application, for as long as
// its control connection lasts. sources.go has the rules of who may send to it and gets
// its answers. Any goroutine may call its exported methods, but for Receive and Ended.
type Association struct {
	server *Server
	up     entrance.Uplink
	conn   *entrance.Conn // the control connection
	client netip.AddrPort // its remote address
	bound  netip.AddrPort // what the application is told
	user   *user.User
	start  time.Time
	junk   int // bytes that came on the control connection

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
	counts       stats.Datagrams

	reassemblyMu sync.Mutex
	reassembly   *reassembly // nil unless fragments are waiting
}

var _ entrance.Association = (*Association)(nil)

// Origin returns the application.
func (a *Association) Origin() entrance.Origin {
	return entrance.Origin{User: a.user, Client: a.client}
}

// Age returns how long ago the association was asked for.
func (a *Association) Age() time.Duration { return time.Since(a.start) }

// Traffic returns what has been counted so far.
func (a *Association) Traffic() stats.Snapshot { return a.counts.Snapshot() }

// Close ends the association by interrupting its control connection. It does not
// wait for the end, which the Uplink is told.
func (a *Association) Close() { a.conn.HangUp() }

// associate opens the socket of an association and answers the request, which was for
// dst and has junk bytes behind it. On error nothing is left of it.
func (n *negotiation) associate(dst []byte, junk int) error {
	s := n.server
	a := &Association{server: s, conn: n.conn, client: n.conn.RemoteAddr(), user: n.user, start: time.Now(), junk: junk}
	a.counts.In(&a.user.Total)
	a.sources.named = namedSource(dst, a.client.Addr())
	if err := a.open(n.conn.LocalAddr().Addr()); err != nil {
		n.conn.MakeRoom(err)
		s.log().Warn("no UDP socket for an association", "user", a.user.Name, "client", a.client, "err", err)
		return n.refuse(entrance.Failed, fmt.Errorf("socks: opening a UDP socket: %w", err))
	}
	up, result := s.Handler.Associate(a)
	if result != entrance.OK {
		a.closeSocket()
		return n.refuse(result, fmt.Errorf("socks: association refused: %v", result))
	}
	a.up = up
	if a.bound.Addr().IsLoopback() && !a.client.Addr().IsLoopback() {
		s.log().Warn("a client elsewhere is told to send datagrams to a loopback address; --udp sets another",
			"client", a.client, "bound", a.bound)
	}
	if a.shared != nil {
		a.shared.enter(a)
	} else {
		a.sock.Start(a.relayUp)
	}
	n.conn.Admit(a)
	return n.say(appendReply(make([]byte, 0, maxReplyLen), ReplySucceeded, a.bound)...)
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
	cfg := udpio.Config{NoOffload: s.NoOffload, TellLocal: ip.IsUnspecified()}
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
		a.sock.Wait()
		return
	}
	a.shared.exit(a)
	a.server.ports.leave(a.shared)
}

// Receive discards data of the control connection, within bounds.
func (a *Association) Receive(b []byte) error {
	if a.junk += len(b); a.junk > maxControlJunk {
		return errControlJunk
	}
	return nil
}

// Ended frees everything and writes the association's line in the log.
func (a *Association) Ended(error) {
	a.closeSocket()
	a.dropFragments()
	a.up.End()
	a.mu.Lock()
	a.sources = sources{} // a shared socket is still open
	a.mu.Unlock()
	counted := a.Traffic()
	if up, ok := a.up.(entrance.DropReporter); ok {
		counted.Drops.Add(up.Dropped())
	}
	attrs := append([]slog.Attr{
		slog.String("user", a.user.Name),
		slog.Any("client", a.client),
		slog.Duration("duration", time.Since(a.start)),
	}, counted.Attrs()...)
	a.server.log().LogAttrs(context.Background(), slog.LevelInfo, "association ended", attrs...)
}
