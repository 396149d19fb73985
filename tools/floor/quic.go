package floor

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/internal/udpio"
)

const (
	protocol = "floor"
	// connectionIDLength makes a full DATAGRAM frame a full packet, as in the tunnel.
	connectionIDLength = 17
	// keepAlive keeps a connection open during the loads of others.
	keepAlive = 10 * time.Second
)

// clientTLS does not verify the far end, which is on the same machine.
var clientTLS = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}

func config() *quic.Config { return &quic.Config{EnableDatagrams: true, KeepAlivePeriod: keepAlive} }

// transport returns a transport with a socket like the tunnel's.
func transport(at netip.AddrPort) (*quic.Transport, error) {
	socket, err := udpio.ListenPacket(at, udpio.Config{})
	if err != nil {
		return nil, err
	}
	return &quic.Transport{Conn: socket, ConnectionIDLength: connectionIDLength}, nil
}

func closeTransport(t *quic.Transport) {
	_ = t.Close()
	_ = t.Conn.Close()
}

// Far is the end of a pair of QUIC relays that sends to an address.
type Far struct {
	transport *quic.Transport
	listener  *quic.Listener
	to        netip.AddrPort
	accepting sync.WaitGroup
}

// ListenFar accepts connections of Near at an address and passes their datagrams on to
// another.
func ListenFar(at, to netip.AddrPort, cert *tls.Certificate) (*Far, error) {
	tr, err := transport(at)
	if err != nil {
		return nil, err
	}
	ln, err := tr.Listen(&tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{protocol}}, config())
	if err != nil {
		closeTransport(tr)
		return nil, err
	}
	f := &Far{transport: tr, listener: ln, to: to}
	f.accepting.Go(f.accept)
	return f, nil
}

// Addr returns the relay's address.
func (f *Far) Addr() netip.AddrPort { return f.listener.Addr().(*net.UDPAddr).AddrPort() }

// Close closes the relay and its connections.
func (f *Far) Close() error {
	_ = f.listener.Close()
	closeTransport(f.transport)
	f.accepting.Wait()
	return nil
}

func (f *Far) accept() {
	for {
		conn, err := f.listener.Accept(context.Background())
		if err != nil {
			return
		}
		f.accepting.Go(func() { f.serve(conn) })
	}
}

func (f *Far) serve(conn *quic.Conn) {
	n := newNAT(f.to, func(index uint16) deliver {
		var b []byte // the socket does not call back concurrently
		return func(ms []udpio.Message) {
			for i := range ms {
				b = putIndex(b, index, ms[i].Body)
				_ = conn.SendDatagram(b)
			}
		}
	})
	defer n.close()
	receive(conn, sendEach(n))
}

// receive calls f with each datagram until the connection ends.
func receive(conn *quic.Conn, f func(index uint16, body []byte)) {
	for {
		b, err := conn.ReceiveDatagram(context.Background())
		if err != nil {
			return
		}
		if index, body, ok := cutIndex(b); ok {
			f(index, body)
		}
	}
}

// Near is the end of a pair of QUIC relays that takes datagrams of sources.
type Near struct {
	entrance
	transport *quic.Transport
	conn      *quic.Conn
	receiving sync.WaitGroup
}

// ListenNear passes datagrams that arrive at an address on to the Far at server.
func ListenNear(ctx context.Context, at, server netip.AddrPort) (*Near, error) {
	tr, err := transport(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		return nil, err
	}
	conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(server), clientTLS, config())
	if err != nil {
		closeTransport(tr)
		return nil, fmt.Errorf("connect to %v: %w", server, err)
	}
	front, err := udpio.Listen(at, udpio.Config{})
	if err != nil {
		closeTransport(tr)
		return nil, err
	}
	n := &Near{entrance: entrance{front: front}, transport: tr, conn: conn}
	var b []byte // the socket does not call back concurrently
	front.Start(func(ms []udpio.Message) {
		for i := range ms {
			if index, ok := n.sources.index(ms[i].Addr); ok {
				b = putIndex(b, index, ms[i].Body)
				_ = conn.SendDatagram(b)
			}
		}
	})
	n.receiving.Go(func() { receive(n.conn, n.deliver()) })
	return n, nil
}

// Close closes the relay.
func (n *Near) Close() error {
	_ = n.conn.CloseWithError(0, "")
	closeTransport(n.transport)
	err := n.front.Close()
	n.receiving.Wait()
	return err
}
