package client

import (
	"log/slog"
	"net"
	"net/netip"

	"wmproxy/internal/link"
	"wmproxy/internal/state"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

// Carriers that Config.Transport and Config.Streams may name.
const (
	Auto  = "auto"
	QUIC  = "quic"
	Yamux = "yamux"
)

// What Config.Pick may be.
const (
	Order   = "order"
	Fastest = "fastest"
)

// Timers say how soon a connection of the tunnel is doubted.
type Timers = tunnel.Timers

// MaxDead bounds Timers.Dead, and a server's.
const MaxDead = tunnel.MaxDead

// Config is all that a client is told. Links and Log are required; the zero
// value of every other field is the default.
type Config struct {
	// Links name the servers, each with its pin and the user's token, at least
	// one, the preferred first.
	Links []link.Link

	// Pick says which server new flows and streams go to: Order (the first that
	// works) or Fastest (that with the lowest round-trip time). Default Order.
	Pick string

	// Listen is the HOST:PORT of the SOCKS5 entrance. Default "127.0.0.1:1080".
	Listen string

	// User and Pass are asked of applications (RFC 1929), each 1 to 255 bytes;
	// both or neither.
	User, Pass string

	// UDPAdvertise is told to applications as the address of their association,
	// in place of the one their control connection came in on; then the
	// association binds the wildcard.
	UDPAdvertise netip.Addr

	// UDPPorts bounds the ports of associations.
	UDPPorts socks.PortRange

	// UDPFrom are further sources from which an association takes datagrams,
	// beside its control connection's peer.
	UDPFrom []netip.Prefix

	// AddressAnswers has answers carry the address that they come from even if the
	// application sent to a name, which they carry otherwise.
	AddressAnswers bool

	// Transport is which carriers to attach: Auto (both), QUIC or Yamux.
	Transport string

	// Streams is which carrier streams prefer: Auto (yamux), QUIC or Yamux.
	Streams string

	// Timers say how soon a carrier is doubted.
	Timers Timers

	// Descriptors is how many this process may have open; 0 is not known. All but a
	// reserve are shared among the applications.
	Descriptors int

	// State is the open and locked state directory, or nil when there is none.
	// Whoever opened it closes it after Run has returned.
	State *state.Dir

	// Memory bounds the bytes that servers and applications can make the client
	// hold; see tunnel.Budget. 0 is no bound.
	Memory int64

	// NoOffload switches UDP segmentation offload off, for network cards that
	// corrupt it.
	NoOffload bool

	// Started, when set, is called once the entrance listens, with its address.
	Started func(net.Addr)

	// Log gets everything that is worth a line. It never sees a secret.
	Log *slog.Logger
}
