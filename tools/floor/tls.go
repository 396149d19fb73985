package floor

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"wmproxy/internal/udpio"
)

// A datagram on a TLS connection: the length of the rest, which is as over QUIC.
//
//	0               2               4
//	+---------------+---------------+-----------
//	| length (16)   | source (16)   | datagram …
//	+---------------+---------------+-----------
//
// Datagrams that were read together are written together.
const lengthSize = 2

func putFramed(b []byte, index uint16, body []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(indexSize+len(body)))
	return append(binary.BigEndian.AppendUint16(b, index), body...)
}

// maxFramed is the largest length.
const maxFramed = 1<<16 - 1

// receiveFramed calls f with each datagram until the connection ends.
func receiveFramed(conn net.Conn, f func(index uint16, body []byte)) {
	r := bufio.NewReaderSize(conn, 16<<10)
	b := make([]byte, maxFramed)
	for {
		if _, err := io.ReadFull(r, b[:lengthSize]); err != nil {
			return
		}
		frame := b[:binary.BigEndian.Uint16(b)]
		if _, err := io.ReadFull(r, frame); err != nil {
			return
		}
		if index, body, ok := cutIndex(frame); ok {
			f(index, body)
		}
	}
}

// Over returns the connection for datagrams, on top of a TLS connection.
type Over func(conn net.Conn, client bool) (net.Conn, error)

// Bare returns the TLS connection itself.
func Bare(conn net.Conn, _ bool) (net.Conn, error) { return conn, nil }

// TLSFar is like Far, with a TLS connection for each Near.
type TLSFar struct {
	listener  *net.TCPListener
	to        netip.AddrPort
	conf      *tls.Config
	over      Over
	accepting sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	ended bool
}

// ListenTLSFar is like ListenFar over TLS.
func ListenTLSFar(at, to netip.AddrPort, cert *tls.Certificate, over Over) (*TLSFar, error) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	f := &TLSFar{listener: ln, to: to, over: over, conf: &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{protocol}}}
	f.accepting.Go(f.accept)
	return f, nil
}

// Addr returns the relay's address.
func (f *TLSFar) Addr() netip.AddrPort { return f.listener.Addr().(*net.TCPAddr).AddrPort() }

// Close closes the relay and its connections.
func (f *TLSFar) Close() error {
	err := f.listener.Close()
	f.mu.Lock()
	f.ended = true
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.accepting.Wait()
	return err
}

func (f *TLSFar) accept() {
	for {
		tcp, err := f.listener.AcceptTCP()
		if err != nil {
			return
		}
		f.mu.Lock()
		if f.ended {
			_ = tcp.Close()
		}
		f.conns = append(f.conns, tcp)
		f.mu.Unlock()
		f.accepting.Go(func() {
			defer tcp.Close()
			if conn, err := f.over(tls.Server(udpio.RawConn(tcp), f.conf), false); err == nil {
				f.serve(conn)
			}
		})
	}
}

func (f *TLSFar) serve(conn net.Conn) {
	var writing sync.Mutex
	n := newNAT(f.to, func(index uint16) deliver {
		var b []byte // the socket does not call back concurrently
		return func(ms []udpio.Message) {
			b = b[:0]
			for i := range ms {
				b = putFramed(b, index, ms[i].Body)
			}
			writing.Lock()
			defer writing.Unlock()
			_, _ = conn.Write(b)
		}
	})
	defer n.close()
	defer conn.Close()
	receiveFramed(conn, sendEach(n))
}

// TLSNear is like Near over TLS.
type TLSNear struct {
	entrance
	conn      net.Conn
	receiving sync.WaitGroup
}

// ListenTLSNear is like ListenNear over TLS.
func ListenTLSNear(at, server netip.AddrPort, over Over) (*TLSNear, error) {
	tcp, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(server))
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", server, err)
	}
	conn, err := over(tls.Client(udpio.RawConn(tcp), clientTLS), true)
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	front, err := udpio.Listen(at, udpio.Config{})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	n := &TLSNear{entrance: entrance{front: front}, conn: conn}
	var b []byte // the socket does not call back concurrently
	front.Start(func(ms []udpio.Message) {
		b = b[:0]
		for i := range ms {
			if index, ok := n.sources.index(ms[i].Addr); ok {
				b = putFramed(b, index, ms[i].Body)
			}
		}
		_, _ = n.conn.Write(b)
	})
	n.receiving.Go(func() { receiveFramed(n.conn, n.deliver()) })
	return n, nil
}

// Close closes the relay.
func (n *TLSNear) Close() error {
	_ = n.conn.Close()
	err := n.front.Close()
	n.receiving.Wait()
	return err
}
