package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/config"
	"wmproxy/internal/stats"
	"wmproxy/internal/testmain"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// wait bounds what should happen at once.
const wait = 10 * time.Second

// permissive is options for tests that are not about them.
var permissive = config.Exit{Allow: loopback, UDPIdle: 5 * time.Minute}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// fakeLink is the way back to a client. It keeps the datagrams.
type fakeLink struct {
	id        uint64
	sent      chan string // address, space, payload
	ended     chan tunnel.EndCode
	forgotten chan struct{}
}

func newFakeLink(id uint64) *fakeLink {
	return &fakeLink{id, make(chan string, 1000), make(chan tunnel.EndCode, 1), make(chan struct{}, 1)}
}

func (l *fakeLink) ID() uint64              { return l.id }
func (l *fakeLink) End(code tunnel.EndCode) { l.ended <- code }
func (l *fakeLink) Forget()                 { l.forgotten <- struct{}{} }
func (l *fakeLink) Dropped() stats.Dropped  { return stats.Dropped{} }

func (l *fakeLink) Send(ms []udpio.Message) {
	for _, m := range ms {
		whole := slices.Concat(m.Head, m.Body)
		a, n, err := socks.ParseAddr(whole)
		if err != nil {
			l.sent <- err.Error()
			continue
		}
		l.sent <- a.String() + " " + string(whole[n:])
	}
}

// next returns the next datagram for the client.
func (l *fakeLink) next(t *testing.T) string {
	t.Helper()
	return receive(t, l.sent)
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(wait):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	end := time.After(wait)
	for !ok() {
		select {
		case <-look.C:
		case <-end:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// remote is a UDP host that echoes each datagram behind its source: "from payload".
type remote struct {
	*net.UDPConn
	at netip.AddrPort
}

func newRemote(t *testing.T, ip string) *remote {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)))
	if err != nil {
		t.Skipf("this host has no %s: %v", ip, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(wait))
	return &remote{c, c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// get reads a datagram and returns its payload and source.
func (r *remote) get(t *testing.T) (string, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 65536)
	n, from, err := r.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n]), from
}

func (r *remote) put(t *testing.T, payload string, to netip.AddrPort) {
	t.Helper()
	if _, err := r.WriteToUDPAddrPort([]byte(payload), to); err != nil {
		t.Fatal(err)
	}
}

func newExits(t *testing.T, cfg Config) *Exits {
	t.Helper()
	if cfg.Allow == nil {
		cfg.Allow = loopback
	}
	if cfg.UDPIdle == 0 {
		cfg.UDPIdle = permissive.UDPIdle
	}
	e := New(cfg)
	t.Cleanup(e.Close)
	return e
}

func openFlow(t *testing.T, e *Exits) (*flow, *fakeLink) {
	t.Helper()
	l := newFakeLink(7)
	f, code := exitOf(e, "ann").openFlow(l)
	if f == nil {
		t.Fatalf("refused: %v", code)
	}
	return f, l
}

func to(ap netip.AddrPort, payload string) []byte {
	return append(socks.AppendAddrPort(nil, ap), payload...)
}

func toName(name string, port uint16, payload string) []byte {
	b := append([]byte{socks.TypeName, byte(len(name))}, name...)
	return append(b, append([]byte{byte(port >> 8), byte(port)}, payload...)...)
}

// send calls Receive with bodies that are valid only until it returns.
func send(f *flow, bodies ...[]byte) {
	f.Receive(bodies)
	for _, b := range bodies {
		clear(b)
	}
}

// exitOf returns the exit of the user of this name.
func exitOf(e *Exits, name string) *UserExit {
	e.mu.Lock()
	for u, exit := range e.users {
		if u.Name == name {
			e.mu.Unlock()
			return exit
		}
	}
	e.mu.Unlock()
	return e.For(user.New(name, "", new(stats.Total)))
}

func openFlows(e *Exits) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.flows)
}

func drops(f *flow, d stats.Reason) uint64 { return f.counts.Snapshot().Drops[d] }

