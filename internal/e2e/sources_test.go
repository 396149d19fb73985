package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wmproxy/socks"
)

// application is a SOCKS5 client with sockets of the test, which can name any source in UDP
// ASSOCIATE.
type application struct {
	t       testing.TB
	control net.Conn
	relay   netip.AddrPort // BND of the association
}

// entranceUser and entrancePassword are the credentials of protected entrances.
var entranceUser, entrancePassword = "owner", "owner's secret"

// protected returns the flags of an entrance with these credentials.
func protected() []string { return []string{"--user", entranceUser, "--pass", entrancePassword} }

// nowhere is DST of UDP ASSOCIATE as most clients send it.
var nowhere = netip.MustParseAddrPort("0.0.0.0:0")

// associateFrom opens an association from a local address ("" for any) with this DST, and with
// the password if password is set.
func associateFrom(t testing.TB, entrance, local string, dst netip.AddrPort, password bool) *application {
	t.Helper()
	var d net.Dialer
	if local != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", entrance)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(waitTimeout))
	b := []byte{5, 1, 0}
	want := []byte{5, 0}
	if password {
		b = append([]byte{5, 1, 2, 1, byte(len(entranceUser))}, entranceUser...)
		b = append(append(b, byte(len(entrancePassword))), entrancePassword...)
		want = []byte{5, 2, 1, 0}
	}
	b = socks.AppendAddrPort(append(b, 5, 3, 0), dst)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want)+4)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got[:len(want)+3], append(want, 5, 0, 0)) {
		t.Fatalf("the entrance answered % x, %v", got, err)
	}
	rest := make([]byte, 6)
	if got[len(want)+3] == socks.TypeIPv6 {
		rest = make([]byte, 18)
	}
	if _, err := io.ReadFull(c, rest); err != nil {
		t.Fatal(err)
	}
	bound, _, err := socks.ParseAddr(append(got[len(want)+3:], rest...))
	if err != nil {
		t.Fatal(err)
	}
	return &application{t: t, control: c, relay: bound.AddrPort()}
}

// udpAt opens a UDP socket on a local address.
func udpAt(t testing.TB, ip string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		unable(t, err.Error())
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// sends sends text to a target through the relay.
func (a *application) sends(c *net.UDPConn, to netip.AddrPort, text string) {
	a.t.Helper()
	b := append([]byte{0, 0, 0}, datagram(to, []byte(text))...)
	if _, err := c.WriteToUDPAddrPort(b, a.relay); err != nil {
		a.t.Fatal(err)
	}
}

// gets reads datagrams from the relay until one with this text arrives.
func (a *application) gets(c *net.UDPConn, from netip.AddrPort, text string) bool {
	return a.getsWithin(c, from, text, waitTimeout)
}

func (a *application) getsWithin(c *net.UDPConn, from netip.AddrPort, text string, wait time.Duration) bool {
	a.t.Helper()
	want := append([]byte{0, 0, 0}, datagram(from, []byte(text))...)
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 2048)
	for {
		n, source, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return false
		}
		if source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port()); bytes.Equal(b[:n], want) && source == a.relay {
			return true
		}
	}
}

// served sends until an answer arrives. A tunnel that is coming up loses some.
func (a *application) served(c *net.UDPConn, to netip.AddrPort) bool {
	a.t.Helper()
	for i := range 20 {
		text := fmt.Sprintf("%v %d", c.LocalAddr(), i)
		a.sends(c, to, text)
		if a.getsWithin(c, to, text, 500*time.Millisecond) {
			return true
		}
	}
	return false
}

// memo is a UDP target that echoes and records each datagram.
type memo struct {
	conn *net.UDPConn
	addr netip.AddrPort
	got  *output
}

func startMemo(t testing.TB) *memo {
	t.Helper()
	c := udpAt(t, "127.0.0.1")
	m := &memo{conn: c, addr: c.LocalAddr().(*net.UDPAddr).AddrPort(), got: newOutput()}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			fmt.Fprintf(m.got, "%s\n", b[:n])
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return m
}

// heard reports whether the target has received the text.
func (m *memo) heard(text string) bool { return strings.Contains(m.got.String(), text+"\n") }

func TestAssociationServesTwoSockets(t *testing.T) {
	one, two := startMemo(t), startMemo(t)
	overEach(t, []string{overProxy, overQUIC}, func(t *testing.T, kind string) {
		entry := startOver(t, kind, nil, nil).Entry
		a := associateFrom(t, entry.Addr.String(), "", nowhere, false)
		first, second := udpAt(t, "127.0.0.1"), udpAt(t, "127.0.0.1")
		if !a.served(first, one.addr) || !a.served(second, two.addr) {
			t.Fatal("not both sockets are answered")
		}
		// Late answers, after the other one has sent.
		for i := range 3 {
			ask1, ask2 := fmt.Sprint("first ", i), fmt.Sprint("second ", i)
			a.sends(first, one.addr, ask1)
			a.sends(second, two.addr, ask2)
			if !a.gets(first, one.addr, ask1) || !a.gets(second, two.addr, ask2) {
				t.Fatalf("round %d: an answer is missing", i)
			}
		}
	})
}

