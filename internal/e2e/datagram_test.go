package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"wmproxy/internal/probe"
	"wmproxy/internal/udpio"
	"wmproxy/socks"
)

var everyKind = []string{overQUIC, overYamux, overBoth, overProxy}

func TestDatagramsOfEverySizePassBothWays(t *testing.T) {
	t.Parallel()
	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		echo := startEcho(t)
		sizes, err := probe.Sizes(t.Context(), tu.Entry.Socks(), echo, []int{0, 1, 512, 1200, 1472, 9000, 65497})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sizes {
			if !s.OK() {
				t.Errorf("%d bytes: %d of %d came back: %v", s.Size, s.Received, s.Sent, s.Err)
			}
		}
	})
}

func TestIPv6AssociationCarriesLargestToIPv4(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		flag := "--listen"
		if kind == overProxy {
			flag = "--bind"
		}
		tu := startOver(t, kind, nil, []string{flag, "[::1]:0"})
		conn := associate(t, tu.Entry.Socks())
		if !conn.RelayAddr().Addr().Is6() {
			t.Fatalf("the association is on %v", conn.RelayAddr())
		}
		pinger := probe.NewPinger(conn, startEcho(t))
		if _, err := pinger.Ping(udpio.MaxDatagram, waitTimeout); err != nil {
			t.Errorf("%d bytes to IPv4: %v", udpio.MaxDatagram, err)
		}
		pinger = probe.NewPinger(conn, startEchoAt(t, "[::1]:0"))
		if _, err := pinger.Ping(1200, waitTimeout); err != nil {
			t.Errorf("to IPv6: %v", err)
		}
	})
}

// A reply of 65,507 bytes and its header do not fit into a datagram of an IPv4 association.
func TestReplyTooLargeForSOCKSIsCounted(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		target := listenUDP(t, "127.0.0.1:0")
		conn := associate(t, tu.Entry.Socks())
		writeTo(t, conn, []byte("to which all this is the answer"), addrOf(target))
		_, from := receive(t, target)
		// On a busy machine datagrams that wait for more than 120 ms are dropped before.
		const tooLarge = 3
		buf := make([]byte, 1<<16)
		for range tooLarge {
			writeUDP(t, target, make([]byte, udpio.MaxDatagram), from)
			for began := time.Now(); ; {
				writeUDP(t, target, []byte("small"), from)
				_ = conn.SetReadDeadline(time.Now().Add(time.Second))
				n, _, err := conn.ReadFromAddr(buf)
				if err == nil && string(buf[:n]) == "small" {
					break
				}
				if err == nil || time.Since(began) > waitTimeout {
					t.Fatalf("%d bytes and %v, want a small datagram", n, err)
				}
			}
		}
		conn.Close()
		line := tu.Entry.WaitLog("the association's end", message("association ended"))
		stale := tu.Exit().WaitLog("the flow's end", message("flow ended")).Int("drops", "stale")
		if n := line.Int("drops", "too_large"); n > tooLarge || n+stale < tooLarge {
			t.Errorf("%d drops are counted and %d at the exit, want %d: %s", n, stale, tooLarge, line.Raw)
		}
		if up, down := line.Int("up_datagrams"), line.Int("down_datagrams"); up != 1 || down < tooLarge {
			t.Errorf("%d datagrams up and %d down are counted, want 1 and %d: %s", up, down, tooLarge, line.Raw)
		}
	})
}

func TestModestRateLosesAndReordersNothing(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		target := listenUDP(t, "127.0.0.1:0")
		conn := associate(t, tu.Entry.Socks())

		// The target records and echoes the datagrams. There are never more than inFlight
		// outstanding, which fit into all buffers.
		const datagrams, inFlight = 20000, 64
		var up, down sequence
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 2048)
			for {
				n, from, err := target.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				up.saw(binary.BigEndian.Uint32(buf))
				_, _ = target.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		began := time.Now()
		var sent uint32
		payload, buf := make([]byte, 200), make([]byte, 2048)
		send := func() {
			binary.BigEndian.PutUint32(payload, sent)
			writeTo(t, conn, payload, addrOf(target))
			sent++
		}
		for range inFlight {
			send()
		}
		for down.seen < datagrams {
			conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			n, _, err := conn.ReadFromAddr(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break // the rest was lost
			}
			if err != nil {
				t.Fatal(err)
			}
			if n != len(payload) {
				t.Fatalf("a datagram of %d bytes came back", n)
			}
			down.saw(binary.BigEndian.Uint32(buf))
			if sent < datagrams {
				send()
			}
		}
		took := time.Since(began)
		target.Close()
		<-done
		for _, way := range []struct {
			name string
			sequence
			of int
		}{{"up", up, int(sent)}, {"down", down, up.seen}} {
			if way.early > 0 {
				t.Errorf("%s: %d of %d were reordered", way.name, way.early, way.seen)
			}
			if way.seen != way.of {
				t.Errorf("%s: %d of %d were lost", way.name, way.of-way.seen, way.of)
			}
		}
		t.Logf("%d there and back in %v, %.0f/s", down.seen, took.Round(time.Millisecond), float64(down.seen)/took.Seconds())
	})
}

