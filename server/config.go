package server

import (
	"log/slog"
	"net/netip"
	"time"

	"wmproxy/internal/egress"
	"wmproxy/internal/link"
	"wmproxy/internal/state"
	"wmproxy/tunnel"
)

// Transports that Config may name.
const (
	TransportQUIC  = "quic"
	TransportYamux = "yamux"
)

// MaxDead bounds Config.Dead.
const MaxDead = tunnel.MaxDead

// Config is all that a server is told. State and Log are required; the zero
// value of every other field is the default.
type Config struct {
	// Listen is HOST:PORT for UDP and TCP alike; an empty HOST is every address.
	// Default ":8090".
	Listen string

	// Transports to listen for, a subset of quic and yamux. Default both.
	Transports []string

	// State is the open and locked state directory. Whoever opened it closes it
	// after Serve has returned.
	State *state.Dir

	// Advertise is the HOST or HOST:PORT that the link names. Default: the
	// default route's address and the port of Listen.
	Advertise string

	// Tokens are the users. Empty means the random one in the state directory.
	Tokens []link.Token

	// ReadTokens, if set, returns Tokens anew, for Server.Reload.
	ReadTokens func() ([]link.Token, error)

	// CertFile and KeyFile name a pair from a public CA; both or neither. With
	// neither, the server's own identity counts and the link carries its pin.
	CertFile, KeyFile string

	// Allow opens destinations that are refused by default.
	Allow []netip.Prefix

	// Deny closes destinations, even ones that Allow opens.
	Deny []netip.Prefix

	// UDPIdle is how long a flow without outbound datagrams keeps its socket.
	// Default 5 minutes.
	UDPIdle time.Duration

	// Filtering says whose datagrams reach an association through its egress
	// socket (RFC 4787 section 5).
	Filtering egress.Filtering

	// Hold is how long the session of a client that lost its connections is kept,
	// with its associations' sockets. 0 ends it at once.
	Hold time.Duration

	// Drain is how long Server.Drain waits for clients to go elsewhere.
	Drain time.Duration

	// Dead is how long a connection may be silent before it is closed. Default 30 s.
	Dead time.Duration

	// Memory bounds the bytes that clients can make the server hold; see
	// tunnel.Budget. 0 is no bound.
	Memory int64

	// NoOffload switches UDP segmentation offload off, for network cards that
	// corrupt it.
	NoOffload bool

	// Descriptors is how many this process may have open; 0 is not known. All but a
	// reserve are shared among the users.
	Descriptors int

	// Log gets everything that is worth a line. It never sees a secret. Peers can cause
	// lines at will: the log's handler has to bound them.
	Log *slog.Logger

	// Started, when set, is called once the server listens on everything, with
	// the link for a client. The link holds a secret.
	Started func(link string)
}
