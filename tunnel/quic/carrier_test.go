package quic

import (
	"context"
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
	return pendingsOver(t, nil, carriertest.LoopbackUDP(t))
}

// pendingsOver makes the connection over the sockets of its ends; of the near one
// over its own if that is nil.
func pendingsOver(t testing.TB, near, far net.PacketConn) (client, server carrier.Pending) {
	t.Helper()
	clientTLS, serverTLS := carriertest.TLS()
	ln, err := Listen(far, serverTLS, Config{StatelessResetKey: &[32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	return carriertest.Connect(t, ln, func(ctx context.Context) (carrier.Pending, error) {
		return Dial(ctx, near, ln.Addr().(*net.UDPAddr), clientTLS, 0)
	})
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
	carriertest.OutlivesDead(t, func(dead time.Duration) time.Duration { return newConfig(dead, carrier.Windows{}).MaxIdleTimeout })
}

func TestServerOfAnotherProtocolIsNamed(t *testing.T) {
	clientTLS, serverTLS := carriertest.TLS()
	serverTLS = serverTLS.Clone()
	serverTLS.NextProtos = []string{"another"}
	ln, err := Listen(carriertest.LoopbackUDP(t), serverTLS, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = Dial(carriertest.Context(t), nil, ln.Addr().(*net.UDPAddr), clientTLS, 0)
	if !errors.Is(err, carrier.ErrALPN) {
		t.Errorf("got %v, want %v", err, carrier.ErrALPN)
	}
}
