package quic

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

// countingSocket notes the size of every write; one of more than a packet is a GSO train.
type countingSocket struct {
	*net.UDPConn
	mu     sync.Mutex
	writes []int
}

func (c *countingSocket) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (int, int, error) {
	c.mu.Lock()
	c.writes = append(c.writes, len(b))
	c.mu.Unlock()
	return c.UDPConn.WriteMsgUDP(b, oob, addr)
}

func TestBundlesOfTheLargestSizeFillTheirPackets(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("UDP_SEGMENT is Linux's")
	}
	const enough = 1394 // discovery stops within 21 bytes of a packet of 1452, of which 37 are no payload
	ctx := carriertest.Context(t)
	counting := &countingSocket{UDPConn: carriertest.LoopbackUDP(t)}
	cp, sp := pendingsOver(t, counting, carriertest.LoopbackUDP(t))
	client, server := carriertest.Shake(t, cp, sp)
	if n := client.MaxBundle(); n < carrier.MinBundle || n > packetSize {
		t.Fatalf("MaxBundle starts at %d", n)
	}

	received := make(chan int, 1024)
	var reading sync.WaitGroup
	defer func() { client.Close(carrier.CodeNone, ""); server.Close(carrier.CodeNone, ""); reading.Wait() }()
	reading.Go(func() {
		dst := make([][]byte, 64)
		for {
			n, err := server.ReceiveBundles(dst)
			if err != nil {
				return
			}
			for _, b := range dst[:n] {
				select {
				case received <- len(b):
				default:
				}
			}
		}
	})
	for client.MaxBundle() < enough { // discovery needs something sent
		if err := client.SendBundle(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-received:
		case <-time.After(time.Second):
		}
		if ctx.Err() != nil {
			t.Fatalf("MaxBundle stays at %d", client.MaxBundle())
		}
	}
	packet := client.MaxBundle() + 1 + 1 + connectionIDLength + 2 + 16 // frame type, short header, AEAD tag
	counting.mu.Lock()
	counting.writes = nil
	counting.mu.Unlock()
	full := make([]byte, client.MaxBundle())
	for range 400 {
		if err := client.SendBundle(full); err != nil {
			t.Fatal(err)
		}
	}
	carriertest.Await(t, "bundles of full size", func() (int, bool) { n := <-received; return n, n == len(full) })
	counting.mu.Lock()
	defer counting.mu.Unlock()
	var trains, fulls, others int
	for _, n := range counting.writes {
		switch {
		case n%packet == 0 && n > packet:
			trains++
			fulls += n / packet
		case n == packet:
			fulls++
		default:
			others++
		}
	}
	t.Logf("%d full packets in %d writes, %d of them trains; %d other writes", fulls, len(counting.writes)-others, trains, others)
	if fulls < 200 || trains == 0 && client.(*connection).conn.ConnectionState().GSO {
		t.Errorf("%d full packets, %d trains, %d other writes", fulls, trains, others)
	}
}