func TestReplyHasItsTrueSource(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			r := newRemote(t, ip)
			f, l := openFlow(t, newExits(t, Config{}))
			for _, size := range []int{0, 1, 1200, 9000, 65497} {
				p := strings.Repeat("x", size)
				send(f, to(r.at, p))
				got, from := r.get(t)
				if got != p {
					t.Fatalf("%d bytes of %d arrived", len(got), size)
				}
				r.put(t, p, from)
				if got := l.next(t); got != r.at.String()+" "+p {
					t.Fatalf("reply of %d bytes came back as %.40q", size, got)
				}
			}
			s := f.counts.Snapshot()
			passed := stats.Traffic{Datagrams: 5, Bytes: 75698}
			if diff := cmp.Diff(stats.Snapshot{Up: passed, Down: passed}, s); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
		})
	}
}

// RFC 4787 section 4.1 and 5; the method is that of RFC 5780 section 4.
func TestMappingAndFilteringAreAsConfigured(t *testing.T) {
	tests := []struct {
		filtering                         config.Filtering
		samePort, otherPort, otherAddress bool
	}{
		{config.EndpointIndependent, true, true, true},
		{config.AddressDependent, true, true, false},
		{config.AddressAndPort, true, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.filtering.String(), func(t *testing.T) {
			one, onePort := newRemote(t, "127.0.0.1"), newRemote(t, "127.0.0.1")
			two := newRemote(t, "127.0.0.2")
			f, l := openFlow(t, newExits(t, Config{Exit: config.Exit{Filtering: tt.filtering}}))
			send(f, to(one.at, "a"))
			_, from := one.get(t)
			filtered := uint64(0)
			for _, try := range []struct {
				r    *remote
				pass bool
			}{{one, tt.samePort}, {onePort, tt.otherPort}, {two, tt.otherAddress}} {
				try.r.put(t, "b", from)
				if !try.pass {
					filtered++
					eventually(t, "the drop is counted", func() bool { return drops(f, stats.Filtered) == filtered })
				} else if got := l.next(t); got != try.r.at.String()+" b" {
					t.Errorf("got %q", got)
				}
			}
			send(f, to(two.at, "c"))
			if _, again := two.get(t); again.Port() != from.Port() {
				t.Errorf("the second remote sees port %d, the first %d", again.Port(), from.Port())
			}
			two.put(t, "d", from)
			if got := l.next(t); got != two.at.String()+" d" {
				t.Errorf("after sending there: %q", got)
			}
		})
	}
}

func TestUnsendableDatagramsAreCounted(t *testing.T) {
	r := newRemote(t, "127.0.0.1")
	closed := newRemote(t, "127.0.0.1")
	e := newExits(t, Config{Closed: func(ap netip.AddrPort) bool { return ap.Port() == closed.at.Port() }})
	f, _ := openFlow(t, e)
	send(f,
		nil,
		[]byte{9, 9, 9},
		[]byte{socks.TypeName, 0, 0, 0},
		to(netip.MustParseAddrPort("127.0.0.1:0"), "port"),
		to(netip.MustParseAddrPort("10.0.0.1:53"), "policy"),
		to(netip.MustParseAddrPort("[::ffff:192.168.0.1]:53"), "policy"),
		to(closed.at, "ours"),
		toName("10.0.0.1", 53, "policy"),
		toName("fe80::1%lo", 53, "zone"),
		toName("[fe80::1%lo]", 53, "zone"),
		toName("[::ffff:10.0.0.1]", 53, "policy"),
		toName("10.0.0.1.", 53, "policy"),
		toName("a\x00b", 53, "name"),
		to(r.at, strings.Repeat("x", 65508)),
		to(r.at, "good"),
	)
	if got, _ := r.get(t); got != "good" {
		t.Errorf("got %q", got)
	}
	want := stats.Dropped{stats.Malformed: 6, stats.PortZero: 1, stats.Policy: 6, stats.Send: 1}
	if got := f.counts.Snapshot().Drops; got != want {
		t.Errorf("drops %v, want %v", got, want)
	}
}

