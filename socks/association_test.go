package socks

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wmproxy/internal/entrance"
	"wmproxy/internal/stats"
	"wmproxy/internal/testmain"
	"wmproxy/internal/udpio"
)

// A recorder is an Uplink that keeps what it was sent.
type recorder struct {
	mu    sync.Mutex
	got   []string
	calls int
	ends  atomic.Int32
}

func (r *recorder) Send(ms []udpio.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	for i := range ms {
		r.got = append(r.got, string(ms[i].Head)+string(ms[i].Body))
	}
	if r.ends.Load() != 0 {
		r.got = append(r.got, "sent after the end")
	}
}

func (r *recorder) End() { r.ends.Add(1) }

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// An echo is an Uplink that sends everything back.
type echo struct {
	a    *Association
	ends atomic.Int32
}

func (e *echo) Send(ms []udpio.Message) {
	bodies := make([][]byte, len(ms))
	for i := range ms {
		bodies[i] = ms[i].Body
	}
	e.a.Deliver(bodies)
}

func (e *echo) End() { e.ends.Add(1) }

// An echoServer is a Server whose associations echo, and all of them so far.
type echoServer struct {
	Server
	mu   sync.Mutex
	ups  []*echo
	logs logBuffer
}

func (e *echoServer) associate(a *Association) (entrance.Uplink, entrance.Result) {
	e.mu.Lock()
	defer e.mu.Unlock()
	up := &echo{a: a}
	e.ups = append(e.ups, up)
	return up, entrance.OK
}

// nth is the echo of the nth association.
func (e *echoServer) nth(n int) *echo {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ups[n]
}

// start serves e and returns its address.
func (e *echoServer) start(t testing.TB, listen string) string {
	e.Handler = handler{associate: e.associate}
	e.Log = e.logs.logger()
	return startServer(t, &e.Server, listen)
}

// anywhere is DST of an association as nearly all clients send it.
var anywhere = []byte{TypeIPv4, 0, 0, 0, 0, 0, 0}

// requestAssociation sends the request and returns the reply's code and BND.
func requestAssociation(t testing.TB, addr string, dst []byte) (*net.TCPConn, byte, netip.AddrPort) {
	t.Helper()
	c := dialServer(t, addr)
	send(t, c, append([]byte{5, 1, 0, 5, commandAssociate, 0}, dst...)...)
	expect(t, c, 5, 0)
	b := make([]byte, maxReplyLen)
	if _, err := c.Read(b[:4]); err != nil {
		t.Fatal(err)
	}
	rest := 6
	if b[3] == TypeIPv6 {
		rest = 18
	}
	if _, err := c.Read(b[4 : 4+rest]); err != nil {
		t.Fatal(err)
	}
	bound, n, err := ParseAddr(b[3 : 4+rest])
	if err != nil || n != rest+1 || b[0] != 5 || b[2] != 0 {
		t.Fatalf("reply % x", b[:4+rest])
	}
	return c, b[1], bound.AddrPort()
}

// openAssociation opens an association that must succeed.
func openAssociation(t testing.TB, addr string) (*net.TCPConn, netip.AddrPort) {
	t.Helper()
	c, code, bound := requestAssociation(t, addr, anywhere)
	if code != ReplySucceeded {
		t.Fatalf("reply %d", code)
	}
	return c, bound
}

// udpSocket opens an application's socket on ip.
func udpSocket(t testing.TB, ip string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)))
	if err != nil {
		t.Skipf("this host cannot bind %s: %v", ip, err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetReadBuffer(1 << 20)
	return c
}

// datagram is a SOCKS5 datagram: RSV 0, frag, and a body.
func datagram(frag byte, body []byte) []byte { return append([]byte{0, 0, frag}, body...) }

// expectStats waits for a's counters to be want: a datagram that is sent is
// counted right after.
func expectStats(t testing.TB, a *Association, want stats.Snapshot) {
	t.Helper()
	for end := time.Now().Add(patience); a.Traffic() != want; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("stats %+v, want %+v", a.Traffic(), want)
		}
	}
}

// sendTo sends one datagram.
func sendTo(t testing.TB, c *net.UDPConn, to netip.AddrPort, b []byte) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// receiveFrom waits for one datagram and checks where it came from.
func receiveFrom(t testing.TB, c *net.UDPConn, from netip.AddrPort) []byte {
	t.Helper()
	b := make([]byte, 65536)
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, got, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	if got = netip.AddrPortFrom(got.Addr().Unmap(), got.Port()); got != from {
		t.Errorf("the datagram comes from %v, want %v", got, from)
	}
	return b[:n]
}