// greeted returns the ends of a connection whose client has sent its first bytes.
func greeted(t *testing.T) (client, server carrier.Pending, near, far io.ReadWriter) {
	t.Helper()
	ctx := carriertest.Context(t)
	client, server = pendings(t)
	near, err := client.Handshake(ctx)
	if err != nil {
		t.Fatal(err)
	}
	near.Write([]byte("hello"))
	far, err = server.Handshake(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return client, server, near, far
}

func TestStreamBeforeAnswerClosesConnection(t *testing.T) {
	client, _, rw, _ := greeted(t)
	second, err := client.(*pending).conn.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	second.Write([]byte("!"))
	_, err = rw.Read(make([]byte, 1))
	closed, ok := errors.AsType[*carrier.CloseError](err)
	if !ok || closed.Code != carrier.CodeProtocol {
		t.Fatalf("got %v", err)
	}
}

func TestADatagramBeforeTheAnswerClosesTheConnection(t *testing.T) {
	for _, when := range []string{"before Hello", "after Hello"} {
		t.Run(when, func(t *testing.T) {
			ctx := carriertest.Context(t)
			client, server := pendings(t)
			rw, err := client.Handshake(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if when == "after Hello" {
				rw.Write([]byte("hello"))
			}
			result := make(chan error, 1)
			go func() {
				srw, err := server.Handshake(ctx)
				if err == nil {
					_, err = io.Copy(io.Discard, srw)
				}
				result <- err
			}()
			if err := client.(*pending).conn.SendDatagram([]byte("!")); err != nil {
				t.Fatal(err)
			}
			if err := <-result; err == nil {
				t.Error("the server knows of no end")
			}
			_, err = rw.Read(make([]byte, 1))
			if closed, ok := errors.AsType[*carrier.CloseError](err); !ok || closed.Code != carrier.CodeProtocol {
				t.Errorf("the client got %v", err)
			}
		})
	}
}

// doorkeeper counts who comes in and who leaves.
type doorkeeper struct {
	shut           bool
	entered, left  int
	mu             sync.Mutex
	leftMoreOften  bool
	someoneEntered chan struct{}
}

func (d *doorkeeper) admit(net.Addr) (leave func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return nil, false
	}
	d.entered++
	d.someoneEntered <- struct{}{}
	once := false
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.leftMoreOften = d.leftMoreOften || once
		once = true
		d.left++
	}, true
}

func (d *doorkeeper) counts() (inside, entered int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entered - d.left, d.entered
}

