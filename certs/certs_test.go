package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/internal/testmain"
)

const alpn = "wmproxy/1"

func TestMain(m *testing.M) { testmain.Run(m) }

func identity(t *testing.T) *Identity {
	t.Helper()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// issue returns a certificate for 127.0.0.1 and localhost, self-signed, that is
// valid between the two times.
func issue(t *testing.T, notBefore, notAfter time.Time) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: notBefore, NotAfter: notAfter,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func roots(cert *tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	return pool
}

// handshake does a TLS handshake over loopback TCP and returns the state of both
// ends and their errors.
func handshake(t *testing.T, serverConfig, clientConfig *tls.Config) (server, client tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := listener.Accept()
		if err != nil {
			serverErr = err
			return
		}
		conn := tls.Server(raw, serverConfig)
		defer conn.Close()
		if serverErr = conn.HandshakeContext(t.Context()); serverErr != nil {
			return
		}
		server = conn.ConnectionState()
		_, _ = conn.Write([]byte("x")) // so that tickets, if any, are read too
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, clientConfig)
	if clientErr = conn.HandshakeContext(t.Context()); clientErr == nil {
		client = conn.ConnectionState()
		_, _ = io.ReadAll(conn)
	}
	_ = raw.Close()
	<-done
	return server, client, serverErr, clientErr
}

// transport returns a QUIC transport on loopback. Its end does not leave closed
// connections lingering, as that of quic.ListenAddr does for as long as the path is slow.
func transport(t *testing.T) *quic.Transport {
	t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: socket}
	t.Cleanup(func() { tr.Close(); socket.Close() })
	return tr
}

