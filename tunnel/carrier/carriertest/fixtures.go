package carriertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"wmproxy/tunnel/carrier"
)

// Patience bounds what must happen soon, in tests that wait for it.
const Patience = 20 * time.Second

// Context returns a context that ends after Patience, or with the test.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// TLS returns configurations for the two ends of a connection.
var TLS = sync.OnceValues(func() (client, server *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"carrier.test"},
		// Valid today and in a synctest bubble, which begins with the year 2000.
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	client = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{carrier.ALPN},
		RootCAs: roots, ServerName: "carrier.test",
	}
	server = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{carrier.ALPN},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	return client, server
})

// LoopbackUDP returns a socket on loopback.
func LoopbackUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return socket
}

// Listener is what servers of all transports listen with.
type Listener interface {
	Accept(ctx context.Context) (carrier.Pending, error)
	Close() error
}

// Connect returns the ends of a connection that dial makes to ln. All is closed with the test.
func Connect(t testing.TB, ln Listener, dial func(ctx context.Context) (carrier.Pending, error)) (client, server carrier.Pending) {
	t.Helper()
	ctx := Context(t)
	t.Cleanup(func() { ln.Close() })
	client, err := dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(carrier.CodeShutdown, "") })
	server, err = ln.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(carrier.CodeShutdown, "") })
	return client, server
}

// Shake passes a greeting each way, as Hello and Welcome do, and starts both ends.
func Shake(t testing.TB, client, server carrier.Pending) (carrier.Carrier, carrier.Carrier) {
	t.Helper()
	ctx := Context(t)
	type started struct {
		c   carrier.Carrier
		err error
	}
	serverc := make(chan started, 1)
	go func() {
		c, err := ServeHandshake(ctx, server)
		serverc <- started{c, err}
	}()
	rw, err := client.Handshake(ctx)
	if err != nil {
		t.Fatalf("client handshake: %v", err)
	}
	if _, err := rw.Write([]byte("hello")); err != nil {
		t.Fatalf("client hello: %v", err)
	}
	if _, err := io.ReadFull(rw, make([]byte, 7)); err != nil {
		t.Fatalf("client welcome: %v", err)
	}
	c, err := client.Start(ctx)
	if err != nil {
		t.Fatalf("client start: %v", err)
	}
	t.Cleanup(func() { c.Close(carrier.CodeShutdown, "") })
	s := <-serverc
	if s.err != nil {
		t.Fatalf("server: %v", s.err)
	}
	t.Cleanup(func() { s.c.Close(carrier.CodeShutdown, "") })
	return c, s.c
}

// ServeHandshake is the server's part of Shake.
func ServeHandshake(ctx context.Context, server carrier.Pending) (carrier.Carrier, error) {
	rw, err := server.Handshake(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(rw, make([]byte, 5)); err != nil {
		return nil, err
	}
	if _, err := rw.Write([]byte("welcome")); err != nil {
		return nil, err
	}
	return server.Start(ctx)
}

// Await polls what nothing announces.
func Await(t *testing.T, what string, ok func() (int, bool)) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		n, done := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still %d", what, n)
		}
		runtime.Gosched()
	}
}
