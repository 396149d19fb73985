package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

const (
	// halfOpen is the number of connections that the attacker opens without sending anything.
	halfOpen = 8000

	// steadily is the interval of datagrams of the flow beside an attack, and steadyFor its
	// shortest duration.
	steadily  = 20 * time.Millisecond
	steadyFor = 5 * time.Second

	// wanted bounds the wait of an honest client during an attack. If the kernel's queue is
	// full, a SYN is sent again after a second.
	wanted = 2500 * time.Millisecond
)

// perHalfOpen bounds the memory of a half-open connection in bytes, and halfOpenBound that
// of all. The race detector needs more.
func perHalfOpen() uint64   { return 48 << 10 * raceFactor() }
func halfOpenBound() uint64 { return 1024 * perHalfOpen() }

func raceFactor() uint64 {
	if testmain.Race {
		return 4
	}
	return 1
}

// Variables in the attacker's environment: HOST:PORT, and the number of connections.
const (
	targetVariable = "WMPROXY_E2E_ATTACK"
	countVariable  = "WMPROXY_E2E_ATTACK_COUNT"
)

// TestAsTheAttacker is the attacker's process. In the process of the tests it does nothing.
func TestAsTheAttacker(t *testing.T) {
	target := os.Getenv(targetVariable)
	if target == "" {
		return
	}
	count, err := strconv.Atoi(os.Getenv(countVariable))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for next.Add(1) <= int64(count) {
				c, err := net.DialTimeout("tcp", target, waitTimeout)
				if err != nil {
					continue
				}
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	fmt.Printf("open %d\n", len(conns))
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it
	for _, c := range conns {
		c.Close()
	}
}

// attacker is a process that keeps connections open.
type attacker struct {
	Open int
	stop func()
}

// startAttacker opens count connections to target from a process of its own.
func startAttacker(t testing.TB, target netip.AddrPort, count int) *attacker {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestAsTheAttacker$")
	cmd.Env = environment(t, programVariable+"="+program, targetVariable+"="+target.String(), countVariable+"="+strconv.Itoa(count))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &attacker{stop: sync.OnceFunc(func() {
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the attacker: %v", err)
		}
	})}
	t.Cleanup(a.stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(line, "open %d", &a.Open); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return a
}

// steady is a flow of numbered datagrams to an echo.
type steady struct {
	t       testing.TB
	conn    *socks.PacketConn
	began   time.Time
	sent    atomic.Int64
	back    atomic.Int64
	stop    func()
	stopped chan struct{}
	wg      sync.WaitGroup
}

// startSteady sends through c until Stop.
func startSteady(t testing.TB, c *socks.Client, echo socks.Addr) *steady {
	t.Helper()
	s := &steady{t: t, conn: associate(t, c), began: time.Now(), stopped: make(chan struct{})}
	s.stop = sync.OnceFunc(func() { close(s.stopped) })
	t.Cleanup(func() {
		s.stop()
		s.conn.Close()
		s.wg.Wait()
	})
	ping(t, s.conn, echo)
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	s.wg.Go(func() {
		tick := time.NewTicker(steadily)
		defer tick.Stop()
		to := net.UDPAddrFromAddrPort(echo.AddrPort())
		for {
			if _, err := s.conn.WriteTo(binary.BigEndian.AppendUint64(nil, uint64(s.sent.Load())), to); err != nil {
				t.Error(err)
				return
			}
			s.sent.Add(1)
			select {
			case <-tick.C:
			case <-s.stopped:
				return
			}
		}
	})
	s.wg.Go(func() {
		seen := make(map[uint64]bool)
		b := make([]byte, 64)
		for {
			n, _, err := s.conn.ReadFrom(b)
			if err != nil {
				return
			}
			if number := binary.BigEndian.Uint64(b); n == 8 && !seen[number] {
				seen[number] = true
				s.back.Add(1)
			}
		}
	})
	return s
}

// Stop stops the flow after steadyFor and returns the numbers of datagrams sent and lost.
// A loss of more than 1 % fails the test, unless the machine was so busy that the sender itself was late.
func (s *steady) Stop() (sent, lost int) {
	s.t.Helper()
	time.Sleep(time.Until(s.began.Add(steadyFor))) // the duration is part of the test
	s.stop()
	tick := time.NewTicker(steadily)
	defer tick.Stop()
	// The reader ends after the sender.
	for began := time.Now(); time.Since(began) < slack; <-tick.C {
		if time.Since(began) > wanted/2 && s.back.Load() >= s.sent.Load() {
			break
		}
	}
	s.conn.Close()
	s.wg.Wait()
	sent, lost = int(s.sent.Load()), int(s.sent.Load()-s.back.Load())
	switch {
	case lost*100 <= sent:
	case time.Duration(sent)*steadily < steadyFor*9/10:
		s.t.Logf("%d of %d are lost, and the machine let only those be sent", lost, sent)
	default:
		s.t.Errorf("%d of %d datagrams are lost", lost, sent)
	}
	return sent, lost
}

// served returns the time that an honest application waits for a connection through c.
func served(t testing.TB, c *socksProcess, echo socks.Addr) time.Duration {
	t.Helper()
	began := time.Now()
	connect(t, c.Socks(), echo).Close()
	took := time.Since(began)
	if took > wanted {
		t.Errorf("a connection took %v", took)
	}
	return took
}

func TestHalfOpenFloodHarmsNobody(t *testing.T) {
	for _, port := range []string{"SOCKS", "tunnel"} {
		t.Run(port, func(t *testing.T) {
			t.Parallel() // beside each other, and beside nothing else
			s := startServer(t, withDebug...)
			c := startClient(t, s.Link, withDebug...)
			echo := startEcho(t)
			victim, target := s.process, s.Addr
			if port == "SOCKS" {
				victim, target = c.process, c.Addr
			}
			served(t, c, echo)
			rested(t, victim)
			before := holdingsNow(t, victim, false)
			flow := startSteady(t, c.Socks(), echo)
			began := time.Now()
			a := startAttacker(t, target, halfOpen)
			opened := time.Since(began)
			if a.Open < halfOpen*9/10 {
				t.Errorf("the attacker got %d connections of %d", a.Open, halfOpen)
			}
			wait := served(t, c, echo)
			during := holdingsNow(t, victim, false)
			began = time.Now()
			startClient(t, s.Link, "--transport", overYamux).Stop()
			attached := time.Since(began)
			sent, lost := flow.Stop()
			a.stop()
			after, took := settled(t, victim, before.loosely(), settling)
			t.Logf("%d half-open in %v; %d datagrams, %d lost; a connection after %v, a client up and down in %v\nbefore %v\nduring %v\nafter  %v, %v later",
				a.Open, opened.Round(time.Millisecond), sent, lost, wait.Round(time.Microsecond), attached.Round(time.Millisecond), before, during, after, took.Round(time.Millisecond))
			if got := during.Heap + during.Stacks - before.Heap - before.Stacks; got > halfOpenBound() {
				t.Errorf("the half-open hold %d KiB, more than %d", got>>10, halfOpenBound()>>10)
			}
		})
	}
}

func TestHalfOpenConnectionCostsLittle(t *testing.T) {
	const each = 100 // below the bound of one address
	s := startServer(t, withDebug...)
	for _, test := range []struct {
		name string
		open func(t *testing.T)
	}{
		{"TCP", func(t *testing.T) {
			conn, err := net.Dial("tcp", s.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}},
		{"half a ClientHello", func(t *testing.T) {
			conn, err := net.Dial("tcp", s.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if _, err := conn.Write(clientHello(t)[:100]); err != nil {
				t.Fatal(err)
			}
		}},
		{"TLS", func(t *testing.T) { dialWire(t, overYamux, s.Addr, wireALPN) }},
		{"TLS and half a Hello", func(t *testing.T) {
			if _, err := dialWire(t, overYamux, s.Addr, wireALPN).tls.Write(append(varints(typeHello, wireMaxMessage), garbage(4000)...)); err != nil {
				t.Fatal(err)
			}
		}},
		{"QUIC", func(t *testing.T) { dialWire(t, overQUIC, s.Addr, wireALPN) }},
		{"QUIC and half a Hello", func(t *testing.T) {
			c := dialWire(t, overQUIC, s.Addr, wireALPN)
			c.open()
			if _, err := c.stream.Write(append(varints(typeHello, wireMaxMessage), garbage(4000)...)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.open(t)
			before := holdingsNow(t, s.process, false)
			for range each {
				test.open(t)
			}
			during := holdingsNow(t, s.process, false)
			heap, stacks := (int(during.Heap)-int(before.Heap))/each, (int(during.Stacks)-int(before.Stacks))/each
			t.Logf("%d bytes of heap and %d of stacks, %.1f goroutines", heap, stacks, float64(during.Goroutines-before.Goroutines)/each)
			if heap+stacks > int(2*perHalfOpen()) {
				t.Errorf("%d bytes for one half-open connection", heap+stacks)
			}
		})
	}
}

// initial returns a QUIC Initial packet (RFC 9000 section 17.2.2) with new connection ids
// and a payload that cannot be decrypted.
func initial() []byte {
	const size, idLen = 1200, 8
	b := append([]byte{0xc3}, 0, 0, 0, 1)
	b = append(append(b, idLen), garbage(idLen)...)
	b = append(append(b, idLen), garbage(idLen)...)
	b = append(b, 0) // no token
	rest := size - len(b) - 2
	return append(binary.BigEndian.AppendUint16(b, 1<<14|uint16(rest)), garbage(rest)...)
}

// deafSocket receives nothing, so that handshakes do not get beyond their first flight.
type deafSocket struct{ net.PacketConn }

func (d deafSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if n, from, err := d.PacketConn.ReadFrom(b); err != nil {
			return n, from, err
		}
	}
}

func TestUnfinishedQUICHandshakesAreBounded(t *testing.T) {
	t.Parallel()
	// Few connections of an unverified address are accepted. Each has 4 or 5 goroutines of
	// quic-go.
	const initials, hellos, most = 2000, 500, 32
	s := startServer(t, withDebug...)
	c := startClient(t, s.Link)
	echo := startEcho(t)
	served(t, c, echo)
	rested(t, s.process)
	before := holdingsNow(t, s.process, false)
	flow := startSteady(t, c.Socks(), echo)

	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := net.UDPAddrFromAddrPort(s.Addr)
	for range initials {
		if _, err := socket.WriteTo(initial(), to); err != nil {
			t.Fatal(err)
		}
	}
	junk := holdingsNow(t, s.process, false)
	socket.Close()

	// And real handshakes, of clients that get no answer.
	if socket, err = net.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: deafSocket{socket}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var dials sync.WaitGroup
	for range hellos {
		dials.Go(func() {
			if conn, err := tr.Dial(ctx, to, wireTLS(wireALPN), nil); err == nil {
				conn.CloseWithError(0, "")
				t.Error("a deaf client got in")
			}
		})
	}
	dials.Wait()
	honest := holdingsNow(t, s.process, false)
	began := time.Now()
	startClient(t, s.Link, "--transport", overQUIC).Stop()
	attached := time.Since(began)
	sent, lost := flow.Stop()
	tr.Close()
	socket.Close()
	after, took := settled(t, s.process, before.loosely(), 2*settling)
	t.Logf("%d datagrams, %d lost; a client up and down in %v\nbefore %v\nafter %d Initials %v\nafter %d ClientHellos %v\nafter  %v, %v later",
		sent, lost, attached.Round(time.Millisecond), before, initials, junk, hellos, honest, after, took.Round(time.Millisecond))
	for _, h := range []holdings{junk, honest} {
		if got := int(h.Heap+h.Stacks) - int(before.Heap+before.Stacks); got > int(most*2*perHalfOpen()) {
			t.Errorf("unfinished handshakes hold %d KiB", got>>10)
		}
		if got := h.Goroutines - before.Goroutines; got > most*5 {
			t.Errorf("unfinished handshakes have %d goroutines", got)
		}
	}
	if attached > 2*slack {
		t.Errorf("a client took %v", attached)
	}
}

// limitDescriptors lets a running process open only this many more descriptors.
func limitDescriptors(t testing.TB, p *process, more int) {
	t.Helper()
	prlimit := debian(t, "prlimit", "util-linux")
	n := strconv.Itoa(holdingsNow(t, p, false).Descriptors + more)
	if out, err := exec.Command(prlimit, "--pid", strconv.Itoa(p.PID()), "--nofile="+n+":"+n).CombinedOutput(); err != nil {
		t.Fatalf("prlimit: %v: %s", err, out)
	}
}

func TestAcceptSurvivesLackOfDescriptors(t *testing.T) {
	t.Parallel()
	const left, attackers = 30, 300
	for _, port := range []string{"SOCKS", "tunnel"} {
		t.Run(port, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, withDebug...)
			c := startClient(t, s.Link, withDebug...)
			echo := startEcho(t)
			victim, target := s.process, s.Addr
			if port == "SOCKS" {
				victim, target = c.process, c.Addr
			}
			served(t, c, echo)
			rested(t, victim)
			before := holdingsNow(t, victim, false)
			flow := startSteady(t, c.Socks(), echo)
			limitDescriptors(t, victim, left)
			a := startAttacker(t, target, attackers)
			began := time.Now()
			if port == "SOCKS" {
				connect(t, c.Socks(), echo).Close()
			} else {
				startClient(t, s.Link, "--transport", overYamux).Stop()
			}
			took := time.Since(began)
			if took > handshakeBound {
				t.Errorf("an honest one had to wait %v", took)
			}
			sent, lost := flow.Stop()
			a.stop()
			after, _ := settled(t, victim, before.loosely(), settling)
			t.Logf("%d attackers for %d descriptors; an honest one got in after %v; %d datagrams, %d lost\nbefore %v\nafter  %v",
				a.Open, left, took.Round(time.Millisecond), sent, lost, before, after)
		})
	}
}

// startServerWithin starts a server with a limit of descriptors. args come last.
func startServerWithin(t testing.TB, limit int, args ...string) *serverProcess {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		unable(t, "there is no sh to set a limit in")
	}
	listen := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
	args = slices.Concat([]string{"server", "--listen", listen, "--state-dir", filepath.Join(t.TempDir(), "server")}, loopbackAllowed, args)
	cmd := exec.Command(sh, append([]string{"-c", "ulimit -n " + strconv.Itoa(limit) + ` && exec "$0" "$@"`, program}, args...)...)
	return serverBehind(t, launchCommand(t, nil, cmd, args))
}

