package tcp

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func listen(t testing.TB) *Listener {
	t.Helper()
	_, serverTLS := carriertest.TLS()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := Listen(tcp, serverTLS, 0, carrier.Windows{})
	t.Cleanup(func() { ln.Close() })
	return ln
}

func pendings(t testing.TB) (client, server carrier.Pending) {
	t.Helper()
	ctx := carriertest.Context(t)
	clientTLS, _ := carriertest.TLS()
	ln := listen(t)
	dialed := make(chan error, 1)
	go func() {
		var err error
		client, err = Dial(ctx, ln.Addr().(*net.TCPAddr), clientTLS, 0)
		dialed <- err
	}()
	server, err := ln.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.(*pending).tls.HandshakeContext(ctx); err != nil {
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

var transport = carriertest.Transport{Pair: pendings, Left: noStreams, Cut: func(client, _ carrier.Carrier) {
	client.(*connection).conn.raw.Close()
}}

func TestCarrier(t *testing.T) { carriertest.Run(t, transport) }

func BenchmarkCarrier(b *testing.B) { carriertest.Benchmark(b, transport) }

// noStreams waits until no stream is left but for those of the carrier itself.
func noStreams(t *testing.T, carrier carrier.Carrier) {
	t.Helper()
	c := carrier.(*connection)
	carriertest.Await(t, "yamux streams", func() (int, bool) { n := c.y.NumStreams(); return n, n == 3 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) != 0 || c.accepted != 0 || len(c.early) != 0 || len(c.slots) != 0 {
		t.Errorf("left: %d streams, %d accepted, %d early, %d slots", len(c.streams), c.accepted, len(c.early), len(c.slots))
	}
}

func TestStatsCountTheStream(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells what TCP counts")
	}
	near, far := transport.Start(t)
	carriertest.Stats(t, near, far)
}

func TestIdleTimeoutOutlivesDead(t *testing.T) {
	carriertest.OutlivesDead(t, func(dead time.Duration) time.Duration {
		return newConfig(dead, carrier.Windows{}).ConnectionWriteTimeout
	})
}

func TestServerOfAnotherProtocolIsNamed(t *testing.T) {
	clientTLS, serverTLS := carriertest.TLS()
	serverTLS = serverTLS.Clone()
	serverTLS.NextProtos = []string{"another"}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := Listen(tcp, serverTLS, 0, carrier.Windows{})
	defer ln.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		p, err := ln.Accept(carriertest.Context(t))
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = p.Handshake(carriertest.Context(t))
		p.Close(carrier.CodeNone, "")
	}()
	_, err = Dial(carriertest.Context(t), ln.Addr().(*net.TCPAddr), clientTLS, 0)
	if !errors.Is(err, carrier.ErrALPN) {
		t.Errorf("got %v, want %v", err, carrier.ErrALPN)
	}
	<-served
}

// A server's side is as patient as its client's.
func TestConnectionIsAsPatientAsItWasTold(t *testing.T) {
	ctx := carriertest.Context(t)
	clientTLS, serverTLS := carriertest.TLS()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := Listen(tcp, serverTLS, 2*time.Minute, carrier.Windows{})
	defer ln.Close()
	var dial sync.WaitGroup
	var client carrier.Pending
	var errNear error
	dial.Go(func() { client, errNear = Dial(ctx, ln.Addr().(*net.TCPAddr), clientTLS, time.Minute) })
	server, errFar := ln.Accept(ctx)
	if errFar == nil {
		_, errFar = server.Handshake(ctx)
	}
	dial.Wait()
	if err := errors.Join(errNear, errFar); err != nil {
		t.Fatal(err)
	}
	defer client.Close(carrier.CodeNone, "")
	defer server.Close(carrier.CodeNone, "")
	for _, side := range []struct {
		name string
		p    carrier.Pending
		dead time.Duration
		want time.Duration
	}{
		{"client", client, time.Minute, 75 * time.Second},
		{"server", server, 2 * time.Minute, 150 * time.Second},
	} {
		p := side.p.(*pending)
		if p.dead != side.dead {
			t.Errorf("the %s takes %v for dead, want %v", side.name, p.dead, side.dead)
		}
		if got := userTimeout(t, p.raw.(*net.TCPConn)); runtime.GOOS == "linux" && got != side.want {
			t.Errorf("the %s's TCP waits for %v, want %v", side.name, got, side.want)
		}
	}
}