// roundTrip sends d and waits for it to come back.
func roundTrip(t testing.TB, c *net.UDPConn, to netip.AddrPort, d []byte) {
	t.Helper()
	sendTo(t, c, to, d)
	want := append([]byte{0, 0, 0}, d[3:]...)
	if got := receiveFrom(t, c, to); !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came back, want %d", len(got), len(want))
	}
}

func TestTheHintOfAnAssociationIsOnlyAHint(t *testing.T) {
	e := &echoServer{}
	addr := e.start(t, "127.0.0.1:0")
	for what, dst := range map[string][]byte{
		"anywhere":                     anywhere,
		"the target":                   target4,
		"an address that is not there": {TypeIPv4, 127, 0, 0, 1, 0, 1},
		"the name 0":                   wireName("0", 4000),
		"a long name":                  wireName(longName, 4000),
		"an empty name":                {TypeName, 0, 0, 0},
		"::1":                          append(append([]byte{TypeIPv6}, netip.IPv6Loopback().AsSlice()...), 0, 0),
	} {
		c, code, bound := requestAssociation(t, addr, dst)
		if code != ReplySucceeded || bound.Addr().String() != "127.0.0.1" || bound.Port() == 0 {
			t.Fatalf("%s: reply %d, bound %v", what, code, bound)
		}
		roundTrip(t, udpSocket(t, "127.0.0.1"), bound, datagram(0, body(target4, what)))
		c.Close()
	}
}

func TestBNDIsTheAddressTheClientCameTo(t *testing.T) {
	for _, c := range []struct{ listen, dial, want string }{
		{"127.0.0.1:0", "127.0.0.1", "127.0.0.1"},
		{"127.0.0.2:0", "127.0.0.2", "127.0.0.2"},
		{"[::]:0", "127.0.0.3", "127.0.0.3"}, // IPv4-mapped within the server
		{"[::]:0", "::1", "::1"},
	} {
		e := &echoServer{}
		_, port, _ := net.SplitHostPort(e.start(t, c.listen))
		control, bound := openAssociation(t, net.JoinHostPort(c.dial, port))
		if bound.Addr().String() != c.want {
			t.Errorf("%s dialled as %s: bound %v", c.listen, c.dial, bound)
		}
		local := control.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
		roundTrip(t, udpSocket(t, local.String()), bound, datagram(0, body(target4, "x")))
	}
}

func TestAnAdvertisedAddressIsToldAndTheWildcardBound(t *testing.T) {
	e := &echoServer{Server: Server{UDPAdvertise: netip.MustParseAddr("::ffff:127.0.0.9")}}
	addr := e.start(t, "127.0.0.1:0")
	_, bound := openAssociation(t, addr)
	if bound.Addr().String() != "127.0.0.9" {
		t.Errorf("bound %v", bound)
	}
	if local := e.nth(0).a.sock.LocalAddr(); !local.Addr().IsUnspecified() || local.Port() != bound.Port() {
		t.Errorf("the socket is on %v", local)
	}
	c := udpSocket(t, "127.0.0.1")
	sendTo(t, c, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bound.Port()), datagram(0, body(target4, "x")))
	receiveFrom(t, c, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bound.Port()))
}

func TestDatagramsOfAllSizesPassBothWays(t *testing.T) {
	e := &echoServer{}
	addr := e.start(t, "127.0.0.1:0")
	_, bound := openAssociation(t, addr)
	c := udpSocket(t, "127.0.0.1")
	var payloads uint64
	sizes := []int{0, 1, 512, 1200, 1472, 9000, 65497 - 1, 65497}
	for _, size := range sizes {
		roundTrip(t, c, bound, datagram(0, body(target4, strings.Repeat("x", size))))
		payloads += uint64(size)
	}
	want := stats.Snapshot{Up: stats.Traffic{Datagrams: uint64(len(sizes)), Bytes: payloads}, Down: stats.Traffic{Datagrams: uint64(len(sizes)), Bytes: payloads}}
	expectStats(t, e.nth(0).a, want)
}

func TestAnIPv6AssociationCarriesTheLargestIPv4Datagram(t *testing.T) {
	e := &echoServer{}
	addr := e.start(t, "[::1]:0")
	_, bound := openAssociation(t, addr)
	c := udpSocket(t, "::1")
	roundTrip(t, c, bound, datagram(0, body(target4, strings.Repeat("x", 65507))))
}

