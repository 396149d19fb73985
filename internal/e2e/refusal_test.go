package e2e

import (
	"bytes"
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
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/certs"
	"wmproxy/internal/link"
)

// Each reason to refuse a client has its own sentence in the client and one line in the server's
// log.
func TestRefusedClientExitsWithReason(t *testing.T) {
	t.Parallel()
	sentences := map[string]string{}
	for _, test := range []struct {
		name   string
		link   func(t *testing.T, good link.Link) link.Link
		kinds  []string
		client string // in the client's error
		server string // in the server's line; "" if there is no wmproxy server
	}{
		{
			"a wrong token", func(_ *testing.T, l link.Link) link.Link {
				l.Secret = "not-the-secret-at-all"
				return l
			},
			[]string{overQUIC, overYamux, overBoth},
			"does not know this user and token; get a new link", "unknown user or wrong token",
		},
		{
			"an unknown user", func(_ *testing.T, l link.Link) link.Link {
				l.Name = "mallory"
				return l
			},
			[]string{overQUIC, overYamux},
			"does not know this user and token; get a new link", "unknown user or wrong token",
		},
		{
			"a wrong pin", func(_ *testing.T, l link.Link) link.Link {
				l.Pin = &certs.Pin{1, 2, 3}
				return l
			},
			[]string{overQUIC, overYamux, overBoth},
			"has another key than the link's pin", "certificate",
		},
		{
			// Without a pin the server's own certificate is not valid.
			"no pin", func(_ *testing.T, l link.Link) link.Link {
				l.Pin = nil
				return l
			},
			[]string{overQUIC, overYamux},
			"or a link with a pin", "certificate",
		},
		{
			"a server of another version", func(t *testing.T, _ link.Link) link.Link { return strangerOfVersion(t, 9) },
			[]string{overYamux},
			"speaks another version", "",
		},
		{
			"a TLS server of another protocol", func(t *testing.T, _ link.Link) link.Link { return tlsStranger(t, "h2") },
			[]string{overYamux, overBoth},
			"does not speak wmproxy/1; check the address, or update it", "",
		},
		{
			"a QUIC server of another protocol", func(t *testing.T, _ link.Link) link.Link { return quicStranger(t, "h3") },
			[]string{overQUIC},
			"does not speak wmproxy/1; check the address, or update it", "",
		},
		{
			"a TLS server without protocols", func(t *testing.T, _ link.Link) link.Link { return tlsStranger(t) },
			[]string{overYamux},
			`does not speak wmproxy/1 ("negotiated \"\"")`, "",
		},
		{
			"a server without TLS", func(t *testing.T, _ link.Link) link.Link { return httpStranger(t) },
			[]string{overYamux, overBoth},
			"is not a wmproxy server: it does not speak TLS", "",
		},
	} {
		for _, kind := range test.kinds {
			t.Run(test.name+" over "+kind, func(t *testing.T) {
				s := startServer(t) // a new one, so that every line is about this client
				l := test.link(t, parsedLink(t, s.Link))
				c := launch(t, nil, "client", "--transport", kind, "--listen", "127.0.0.1:0",
					"--state-dir", filepath.Join(t.TempDir(), "client"), l.Text())
				if code := c.WaitExit(); code != 1 {
					t.Errorf("exit code %d, want 1", code)
				}
				sentence := lastLine(c.stderr.String())
				if !strings.HasPrefix(sentence, "wmproxy: ") || !strings.Contains(sentence, test.client) {
					t.Errorf("it says %q, want %q", sentence, test.client)
				}
				sentence = strings.ReplaceAll(sentence, l.Address(), "ADDRESS")
				if other := sentences[sentence]; other != "" && other != test.client {
					t.Errorf("the sentence is that of %q too", other)
				}
				sentences[sentence] = test.client
				if test.server == "" {
					return
				}
				line, next := s.WaitLogAfter(0, "the refusal", message("connection refused"))
				if kind == overBoth {
					return // the client dialed both, and its end may have interrupted one
				}
				if !strings.Contains(line.String("reason"), test.server) {
					t.Errorf("the server says %s, want %q", line.Raw, test.server)
				}
				// The next client's line comes after all lines about this one.
				startClient(t, s.Link, "--transport", kind).Stop()
				for _, l := range s.Logs()[next:] {
					if l.Msg == "connection refused" {
						t.Errorf("a second line says %s", l.Raw)
					}
				}
			})
		}
	}
}