// dialQUIC does a QUIC handshake over loopback and returns the state of both ends.
func dialQUIC(t *testing.T, serverConfig, clientConfig *tls.Config) (server, client tls.ConnectionState, clientErr error) {
	t.Helper()
	serverSide, clientSide := transport(t), transport(t)
	listener, err := serverSide.Listen(serverConfig, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := clientSide.Dial(ctx, listener.Addr(), clientConfig, nil)
	if err != nil {
		return server, client, err
	}
	defer conn.CloseWithError(0, "")
	accepted, err := listener.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return accepted.ConnectionState().TLS, conn.ConnectionState().TLS, nil
}

func TestPinnedServerNeedsOnlyTheKey(t *testing.T) {
	long := 24 * time.Hour
	now := time.Now()
	for name, cert := range map[string]*tls.Certificate{
		"own identity":    identity(t).Certificate(),
		"expired":         issue(t, now.Add(-2*long), now.Add(-long)),
		"not yet valid":   issue(t, now.Add(long), now.Add(2*long)),
		"valid elsewhere": issue(t, now.Add(-long), now.Add(long)),
	} {
		t.Run(name, func(t *testing.T) {
			pin := PinOf(cert.Leaf)
			serverConfig := ServerConfig(func() *tls.Certificate { return cert }, alpn)
			for _, host := range []string{"elsewhere.example", "192.0.2.1", "::1", "fe80::1%eth0"} {
				_, client, serverErr, clientErr := handshake(t, serverConfig, ClientConfig(&pin, host, alpn))
				if serverErr != nil || clientErr != nil {
					t.Fatalf("TCP to %s: %v, %v", host, serverErr, clientErr)
				}
				if client.NegotiatedProtocol != alpn || client.Version != tls.VersionTLS13 {
					t.Errorf("TCP: got %q, version %x", client.NegotiatedProtocol, client.Version)
				}
			}
			if _, client, err := dialQUIC(t, serverConfig, ClientConfig(&pin, "elsewhere.example", alpn)); err != nil || client.NegotiatedProtocol != alpn {
				t.Errorf("QUIC: got %q, %v", client.NegotiatedProtocol, err)
			}
		})
	}
}

func TestWrongKeyIsPinError(t *testing.T) {
	id, other := identity(t), identity(t)
	want := other.Pin()
	serverConfig := ServerConfig(id.Certificate, alpn)
	_, _, _, tcpErr := handshake(t, serverConfig, ClientConfig(&want, "h", alpn))
	_, _, quicErr := dialQUIC(t, serverConfig, ClientConfig(&want, "h", alpn))
	for carrier, err := range map[string]error{"TCP": tcpErr, "QUIC": quicErr} {
		var pinErr *PinError
		if !errors.As(err, &pinErr) {
			t.Errorf("%s: got %v", carrier, err)
			continue
		}
		if pinErr.Want != want || pinErr.Got != id.Pin() {
			t.Errorf("%s: got %v", carrier, pinErr)
		}
	}
}

// An intermediate or root with the pinned key does not make up for a leaf without it.
func TestPinIsCheckedOnTheLeaf(t *testing.T) {
	id, other := identity(t), identity(t)
	chain := &tls.Certificate{
		Certificate: [][]byte{other.Certificate().Certificate[0], id.Certificate().Certificate[0]},
		PrivateKey:  other.Certificate().PrivateKey,
	}
	pin := id.Pin()
	_, _, _, err := handshake(t, ServerConfig(func() *tls.Certificate { return chain }, alpn), ClientConfig(&pin, "h", alpn))
	if !errors.As(err, new(*PinError)) {
		t.Errorf("got %v", err)
	}
}

func TestUnpinnedServerNeedsChainNameAndDates(t *testing.T) {
	now, long := time.Now(), 24*time.Hour
	valid := issue(t, now.Add(-long), now.Add(long))
	expired := issue(t, now.Add(-2*long), now.Add(-long))
	for _, test := range []struct {
		name, host string
		cert       *tls.Certificate
		trusted    bool
		want       func(error) bool
	}{
		{"address", "127.0.0.1", valid, true, func(err error) bool { return err == nil }},
		{"name", "localhost", valid, true, func(err error) bool { return err == nil }},
		{"other address", "::1", valid, true, func(err error) bool { return errors.As(err, new(x509.HostnameError)) }},
		{"other name", "h.example", valid, true, func(err error) bool { return errors.As(err, new(x509.HostnameError)) }},
		{"unknown authority", "localhost", valid, false, func(err error) bool { return errors.As(err, new(x509.UnknownAuthorityError)) }},
		{"expired", "localhost", expired, true, func(err error) bool {
			var invalid x509.CertificateInvalidError
			return errors.As(err, &invalid) && invalid.Reason == x509.Expired
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			clientConfig := ClientConfig(nil, test.host, alpn)
			if test.trusted {
				clientConfig.RootCAs = roots(test.cert)
			}
			serverConfig := ServerConfig(func() *tls.Certificate { return test.cert }, alpn)
			_, _, _, tcpErr := handshake(t, serverConfig, clientConfig)
			_, _, quicErr := dialQUIC(t, serverConfig, clientConfig)
			if !test.want(tcpErr) || !test.want(quicErr) {
				t.Errorf("got %v over TCP and %v over QUIC", tcpErr, quicErr)
			}
		})
	}
}

func TestWrongALPNPassesTLSAndIsReported(t *testing.T) {
	id := identity(t)
	pin := id.Pin()
	serverConfig := ServerConfig(id.Certificate, alpn)
	for _, test := range []struct {
		name   string
		offers []string
		want   string
	}{
		{"ours", []string{alpn}, alpn},
		{"ours among others", []string{"h2", alpn}, alpn},
		{"another", []string{"wmproxy/9"}, "wmproxy/9"},
		{"several others", []string{"h2", "http/1.1"}, "h2"},
		{"none", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			clientConfig := ClientConfig(&pin, "h", alpn)
			clientConfig.NextProtos = test.offers
			server, client, serverErr, clientErr := handshake(t, serverConfig, clientConfig)
			if serverErr != nil || clientErr != nil || server.NegotiatedProtocol != test.want || client.NegotiatedProtocol != test.want {
				t.Errorf("TCP: got %q and %q, %v, %v", server.NegotiatedProtocol, client.NegotiatedProtocol, serverErr, clientErr)
			}
			server, client, err := dialQUIC(t, serverConfig, clientConfig)
			if err != nil || server.NegotiatedProtocol != test.want || client.NegotiatedProtocol != test.want {
				t.Errorf("QUIC: got %q and %q, %v", server.NegotiatedProtocol, client.NegotiatedProtocol, err)
			}
		})
	}
}