// sequence distinguishes loss from reordering in numbers that were sent in order.
type sequence struct {
	next  uint32
	seen  int
	early int // arrived after a later one
}

func (s *sequence) saw(n uint32) {
	s.seen++
	if n < s.next {
		s.early++
		return
	}
	s.next = n + 1
}

func TestAssociationsOfAUserAreIndependent(t *testing.T) {
	t.Parallel()
	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, []string{"--user", "alice", "--pass", "one-password"})
		client := tu.Entry.Socks()
		client.Username, client.Password = "alice", "one-password"
		target := listenUDP(t, "127.0.0.1:0")
		one, two := associate(t, client), associate(t, client)
		from := map[netip.AddrPort]bool{}
		for i, conn := range []*socks.PacketConn{one, two, one} {
			want := []byte{byte(i)}
			writeTo(t, conn, want, addrOf(target))
			got, source := receive(t, target)
			if !bytes.Equal(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
			from[source] = true
			writeUDP(t, target, want, source)
			if got, origin := read(t, conn); !bytes.Equal(got, want) || origin != addrOf(target) {
				t.Fatalf("got %v from %v, want %v from %v", got, origin, want, addrOf(target))
			}
		}
		if len(from) != 2 {
			t.Errorf("two associations left from %d sockets", len(from))
		}
		one.Close()
		line := tu.Entry.WaitLog("the association's end", message("association ended"))
		if line.String("user") != "alice" {
			t.Errorf("the line does not name the user: %s", line.Raw)
		}
		writeTo(t, two, []byte("still here"), addrOf(target))
		if got, _ := receive(t, target); string(got) != "still here" {
			t.Errorf("the other association sent %q", got)
		}
	})
}

func TestPasswordIsRequired(t *testing.T) {
	t.Parallel()
	proxy := startProxy(t, "--user", "alice", "--pass", "the-right-password")
	for _, test := range []struct {
		name, user, pass string
		want             error
	}{
		{"the right one", "alice", "the-right-password", nil},
		{"a wrong one", "alice", "a-wrong-password", socks.ErrAuth},
		{"a wrong user", "bob", "the-right-password", socks.ErrAuth},
		{"none offered", "", "", socks.ErrNoMethod},
	} {
		client := proxy.Socks()
		client.Username, client.Password = test.user, test.pass
		conn, err := client.Associate(t.Context())
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
		if conn != nil {
			conn.Close()
		}
		stream, err := client.Connect(t.Context(), startEcho(t))
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
		if stream != nil {
			stream.Close()
		}
	}
	const refused = 2 * 3
	proxy.WaitLog("a refusal", message("SOCKS5 handshake failed"))
	proxy.Stop()
	if n := proxy.CountLogs(message("SOCKS5 handshake failed")); n != refused {
		t.Errorf("%d lines tell of refusals, want %d", n, refused)
	}
	proxy.secrets = append(proxy.secrets, "a-wrong-password")
}

// listenUDP opens a target's socket, which is closed after the test.
func listenUDP(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadBuffer(4 << 20) // the system may grant less
	return conn
}

// addrOf returns a target's address.
func addrOf(conn *net.UDPConn) socks.Addr {
	return socks.AddrFrom(conn.LocalAddr().(*net.UDPAddr).AddrPort())
}

// receive reads a datagram at a target.
func receive(t testing.TB, conn *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 1<<16)
	_ = conn.SetReadDeadline(time.Now().Add(waitTimeout))
	n, from, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// writeUDP sends a datagram from a target.
func writeUDP(t testing.TB, conn *net.UDPConn, b []byte, to netip.AddrPort) {
	t.Helper()
	if _, err := conn.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// writeTo sends a datagram from an application.
func writeTo(t testing.TB, conn *socks.PacketConn, b []byte, to socks.Addr) {
	t.Helper()
	if _, err := conn.WriteToAddr(b, to); err != nil {
		t.Fatal(err)
	}
}

// read reads a datagram at an application.
func read(t testing.TB, conn *socks.PacketConn) ([]byte, socks.Addr) {
	t.Helper()
	buf := make([]byte, 1<<16)
	conn.SetReadDeadline(time.Now().Add(waitTimeout))
	n, from, err := conn.ReadFromAddr(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], from
}
