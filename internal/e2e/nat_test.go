package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/pion/stun/v3"

	"wmproxy/socks"
)

// Bits of CHANGE-REQUEST, RFC 5780 section 7.2.
const (
	changeIP   = 4
	changePort = 2
)

// stunServer is a STUN server (RFC 8489) on two addresses with two ports each, as RFC 5780
// requires for NAT behavior discovery.
type stunServer struct {
	conns [2][2]*net.UDPConn // by address, by port
}

func startSTUN(t *testing.T) *stunServer {
	t.Helper()
	s := &stunServer{}
	first := freePorts(t, 2)
	var wg sync.WaitGroup
	for i, ip := range []string{"127.0.0.1", "127.0.0.2"} {
		for j := range s.conns[i] {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), first+uint16(j))))
			if err != nil {
				unable(t, "there is no second address on loopback: "+err.Error())
			}
			s.conns[i][j] = conn
		}
	}
	for i := range s.conns {
		for j := range s.conns[i] {
			wg.Go(func() { s.serve(i, j) })
		}
	}
	t.Cleanup(func() {
		for _, ports := range s.conns {
			for _, conn := range ports {
				conn.Close()
			}
		}
		wg.Wait()
	})
	return s
}

func (s *stunServer) addr(i, j int) netip.AddrPort {
	return s.conns[i][j].LocalAddr().(*net.UDPAddr).AddrPort()
}

// serve answers requests that arrive at one of the four sockets, from the socket that they ask
// for.
func (s *stunServer) serve(i, j int) {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conns[i][j].ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		request := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if request.Decode() != nil || request.Type != stun.BindingRequest {
			continue
		}
		toI, toJ := i, j
		if v, err := request.Get(stun.AttrChangeRequest); err == nil && len(v) == 4 {
			bits := binary.BigEndian.Uint32(v)
			toI ^= int(bits & changeIP / changeIP)
			toJ ^= int(bits & changePort / changePort)
		}
		origin, other := s.addr(toI, toJ), s.addr(1-i, 1-j)
		response, err := stun.Build(request, stun.BindingSuccess,
			&stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())},
			&stun.ResponseOrigin{IP: origin.Addr().AsSlice(), Port: int(origin.Port())},
			&stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())},
			stun.Fingerprint)
		if err == nil {
			_, _ = s.conns[toI][toJ].WriteToUDPAddrPort(response.Raw, from)
		}
	}
}

// bindingAnswer is a Binding response and its source.
type bindingAnswer struct {
	id     [stun.TransactionIDSize]byte
	mapped netip.AddrPort
	other  netip.AddrPort
}

// sendBinding sends a Binding request with this CHANGE-REQUEST and returns the transaction's id.
func sendBinding(t *testing.T, conn *socks.PacketConn, to netip.AddrPort, change uint32) [stun.TransactionIDSize]byte {
	t.Helper()
	setters := []stun.Setter{stun.TransactionID, stun.BindingRequest}
	if change != 0 {
		setters = append(setters, stun.RawAttribute{Type: stun.AttrChangeRequest, Value: binary.BigEndian.AppendUint32(nil, change)})
	}
	request, err := stun.Build(append(setters, stun.Fingerprint)...)
	if err != nil {
		t.Fatal(err)
	}
	writeTo(t, conn, request.Raw, socks.AddrFrom(to))
	return request.TransactionID
}

// readBinding reads the next Binding response and checks that its source is its RESPONSE-ORIGIN.
func readBinding(t *testing.T, conn *socks.PacketConn) bindingAnswer {
	t.Helper()
	raw, from := read(t, conn)
	response := &stun.Message{Raw: raw}
	if err := response.Decode(); err != nil {
		t.Fatal(err)
	}
	var mapped stun.XORMappedAddress
	var origin stun.ResponseOrigin
	var other stun.OtherAddress
	if err := stun.Fingerprint.Check(response); err != nil {
		t.Fatal(err)
	}
	if err := response.Parse(&mapped, &origin, &other); err != nil {
		t.Fatal(err)
	}
	if said := addrPort(t, origin.IP, origin.Port); from.AddrPort() != said {
		t.Errorf("the response says that it comes from %v, the association says %v", said, from)
	}
	return bindingAnswer{response.TransactionID, addrPort(t, mapped.IP, mapped.Port), addrPort(t, other.IP, other.Port)}
}

func addrPort(t *testing.T, ip net.IP, port int) netip.AddrPort {
	t.Helper()
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		t.Fatalf("no address: %v", ip)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port))
}

