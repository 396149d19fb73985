package socks

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"wmproxy/internal/entrance"
	"wmproxy/internal/user"
)

// Server is SOCKS5 (RFC 1928, RFC 1929) at an entrance, and the CONNECT of SOCKS4 and 4a unless there is
// authentication. Its fields must not change once the entrance serves.
type Server struct {
	// Users may come in. If there are none there is no authentication, and an
	// application that sends a password all the same is let in with any.
	Users *user.Set

	// UDPAdvertise is the address that applications are told to send datagrams to,
	// for servers behind NAT or in a container; the sockets then bind the wildcard
	// address. The zero value is the address the control connection came in on.
	UDPAdvertise netip.Addr

	// UDPPorts are the ports that associations bind, one each; a single port is
	// shared by all of them. The zero value leaves the choice to the system.
	UDPPorts PortRange

	// UDPFrom are addresses that datagrams may come from, beside the address that
	// the association's control connection comes from. On a shared port such a
	// source takes the oldest association, of any client, that has none yet, or else the
	// only one, or the only one that has been silent (see sharedPort.choose).
	UDPFrom []netip.Prefix

	// NoOffload opens UDP sockets without segmentation and receive offload.
	NoOffload bool

	// Handler serves CONNECT and UDP ASSOCIATE.
	Handler entrance.Handler

	// Log takes one line for each association that ends and for what an operator
	// can act on; nil discards.
	Log *slog.Logger

	ports        portTable
	owners       owners
	reassembling atomic.Int64  // bytes in fragment queues
	unmatched    atomic.Uint64 // datagrams on shared ports that belong to no association
	told4        sync.Once     // logs that SOCKS4 is refused
}

var _ entrance.Protocol = (*Server)(nil)

// Begin returns a receiver for a connection that begins with a version of SOCKS.
func (s *Server) Begin(c *entrance.Conn, first byte) entrance.Receiver {
	switch first {
	case version:
		return &negotiation{server: s, conn: c, step: (*negotiation).greeting}
	case version4:
		return &request4{server: s, conn: c}
	}
	return nil
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}
