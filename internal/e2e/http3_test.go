package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"wmproxy/certs"
)

// As in a browser, the QUIC of the HTTP/3 client does not know that it runs through a
// SOCKS5 association.
func TestHTTP3RunsThroughAnAssociation(t *testing.T) {
	t.Parallel()
	body := random(3, 50<<20)
	want := sha256.Sum256(body)
	url, dial := startHTTP3(t, listenUDP(t, "127.0.0.1:0"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body)
	}))
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		inner := &quic.Transport{Conn: associate(t, tu.Entry.Socks())}
		defer inner.Close()
		transport := &http3.Transport{Dial: dial(inner)}
		defer transport.Close()

		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		sum := sha256.New()
		n, err := io.Copy(sum, response.Body)
		if err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if response.ProtoMajor != 3 || n != int64(len(body)) || [sha256.Size]byte(sum.Sum(nil)) != want {
			t.Errorf("%s: %d bytes came that are not the %d that were sent", response.Proto, n, len(body))
		}
		took := time.Since(began)
		t.Logf("%d MB in %v, %.0f Mbit/s", n>>20, took.Round(time.Millisecond), float64(n)*8/1e6/took.Seconds())
	})
}

// startHTTP3 starts a server on a socket, which it closes. dial returns an
// http3.Transport's Dial for the client's QUIC transport.
func startHTTP3(t *testing.T, socket net.PacketConn, handler http.Handler) (url string, dial func(*quic.Transport) func(context.Context, string, *tls.Config, *quic.Config) (*quic.Conn, error)) {
	t.Helper()
	id := newIdentity(t)
	server := &http3.Server{
		TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{*id.Certificate()}}),
		Handler:   handler,
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(socket) }()
	t.Cleanup(func() {
		server.Close()
		socket.Close()
		<-served
	})
	pin := id.Pin()
	return "https://" + socket.LocalAddr().String() + "/", func(tr *quic.Transport) func(context.Context, string, *tls.Config, *quic.Config) (*quic.Conn, error) {
		return func(ctx context.Context, addr string, conf *tls.Config, qconf *quic.Config) (*quic.Conn, error) {
			to, err := net.ResolveUDPAddr("udp", addr)
			if err != nil {
				return nil, err
			}
			conf = conf.Clone()
			conf.InsecureSkipVerify = true // the pin is checked
			conf.VerifyConnection = func(state tls.ConnectionState) error {
				if certs.PinOf(state.PeerCertificates[0]) != pin {
					return x509.UnknownAuthorityError{Cert: state.PeerCertificates[0]}
				}
				return nil
			}
			return tr.DialEarly(ctx, to, conf, qconf)
		}
	}
}
