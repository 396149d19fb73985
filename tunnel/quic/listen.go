package quic

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/tunnel/carrier"
)

// Config is how a Listener is opened.
type Config struct {
	// StatelessResetKey signs the stateless resets by which clients learn at
	// once that the server restarted (RFC 9000 section 10.3). It must be the
	// same after the restart. nil sends none.
	StatelessResetKey *[32]byte

	// VerifySourceAddress says whether a connection attempt from this address
	// has to prove it by a Retry first (RFC 9000 section 8.1.2), which costs it a
	// round trip: true while there are many. It must not wait. nil is never.
	VerifySourceAddress func(net.Addr) bool

	// Admit is asked about each connection attempt before anything is kept of
	// it; not ok refuses it. leave is called once: when the client has said enough
	// of TLS for Accept to return the connection, or when it has ended without.
	// Neither may wait. nil admits all.
	Admit func(net.Addr) (leave func(), ok bool)

	// Hurry reports whether the next connection is to have less time for its handshake,
	// because there are many. It must not wait. nil is never.
	Hurry func() bool

	// Dead is Timers.Dead, 0 its default: connections outlive that much silence.
	Dead time.Duration

	// Windows bound the data a client may send ahead; zero is the default.
	Windows carrier.Windows
}

var errNotAdmitted = errors.New("too many connections that have said nothing")

// Listener accepts QUIC connections on one UDP socket.
type Listener struct {
	transport *quic.Transport
	listener  *quic.EarlyListener
	socket    net.PacketConn
	windows   carrier.Windows
	openings  openings
}

// Listen listens on socket, which the listener then owns. A socket that is
// not *net.UDPConn should have all its methods, or quic-go sends and reads
// packet by packet.
func Listen(socket net.PacketConn, tlsConf *tls.Config, cfg Config) (*Listener, error) {
	l := &Listener{socket: socket, windows: cfg.Windows, transport: &quic.Transport{
		Conn:                socket,
		ConnectionIDLength:  connectionIDLength,
		VerifySourceAddress: cfg.VerifySourceAddress,
		StatelessResetKey:   (*quic.StatelessResetKey)(cfg.StatelessResetKey),
	}}
	if cfg.Admit != nil {
		l.transport.ConnContext = func(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
			leave, ok := cfg.Admit(client.RemoteAddr)
			if !ok {
				return nil, errNotAdmitted
			}
			l.openings.add(ctx, client.RemoteAddr, leave)
			return ctx, nil
		}
	}
	conf := newConfig(cfg.Dead, cfg.Windows)
	conf.HandshakeIdleTimeout = serverHandshakeIdle
	if cfg.Hurry != nil {
		hurried := conf.Clone()
		hurried.HandshakeIdleTimeout = hurriedHandshakeIdle
		conf.GetConfigForClient = func(*quic.ClientInfo) (*quic.Config, error) {
			if cfg.Hurry() {
				return hurried, nil
			}
			return conf, nil
		}
	}
	var err error
	// Early, so that a TLS handshake that fails, such as for a wrong pin, is seen
	// too, and one that takes its time can be ended.
	if l.listener, err = l.transport.ListenEarly(tlsConf, conf); err != nil {
		l.transport.Close()
		socket.Close()
		return nil, fmt.Errorf("listen for QUIC on %v: %w", socket.LocalAddr(), err)
	}
	return l, nil
}

// openings is how to count out the connections that quic-go has not shown us yet.
// When it does, it does not say which of them a connection was, so those of
// one address and port leave in the order they came: it is the number that counts.
// The zero value works.
type openings struct {
	mu sync.Mutex
	of map[string][]*func() // leave, by the remote address
}

// add notes a connection that lives as long as ctx.
func (o *openings) add(ctx context.Context, remote net.Addr, leave func()) {
	key, own := remote.String(), &leave
	o.mu.Lock()
	if o.of == nil {
		o.of = make(map[string][]*func())
	}
	o.of[key] = append(o.of[key], own)
	o.mu.Unlock()
	context.AfterFunc(ctx, func() {
		o.remove(key, func(f *func()) bool { return f == own })
	})
}

// passed counts out a connection from remote.
func (o *openings) passed(remote net.Addr) {
	o.remove(remote.String(), func(*func()) bool { return true })
}

// remove counts out the first that is meant, if it has not left before.
func (o *openings) remove(key string, meant func(*func()) bool) {
	o.mu.Lock()
	var leave *func()
	if i := slices.IndexFunc(o.of[key], meant); i >= 0 {
		leave = o.of[key][i]
		o.of[key] = slices.Delete(o.of[key], i, i+1)
		if len(o.of[key]) == 0 {
			delete(o.of, key)
		}
		if len(o.of) == 0 {
			o.of = nil // a map never shrinks: a flood must leave nothing
		}
	}
	o.mu.Unlock()
	if leave != nil {
		(*leave)()
	}
}

// Accept returns the next connection, whose TLS handshake is still under way: Handshake
// waits for its end. After Close it returns net.ErrClosed.
func (l *Listener) Accept(ctx context.Context) (carrier.Pending, error) {
	conn, err := l.listener.Accept(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, quic.ErrServerClosed) || errors.Is(err, quic.ErrTransportClosed) {
			return nil, net.ErrClosed
		}
		return nil, fmt.Errorf("accept QUIC: %w", err)
	}
	l.openings.passed(conn.RemoteAddr())
	return &pending{link: newLink(conn, nil, l.socket, l.windows)}, nil
}

// Addr is the address of the socket.
func (l *Listener) Addr() net.Addr { return l.socket.LocalAddr() }

// Close stops listening and closes the socket. Carriers that are left end
// without a word to their peers: close them first.
func (l *Listener) Close() error {
	l.listener.Close()
	l.transport.Close()
	return l.socket.Close()
}
