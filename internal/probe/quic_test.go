package probe

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// selfSigned returns a TLS configuration for both ends.
func selfSigned(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      roots,
		ServerName:   "test",
		NextProtos:   []string{"test"},
	}
}

func TestQUICRunsThroughAssociation(t *testing.T) {
	const size = 4 << 20
	conf := selfSigned(t)
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	server := &quic.Transport{Conn: socket}
	defer server.Close() // closed connections of quic.ListenAddr linger
	ln, err := server.Listen(conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serveOneStream(t.Context(), ln, size) }()
	defer func() {
		ln.Close()
		<-served
	}()

	assoc, err := (&fakeSocks{}).start(t).client().Associate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer assoc.Close()
	transport := &quic.Transport{Conn: assoc}
	defer transport.Close()
	conn, err := transport.Dial(t.Context(), net.UDPAddrFromAddrPort(ln.Addr().(*net.UDPAddr).AddrPort()), conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := conn.AcceptUniStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(stream)
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, size)) {
		t.Errorf("%d bytes arrived, %v", len(got), err)
	}
	conn.CloseWithError(0, "")
}

// serveOneStream sends size bytes to the first connection and waits for its end.
func serveOneStream(ctx context.Context, ln *quic.Listener, size int) error {
	conn, err := ln.Accept(ctx)
	if err != nil {
		return err
	}
	stream, err := conn.OpenUniStream()
	if err != nil {
		return err
	}
	if _, err := stream.Write(bytes.Repeat([]byte{7}, size)); err != nil {
		return err
	}
	stream.Close()
	<-conn.Context().Done()
	return nil
}
