package floor

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"wmproxy/certs"
	"wmproxy/internal/testmain"
	"wmproxy/internal/udpio"
)

func TestMain(m *testing.M) { testmain.Run(m) }

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	s, err := udpio.Listen(loopback, udpio.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	s.Start(func(ms []udpio.Message) { _, _ = s.Write(ms) })
	return s.LocalAddr()
}

func cleanUp[c interface{ Close() error }](t *testing.T, relay c, err error) c {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	return relay
}

// checkEcho sends datagrams of two sources through a relay to an echo and checks the replies.
func checkEcho(t *testing.T, relay netip.AddrPort) {
	t.Helper()
	var sources []*net.UDPConn
	for range 2 {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		sources = append(sources, c)
	}
	b := make([]byte, 100)
	for round := range 3 {
		for i, c := range sources {
			want := fmt.Sprintf("%d from %d", round, i)
			if _, err := c.Write([]byte(want)); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(b)
			if err != nil || string(b[:n]) != want {
				t.Fatalf("got %q, %v, want %q", b[:n], err, want)
			}
		}
	}
}

func TestUDPRelaysReturnEachSourcesDatagrams(t *testing.T) {
	far, err := ListenUDP(loopback, echo(t))
	far = cleanUp(t, far, err)
	near, err := ListenUDP(loopback, far.Addr())
	near = cleanUp(t, near, err)
	checkEcho(t, near.Addr())
}

func certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	dir := t.TempDir()
	id, err := certs.LoadOrCreate(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return id.Certificate()
}

func TestQUICRelaysReturnEachSourcesDatagrams(t *testing.T) {
	far, err := ListenFar(loopback, echo(t), certificate(t))
	far = cleanUp(t, far, err)
	near, err := ListenNear(t.Context(), loopback, far.Addr())
	near = cleanUp(t, near, err)
	checkEcho(t, near.Addr())
}

func TestTLSRelaysReturnEachSourcesDatagrams(t *testing.T) {
	for name, over := range map[string]Over{"bare": Bare, "yamux": Yamux} {
		t.Run(name, func(t *testing.T) {
			far, err := ListenTLSFar(loopback, echo(t), certificate(t), over)
			far = cleanUp(t, far, err)
			near, err := ListenTLSNear(loopback, far.Addr(), over)
			near = cleanUp(t, near, err)
			checkEcho(t, near.Addr())
		})
	}
}