func lastLine(text string) string {
	text = strings.TrimSuffix(text, "\n")
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// linkTo returns a link to a stranger with this identity.
func linkTo(id *certs.Identity, addr net.Addr) link.Link {
	pin := id.Pin()
	l := link.Link{Name: "wmproxy", Secret: "a-secret-for-strangers", Pin: &pin, Host: "127.0.0.1"}
	switch a := addr.(type) {
	case *net.TCPAddr:
		l.Port = a.AddrPort().Port()
	case *net.UDPAddr:
		l.Port = a.AddrPort().Port()
	}
	return l
}

func newIdentity(t *testing.T) *certs.Identity {
	t.Helper()
	id, err := certs.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// serveEach serves each connection until the end of the test.
func serveEach(t *testing.T, ln net.Listener, serve func(net.Conn)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				serve(conn)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
}

// tlsStranger starts a TLS server that is not wmproxy.
func tlsStranger(t *testing.T, protocols ...string) link.Link {
	id, ln := newIdentity(t), listenTCP(t, "127.0.0.1:0")
	conf := &tls.Config{Certificates: []tls.Certificate{*id.Certificate()}, NextProtos: protocols}
	serveEach(t, tls.NewListener(ln, conf), func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	return linkTo(id, ln.Addr())
}

// httpStranger starts a server of plain HTTP.
func httpStranger(t *testing.T) link.Link {
	ln := listenTCP(t, "127.0.0.1:0")
	serveEach(t, ln, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1024))
		_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
	})
	return linkTo(newIdentity(t), ln.Addr())
}

// quicStranger starts a QUIC server that is not wmproxy.
func quicStranger(t *testing.T, protocol string) link.Link {
	id := newIdentity(t)
	conf := &tls.Config{Certificates: []tls.Certificate{*id.Certificate()}, NextProtos: []string{protocol}}
	ln, err := quic.ListenAddr("127.0.0.1:0", conf, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return linkTo(id, ln.Addr())
}

// Messages of the handshake, docs/PROTOCOL.md.
const (
	msgHello  = 65
	msgRefuse = 69

	codeVersion = 3
	codeALPN    = 4

	protocol = "wmproxy/1"
)

func appendMessage(b []byte, kind uint64, payload []byte) []byte {
	return append(quicvarint.Append(quicvarint.Append(b, kind), uint64(len(payload))), payload...)
}

// strangerOfVersion starts a wmproxy server of a future version, which refuses as in
// docs/PROTOCOL.md.
func strangerOfVersion(t *testing.T, version uint64) link.Link {
	id, ln := newIdentity(t), listenTCP(t, "127.0.0.1:0")
	conf := &tls.Config{Certificates: []tls.Certificate{*id.Certificate()}, NextProtos: []string{protocol}}
	serveEach(t, tls.NewListener(ln, conf), func(conn net.Conn) {
		if _, err := conn.Read(make([]byte, 4096)); err != nil {
			return
		}
		const sentence = "this server speaks only what is to come"
		refusal := quicvarint.Append(quicvarint.Append(nil, codeVersion), uint64(len(sentence)))
		_, _ = conn.Write(appendMessage(nil, msgRefuse, append(refusal, sentence...)))
		_, _ = io.Copy(io.Discard, conn)
	})
	return linkTo(id, ln.Addr())
}

// Clients that are not wmproxy, or of another version, get a reason too.
func TestServerTellsStrangersTheReason(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	future := appendMessage(nil, msgHello, []byte{8, 9, 'w', 'h', 'o', ' ', 'k', 'n', 'o', 'w', 's'})
	for _, test := range []struct {
		name      string
		protocols []string
		hello     []byte
		code      uint64
		sentence  string
	}{
		{"no protocol", nil, nil, codeALPN, `this server speaks wmproxy/1; the client asked for ""`},
		{"another protocol", []string{"h2", "http/1.1"}, nil, codeALPN, `this server speaks wmproxy/1; the client asked for "`},
		{"another version", []string{protocol}, future, codeVersion, "this server speaks protocol versions 2 to 2, the client 8 to 9"},
	} {
		conf := &tls.Config{InsecureSkipVerify: true, NextProtos: test.protocols}
		t.Run(test.name+" over TCP", func(t *testing.T) {
			first := len(s.Logs())
			conn, err := tls.Dial("tcp", s.Addr.String(), conf)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(waitTimeout))
			if _, err := conn.Write(test.hello); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn)
			if err != nil {
				t.Error(err)
			}
			checkRefusal(t, answer, test.code, test.sentence)
			checkRefusalLine(t, s, first, test.sentence)
		})
		if test.protocols == nil {
			continue // QUIC always has one
		}
		t.Run(test.name+" over QUIC", func(t *testing.T) {
			first := len(s.Logs())
			ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
			defer cancel()
			conn, err := quic.DialAddr(ctx, s.Addr.String(), conf, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseWithError(0, "")
			stream, err := conn.OpenStreamSync(ctx)
			if err != nil {
				t.Fatal(err)
			}
			hello := test.hello
			if hello == nil {
				hello = []byte("GET / HTTP/1.1\r\n\r\n")
			}
			if _, err := stream.Write(hello); err != nil {
				t.Fatal(err)
			}
			<-conn.Context().Done()
			var app *quic.ApplicationError
			if !errors.As(context.Cause(conn.Context()), &app) {
				t.Fatalf("it ended with %v", context.Cause(conn.Context()))
			}
			if uint64(app.ErrorCode) != test.code || !strings.Contains(app.ErrorMessage, test.sentence) {
				t.Errorf("it ended with code %d (%s), want %d (%s)", app.ErrorCode, app.ErrorMessage, test.code, test.sentence)
			}
			checkRefusalLine(t, s, first, test.sentence)
		})
	}
}

