package udpio

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"wmproxy/internal/testmain"
	"wmproxy/internal/tune"
)

func openPacket(t testing.TB, local netip.AddrPort, cfg Config) *PacketConn {
	t.Helper()
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = 4 << 20
	}
	c, err := ListenPacket(local, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func batch(n int) []ipv4.Message {
	ms := make([]ipv4.Message, n)
	for i := range ms {
		ms[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 1452)}, OOB: make([]byte, 128)}
	}
	return ms
}

func TestReadBatchSplitsTrains(t *testing.T) {
	for _, local := range []netip.AddrPort{loopback4, netip.MustParseAddrPort("[::]:0")} {
		c, from := openPacket(t, local, Config{}), open(t, Config{})
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1); err != nil {
				t.Error(err)
			}
			if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(from.fd, unix.IPPROTO_IP, unix.IP_TOS, 2); err != nil { // ECT(0)
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(loopback4.Addr(), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		var want [][]byte
		var out []Message
		for i, size := range slices.Concat(slices.Repeat([]int{1200}, 70), []int{7, 0, 1452, 1}) {
			want = append(want, pattern(size, i))
			out = append(out, Message{Body: want[i], Addr: to})
		}
		if n, err := from.Write(out); n != len(out) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		ms := batch(8)
		var addr net.Addr
		for i := 0; i < len(want); {
			n, err := c.ReadBatch(ms, 0)
			if n == 0 || err != nil {
				t.Fatalf("ReadBatch = %d, %v", n, err)
			}
			for _, m := range ms[:n] {
				if !bytes.Equal(m.Buffers[0][:m.N], want[i]) {
					t.Fatalf("datagram %d has %d bytes, want %d", i, m.N, len(want[i]))
				}
				if addr == nil {
					addr = m.Addr
				}
				if m.Addr != addr || m.Addr.(*net.UDPAddr).AddrPort().Port() != from.LocalAddr().Port() {
					t.Fatalf("source %v, want %v", m.Addr, from.LocalAddr())
				}
				checkControl(t, m.OOB[:m.NN])
				i++
			}
		}
		if c.in.calls.Load() > 2 {
			t.Errorf("%d recvmmsg calls for %d datagrams", c.in.calls.Load(), len(want))
		}
	}
}

// checkControl expects TOS and packet info, and no more, in oob.
func checkControl(t *testing.T, oob []byte) {
	t.Helper()
	tos, info := false, false
	for len(oob) > 0 {
		h, body, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS:
			tos = len(body) == 1 && body[0] == 2
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO:
			info = len(body) == 12
		default:
			t.Fatalf("control message %d/%d", h.Level, h.Type)
		}
		oob = rest
	}
	if !tos || !info {
		t.Fatalf("TOS %v, packet info %v", tos, info)
	}
}

func TestNoOffloadSendsTheTrainsOfQUICSingly(t *testing.T) {
	c, to := openPacket(t, loopback4, Config{NoOffload: true}), open(t, Config{})
	got := collect(to)
	var segment control
	n := segment.putSegment(1000)
	oob := unsafe.Slice((*byte)(unsafe.Pointer(&segment)), n)
	train := pattern(2500, 0)
	if n, oobn, err := c.WriteMsgUDP(train, oob, net.UDPAddrFromAddrPort(to.LocalAddr())); n != 2500 || oobn != len(oob) || err != nil {
		t.Fatalf("WriteMsgUDP = %d, %d, %v", n, oobn, err)
	}
	all := got.wait(t, 3)
	if len(all) != 3 || len(all[0]) != 1000 || len(all[2]) != 500 || !bytes.Equal(bytes.Join(all, nil), train) {
		t.Fatalf("%d datagrams came", len(all))
	}
}

func TestAReadDeadlineEndsReadBatch(t *testing.T) {
	c := openPacket(t, loopback4, Config{})
	result := make(chan error)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.ReadBatch(batch(8), 0)
		result <- err
	})
	if err := c.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("ReadBatch: %v", err)
	}
	wg.Wait()
}

