package quic

import (
	"errors"
	"net"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func pendings(t testing.TB) (client, server carrier.Pending) {
	t.Helper()
	return pendingsOver(t, nil, loopbackUDP(t))
}

func loopbackUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return socket
}

// pendingsOver makes the connection over the sockets of its ends; of the near one
// over its own where that is nil.
func pendingsOver(t testing.TB, near, far net.PacketConn) (client, server carrier.Pending) {
	t.Helper()
	ctx := carriertest.Context(t)
	clientTLS, serverTLS := carriertest.TLS()
	ln, err := Listen(far, serverTLS, Config{StatelessResetKey: &[32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	client, err = Dial(ctx, near, ln.Addr().(*net.UDPAddr), clientTLS, 0)
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

// The server's idle timeout is too long to wait for.
var transport = carriertest.Transport{Pair: pendings, Cut: func(client, server carrier.Carrier) {
	client.(*connection).transport.Close()
	server.(*connection).conn.CloseWithError(0, "")
}}

func TestCarrier(t *testing.T) { carriertest.Run(t, transport) }

func BenchmarkCarrier(b *testing.B) { carriertest.Benchmark(b, transport) }

func TestStatsCountTheStream(t *testing.T) {
	near, far := transport.Start(t)
	carriertest.Stats(t, near, far)
}

func TestIdleTimeoutOutlivesDead(t *testing.T) {
	for _, dead := range []time.Duration{0, time.Second, 2 * time.Minute, time.Hour} {
		if got, want := newConfig(dead, carrier.Windows{}).MaxIdleTimeout, carrier.IdleTimeout(dead); got != want {
			t.Errorf("%v: got %v, want %v", dead, got, want)
		}
	}
}

func TestServerOfAnotherProtocolIsNamed(t *testing.T) {
	clientTLS, serverTLS := carriertest.TLS()
	serverTLS = serverTLS.Clone()
	serverTLS.NextProtos = []string{"another"}
	ln, err := Listen(loopbackUDP(t), serverTLS, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = Dial(carriertest.Context(t), nil, ln.Addr().(*net.UDPAddr), clientTLS, 0)
	if !errors.Is(err, carrier.ErrALPN) {
		t.Errorf("got %v, want %v", err, carrier.ErrALPN)
	}
}