func checkRefusal(t *testing.T, answer []byte, code uint64, sentence string) {
	t.Helper()
	r := bytes.NewReader(answer)
	var head [4]uint64 // type, length, code, length of the sentence
	for i := range head {
		v, err := quicvarint.Read(r)
		if err != nil {
			t.Fatalf("the answer is %q", answer)
		}
		head[i] = v
	}
	rest, _ := io.ReadAll(r)
	if head[0] != msgRefuse || head[2] != code || int(head[3]) != len(rest) || !strings.Contains(string(rest), sentence) {
		t.Errorf("the answer is of type %d with code %d (%s), want %d with %d (%s)", head[0], head[2], rest, msgRefuse, code, sentence)
	}
}

func checkRefusalLine(t *testing.T, s *serverProcess, first int, sentence string) {
	t.Helper()
	line, _ := s.WaitLogAfter(first, "the refusal", message("connection refused"))
	if !strings.Contains(line.String("reason"), sentence) {
		t.Errorf("the server says %s, want %q", line.Raw, sentence)
	}
	if n := s.CountLogs(func(l logLine) bool {
		return l.Msg == "connection refused" && l.String("client") == line.String("client")
	}); n != 1 {
		t.Errorf("%d lines tell of it", n)
	}
}

// authority is a CA for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // PEM
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := a.sign(t, template)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// sign makes a certificate. The first one is the authority's own.
func (a *authority) sign(t *testing.T, template *x509.Certificate) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		a.key, parent, signer = key, template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert != nil {
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, a.keyFile(), "PRIVATE KEY", pkcs8)
		writePEM(t, a.certFile(), "CERTIFICATE", der)
	}
	return der
}

func (a *authority) certFile() string { return filepath.Join(filepath.Dir(a.file), "server.pem") }
func (a *authority) keyFile() string  { return filepath.Join(filepath.Dir(a.file), "server.key") }

// issue writes a certificate for 127.0.0.1 to certFile and its key to keyFile.
func (a *authority) issue(t *testing.T, ip string, until time.Time) {
	t.Helper()
	a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test server"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{netip.MustParseAddr(ip).AsSlice()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	// As certificate tools do: atomically.
	next := path + ".new"
	if err := os.WriteFile(next, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func TestUnpinnedServerNeedsValidCertificate(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	tomorrow, yesterday := time.Now().Add(24*time.Hour), time.Now().Add(-time.Hour)
	ca.issue(t, "127.0.0.1", yesterday)
	s := startServer(t, "--cert", ca.certFile(), "--key", ca.keyFile())
	if l := parsedLink(t, s.Link); l.Pin != nil {
		t.Error("the link has a pin all the same")
	}
	trusting := []string{"SSL_CERT_FILE=" + ca.file, "SSL_CERT_DIR=" + t.TempDir()}
	client := func(kind string) *process {
		return launch(t, trusting, "client", "--transport", kind, "--listen", "127.0.0.1:0",
			"--state-dir", filepath.Join(t.TempDir(), "client"), s.Link)
	}
	refused := func(why, sentence string) {
		t.Helper()
		for _, kind := range []string{overQUIC, overYamux} {
			first := len(s.Logs())
			c := client(kind)
			if code := c.WaitExit(); code != 1 {
				t.Errorf("%s over %s: exit code %d, want 1", why, kind, code)
			}
			if got := lastLine(c.stderr.String()); !strings.Contains(got, sentence) {
				t.Errorf("%s over %s: it says %q, want %q", why, kind, got, sentence)
			}
			s.WaitLogAfter(first, "the refusal", message("connection refused"))
		}
	}
	refused("expired", "has expired or is not yet valid; renew it on the server, or check this machine's clock")

	// The files are read again when they change.
	reload := func(ip string) {
		t.Helper()
		first := len(s.Logs())
		ca.issue(t, ip, tomorrow)
		s.WaitLogAfter(first, "the new certificate", func(l logLine) bool { return l.Level == "INFO" && strings.Contains(l.Msg, "certificate") })
	}
	reload("127.0.0.9")
	refused("for another name", "is for another name; use the name in it, or a link with a pin")
	reload("127.0.0.1")
	c := &socksProcess{process: client(overBoth)}
	c.waitUp()
}