func TestUserLeavesDescriptorsForOthers(t *testing.T) {
	t.Parallel()
	const limit, flows = 256, 1000
	s := startServerWithin(t, limit, withDebug...)
	echo := startEcho(t)
	greedy := attach(t, overYamux, s, newWireSession(), wireHello{attach: 1, withSecret: true})
	body := datagram(refusedDestination, []byte("x"))
	for i := range uint64(flows) {
		if err := greedy.send(wireRecord(2*i+2, body)); err != nil {
			t.Fatal(err)
		}
	}
	greedy.hear(typeEnd) // beyond the limit
	greedy.answers(1)
	during := holdingsNow(t, s.process, false)
	t.Logf("%d descriptors of %d in use", during.Descriptors, limit)
	if during.Descriptors > limit-limit/8 {
		t.Errorf("%d descriptors of %d are in use", during.Descriptors, limit)
	}
	// Others can still attach, over TCP too.
	startClient(t, s.Link).Stop()
	greedy.hangUp() // its flows are kept
	later := startClient(t, s.Link)
	ping(t, associate(t, later.Socks()), echo)
	served(t, later, echo)
	if n := s.CountLogs(func(l logLine) bool { return strings.Contains(l.Msg, "refused for want of room") }); n == 0 || n > 10 {
		t.Errorf("%d lines say that there was no room", n)
	}
	held := message("a session that was held is ended")
	s.WaitLog("the end of the greedy session", held)
	if n := s.CountLogs(held); n != 1 {
		t.Errorf("%d lines say that a session was ended for want of room, want 1: the greedy one's", n)
	}
}