func TestReadBatchDoesNotAllocate(t *testing.T) {
	c, from := openPacket(t, loopback4, Config{}), open(t, Config{})
	to := c.LocalAddr().(*net.UDPAddr).AddrPort()
	out := slices.Repeat([]Message{{Body: make([]byte, 1200), Addr: to}}, 64)
	ms := batch(8)
	n := testing.AllocsPerRun(100, func() {
		if n, err := from.Write(out); n != len(out) || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
		for got := 0; got < len(out); {
			n, err := c.ReadBatch(ms, 0)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	})
	if n != 0 && !testmain.Race {
		t.Errorf("%v allocations for 64 datagrams", n)
	}
}

// On one processor the goroutine that waits for datagrams runs only when the reader yields.
func TestReadBatchYieldsBeforeQUICsQueuesOverflow(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	c, from := openPacket(t, loopback4, Config{}), open(t, Config{WriteBuffer: 4 << 20})
	out := slices.Repeat([]Message{{Body: make([]byte, 1200), Addr: c.LocalAddr().(*net.UDPAddr).AddrPort()}}, 8*yieldBatch)
	ms := batch(8)
	// Now and then the runtime lets the reader itself go on after it has given way.
	bound := 2*yieldBatch + len(ms)
	for _, delivered := range []bool{true, false, true} {
		var taken atomic.Bool
		var taker sync.WaitGroup
		most, since, turns := 0, 0, 0
		wait := func() {
			taken.Store(false)
			taker.Go(func() { taken.Store(true) })
		}
		wait()
		for got, sent := 0, 0; got < len(out); {
			// No more at a time than the smallest of receive buffers holds.
			if got == sent {
				n, err := from.Write(out[sent:min(sent+2*yieldBatch, len(out))])
				if err != nil {
					t.Fatal(err)
				}
				sent += n
			}
			if delivered {
				c.Delivered()
			}
			n, err := c.ReadBatch(ms, 0)
			if err != nil {
				t.Fatal(err)
			}
			got += n
			if taken.Load() {
				since = 0 // it ran before these were handed out
				turns++
				taker.Wait()
				wait()
			}
			since += n
			most = max(most, since)
		}
		taker.Wait()
		if delivered && !tune.BatchYield.On() || !delivered && !tune.RawCalls.On() {
			continue // nothing is promised then
		}
		if delivered && most > bound {
			t.Errorf("%d datagrams were handed out before anybody else ran", most)
		}
		if delivered && turns < 3 {
			t.Errorf("others ran %d times", turns)
		}
		if !delivered && most <= bound {
			t.Errorf("others ran after %d datagrams, though none that came was waited for", most)
		}
	}
}

func TestForgedSourcesDoNotGrowTheCache(t *testing.T) {
	var p peers
	for i := range 3 * maxPeers {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 53)
		p.find(from)
		if p.addr.AddrPort() != from {
			t.Fatalf("%v became %v", from, p.addr)
		}
		if len(p.known) > maxPeers {
			t.Fatalf("%d sources are kept", len(p.known))
		}
	}
}

// testTLS is a certificate made for the test and a client that takes any.
func testTLS(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"test"},
	}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"test"}}
}

// quicPair is a QUIC connection between two PacketConns. stop closes all of it.
func quicPair(t testing.TB, cfg Config) (near, far *quic.Conn, at *PacketConn, stop func()) {
	t.Helper()
	serverTLS, clientTLS := testTLS(t)
	qc := &quic.Config{EnableDatagrams: true}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sc, cc := openPacket(t, loopback4, cfg), openPacket(t, loopback4, cfg)
	st := &quic.Transport{Conn: sc, ConnectionIDLength: 17}
	ct := &quic.Transport{Conn: cc, ConnectionIDLength: 17}
	ln, err := st.Listen(serverTLS, qc)
	if err != nil {
		t.Fatal(err)
	}
	near, err = ct.Dial(ctx, sc.LocalAddr(), clientTLS, qc)
	if err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(ctx); err != nil {
		t.Fatal(err)
	}
	return near, far, sc, func() {
		_ = near.CloseWithError(0, "")
		_ = ln.Close()
		// Close waits for the reader, which only a deadline ends.
		_ = ct.Close()
		_ = st.Close()
		_ = sc.Close()
		_ = cc.Close()
	}
}

// largestDatagram asks quic-go, once path MTU discovery has raised it.
func largestDatagram(t testing.TB, c *quic.Conn) int {
	t.Helper()
	size := 0
	ask := make([]byte, 4000)
	same := 0
	eventually(t, "path MTU discovery does not end", func() bool {
		var tooLarge *quic.DatagramTooLargeError
		if err := c.SendDatagram(ask); !errors.As(err, &tooLarge) {
			t.Fatalf("SendDatagram: %v", err)
		}
		if now := int(tooLarge.MaxDatagramPayloadSize); now != size {
			size, same = now, 0
		}
		same++
		_ = c.SendDatagram([]byte("probes go only where packets go"))
		return size >= 1390 && same > 200
	})
	return size
}

func TestQUICMovesFullFramesInTrains(t *testing.T) {
	const datagrams = 20000
	for _, off := range []bool{false, true} {
		near, far, at, stop := quicPair(t, Config{NoOffload: off})
		size := largestDatagram(t, near)
		calls, trains := at.in.calls.Load(), at.in.total.Load()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		received := 0
		wg.Go(func() {
			for {
				b, err := far.ReceiveDatagram(ctx)
				if err != nil {
					return
				}
				if len(b) == size { // not of those that drove the discovery
					received++
				}
			}
		})
		body := make([]byte, size)
		for range datagrams {
			if err := near.SendDatagram(body); err != nil {
				t.Fatal(err)
			}
		}
		// An echo on a stream tells that what was sent before it is through.
		stream, err := near.OpenStreamSync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = stream.Write([]byte("end"))
		if _, err := far.AcceptStream(ctx); err != nil {
			t.Fatal(err)
		}
		calls, trains = at.in.calls.Load()-calls, at.in.total.Load()-trains
		stats := near.ConnectionStats()
		cancel()
		stop()
		wg.Wait()
		t.Logf("NoOffload=%v: %d of %d datagrams of %d bytes through quic-go; %d packets sent, %d lost; %d recvmmsg with %d trains, %.1f packets each call",
			off, received, datagrams, size, stats.PacketsSent, stats.PacketsLost, calls, trains, float64(datagrams)/float64(calls))
		if joined := trains < datagrams/2; joined == off {
			t.Errorf("NoOffload=%v: %d trains for %d datagrams", off, trains, datagrams)
		}
		if received < datagrams/4 {
			t.Errorf("%d of %d datagrams came", received, datagrams)
		}
	}
}

func TestAQUICTransportClosesWhileReadBatchWaits(t *testing.T) {
	for range 5 {
		_, _, _, stop := quicPair(t, Config{})
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { stop(); close(done) })
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("Transport.Close hangs")
		}
		wg.Wait()
	}
}