func TestWhatExceedsADatagramIsDroppedAndCounted(t *testing.T) {
	e := &echoServer{}
	addr := e.start(t, "127.0.0.1:0")
	_, bound := openAssociation(t, addr)
	c := udpSocket(t, "127.0.0.1")
	a := e.nth(0).a
	a.Deliver([][]byte{body(target4, "before the port is known"), body(target4, "too")})
	roundTrip(t, c, bound, datagram(0, body(target4, "x")))
	six := append([]byte{TypeIPv6}, make([]byte, 18)...)
	a.Deliver([][]byte{
		body(target4, strings.Repeat("x", 65498)),
		body(six, strings.Repeat("x", 65486)),
		{TypeName, 0, 0, 0},
		body(six, strings.Repeat("y", 65485)),
		body(target4, "last"),
	})
	if got := receiveFrom(t, c, bound); len(got) != 65507 {
		t.Errorf("%d bytes, want 65507", len(got))
	}
	if got := receiveFrom(t, c, bound); string(got[10:]) != "last" {
		t.Errorf("%d bytes, want the last", len(got))
	}
	want := stats.Snapshot{Up: stats.Traffic{Datagrams: 1, Bytes: 1}, Down: stats.Traffic{Datagrams: 3, Bytes: 1 + 65485 + 4}}
	want.Drops[stats.NoPort], want.Drops[stats.TooLarge], want.Drops[stats.Malformed] = 2, 2, 1
	expectStats(t, a, want)
}

func TestABadDatagramIsCountedAndEndsNothing(t *testing.T) {
	e := &echoServer{}
	addr := e.start(t, "127.0.0.1:0")
	_, bound := openAssociation(t, addr)
	c := udpSocket(t, "127.0.0.1")
	bad := [][]byte{
		{},
		{0},
		{0, 0, 0},
		{0, 0, 0, 1},
		datagram(0, target4[:6]),
		datagram(0, []byte{9, 1, 2, 3, 4, 0, 80, 'x'}),
		datagram(0, []byte{TypeName, 0, 0, 80, 'x'}),
		datagram(0, []byte{TypeName, 200, 'x', 0, 80, 'x'}),
		bytes.Repeat([]byte{0xff}, 1000),
	}
	for _, b := range bad {
		sendTo(t, c, bound, b)
	}
	roundTrip(t, c, bound, append([]byte{0xff, 0xff, 0}, body(target4, "RSV is anything")...))
	for _, b := range bad {
		sendTo(t, c, bound, b)
	}
	roundTrip(t, c, bound, datagram(0, body(target4, "")))
	want := uint64(2 * len(bad))
	if got := e.nth(0).a.Traffic(); got.Drops[stats.Malformed] != want || got.Up.Datagrams != 2 {
		t.Errorf("stats %+v, want %d malformed", got, want)
	}
}

func TestOnlyTheClientsAddressMaySpeak(t *testing.T) {
	e := &echoServer{}
	addr := e.start(t, "127.0.0.1:0")
	_, bound := openAssociation(t, addr)
	first, second, stranger := udpSocket(t, "127.0.0.1"), udpSocket(t, "127.0.0.1"), udpSocket(t, "127.0.0.2")
	good := datagram(0, body(target4, "x"))
	sendTo(t, stranger, bound, good)
	sendTo(t, second, bound, []byte("invalid"))
	roundTrip(t, first, bound, good)
	sendTo(t, stranger, bound, good)
	roundTrip(t, second, bound, good)
	roundTrip(t, first, bound, good)
	want := stats.Snapshot{Up: stats.Traffic{Datagrams: 3, Bytes: 3}, Down: stats.Traffic{Datagrams: 3, Bytes: 3}}
	want.Drops[stats.Source], want.Drops[stats.Malformed] = 2, 1
	expectStats(t, e.nth(0).a, want)
	if n := strings.Count(e.logs.String(), "do not come from the client's address; --udp-from"); n != 1 {
		t.Errorf("%d warnings about the source, want 1:\n%s", n, e.logs.String())
	}
}