// A closed port answers with an ICMP error.
func TestICMPErrorEndsNothing(t *testing.T) {
	gone := newRemote(t, "127.0.0.1")
	gone.Close()
	r := newRemote(t, "127.0.0.1")
	f, l := openFlow(t, newExits(t, Config{}))
	for range 20 {
		send(f, to(gone.at, "a"), to(r.at, "b"))
		_, from := r.get(t)
		r.put(t, "c", from)
		if got := l.next(t); got != r.at.String()+" c" {
			t.Fatalf("got %q", got)
		}
	}
}

func TestRepliesFromRefusedSourcesAreDropped(t *testing.T) {
	r, stranger := newRemote(t, "127.0.0.1"), newRemote(t, "127.0.0.2")
	f, l := openFlow(t, newExits(t, Config{Exit: config.Exit{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}}))
	send(f, to(r.at, "a"))
	_, from := r.get(t)
	stranger.put(t, "b", from)
	eventually(t, "the drop is counted", func() bool { return drops(f, stats.Source) == 1 })
	r.put(t, "c", from)
	if got := l.next(t); got != r.at.String()+" c" {
		t.Errorf("got %q", got)
	}
}

func TestManyRepliesInOneBatchKeepTheirSources(t *testing.T) {
	f, l := openFlow(t, newExits(t, Config{}))
	var ms []udpio.Message
	var want []string
	for i := range 3*batchSize + 1 {
		from := netip.MustParseAddrPort("8.8.8.8:53")
		if i%3 == 0 {
			from = netip.MustParseAddrPort(fmt.Sprintf("[2606:4700::%x]:%d", i+1, i+1))
		}
		ms = append(ms, udpio.Message{Body: fmt.Append(nil, i), Addr: from})
		want = append(want, fmt.Sprintf("%s %d", from, i))
	}
	f.replies(ms)
	for _, w := range want {
		if got := l.next(t); got != w {
			t.Fatalf("got %q, want %q", got, w)
		}
	}
}

// fakeDNS answers from a table once it is let.
type fakeDNS struct {
	mu      sync.Mutex
	table   map[string][]netip.Addr
	asked   map[string]int
	release chan struct{} // closed: answers at once
}

func newFakeDNS(names ...string) *fakeDNS {
	d := &fakeDNS{table: map[string][]netip.Addr{}, asked: map[string]int{}, release: make(chan struct{})}
	for i := 0; i < len(names); i += 2 {
		d.table[names[i]] = append(d.table[names[i]], netip.MustParseAddr(names[i+1]))
	}
	return d
}

