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
	// connectionIDLength makes full packets of full DATAGRAM frames, as in the tunnel.
	connectionIDLength = 17
	// keepAlive holds a connection through loads that are not its own.
	keepAlive = 10 * time.Second
)

// clientTLS does not ask who the far end is: both are on one machine.
var clientTLS = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}

func config() *quic.Config { return &quic.Config{EnableDatagrams: true, KeepAlivePeriod: keepAlive} }

// transport is a socket like the tunnel's.
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

// Far is the end of QUIC relays that sends to an address.
type Far struct {
	transport *quic.Transport
	listener  *quic.Listener
	to        netip.AddrPort
	accepting sync.WaitGroup
}

// ListenFar takes connections of Near at at, and passes what they bring on to to.
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

// Addr is where it listens.
func (f *Far) Addr() netip.AddrPort { return f.listener.Addr().(*net.UDPAddr).AddrPort() }

// Close ends it, with its connections.
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
	n := newNAT(f.to, func(index uint16) back {
		var b []byte // a socket calls back one at a time
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

// receive calls do with all that comes, until the connection ends.
func receive(conn *quic.Conn, do func(index uint16, body []byte)) {
	for {
		b, err := conn.ReceiveDatagram(context.Background())
		if err != nil {
			return
		}
		if index, body, ok := cutIndex(b); ok {
			do(index, body)
		}
	}
}

// Near is the end of QUIC relays that listens.
type Near struct {
	entrance
	transport *quic.Transport
	conn      *quic.Conn
	receiving sync.WaitGroup
}

// ListenNear passes what comes to at on to the Far at server.
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
	var b []byte // the socket calls back one at a time
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

// Close ends it.
func (n *Near) Close() error {
	_ = n.conn.CloseWithError(0, "")
	closeTransport(n.transport)
	err := n.front.Close()
	n.receiving.Wait()
	return err
}