// RFC 5780 section 4.3: all remotes see the same address.
func TestMappingIsEndpointIndependent(t *testing.T) {
	t.Parallel()
	server := startSTUN(t)
	overEach(t, []string{overQUIC, overYamux, overProxy}, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		conn := associate(t, tu.Entry.Socks())
		var mapped netip.AddrPort
		for _, to := range []netip.AddrPort{server.addr(0, 0), server.addr(1, 0), server.addr(1, 1), server.addr(0, 1)} {
			id := sendBinding(t, conn, to, 0)
			answer := readBinding(t, conn)
			if answer.id != id {
				t.Fatalf("%v answered another request", to)
			}
			if !mapped.IsValid() {
				mapped = answer.mapped
				if answer.other != server.addr(1, 1) {
					t.Errorf("the other address is %v, want %v", answer.other, server.addr(1, 1))
				}
			}
			if answer.mapped != mapped {
				t.Errorf("%v sees %v, the first one saw %v", to, answer.mapped, mapped)
			}
		}
		second := associate(t, tu.Entry.Socks())
		sendBinding(t, second, server.addr(0, 0), 0)
		if answer := readBinding(t, second); answer.mapped == mapped {
			t.Errorf("two associations share %v", mapped)
		}
	})
}

// RFC 5780 section 4.4: which of the four sockets may answer, if a request went to one.
func TestFilteringFollowsTheFlag(t *testing.T) {
	t.Parallel()
	server := startSTUN(t)
	everyone := []uint32{0, changePort, changeIP, changeIP | changePort}
	for _, test := range []struct {
		name   string
		kind   string
		flags  []string
		passes []uint32 // by CHANGE-REQUEST
	}{
		{"by default over QUIC", overQUIC, nil, everyone},
		{"by default over yamux", overYamux, nil, everyone},
		{"endpoint-independent", overProxy, []string{"--filtering", "endpoint-independent"}, everyone},
		{"address", overProxy, []string{"--filtering", "address"}, []uint32{0, changePort}},
		{"address-and-port", overProxy, []string{"--filtering", "address-and-port"}, []uint32{0}},
		{"address-and-port over QUIC", overQUIC, []string{"--filtering", "address-and-port"}, []uint32{0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tu := startOver(t, test.kind, test.flags, nil)
			for _, change := range everyone {
				conn := associate(t, tu.Entry.Socks())
				id := sendBinding(t, conn, server.addr(0, 0), change)
				// A plain request follows, whose answer arrives later.
				plain := sendBinding(t, conn, server.addr(0, 0), 0)
				got := readBinding(t, conn)
				passed := got.id == id
				if want := slices.Contains(test.passes, change); passed != want {
					t.Errorf("a response with change %d passed: %v, want %v", change, passed, want)
				}
				if passed {
					got = readBinding(t, conn)
				}
				if got.id != plain {
					t.Error("the plain request was not answered")
				}
				conn.Close()
			}
			filtered, next := 0, 0
			for range everyone {
				var line logLine
				line, next = tu.Exit().WaitLogAfter(next, "a flow's end", message("flow ended"))
				filtered += line.Int("drops", "filtered")
			}
			if want := len(everyone) - len(test.passes); filtered != want {
				t.Errorf("%d responses are counted as filtered, want %d", filtered, want)
			}
		})
	}
}

// pion's client retransmits, as in WebRTC.
func TestSTUNClientLearnsItsAddress(t *testing.T) {
	t.Parallel()
	server := startSTUN(t)
	overEach(t, everyKind, func(t *testing.T, kind string) {
		tu := startOver(t, kind, nil, nil)
		conn := associate(t, tu.Entry.Socks())
		client, err := stun.NewClient(&dialled{conn, socks.AddrFrom(server.addr(0, 0))})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		var mapped stun.XORMappedAddress
		err = client.Do(stun.MustBuild(stun.TransactionID, stun.BindingRequest), func(e stun.Event) {
			if e.Error != nil {
				t.Error(e.Error)
			} else if err := mapped.GetFrom(e.Message); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if seen := addrPort(t, mapped.IP, mapped.Port); !seen.Addr().IsLoopback() || seen == conn.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("the server sees %v", seen)
		}
	})
}

// dialled is an association with one remote, like a connection of net.Dial.
type dialled struct {
	*socks.PacketConn
	to socks.Addr
}

func (d *dialled) Read(b []byte) (int, error) {
	n, _, err := d.ReadFromAddr(b)
	return n, err
}

func (d *dialled) Write(b []byte) (int, error) { return d.WriteToAddr(b, d.to) }

func (d *dialled) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(d.to.AddrPort()) }

var _ net.Conn = (*dialled)(nil)