func (d *fakeDNS) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	select {
	case <-d.release:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked[name]++
	if as := d.table[name]; as != nil {
		return as, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func TestDatagramsToANameWaitForItInOrder(t *testing.T) {
	dns := newFakeDNS("slow.example", "127.0.0.1")
	r := newRemote(t, "127.0.0.1")
	f, _ := openFlow(t, newExits(t, Config{Resolve: dns.lookup}))
	for i := range 10 {
		send(f, toName("slow.example", r.at.Port(), fmt.Sprint(i)))
	}
	send(f, to(r.at, "an address does not wait"))
	if got, _ := r.get(t); got != "an address does not wait" {
		t.Fatalf("got %q", got)
	}
	close(dns.release)
	for i := range 10 {
		if got, _ := r.get(t); got != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", got, i)
		}
	}
	send(f, toName("slow.example", r.at.Port(), "now known"))
	if got, _ := r.get(t); got != "now known" {
		t.Fatalf("got %q", got)
	}
	if held := f.user.exits.held.Load(); held != 0 || f.names.heldCount != 0 || f.names.heldBytes != 0 {
		t.Errorf("still held: %d, %+v", held, f.names)
	}
}

func TestNameKeepsItsAddress(t *testing.T) {
	dns := newFakeDNS("moving.example", "127.0.0.1")
	close(dns.release)
	one := newRemote(t, "127.0.0.1")
	e := newExits(t, Config{Resolve: dns.lookup})
	f, _ := openFlow(t, e)
	for i := range 3 {
		send(f, toName("moving.example", one.at.Port(), fmt.Sprint(i)))
		if got, _ := one.get(t); got != fmt.Sprint(i) {
			t.Fatalf("got %q", got)
		}
		dns.mu.Lock()
		dns.table["moving.example"] = addrs("127.0.0.2")
		dns.mu.Unlock()
		e.resolver.sweep(time.Now().Add(time.Hour))
	}
	if dns.asked["moving.example"] != 1 {
		t.Errorf("asked %d times", dns.asked["moving.example"])
	}
}

func TestPolicyChecksAddressesOfNames(t *testing.T) {
	dns := newFakeDNS("private.example", "10.0.0.1", "mixed.example", "10.0.0.1", "mixed.example", "127.0.0.1")
	close(dns.release)
	r := newRemote(t, "127.0.0.1")
	e := New(Config{Exit: permissive, Resolve: dns.lookup})
	defer e.Close()
	e.resolver.routable = everyRoute
	f, _ := openFlow(t, e)
	send(f, toName("private.example", r.at.Port(), "a"), toName("private.example", r.at.Port(), "a"))
	eventually(t, "the drops are counted", func() bool { return drops(f, stats.Policy) == 2 })
	send(f, toName("private.example", r.at.Port(), "a"), toName("mixed.example", r.at.Port(), "b"))
	if got, _ := r.get(t); got != "b" {
		t.Errorf("got %q", got)
	}
	if n := drops(f, stats.Policy); n != 3 {
		t.Errorf("%d drops by policy, want 3", n)
	}
}

func TestUnresolvedNameDropsHeldDatagrams(t *testing.T) {
	dns := newFakeDNS()
	f, _ := openFlow(t, newExits(t, Config{Resolve: dns.lookup}))
	send(f, toName("none.example", 53, "a"), toName("none.example", 53, "b"))
	close(dns.release)
	eventually(t, "the drops are counted", func() bool { return drops(f, stats.Unresolved) == 2 })
	send(f, toName("none.example", 53, "c"))
	if n := drops(f, stats.Unresolved); n != 3 {
		t.Errorf("%d drops, want 3", n)
	}
	if dns.asked["none.example"] != 1 {
		t.Errorf("asked %d times for a name known not to be", dns.asked["none.example"])
	}
	if f.user.exits.held.Load() != 0 || waitingLookups(f.user) != 0 {
		t.Error("something is still held")
	}
}

func TestHeldDatagramsAreBounded(t *testing.T) {
	dns := newFakeDNS("slow.example", "127.0.0.1", "other.example", "127.0.0.1")
	r := newRemote(t, "127.0.0.1")
	f, _ := openFlow(t, newExits(t, Config{Resolve: dns.lookup}))
	for i := range maxHeldCount + 5 {
		send(f, toName("slow.example", r.at.Port(), fmt.Sprint(i)))
	}
	send(f, toName("other.example", r.at.Port(), "no room, none of its own to drop"))
	if n := drops(f, stats.Waiting); n != 6 {
		t.Errorf("%d drops, want 6", n)
	}
	for i := range 3 {
		send(f, toName("slow.example", r.at.Port(), strings.Repeat(fmt.Sprint(i), 65000)))
	}
	if f.names.heldBytes > maxHeldBytes || f.user.exits.held.Load() != int64(f.names.heldBytes) {
		t.Errorf("%d bytes held, %d in all", f.names.heldBytes, f.user.exits.held.Load())
	}
	close(dns.release)
	for _, want := range []string{"1", "2"} { // the oldest went
		got, _ := r.get(t)
		for len(got) < 65000 {
			got, _ = r.get(t)
		}
		if got[:1] != want {
			t.Errorf("got %s…, want %s…", got[:1], want)
		}
	}
	for i := range 3 * maxFlowNames {
		send(f, toName(fmt.Sprintf("127.0.0.%d", i+1), r.at.Port(), "x"))
	}
	if n := len(f.names.byName); n != maxFlowNames {
		t.Errorf("%d names kept, want %d", n, maxFlowNames)
	}
}

// waitingLookups returns how many of the user's questions the resolver has.
func waitingLookups(u *UserExit) int {
	r := u.exits.resolver
	r.mu.Lock()
	defer r.mu.Unlock()
	return u.lookups.waiting
}

func TestOldestLookupOfUserMakesRoom(t *testing.T) {
	dns := newFakeDNS()
	e := newExits(t, Config{Resolve: dns.lookup})
	for i := range maxUserLookups/maxFlowNames + 1 {
		f, _ := openFlow(t, e)
		for k := range maxFlowNames {
			send(f, toName(fmt.Sprintf("n%d-%d.example", i, k), 53, "x"))
		}
	}
	eventually(t, "the oldest are dropped", func() bool { return exitOf(e, "ann").Total.Dropped()[stats.Unresolved] == maxFlowNames })
	if n := waitingLookups(exitOf(e, "ann")); n != maxUserLookups {
		t.Errorf("%d questions wait, want %d", n, maxUserLookups)
	}
	close(dns.release)
	eventually(t, "the user's share is given back", func() bool { return waitingLookups(exitOf(e, "ann")) == 0 })
}

func TestIdleFlowIsForgotten(t *testing.T) {
	r := newRemote(t, "127.0.0.1")
	e := newExits(t, Config{Exit: config.Exit{UDPIdle: time.Hour}}) // the test sweeps by hand
	e.idleTicks, e.heardTicks = 10, 30
	f, l := openFlow(t, e)
	send(f, to(r.at, "a"))
	_, from := r.get(t)
	for range 10 {
		e.sweep()
	}
	send(f, to(r.at, "outbound refreshes"))
	r.get(t)
	for range 30 {
		e.sweep()
		r.put(t, "inbound does for as long as heardTicks", from)
		l.next(t)
	}
	if f.ended.Load() {
		t.Fatal("ended too early")
	}
	e.sweep()
	receive(t, l.forgotten)
	eventually(t, "the flow is gone", func() bool { return openFlows(e) == 0 })
	select {
	case code := <-l.ended:
		t.Errorf("the client was told %v", code)
	default:
	}
	again, l := openFlow(t, e)
	send(again, to(r.at, "b"))
	_, from = r.get(t)
	r.put(t, "c", from)
	if got := l.next(t); got != r.at.String()+" c" {
		t.Errorf("after reopening: %q", got)
	}
}

func TestInboundKeepsTheFlowsThatSentLast(t *testing.T) {
	e := newExits(t, Config{Exit: config.Exit{UDPIdle: time.Hour}}) // the test sweeps by hand
	e.idleTicks, e.heardTicks = 10, 1000
	const flows = maxHeardFlows + 6
	r := newRemote(t, "127.0.0.1")
	var anns []*flow
	var links []*fakeLink
	for range flows {
		f, l := openFlow(t, e)
		anns, links = append(anns, f), append(links, l)
	}
	bobs := newFakeLink(8)
	bob, _ := exitOf(e, "bob").openFlow(bobs)
	for i := range flows + int(e.idleTicks) + 1 {
		if i < flows {
			send(anns[i], to(r.at, "a"))
		}
		for _, f := range append(anns, bob) {
			f.replies([]udpio.Message{{Body: []byte("b"), Addr: r.at}})
		}
		e.sweep()
	}
	for i, l := range links {
		if forgotten := len(l.forgotten) == 1; forgotten != (i < flows-maxHeardFlows) {
			t.Errorf("flow %d of %d: forgotten is %v", i, flows, forgotten)
		}
	}
	if len(bobs.forgotten) != 0 {
		t.Error("another user's only flow is forgotten")
	}
}

func TestReportHasTrafficAndIdleTimes(t *testing.T) {
	r := newRemote(t, "127.0.0.1")
	e := newExits(t, Config{Exit: config.Exit{UDPIdle: time.Hour}}) // the test sweeps by hand, each time for 30 s
	if list := e.Report(); len(list) != 0 {
		t.Errorf("without a flow: %+v", list)
	}
	f, l := openFlow(t, e)
	send(f, to(r.at, "four"), to(r.at, "five!"), to(netip.MustParseAddrPort("10.0.0.1:9"), "refused"), to(netip.AddrPortFrom(r.at.Addr(), 0), "nowhere"))
	_, from := r.get(t)
	r.get(t)
	r.put(t, "back", from)
	l.next(t)
	e.sweep()
	e.sweep()
	list := e.Report()
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	got := list[0]
	if got.User != "ann" || got.Flow != 7 || got.Exit != f.sock.Load().LocalAddr().String() || got.AgeSeconds < 0 || got.AgeSeconds > wait.Seconds() {
		t.Errorf("%+v", got)
	}
	if got.Up != (stats.Traffic{Datagrams: 2, Bytes: 9}) || got.Down != (stats.Traffic{Datagrams: 1, Bytes: 4}) {
		t.Errorf("up %+v, down %+v", got.Up, got.Down)
	}
	if len(got.Drops) != 2 || got.Drops["policy"] != 1 || got.Drops["port_zero"] != 1 {
		t.Errorf("drops %v", got.Drops)
	}
	if got.IdleSeconds == nil || *got.IdleSeconds != 60 {
		t.Errorf("idle for %v after two sweeps", got.IdleSeconds)
	}
}

func TestSweeperRuns(t *testing.T) {
	e := newExits(t, Config{Exit: config.Exit{UDPIdle: 20 * time.Millisecond}})
	_, l := openFlow(t, e)
	receive(t, l.forgotten)
	eventually(t, "the flow is gone", func() bool { return openFlows(e) == 0 })
}

func TestEndedFlowClosesSocketAndLogs(t *testing.T) {
	var out bytes.Buffer
	dns := newFakeDNS()
	r := newRemote(t, "127.0.0.1")
	e := New(Config{Exit: permissive, Resolve: dns.lookup, Log: slog.New(slog.NewTextHandler(&out, nil))})
	f, l := openFlow(t, e)
	send(f, to(r.at, "abc"), to(netip.MustParseAddrPort("10.0.0.1:5"), "secret"), toName("slow.example", 53, "waits"))
	_, from := r.get(t)
	f.Ended(tunnel.EndNormal)
	f.Ended(tunnel.EndNormal)
	send(f, to(r.at, "late"), toName("late.example", 53, "late"))
	eventually(t, "the flow is gone", func() bool { return openFlows(e) == 0 })
	again, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(from.Port())})
	if err != nil {
		t.Errorf("its port is still taken: %v", err)
	} else {
		again.Close()
	}
	e.Close()
	line := out.String()
	for _, want := range []string{
		"user=ann", "flow=7", "why=normal", "duration=", "up_datagrams=1", "up_bytes=3",
		"down_datagrams=0", "drops.policy=1", "drops.ended=",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	if n := strings.Count(line, "\n"); n != 1 {
		t.Errorf("%d lines, want 1: %s", n, line)
	}
	for _, not := range []string{"secret", "drops.port", "drops.send"} {
		if strings.Contains(line, not) {
			t.Errorf("%s in %s", not, line)
		}
	}
	if len(l.ended) != 0 || len(l.forgotten) != 0 || e.held.Load() != 0 {
		t.Error("the link was touched, or something is held")
	}
}