func TestUDPFromLetsOtherAddressesIn(t *testing.T) {
	e := &echoServer{Server: Server{UDPFrom: []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}}}
	addr := e.start(t, "127.0.0.1:0")
	_, bound := openAssociation(t, addr)
	inside, outside, own := udpSocket(t, "127.0.1.7"), udpSocket(t, "127.0.2.7"), udpSocket(t, "127.0.0.1")
	good := datagram(0, body(target4, "x"))
	sendTo(t, outside, bound, good)
	roundTrip(t, inside, bound, good)
	roundTrip(t, own, bound, good)
	roundTrip(t, inside, bound, good)
	if got := e.nth(0).a.Traffic(); got.Drops[stats.Source] != 1 || got.Up.Datagrams != 3 {
		t.Errorf("stats %+v", got)
	}
}

func TestFragmentsPassAsOneDatagram(t *testing.T) {
	e := &echoServer{}
	addr := e.start(t, "127.0.0.1:0")
	control, bound := openAssociation(t, addr)
	c := udpSocket(t, "127.0.0.1")
	for _, d := range [][]byte{
		datagram(1, body(target4, "ab")), datagram(2, body(target4, "cd")),
		datagram(0, body(target4, "by itself")),
		datagram(3|fragEnd, body(target4, "e")),
		datagram(9, body(target4, "lost")), datagram(fragEnd, body(target4, "lost")),
		datagram(1, body(target4, "waiting at the end")),
	} {
		sendTo(t, c, bound, d)
	}
	for _, want := range []string{"by itself", "abcde"} {
		if got := receiveFrom(t, c, bound); !bytes.Equal(got, datagram(0, body(target4, want))) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	up := e.nth(0)
	eventually(t, "the fragment waits", func() bool { return e.reassembling.Load() > 0 })
	control.Close()
	eventually(t, "the association's end", func() bool { return up.ends.Load() == 1 })
	if held := e.reassembling.Load(); held != 0 {
		t.Errorf("%d bytes are still held", held)
	}
	want := stats.Snapshot{Up: stats.Traffic{Datagrams: 2, Bytes: 14}, Down: stats.Traffic{Datagrams: 2, Bytes: 14}}
	want.Drops[stats.Fragment] = 3
	expectStats(t, up.a, want)
}

// loose is an association without sockets, for what happens above them.
func loose(up entrance.Uplink) *Association {
	return &Association{
		server: &Server{},
		up:     up,
		client: netip.MustParseAddrPort("127.0.0.1:1080"),
	}
}

var application = netip.MustParseAddrPort("127.0.0.1:5000")

// incoming is a batch from the application.
func incoming(ds ...[]byte) []udpio.Message {
	ms := make([]udpio.Message, len(ds))
	for i := range ds {
		ms[i] = udpio.Message{Body: ds[i], Addr: application}
	}
	return ms
}

func TestAFragmentThatNeverArrivesIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &recorder{}
		a := loose(up)
		a.relayUp(incoming(datagram(1, body(target4, "a"))))
		time.Sleep(reassemblyTime - time.Second)
		a.relayUp(incoming(datagram(1, body(target4, "b"))))
		time.Sleep(2 * time.Second) // past the first one's time
		synctest.Wait()
		a.relayUp(incoming(datagram(2|fragEnd, body(target4, "c"))))
		if got := up.all(); len(got) != 1 || got[0] != string(body(target4, "bc")) {
			t.Errorf("got %q", got)
		}
		a.relayUp(incoming(datagram(1, body(target4, "d")), datagram(2, body(target4, "e"))))
		if a.server.reassembling.Load() == 0 {
			t.Fatal("nothing is waiting")
		}
		time.Sleep(reassemblyTime)
		synctest.Wait()
		a.reassemblyMu.Lock()
		if a.reassembly != nil || a.server.reassembling.Load() != 0 {
			t.Error("the memory has not been freed")
		}
		a.reassemblyMu.Unlock()
		a.relayUp(incoming(datagram(3|fragEnd, body(target4, "f"))))
		a.relayUp(incoming(datagram(1, body(target4, "g"))))
		time.Sleep(reassemblyTime - time.Second)
		a.relayUp(incoming(datagram(1, body(target4, "begun again"))))
		time.Sleep(reassemblyTime)
		synctest.Wait()
		if held := a.server.reassembling.Load(); held != 0 {
			t.Errorf("%d bytes of a sequence that was begun again are held for good", held)
		}
		if got := a.Traffic(); got.Drops[stats.Fragment] != 6 || got.Up.Datagrams != 1 {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestAllReassemblyTogetherIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{}
		chunk := strings.Repeat("x", 60000)
		var all []*Association
		for range 400 {
			a := loose(&recorder{})
			a.server = s
			all = append(all, a)
			a.relayUp(incoming(datagram(1, body(target4, chunk))))
		}
		if held := s.reassembling.Load(); held > maxReassembling+2*maxReassembled || held < maxReassembling-2*maxReassembled {
			t.Errorf("%d bytes are held", held)
		}
		if got := all[399].Traffic(); got.Drops[stats.Fragment] != 1 {
			t.Errorf("the last one: %+v", got)
		}
		time.Sleep(reassemblyTime)
		synctest.Wait()
		if held := s.reassembling.Load(); held != 0 {
			t.Errorf("%d bytes are held for good", held)
		}
	})
}

