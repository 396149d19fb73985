package tunnel

import (
	"io"
	"net"
	"runtime"
	"testing"

	"go.uber.org/goleak"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

// The race detector of Go 1.26 crashes when two processors receive from timers of one
// synctest bubble at once (golang.org/issue/78156), as QUIC's connections do.
func TestMain(m *testing.M) {
	if raceEnabled {
		runtime.GOMAXPROCS(1)
	}
	goleak.VerifyTestMain(m)
}

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
	ln, err := ListenQUIC(far, serverTLS, QUICConfig{StatelessResetKey: &[32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	client, err = DialQUIC(ctx, near, ln.Addr().(*net.UDPAddr), clientTLS, 0)
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

func listenYamux(t testing.TB) *YamuxListener {
	t.Helper()
	_, serverTLS := carriertest.TLS()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := ListenYamux(tcp, serverTLS, 0, carrier.Windows{})
	t.Cleanup(func() { ln.Close() })
	return ln
}

func yamuxPendings(t testing.TB) (client, server carrier.Pending) {
	t.Helper()
	ctx := carriertest.Context(t)
	clientTLS, _ := carriertest.TLS()
	ln := listenYamux(t)
	dialed := make(chan error, 1)
	go func() {
		var err error
		client, err = DialYamux(ctx, ln.Addr().(*net.TCPAddr), clientTLS, 0)
		dialed <- err
	}()
	server, err := ln.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.(*yamuxPending).tls.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-dialed; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close(carrier.CodeShutdown, "")
		server.Close(carrier.CodeShutdown, "")
	})
	return client, server
}

func pipePendings(t testing.TB) (client, server carrier.Pending) {
	c, s := NewPipe(PipeConfig{}, PipeConfig{})
	t.Cleanup(func() { c.Close(carrier.CodeShutdown, "") })
	return c, s
}

// The transports that the suite runs on. The idle timeout of QUIC's server is too long to wait for.
var (
	overQUIC = carriertest.Transport{Pair: quicPendings, Cut: func(client, server carrier.Carrier) {
		client.(*quicCarrier).transport.Close()
		server.(*quicCarrier).conn.CloseWithError(0, "")
	}}
	overYamux = carriertest.Transport{Pair: yamuxPendings, Left: noYamuxStreams, Cut: func(client, _ carrier.Carrier) {
		client.(*yamuxCarrier).conn.raw.Close()
	}}
	overPipe = carriertest.Transport{Pair: pipePendings, Cut: func(client, _ carrier.Carrier) {
		client.(pipeCarrier).Break(io.ErrUnexpectedEOF)
	}}
)

var transports = []struct {
	name string
	carriertest.Transport
}{{"QUIC", overQUIC}, {"Yamux", overYamux}, {"Pipe", overPipe}}

func TestCarrier(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) { carriertest.Run(t, tr.Transport) })
	}
}

func BenchmarkCarrier(b *testing.B) {
	for _, tr := range transports {
		b.Run(tr.name, func(b *testing.B) { carriertest.Benchmark(b, tr.Transport) })
	}
}

// noYamuxStreams waits until no stream is left but for those of the carrier itself.
func noYamuxStreams(t *testing.T, carrier carrier.Carrier) {
	t.Helper()
	c := carrier.(*yamuxCarrier)
	carriertest.Await(t, "yamux streams", func() (int, bool) { n := c.y.NumStreams(); return n, n == 3 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) != 0 || c.accepted != 0 || len(c.early) != 0 || len(c.slots) != 0 {
		t.Errorf("left: %d streams, %d accepted, %d early, %d slots", len(c.streams), c.accepted, len(c.early), len(c.slots))
	}
}
