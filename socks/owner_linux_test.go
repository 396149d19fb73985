package socks

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"wmproxy/internal/udpio"
)

// as runs f with another user's id for the sockets that f opens.
func as(t *testing.T, uid int, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("it takes root to act as several users")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(uid); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(0)
	f()
}

func TestSystemTellsWhoseSocketsAre(t *testing.T) {
	const nobody = 65534
	own := uint32(os.Getuid())
	for _, ip := range []string{"127.0.0.1", "::1"} {
		relay, mine := udpSocket(t, ip), udpSocket(t, ip)
		var others *net.UDPConn
		as(t, nobody, func() { others = udpSocket(t, ip) })
		near := udpAddr(relay)
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		wildcard, err := net.ListenUDP("udp", nil) // of both families
		if err != nil {
			t.Fatal(err)
		}
		defer wildcard.Close()
		wild := netip.AddrPortFrom(near.Addr(), udpAddr(wildcard).Port())
		connected, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(near))
		if err != nil {
			t.Fatal(err)
		}
		defer connected.Close()

		// Java's sockets are of IPv6 and reach IPv4 too.
		mappedTCP, mappedUDP := mappedSockets(t, ln.Addr().(*net.TCPAddr).AddrPort(), near)

		var o owners
		for what, c := range map[string]struct {
			kind      socketKind
			far, near netip.AddrPort
			want      socketUser
		}{
			"TCP":               {kindTCP, udpio.AddrPortOf(conn.LocalAddr()), udpio.AddrPortOf(conn.RemoteAddr()), socketUser{own, lookupFound}},
			"UDP":               {kindUDP, udpAddr(mine), near, socketUser{own, lookupFound}},
			"TCP, mapped":       {kindTCP, mappedTCP, udpio.AddrPortOf(ln.Addr()), socketUser{own, lookupFound}},
			"UDP, mapped":       {kindUDP, mappedUDP, near, socketUser{own, lookupFound}},
			"UDP of another":    {kindUDP, udpAddr(others), near, socketUser{nobody, lookupFound}},
			"UDP, any address":  {kindUDP, wild, near, socketUser{own, lookupFound}},
			"UDP, connected":    {kindUDP, udpAddr(connected), near, socketUser{own, lookupFound}},
			"nobody's UDP port": {kindUDP, netip.AddrPortFrom(near.Addr(), 1), near, socketUser{0, lookupNone}},
			"neither end's":     {kindUDP, netip.AddrPortFrom(near.Addr(), 1), netip.AddrPortFrom(near.Addr(), 2), socketUser{0, lookupFailed}},
		} {
			if got := o.of(c.kind, c.far, c.near); got != c.want {
				t.Errorf("%s, %s: %+v, want %+v", ip, what, got, c.want)
			}
		}
	}
}

// mappedSockets connects IPv6 sockets to addresses, which may be of IPv4, and returns
// their own.
func mappedSockets(t *testing.T, tcp, udp netip.AddrPort) (ownTCP, ownUDP netip.AddrPort) {
	t.Helper()
	for _, c := range []struct {
		kind int
		to   netip.AddrPort
		own  *netip.AddrPort
	}{{unix.SOCK_STREAM, tcp, &ownTCP}, {unix.SOCK_DGRAM, udp, &ownUDP}} {
		fd, err := unix.Socket(unix.AF_INET6, c.kind, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(c.to.Port()), Addr: c.to.Addr().As16()}); err != nil {
			t.Fatal(err)
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		sa := name.(*unix.SockaddrInet6)
		*c.own = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return ownTCP, ownUDP
}

func udpAddr(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// FuzzReadDiag reads arbitrary answers of the kernel's.
func FuzzReadDiag(f *testing.F) {
	f.Add(make([]byte, diagAnswerMin))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, ours := readDiag(b, kindTCP, 0); u.result == lookupFound && (!ours || len(b) < diagAnswerMin) {
			t.Errorf("%d bytes are %+v", len(b), u)
		}
	})
}

func BenchmarkAskSystem(b *testing.B) {
	near, far := udpAddr(udpSocket(b, "127.0.0.1")), udpAddr(udpSocket(b, "127.0.0.1"))
	for b.Loop() {
		if askSystem(kindUDP, far, near).result != lookupFound {
			b.Fatal("not found")
		}
	}
}