func TestABatchStaysABatchInOrder(t *testing.T) {
	up := &recorder{}
	a := loose(up)
	ms := incoming(
		datagram(0, body(target4, "1")),
		[]byte("bad"),
		datagram(1, body(target4, "2")),
		datagram(0, body(wireName("example.org", 53), "3")),
		datagram(2|fragEnd, body(target4, "4")),
		datagram(0, body(target4, "stranger")),
		datagram(0, body(target4, "5")),
	)
	ms[5].Addr = netip.MustParseAddrPort("127.0.0.2:5001")
	a.relayUp(ms)
	want := []string{
		string(body(target4, "1")), string(body(wireName("example.org", 53), "3")),
		string(body(target4, "24")), string(body(target4, "5")),
	}
	if got := up.all(); !slices.Equal(got, want) || up.calls != 1 {
		t.Errorf("%d calls, got %q, want %q", up.calls, got, want)
	}
}

func TestALinkLocalClientIsKnownWithAndWithoutItsZone(t *testing.T) {
	for _, source := range []string{"[fe80::1%eth0]:5000", "[fe80::1]:5000"} {
		up := &recorder{}
		a := loose(up)
		a.client = netip.MustParseAddrPort("[fe80::1%eth0]:1080")
		ms := incoming(datagram(0, body(target4, "x")), datagram(0, body(target4, "y")))
		ms[0].Addr = netip.MustParseAddrPort(source)
		ms[1].Addr = ms[0].Addr
		a.relayUp(ms)
		if len(up.all()) != 2 {
			t.Fatalf("%s: %d passed", source, len(up.all()))
		}
		if to := a.sources.answerTo(target4).to.String(); to != "[fe80::1%eth0]:5000" {
			t.Errorf("%s: replies go to %s", source, to)
		}
	}
}

func TestPortZeroIsNoSource(t *testing.T) {
	up := &recorder{}
	a := loose(up)
	ms := incoming(datagram(0, body(target4, "x")))
	ms[0].Addr = netip.MustParseAddrPort("127.0.0.1:0")
	a.relayUp(ms)
	a.relayUp(incoming(datagram(0, body(target4, "y"))))
	if got := up.all(); len(got) != 1 || got[0] != string(body(target4, "y")) || a.Traffic().Drops[stats.Source] != 1 {
		t.Errorf("got %q, stats %+v", got, a.Traffic())
	}
}

func TestTheFastPathAllocatesNothing(t *testing.T) {
	up := uplinkFunc(func([]udpio.Message) {})
	a := loose(up)
	d := datagram(0, body(target4, strings.Repeat("x", 1200)))
	ms := make([]udpio.Message, 64)
	fill := func() {
		for i := range ms {
			ms[i] = udpio.Message{Body: d, Addr: application}
		}
	}
	fill()
	a.relayUp(ms)
	if n := testing.AllocsPerRun(100, func() { fill(); a.relayUp(ms) }); n != 0 {
		t.Errorf("up: %v allocations for 64 datagrams", n)
	}
	if testmain.Race {
		return // sync.Pool drops at random under the race detector
	}
	sock, err := udpio.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udpio.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	a.sock = sock
	own := netip.AddrPortFrom(application.Addr(), sock.LocalAddr().Port())
	a.join(&udpio.Message{Addr: own}, 0, false)
	bodies := make([][]byte, 100)
	for i := range bodies {
		bodies[i] = d[3:]
	}
	a.Deliver(bodies)
	if n := testing.AllocsPerRun(100, func() { a.Deliver(bodies) }); n != 0 {
		t.Errorf("down: %v allocations for 100 datagrams", n)
	}
}

// uplinkFunc is an Uplink of which only Send matters.
type uplinkFunc func(ms []udpio.Message)

func (f uplinkFunc) Send(ms []udpio.Message) { f(ms) }
func (f uplinkFunc) End()                    {}

