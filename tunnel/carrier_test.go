package tunnel

import (
	"context"
	"net"
	"testing"

	"wmproxy/internal/testmain"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
	"wmproxy/tunnel/quic"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func quicPendings(t testing.TB) (client, server carrier.Pending) {
	t.Helper()
	clientTLS, serverTLS := carriertest.TLS()
	ln, err := quic.Listen(carriertest.LoopbackUDP(t), serverTLS, quic.Config{StatelessResetKey: &[32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	return carriertest.Connect(t, ln, func(ctx context.Context) (carrier.Pending, error) {
		return quic.Dial(ctx, nil, ln.Addr().(*net.UDPAddr), clientTLS, 0)
	})
}