func TestCloseEndsEveryFlow(t *testing.T) {
	e := New(Config{Exit: permissive})
	var links []*fakeLink
	for range 20 {
		_, l := openFlow(t, e)
		links = append(links, l)
	}
	e.Close()
	for _, l := range links {
		if code := receive(t, l.ended); code != tunnel.EndShutdown {
			t.Errorf("ended with %v", code)
		}
	}
	if openFlows(e) != 0 {
		t.Error("flows are left")
	}
	if f, code := exitOf(e, "ann").openFlow(newFakeLink(1)); f != nil || code != tunnel.EndShutdown {
		t.Errorf("opened after Close: %v", code)
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	dns := newFakeDNS("known.example", "127.0.0.1")
	close(dns.release)
	for _, filtering := range []config.Filtering{config.EndpointIndependent, config.AddressAndPort} {
		r, r6 := newRemote(t, "127.0.0.1"), newRemote(t, "::1")
		f, _ := openFlow(t, newExits(t, Config{Resolve: dns.lookup, Exit: config.Exit{Filtering: filtering}}))
		f.link = quietLink{newFakeLink(1)}
		send(f, toName("known.example", r.at.Port(), "x"), to(r.at, "x"), to(r6.at, "x"))
		r.get(t)
		r.get(t)
		for name, bodies := range map[string][][]byte{
			"IPv4": {to(r.at, "x"), to(r.at, "y")},
			"IPv6": {to(r6.at, "x")},
			"name": {toName("known.example", r.at.Port(), "x"), toName("known.example", r.at.Port(), "y")},
			"two":  {to(r.at, "x"), to(r6.at, "y")},
			"drop": {to(netip.MustParseAddrPort("10.0.0.1:5"), "x"), {9}},
		} {
			if n := testing.AllocsPerRun(1000, func() { f.Receive(bodies) }); n != 0 {
				t.Errorf("%v, %s: %v allocations up", filtering, name, n)
			}
		}
		ms := []udpio.Message{{Body: []byte("x"), Addr: r.at}, {Body: []byte("y"), Addr: r6.at}}
		if n := testing.AllocsPerRun(1000, func() { f.replies(ms) }); n != 0 {
			t.Errorf("%v: %v allocations down", filtering, n)
		}
		t.Logf("a flow is %d bytes besides its socket", unsafe.Sizeof(*f))
	}
}

type quietLink struct{ *fakeLink }

func (quietLink) Send([]udpio.Message) {}

func FuzzReceive(f *testing.F) {
	f.Add(to(netip.MustParseAddrPort("127.0.0.1:9"), "x"))
	f.Add(to(netip.MustParseAddrPort("[::1]:9"), "x"))
	f.Add(toName("a.example", 9, "x"))
	f.Add(toNameAnswered("a.example", 9, "x"))
	f.Add([]byte{})
	f.Add([]byte{3, 255, 'a'})
	e := New(Config{ // nothing is sent: the policy refuses it, or the test does
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no") },
	})
	f.Cleanup(e.Close)
	fl, _ := exitOf(e, "ann").openFlow(newFakeLink(1))
	f.Fuzz(func(t *testing.T, body []byte) {
		if ap, _, _, err := socks.SplitAddr(body); err == nil && fl.user.exits.policy.judge(ap.Addr()) == open {
			return
		}
		if len(body) > 5 && body[0] == socks.TypeName {
			if ip, err := netip.ParseAddr(string(body[2:min(len(body), 2+int(body[1]))])); err == nil && e.policy.judge(ip) == open {
				return
			}
		}
		fl.Receive([][]byte{body, body})
	})
}

func BenchmarkReceive(b *testing.B) {
	sink, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	e := New(Config{Exit: permissive})
	defer e.Close()
	f, _ := exitOf(e, "ann").openFlow(newFakeLink(1))
	var bodies [][]byte
	for range 16 {
		bodies = append(bodies, to(sink.LocalAddr().(*net.UDPAddr).AddrPort(), strings.Repeat("x", 160)))
	}
	b.ReportAllocs()
	for b.Loop() {
		f.Receive(bodies)
	}
}

func BenchmarkReplies(b *testing.B) {
	e := New(Config{Exit: permissive})
	defer e.Close()
	f, _ := exitOf(e, "ann").openFlow(newFakeLink(1))
	f.link = quietLink{newFakeLink(1)}
	var ms []udpio.Message
	for range 16 {
		ms = append(ms, udpio.Message{Body: make([]byte, 160), Addr: netip.MustParseAddrPort("8.8.8.8:53")})
	}
	b.ReportAllocs()
	for b.Loop() {
		f.replies(ms)
	}
}

func TestPeersOfAFlowAreBounded(t *testing.T) {
	peers := make(peerTable)
	ip := netip.MustParseAddr("8.8.8.8")
	for i := range maxPeers {
		peers.add(netip.AddrPortFrom(ip, uint16(i+1)), uint32(i/16))
	}
	recent := netip.AddrPortFrom(ip, 1)
	peers.add(recent, 1000)
	for i := range 64 {
		peers.add(netip.AddrPortFrom(ip, uint16(20000+i)), 1000)
	}
	if _, ok := peers[recent]; !ok || len(peers) != maxPeers {
		t.Errorf("%d kept, want %d; the one just used is there: %v", len(peers), maxPeers, ok)
	}
}
