package tunnel

import (
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
	return quicPendingsOver(t, nil, loopbackUDP(t))
}

func loopbackUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return socket
}

// quicPendingsOver makes the connection over the sockets of its ends; of the near one
// over its own where that is nil.
func quicPendingsOver(t testing.TB, near, far net.PacketConn) (client, server carrier.Pending) {
	t.Helper()
	ctx := carriertest.Context(t)
	clientTLS, serverTLS := carriertest.TLS()
	ln, err := quic.Listen(far, serverTLS, quic.Config{StatelessResetKey: &[32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	client, err = quic.Dial(ctx, near, ln.Addr().(*net.UDPAddr), clientTLS, 0)
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
