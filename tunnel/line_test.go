package tunnel

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
	"wmproxy/tunnel/quic"
	"wmproxy/tunnel/tcp"
)

// lineConfig is a line in memory, the same in both directions.
type lineConfig struct {
	rate   int           // in bytes per second, packet heads included
	delay  time.Duration // one way
	buffer time.Duration // how long at most what waits for the line may wait
}

// transit is when n bytes that are sent now arrive; idle is when those before
// have left. What would wait longer than the buffer is not ok.
func (c lineConfig) transit(now time.Time, idle *time.Time, n int) (at time.Time, ok bool) {
	if idle.Before(now) {
		*idle = now
	}
	if idle.Sub(now) > c.buffer {
		return at, false
	}
	*idle = idle.Add(time.Duration(n) * time.Second / time.Duration(c.rate))
	return idle.Add(c.delay), true
}

// packetLine carries UDP packets, and drops those that its buffer has no room for.
type packetLine struct {
	lineConfig
	wg sync.WaitGroup

	mu   sync.Mutex
	ends map[string]*packetLineEnd // by the address they are on
}

// packetLineEnd is the direction towards one address.
type packetLineEnd struct {
	line     *packetLine
	receiver simnet.PacketReceiver
	queue    chan timedPacket
	idle     time.Time
	packets  int
	bytes    int // passed, IPv4 and UDP heads included
	dropped  int // packets
}

// passed is how many bytes were carried so far.
func (e *packetLineEnd) passed() int {
	e.line.mu.Lock()
	defer e.line.mu.Unlock()
	return e.bytes
}

type timedPacket struct {
	simnet.Packet
	at time.Time
}

// udpHeads is what IPv4 and UDP add to a packet in bytes.
const udpHeads = 20 + 8

func (l *packetLine) AddNode(addr net.Addr, r simnet.PacketReceiver) {
	e := &packetLineEnd{line: l, receiver: r, queue: make(chan timedPacket, 1<<16)}
	l.ends[addr.String()] = e
	l.wg.Go(func() {
		for p := range e.queue {
			time.Sleep(time.Until(p.at))
			e.receiver.RecvPacket(p.Packet)
		}
	})
}

func (l *packetLine) SendPacket(p simnet.Packet) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.ends[p.To.String()]
	if e == nil {
		return nil
	}
	at, ok := l.transit(time.Now(), &e.idle, len(p.Data)+udpHeads)
	if !ok {
		e.dropped++
		return nil
	}
	e.packets++
	e.bytes += len(p.Data) + udpHeads
	e.queue <- timedPacket{p, at}
	return nil
}

func (l *packetLine) close() {
	l.mu.Lock()
	for _, e := range l.ends {
		close(e.queue)
	}
	clear(l.ends)
	l.mu.Unlock()
	l.wg.Wait()
}

// quicLine is a QUIC connection over a line. up and down are its directions.
func quicLine(t *testing.T, cfg lineConfig) (client, server carrier.Pending, up, down *packetLineEnd, stop func()) {
	t.Helper()
	l := &packetLine{lineConfig: cfg, ends: make(map[string]*packetLineEnd)}
	near := &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1).To4(), Port: 1}
	far := &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2).To4(), Port: 2}
	nearConn, farConn := simnet.NewSimConn(near, l), simnet.NewSimConn(far, l)
	up, down = l.ends[far.String()], l.ends[near.String()]
	clientTLS, serverTLS := carriertest.TLS()
	ln, err := quic.Listen(farConn, serverTLS, quic.Config{StatelessResetKey: &[32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if client, err = quic.Dial(t.Context(), nearConn, far, clientTLS, 0); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	return client, server, up, down, func() { ln.Close(); l.close() }
}

// byteLine is one direction of a TCP connection in memory: it holds so many bytes,
// and Write waits where it is full.
type byteLine struct {
	lineConfig
	holds int

	mu     sync.Mutex
	change sync.Cond
	chunks []timedBytes
	held   int
	idle   time.Time
	closed bool
}

type timedBytes struct {
	b  []byte
	at time.Time
}

func newByteLine(cfg lineConfig) *byteLine {
	l := &byteLine{lineConfig: cfg}
	// What a TCP socket has on its way in a round trip, and TCP_NOTSENT_LOWAT.
	l.holds = int(2*cfg.delay)*cfg.rate/int(time.Second) + 32<<10
	l.buffer = time.Hour
	l.change.L = &l.mu
	return l
}

func (l *byteLine) write(p []byte) (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n < len(p) {
		for l.held >= l.holds && !l.closed {
			l.change.Wait()
		}
		if l.closed {
			return n, net.ErrClosed
		}
		piece := p[n:min(n+1400, len(p))]
		at, _ := l.transit(time.Now(), &l.idle, len(piece))
		l.chunks = append(l.chunks, timedBytes{append([]byte(nil), piece...), at})
		l.held += len(piece)
		n += len(piece)
		l.change.Broadcast()
	}
	return n, nil
}

func (l *byteLine) read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return 0, io.EOF
		}
		if len(l.chunks) == 0 {
			l.change.Wait()
			continue
		}
		c := &l.chunks[0]
		if wait := time.Until(c.at); wait > 0 {
			l.mu.Unlock()
			time.Sleep(wait) // it is on its way
			l.mu.Lock()
			continue
		}
		n := copy(p, c.b)
		if c.b = c.b[n:]; len(c.b) == 0 {
			l.chunks = l.chunks[1:]
		}
		l.held -= n
		l.change.Broadcast()
		return n, nil
	}
}

func (l *byteLine) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.change.Broadcast()
}

// lineConn is one end of a TCP connection in memory. It has no deadlines.
type lineConn struct{ in, out *byteLine }

func (c lineConn) Read(p []byte) (int, error)       { return c.in.read(p) }
func (c lineConn) Write(p []byte) (int, error)      { return c.out.write(p) }
func (c lineConn) Close() error                     { c.in.close(); c.out.close(); return nil }
func (c lineConn) LocalAddr() net.Addr              { return &net.TCPAddr{Port: 1} }
func (c lineConn) RemoteAddr() net.Addr             { return &net.TCPAddr{Port: 2} }
func (c lineConn) SetDeadline(time.Time) error      { return nil }
func (c lineConn) SetReadDeadline(time.Time) error  { return nil }
func (c lineConn) SetWriteDeadline(time.Time) error { return nil }

// yamuxLine is a TCP connection with TLS over a line.
func yamuxLine(t *testing.T, cfg lineConfig) (client, server carrier.Pending) {
	t.Helper()
	up, down := newByteLine(cfg), newByteLine(cfg)
	near, far := lineConn{in: down, out: up}, lineConn{in: up, out: down}
	clientTLS, serverTLS := carriertest.TLS()
	ln := tcp.Listen(&oneConn{far}, serverTLS, 0, carrier.Windows{})
	server, err := ln.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = server.Handshake(context.Background()) }) // TLS; the session asks again
	if client, err = tcp.Client(t.Context(), near, clientTLS, 0); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	return client, server
}

// oneConn is a listener that accepts one connection.
type oneConn struct{ net.Conn }

func (l *oneConn) Accept() (net.Conn, error) { return l.Conn, nil }
func (l *oneConn) Addr() net.Addr            { return l.Conn.LocalAddr() }