func TestAnAssociationEndsWithItsControlConnection(t *testing.T) {
	for what, end := range map[string]func(c *net.TCPConn, a *Association){
		"close":      func(c *net.TCPConn, _ *Association) { c.Close() },
		"half-close": func(c *net.TCPConn, _ *Association) { _ = c.CloseWrite() },
		"reset":      func(c *net.TCPConn, _ *Association) { _ = c.SetLinger(0); c.Close() },
		"by us":      func(_ *net.TCPConn, a *Association) { a.Close() },
		"flood": func(c *net.TCPConn, _ *Association) {
			_, _ = c.Write(make([]byte, maxControlJunk+1))
		},
	} {
		e := &echoServer{}
		addr := e.start(t, "127.0.0.1:0")
		control, bound := openAssociation(t, addr)
		send(t, control, []byte("what is not asked for is thrown away")...)
		c := udpSocket(t, "127.0.0.1")
		roundTrip(t, c, bound, datagram(0, body(target4, "x")))
		up := e.nth(0)
		end(control, up.a)
		eventually(t, what+": the end", func() bool { return strings.Contains(e.logs.String(), "association ended") })
		if n := up.ends.Load(); n != 1 {
			t.Errorf("%s: End was called %d times", what, n)
		}
		again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bound))
		if err != nil {
			t.Errorf("%s: the port is still in use: %v", what, err)
			continue
		}
		again.Close()
		up.a.Deliver([][]byte{body(target4, "late")})
		want := stats.Snapshot{Up: stats.Traffic{Datagrams: 1, Bytes: 1}, Down: stats.Traffic{Datagrams: 1, Bytes: 1}}
		want.Drops[stats.NoPort] = 1
		expectStats(t, up.a, want)
	}
}

func TestTheEndOfAnAssociationIsOneLineInTheLog(t *testing.T) {
	e := &echoServer{Server: Server{Users: oneUser("user", "p")}}
	addr := e.start(t, "127.0.0.1:0")
	control := dialServer(t, addr)
	send(t, control, append([]byte{5, 1, 2, 1, 4, 'u', 's', 'e', 'r', 1, 'p', 5, 3, 0}, anywhere...)...)
	expect(t, control, 5, 2, 1, 0)
	reply := make([]byte, 10)
	if _, err := control.Read(reply); err != nil {
		t.Fatal(err)
	}
	bound, _, _ := ParseAddr(reply[3:])
	c := udpSocket(t, "127.0.0.1")
	roundTrip(t, c, bound.AddrPort(), datagram(0, body(target4, "12345")))
	e.nth(0).a.Deliver([][]byte{{}})
	control.Close()
	eventually(t, "a line", func() bool { return strings.Contains(e.logs.String(), "\n") })
	line := e.logs.String()
	for _, want := range []string{
		"level=INFO", `msg="association ended"`, "user=user", "client=" + control.LocalAddr().String(), "duration=",
		"up_datagrams=1 up_bytes=5 down_datagrams=1 down_bytes=5 drops.malformed=1\n",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
	if strings.Count(line, "\n") != 1 {
		t.Errorf("more than a line: %s", line)
	}
}

func TestALimitRefusesAnAssociationAndLeavesNothing(t *testing.T) {
	local := make(chan netip.AddrPort, 1)
	s := &Server{Handler: handler{associate: func(a *Association) (entrance.Uplink, entrance.Result) {
		local <- a.sock.LocalAddr()
		return nil, entrance.Denied
	}}}
	addr := startServer(t, s, "127.0.0.1:0")
	c, code, _ := requestAssociation(t, addr, anywhere)
	if code != ReplyNotAllowed {
		t.Errorf("reply %d", code)
	}
	if rest := expectEnd(t, c); len(rest) != 0 {
		t.Errorf("then % x", rest)
	}
	again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(<-local))
	if err != nil {
		t.Fatalf("the port is still in use: %v", err)
	}
	again.Close()
}

func TestAClientElsewhereThatIsToldLoopbackIsAWarning(t *testing.T) {
	for remote, warned := range map[string]bool{"192.0.2.1:4000": true, "127.0.0.1:4000": false} {
		logs := &logBuffer{}
		serve(&Server{
			Log: logs.logger(),
			Handler: handler{associate: func(*Association) (entrance.Uplink, entrance.Result) {
				return uplinkFunc(nil), entrance.OK
			}},
		}, &script{remote: remote, pieces: [][]byte{append([]byte{5, 1, 0, 5, commandAssociate, 0}, target4...)}})
		if got := strings.Contains(logs.String(), "level=WARN"); got != warned {
			t.Errorf("%s: warned %v, want %v", remote, got, warned)
		}
	}
}