func TestOlderTLSIsRefused(t *testing.T) {
	id := identity(t)
	pin := id.Pin()
	clientConfig := ClientConfig(&pin, "h", alpn)
	clientConfig.MinVersion, clientConfig.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, serverErr, clientErr := handshake(t, ServerConfig(id.Certificate, alpn), clientConfig); serverErr == nil || clientErr == nil {
		t.Errorf("got %v, %v", serverErr, clientErr)
	}
}

func TestTLSSessionsAreNotResumed(t *testing.T) {
	id := identity(t)
	pin := id.Pin()
	clientConfig := ClientConfig(&pin, "h", alpn)
	clientConfig.SessionTicketsDisabled = false // a client that would resume
	clientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	serverConfig := ServerConfig(id.Certificate, alpn)
	for range 2 {
		_, client, serverErr, clientErr := handshake(t, serverConfig, clientConfig)
		if serverErr != nil || clientErr != nil || client.DidResume {
			t.Errorf("resumed %v, %v, %v", client.DidResume, serverErr, clientErr)
		}
		_, client, err := dialQUIC(t, serverConfig, clientConfig)
		if err != nil || client.DidResume {
			t.Errorf("resumed %v, %v", client.DidResume, err)
		}
	}
}

func TestPinsAreParsedAndFormatted(t *testing.T) {
	pin := identity(t).Pin()
	text := pin.String()
	if len(text) != 43 || strings.ContainsAny(text, "+/=") {
		t.Errorf("got %s", text)
	}
	if got, err := ParsePin(text); got != pin || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for _, wrong := range []string{"", text[:42], text + "=", text + "A", "+" + text[1:], strings.Repeat("_", 43), text[:20] + "\n" + text[21:]} {
		if _, err := ParsePin(wrong); !errors.Is(err, errPin) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

func FuzzParsePin(f *testing.F) {
	f.Add("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP8")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if pin, err := ParsePin(text); err == nil && pin.String() != text {
			t.Fatalf("%q has a second spelling %q", text, pin)
		}
	})
}

func TestIdentitySurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	first, err := LoadOrCreate(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreate(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if first.Pin() != second.Pin() || string(first.Certificate().Certificate[0]) != string(second.Certificate().Certificate[0]) {
		t.Error("the identity changed")
	}
	a, errA := StatelessResetKey(first.Certificate())
	b, errB := StatelessResetKey(second.Certificate())
	other, errOther := StatelessResetKey(identity(t).Certificate())
	if a != b || a == other || a == [32]byte{} || errA != nil || errB != nil || errOther != nil {
		t.Errorf("stateless reset keys: %v %v %v", errA, errB, errOther)
	}
	if left := time.Until(first.Certificate().Leaf.NotAfter); left < 50*365*24*time.Hour {
		t.Errorf("it expires in %v", left)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("there are %d files, %v", len(entries), err)
	}
	for _, file := range []string{certFile, keyFile} {
		info, err := os.Stat(file)
		if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
}

func TestKeyWithoutCertificateGetsOne(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	first, err := LoadOrCreate(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	second, err := LoadOrCreate(certFile, keyFile)
	if err != nil || first.Pin() != second.Pin() {
		t.Errorf("the pin changed, %v", err)
	}
}

func TestDamagedIdentityIsNotReplaced(t *testing.T) {
	for name, damage := range map[string]func(certFile, keyFile string) error{
		"key lost":          func(_, keyFile string) error { return os.Remove(keyFile) },
		"key empty":         func(_, keyFile string) error { return os.WriteFile(keyFile, nil, 0o600) },
		"key huge":          func(_, keyFile string) error { return os.WriteFile(keyFile, make([]byte, maxPEM+1), 0o600) },
		"certificate empty": func(certFile, _ string) error { return os.WriteFile(certFile, nil, 0o600) },
		"of another key": func(certFile, _ string) error {
			dir := filepath.Dir(certFile)
			_, err := LoadOrCreate(filepath.Join(dir, "other.c"), filepath.Join(dir, "other.k"))
			if err != nil {
				return err
			}
			return os.Rename(filepath.Join(dir, "other.c"), certFile)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
			if _, err := LoadOrCreate(certFile, keyFile); err != nil {
				t.Fatal(err)
			}
			if err := damage(certFile, keyFile); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreate(certFile, keyFile); err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// pemOf encodes a certificate and its key as files have them.
func pemOf(t *testing.T, cert *tls.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: certType, Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der})
}
