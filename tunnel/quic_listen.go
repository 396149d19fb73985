package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/quic-go/quic-go"
)

// QUICConfig is how a QUICListener is opened.
type QUICConfig struct {
	// StatelessResetKey signs the stateless resets by which clients learn at
	// once that the server restarted (RFC 9000 section 10.3). It must be the
	// same after the restart. nil sends none.
	StatelessResetKey *[32]byte

	// VerifySourceAddress says whether a connection attempt from this address
	// has to prove it by a Retry first (RFC 9000 section 8.1.2), which costs it a
	// round trip: true while there are many. It must not wait. nil is never.
	VerifySourceAddress func(net.Addr) bool
}

// QUICListener accepts QUIC connections on one UDP socket.
type QUICListener struct {
	transport *quic.Transport
	listener  *quic.Listener
	socket    net.PacketConn
}

// ListenQUIC listens on socket, which the listener then owns. A socket that is
// not *net.UDPConn should have all its methods, or quic-go sends and reads
// packet by packet.
func ListenQUIC(socket net.PacketConn, tlsConf *tls.Config, cfg QUICConfig) (*QUICListener, error) {
	tr := &quic.Transport{
		Conn:                socket,
		ConnectionIDLength:  quicConnectionIDLength,
		VerifySourceAddress: cfg.VerifySourceAddress,
		StatelessResetKey:   (*quic.StatelessResetKey)(cfg.StatelessResetKey),
	}
	ln, err := tr.Listen(tlsConf, quicConfig())
	if err != nil {
		tr.Close()
		socket.Close()
		return nil, fmt.Errorf("listen for QUIC on %v: %w", socket.LocalAddr(), err)
	}
	return &QUICListener{transport: tr, listener: ln, socket: socket}, nil
}

// Accept returns the next connection that has passed TLS. After Close it returns net.ErrClosed.
func (l *QUICListener) Accept(ctx context.Context) (Pending, error) {
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
	return &quicPending{quicLink: newQUICLink(conn, nil, nil)}, nil
}

// Addr is the address of the socket.
func (l *QUICListener) Addr() net.Addr { return l.socket.LocalAddr() }

// Close stops listening and closes the socket. Carriers that are left end
// without a word to their peers: close them first.
func (l *QUICListener) Close() error {
	l.listener.Close()
	l.transport.Close()
	return l.socket.Close()
}