func TestHurriedQUICHandshakeIsGivenUpSooner(t *testing.T) {
	_, serverTLS := carriertest.TLS()
	gone := make(chan string, 2)
	// Both get an Initial packet without any readable content, the hurried one later.
	for _, name := range []string{"ordinary", "hurried"} {
		socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := Listen(socket, serverTLS, Config{
			Hurry: func() bool { return name == "hurried" },
			Admit: func(net.Addr) (func(), bool) { return func() { gone <- name }, true },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		junk, err := net.DialUDP("udp4", nil, ln.Addr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer junk.Close()
		if _, err := junk.Write(unreadableInitial()); err != nil {
			t.Fatal(err)
		}
	}
	if first, second := <-gone, <-gone; first != "hurried" || second != "ordinary" {
		t.Errorf("the %s connection was given up first", first)
	}
}

func TestQUICAttemptsAreCountedInAndOut(t *testing.T) {
	ctx := carriertest.Context(t)
	clientTLS, serverTLS := carriertest.TLS()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	d := &doorkeeper{someoneEntered: make(chan struct{}, 100)}
	ln, err := Listen(socket, serverTLS, Config{Admit: d.admit})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	outside := func(what string, want int) {
		t.Helper()
		carriertest.Await(t, what, func() (int, bool) {
			inside, entered := d.counts()
			return inside, inside == 0 && entered == want
		})
	}

	client, err := Dial(ctx, nil, ln.Addr().(*net.UDPAddr), clientTLS, 0)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	outside("nobody inside once accepted", 1)
	client.Close(carrier.CodeNone, "")
	server.Close(carrier.CodeNone, "")

	// One that says nothing that anybody could read leaves when its time is over.
	junk, err := net.DialUDP("udp4", nil, ln.Addr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer junk.Close()
	if _, err := junk.Write(unreadableInitial()); err != nil {
		t.Fatal(err)
	}
	<-d.someoneEntered
	<-d.someoneEntered
	if inside, _ := d.counts(); inside != 1 {
		t.Errorf("%d inside", inside)
	}
	outside("nobody inside after the silence", 2)

	d.mu.Lock()
	d.shut = true
	d.mu.Unlock()
	short, cancel := context.WithTimeout(ctx, carrier.HandshakeTimeout)
	defer cancel()
	refused, err := Dial(short, nil, ln.Addr().(*net.UDPAddr), clientTLS, 0)
	if err == nil {
		refused.Close(carrier.CodeNone, "")
		t.Fatal("the door was shut")
	}
	if short.Err() != nil {
		t.Errorf("the client was not told: %v", err)
	}
	if ln.openings.of != nil || d.leftMoreOften {
		t.Errorf("left behind %v; somebody left twice: %v", ln.openings.of, d.leftMoreOften)
	}
}

// unreadableInitial is a QUIC Initial packet (RFC 9000 section 17.2.2) with nothing in it.
func unreadableInitial() []byte {
	b := make([]byte, 1200)
	copy(b, []byte{0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x90}) // ids of 8 and 0, no token, length
	return b
}

func TestAStreamOpenedRightAfterTheAnswerIsNotLost(t *testing.T) {
	ctx := carriertest.Context(t)
	client, server, rw, srw := greeted(t)
	if _, err := srw.Write([]byte("welcome")); err != nil {
		t.Fatal(err)
	}
	io.ReadFull(rw, make([]byte, 7))
	c, err := client.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.OpenStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	if err := c.SendBundle([]byte("early too")); err != nil {
		t.Fatal(err)
	}
	sc, err := server.Start(ctx) // late
	if err != nil {
		t.Fatal(err)
	}
	got, err := sc.AcceptStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(got, b); err != nil || string(b) != "early" {
		t.Fatalf("%q, %v", b, err)
	}
	dst := make([][]byte, 1)
	if _, err := sc.ReceiveBundles(dst); err != nil || string(dst[0]) != "early too" {
		t.Fatalf("%q, %v", dst[0], err)
	}
}

func TestARefusalReachesTheClientAsCodeAndSentence(t *testing.T) {
	_, server, rw, _ := greeted(t)
	server.Close(carrier.CodeAuth, "wrong token")
	_, err := rw.Read(make([]byte, 1))
	closed, ok := errors.AsType[*carrier.CloseError](err)
	if !ok || closed.Code != carrier.CodeAuth || closed.Reason != "wrong token" {
		t.Fatalf("got %v", err)
	}
}

func TestARestartedServerIsNoticedAtOnce(t *testing.T) {
	ctx := carriertest.Context(t)
	clientTLS, serverTLS := carriertest.TLS()
	key := [32]byte{1, 2, 3}
	addr := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	listen := func() *Listener {
		socket, err := net.ListenUDP("udp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := Listen(socket, serverTLS, Config{StatelessResetKey: &key})
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	ln := listen()
	addr = ln.Addr().(*net.UDPAddr)
	cp, err := Dial(ctx, nil, addr, clientTLS, 0)
	if err != nil {
		t.Fatal(err)
	}
	sp, err := ln.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	client, _ := carriertest.Shake(t, cp, sp)
	ln.Close() // says nothing to the client
	ln = listen()
	defer ln.Close()
	for client.Err() == nil && ctx.Err() == nil {
		if client.SendBundle(make([]byte, 100)) != nil {
			break
		}
		runtime.Gosched()
	}
	<-client.Done()
	if err := client.Err(); !errors.Is(err, errForgotten) || errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// deliveredSocket counts what it is told.
type deliveredSocket struct {
	*net.UDPConn
	told atomic.Int64
}

func (s *deliveredSocket) Delivered() { s.told.Add(1) }

func TestTheSocketsOfBothEndsAreToldOfBundles(t *testing.T) {
	var sockets [2]*deliveredSocket
	for i := range sockets {
		sockets[i] = &deliveredSocket{UDPConn: carriertest.LoopbackUDP(t)}
	}
	cp, sp := pendingsOver(t, sockets[0], sockets[1])
	client, server := carriertest.Shake(t, cp, sp)
	ends := [2]carrier.Carrier{client, server}
	dst := make([][]byte, 1)
	for i, to := range ends {
		before := sockets[i].told.Load()
		if err := ends[1-i].SendBundle(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if n, err := to.ReceiveBundles(dst); n != 1 || err != nil {
			t.Fatalf("ReceiveBundles = %d, %v", n, err)
		}
		if got := sockets[i].told.Load() - before; got != 1 {
			t.Errorf("end %d told its socket %d times of one bundle", i, got)
		}
	}
}