// freePorts finds n free UDP ports in a row on 127.0.0.1.
func freePorts(t *testing.T, n int) PortRange {
	t.Helper()
next:
	for first := 20000 + int(time.Now().UnixNano()%20000); first < 60000; first += n {
		for i := range n {
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: first + i})
			if err != nil {
				continue next
			}
			c.Close()
		}
		return PortRange{uint16(first), uint16(first + n - 1)}
	}
	t.Skip("no free ports")
	return PortRange{}
}

func TestAPortRangeIsOneEachAndThenReplyOne(t *testing.T) {
	e := &echoServer{Server: Server{UDPPorts: freePorts(t, 3)}}
	addr := e.start(t, "127.0.0.1:0")
	var controls []*net.TCPConn
	seen := make(map[uint16]bool)
	for range 3 {
		c, bound := openAssociation(t, addr)
		controls = append(controls, c)
		if seen[bound.Port()] || bound.Port() < e.UDPPorts.First || bound.Port() > e.UDPPorts.Last {
			t.Errorf("port %d of %v, after %v", bound.Port(), e.UDPPorts, seen)
		}
		seen[bound.Port()] = true
	}
	if _, code, _ := requestAssociation(t, addr, anywhere); code != ReplyGeneralFailure {
		t.Errorf("reply %d", code)
	}
	if !strings.Contains(e.logs.String(), "every UDP port of the range is in use ("+e.UDPPorts.String()+")") {
		t.Errorf("log: %s", e.logs.String())
	}
	controls[1].Close()
	eventually(t, "a port is free again", func() bool { return e.nth(1).ends.Load() == 1 })
	c, bound := openAssociation(t, addr)
	roundTrip(t, udpSocket(t, "127.0.0.1"), bound, datagram(0, body(target4, "x")))
	c.Close()
}

func TestASharedPortKnowsItsAssociationsBySource(t *testing.T) {
	ports := freePorts(t, 1)
	e := &echoServer{Server: Server{UDPPorts: ports}}
	addr := e.start(t, "127.0.0.1:0")
	good := datagram(0, body(target4, "x"))
	var controls [3]*net.TCPConn
	var apps [3]*net.UDPConn
	var bound netip.AddrPort
	for i := range controls {
		controls[i], bound = openAssociation(t, addr)
		apps[i] = udpSocket(t, "127.0.0.1")
		if bound.Port() != ports.First {
			t.Fatalf("bound %v", bound)
		}
	}
	for i := range apps { // an unpinned source takes the oldest that is free
		sendTo(t, apps[i], bound, []byte("invalid"))
		roundTrip(t, apps[i], bound, good)
		if n := e.nth(i).a.Traffic().Up.Datagrams; n != 1 {
			t.Fatalf("association %d has %d datagrams", i, n)
		}
	}
	for i := range apps {
		roundTrip(t, apps[2-i], bound, good)
	}
	// Nobody is free: a fourth source and a stranger's belong to no one.
	fourth, stranger := udpSocket(t, "127.0.0.1"), udpSocket(t, "127.0.0.2")
	sendTo(t, fourth, bound, good)
	sendTo(t, stranger, bound, good)
	eventually(t, "5 are unmatched", func() bool { return e.unmatched.Load() == 5 })

	// The end of one frees its source and leaves the others alone.
	controls[1].Close()
	eventually(t, "the end of the second", func() bool { return e.nth(1).ends.Load() == 1 })
	sendTo(t, apps[1], bound, good)
	eventually(t, "its datagram is unmatched", func() bool { return e.unmatched.Load() == 6 })
	e.nth(1).a.Deliver([][]byte{body(target4, "late")})
	roundTrip(t, apps[0], bound, good)
	if got := e.nth(1).a.Traffic(); got.Up.Datagrams != 2 || got.Down.Datagrams != 2 {
		t.Errorf("the ended association: %+v", got)
	}
	// A new association takes over a source that is known.
	controls[1], _ = openAssociation(t, addr)
	roundTrip(t, apps[1], bound, good)

	for _, c := range controls {
		c.Close()
	}
	eventually(t, "the port is free", func() bool {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bound))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	e.ports.mu.Lock()
	defer e.ports.mu.Unlock()
	if len(e.ports.shared) != 0 {
		t.Errorf("%d shared ports are left", len(e.ports.shared))
	}
}