func TestAssociationSurvivesAChangedPort(t *testing.T) {
	target := startMemo(t)
	for _, c := range []struct {
		what string
		args []string
	}{
		{"own port", nil},
		{"shared port", []string{"--udp-port", fmt.Sprint(freePorts(t, 1))}},
		{"password", protected()},
	} {
		t.Run(c.what, func(t *testing.T) {
			entry := startProxy(t, c.args...)
			a := associateFrom(t, entry.Addr.String(), "", nowhere, c.what == "password")
			for range 6 { // more than the table has entries
				socket := udpAt(t, "127.0.0.1")
				if !a.served(socket, target.addr) {
					t.Fatal("the new port is not served")
				}
				socket.Close()
			}
			if n := entry.CountLogs(containing("udp-from")); n != 0 {
				t.Errorf("%d lines suggest --udp-from, which cannot help", n)
			}
		})
	}
}

func TestSharedPortKeepsAssociationsApart(t *testing.T) {
	target := startMemo(t)
	entry := startProxy(t, "--udp-port", fmt.Sprint(freePorts(t, 1)))
	one := associateFrom(t, entry.Addr.String(), "", nowhere, false)
	two := associateFrom(t, entry.Addr.String(), "", nowhere, false)
	first, second, third := udpAt(t, "127.0.0.1"), udpAt(t, "127.0.0.1"), udpAt(t, "127.0.0.1")
	if !one.served(first, target.addr) || !two.served(second, target.addr) {
		t.Fatal("an association is not served")
	}
	one.sends(third, target.addr, "a third source")
	if !one.served(first, target.addr) || !two.served(second, target.addr) {
		t.Error("a third source has taken an association's place")
	}
	if target.heard("a third source") {
		t.Error("a third source could speak for an association")
	}
	entry.WaitLog("what helps", containing("a range of ports"))
}

func TestNamedSourceRegainsItsAssociation(t *testing.T) {
	target := startMemo(t)
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared=", shared), func(t *testing.T) {
			var args []string
			if shared {
				args = []string{"--udp-port", fmt.Sprint(freePorts(t, 1))}
			}
			entry := startProxy(t, args...)
			owner, other := udpAt(t, "127.0.0.1"), udpAt(t, "127.0.0.1")
			for _, named := range []string{"127.0.0.1", "0.0.0.0"} {
				a := associateFrom(t, entry.Addr.String(), "", netip.AddrPortFrom(netip.MustParseAddr(named), portOf(owner)), false)
				if !a.served(other, target.addr) {
					t.Fatalf("naming %s: a client whose port was changed on the way is not served", named)
				}
				if !a.served(owner, target.addr) {
					t.Fatalf("naming %s: the named source does not get its association", named)
				}
				intruder := "intruder of " + named
				a.sends(other, target.addr, intruder)
				if !a.served(owner, target.addr) || target.heard(intruder) {
					t.Errorf("naming %s: another source still speaks: %v", named, target.heard(intruder))
				}
				a.control.Close()
				entry.WaitLog("the end", message("association ended"))
			}
		})
	}
}

func TestRepliesLeaveFromTheAddressedAddress(t *testing.T) {
	target := startMemo(t)
	for _, c := range []struct{ what, listen, to string }{
		{"the wildcard, IPv4", "0.0.0.0", "127.0.0.2"},
		{"both families, IPv4", "[::]", "127.0.0.3"},
		{"IPv6", "[::]", "::1"},
	} {
		for _, shared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, shared=%v", c.what, shared), func(t *testing.T) {
				if strings.HasPrefix(c.listen, "[") {
					ln, err := net.Listen("tcp", "[::1]:0")
					if err != nil {
						t.Skip(err)
					}
					ln.Close()
				}
				port := freePorts(t, 2)
				args := []string{"--bind", fmt.Sprintf("%s:%d", c.listen, port), "--open", "--udp", "198.51.100.9"}
				if shared {
					args = append(args, "--udp-port", fmt.Sprint(port+1))
				}
				startProxy(t, args...)
				a := associateFrom(t, net.JoinHostPort(c.to, fmt.Sprint(port)), "", nowhere, false)
				if a.relay.Addr().String() != "198.51.100.9" {
					t.Fatalf("BND is %v", a.relay)
				}
				// The application knows the address from elsewhere. Its socket is
				// connected and receives answers from there alone.
				at := &net.UDPAddr{IP: net.ParseIP(c.to), Port: int(a.relay.Port())}
				socket, err := net.DialUDP("udp", nil, at)
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				ask := append([]byte{0, 0, 0}, datagram(target.addr, []byte("ask"))...)
				if _, err := socket.Write(ask); err != nil {
					t.Fatal(err)
				}
				_ = socket.SetReadDeadline(time.Now().Add(waitTimeout))
				b := make([]byte, 100)
				if n, err := socket.Read(b); err != nil || !bytes.Equal(b[:n], ask) {
					t.Errorf("%q, %v", b[:n], err)
				}
			})
		}
	}
}