func TestASharedPortTakesStrangersThatUDPFromAllows(t *testing.T) {
	e := &echoServer{Server: Server{UDPPorts: freePorts(t, 1), UDPFrom: []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}}}
	addr := e.start(t, "127.0.0.1:0")
	_, bound := openAssociation(t, addr)
	_, _ = openAssociation(t, addr)
	good := datagram(0, body(target4, "x"))
	roundTrip(t, udpSocket(t, "127.0.1.1"), bound, good)
	roundTrip(t, udpSocket(t, "127.0.0.1"), bound, good)
	for i := range 2 {
		if n := e.nth(i).a.Traffic().Up.Datagrams; n != 1 {
			t.Errorf("association %d has %d datagrams", i, n)
		}
	}
}

func TestASharedPortIsOnePerLocalAddress(t *testing.T) {
	e := &echoServer{Server: Server{UDPPorts: freePorts(t, 1)}}
	_, port, _ := net.SplitHostPort(e.start(t, "0.0.0.0:0"))
	for _, ip := range []string{"127.0.0.1", "127.0.0.2"} {
		_, bound := openAssociation(t, net.JoinHostPort(ip, port))
		if bound != netip.AddrPortFrom(netip.MustParseAddr(ip), e.UDPPorts.First) {
			t.Errorf("%s: bound %v", ip, bound)
		}
		roundTrip(t, udpSocket(t, "127.0.0.1"), bound, datagram(0, body(target4, "x")))
	}
}

func TestPortRanges(t *testing.T) {
	for want, r := range map[string]PortRange{"any": {}, "7": {7, 7}, "9": {First: 9}, "20000-20999": {20000, 20999}} {
		if r.String() != want {
			t.Errorf("got %s, want %s", r, want)
		}
	}
	if !(PortRange{First: 7}).single() || (PortRange{}).single() || (PortRange{7, 8}).single() {
		t.Error("single is wrong")
	}
}

// FuzzUDPHeader gives an association a batch of one datagram, good or bad.
func FuzzUDPHeader(f *testing.F) {
	f.Add(datagram(0, body(target4, "x")))
	f.Add(datagram(0, body(wireName("example.org", 53), "")))
	f.Add(datagram(1|fragEnd, body(target4, "x")))
	f.Add([]byte{0xff, 0xff, 0, 4, 1})
	f.Add([]byte{0, 0, 0, 3, 0, 0, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, d []byte) {
		up := &recorder{}
		a := loose(up)
		a.relayUp(incoming(bytes.Clone(d)))
		a.dropFragments()
		got, counted := up.all(), a.Traffic()
		var dropped uint64
		for _, n := range counted.Drops {
			dropped += n
		}
		if uint64(len(got))+dropped != 1 || counted.Up.Datagrams != uint64(len(got)) {
			t.Fatalf("%d passed, %+v", len(got), counted)
		}
		if len(got) == 1 {
			n, err := AddrLen([]byte(got[0]))
			if err != nil || got[0] != string(d[3:]) || counted.Up.Bytes != uint64(len(d)-3-n) {
				t.Fatalf("passed %q of %q: %v, %+v", got[0], d, err, counted)
			}
		}
	})
}

// BenchmarkIdleAssociation reports what one held association costs the server.
func BenchmarkIdleAssociation(b *testing.B) {
	const held = 2000
	for b.Loop() {
		e := &echoServer{}
		e.Handler = handler{associate: e.associate}
		e.Log = slog.New(slog.DiscardHandler)
		addr := startServer(b, &e.Server, "127.0.0.1:0")
		warm := func() (c *net.TCPConn) { c, _ = openAssociation(b, addr); return c }
		warm().Close()
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		conns := make([]*net.TCPConn, held)
		for i := range conns {
			conns[i] = warm()
		}
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/held, "heap-B/assoc")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/held, "stack-B/assoc")
		for _, c := range conns {
			c.Close()
		}
	}
}

// BenchmarkRelayUp is the server's own work for a datagram from the client.
func BenchmarkRelayUp(b *testing.B) {
	a := loose(uplinkFunc(func([]udpio.Message) {}))
	d := datagram(0, body(target4, strings.Repeat("x", 1200)))
	ms := make([]udpio.Message, 64)
	for i := 0; b.Loop(); i++ {
		ms[i%64] = udpio.Message{Body: d, Addr: application}
		if i%64 == 63 {
			a.relayUp(ms)
		}
	}
}
