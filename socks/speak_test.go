package socks

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/entrance"
	"wmproxy/internal/udpio"
)

// Users of the machine in these tests.
const owningUser, otherUser = 1000, 1001

// shareable returns a Server with a password on a machine where sockets with ports above
// 6000 are another user's, sockets above 7000 are gone, and others are the owner's.
func shareable() *Server {
	s := &Server{Users: oneUser("u", "p")}
	s.owners.ask = func(kind socketKind, far, _ netip.AddrPort) socketUser {
		switch {
		case kind == kindTCP || far.Port() < 6000:
			return socketUser{owningUser, lookupFound}
		case far.Port() < 7000:
			return socketUser{otherUser, lookupFound}
		}
		return socketUser{result: lookupNone}
	}
	return s
}

// localConn is a control connection of this machine.
var localConn = &entrance.Conn{Conn: localControl{}}

type localControl struct{ udpio.Conn }

func (localControl) LocalAddr() netip.AddrPort { return port(1080) }

// from is a batch from these ports of the client, each datagram to a target of its own.
func from(ports ...uint16) (ms []udpio.Message) {
	for _, p := range ports {
		ms = append(ms, udpio.Message{Body: datagram(0, body(target(byte(p)), fmt.Sprint(p))), Addr: port(p)})
	}
	return ms
}

// payloads returns the payloads of r's datagrams from from.
func (r *recorder) payloads() (texts []string) {
	for _, d := range r.all() {
		texts = append(texts, d[len(target4):])
	}
	return texts
}

func TestOnlyTheOwnersSocketsSpeakWithAPassword(t *testing.T) {
	for _, named := range []uint16{0, 5001, 6001, 7001} {
		up := &recorder{}
		a := loose(up)
		a.server, a.conn = shareable(), localConn
		want := []string{"5001", "5002"}
		if named != 0 {
			a.sources.named = port(named)
		}
		a.relayUp(from(6001, 7001, 7002, 5001, 6001, 5002, 7001))
		if diff := cmp.Diff(want, up.payloads()); diff != "" {
			t.Errorf("named %d: (-want +got)\n%s", named, diff)
		}
	}
}

// The owner may close a socket that has just sent: its port is then anybody's.
func TestPortThatChangesHandsIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &recorder{}
		a := loose(up)
		a.start = time.Now()
		a.server, a.conn = shareable(), localConn
		owner := uint32(owningUser)
		a.server.owners.ask = func(kind socketKind, _, _ netip.AddrPort) socketUser {
			return socketUser{owner, lookupFound}
		}
		for range 5 { // while the same user has it
			a.relayUp(from(5001))
			time.Sleep(ownerMemory / 2)
		}
		owner = otherUser
		for range 5 {
			time.Sleep(ownerMemory / 2)
			a.relayUp(from(5001))
		}
		if n := len(up.payloads()); n < 5 || n > 7 { // a second of memory each for the machine and the source
			t.Errorf("%d datagrams passed, want 5, and at most 2 of the other user's", n)
		}
	})
}

// A NAT may give the named port back to its application after a pause.
func TestNamedSourceThatComesBackIsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &recorder{}
		a := loose(up)
		a.start = time.Now()
		a.sources.named = port(5)
		a.relayUp(from(5))
		time.Sleep(sourceSilence)
		a.relayUp([]udpio.Message{{Addr: port(5)}}) // without a header, to keep a NAT's mapping
		if to := a.sources.answerTo(target4); to == nil || to.to != port(5) {
			t.Errorf("answers go to %v", to)
		}
		a.relayUp(from(1, 5, 1))
		if diff := cmp.Diff([]string{"5", "1", "5"}, up.payloads()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func TestSystemThatCannotTellLetsTheAddressSpeak(t *testing.T) {
	up, logs := &recorder{}, &logBuffer{}
	a := loose(up)
	a.server, a.conn = shareable(), localConn
	a.server.Log = logs.logger()
	a.server.owners.ask = func(socketKind, netip.AddrPort, netip.AddrPort) socketUser { return socketUser{} }
	a.relayUp(from(5001, 6001, 5001))
	if got := up.payloads(); len(got) != 3 {
		t.Errorf("passed: %q", got)
	}
	if got := logs.String(); !containsOnce(got, "does not tell whose sockets") {
		t.Errorf("log: %s", got)
	}
}

// sharing puts associations on a shared port without a socket.
func sharing(s *Server, as ...*Association) *sharedPort {
	p := &sharedPort{
		server: s, bySource: make(map[netip.AddrPort]*Association),
		byName: make(map[netip.AddrPort]*Association), byClient: make(map[netip.Addr]*sharedPlaces),
	}
	for _, a := range as {
		a.server, a.shared, a.start = s, p, time.Now()
		p.enter(a)
	}
	return p
}

func TestSharedPortFindsWhoseSourceHasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up1, up2 := &recorder{}, &recorder{}
		one, two := loose(up1), loose(up2)
		p := sharing(&Server{}, one, two)
		p.receive(from(1, 2, 3)) // the third could be either's
		time.Sleep(sourceSilence)
		p.receive(from(4)) // still
		p.receive(from(2, 5))
		p.receive(from(1, 6)) // both have been heard of again
		if diff := cmp.Diff([][]string{{"1", "5", "1"}, {"2", "2"}}, [][]string{up1.payloads(), up2.payloads()}); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if n := p.server.unmatched.Load(); n != 3 {
			t.Errorf("%d datagrams belong to nobody, want 3", n)
		}
		p.exit(two)
		p.receive(from(7)) // the only one that is left
		p.exit(one)
		if got := up1.payloads(); got[len(got)-1] != "7" {
			t.Errorf("the only association has not got the new source: %q", got)
		}
		if len(p.bySource)+len(p.byName)+len(p.byClient)+p.all.silent.Len()+p.all.spoken.Len() != 0 {
			t.Errorf("something is left: %+v", p)
		}
	})
}

func TestSharedPortGoesByNamesAndUsers(t *testing.T) {
	up1, up2, up3 := &recorder{}, &recorder{}, &recorder{}
	one, two, three := loose(up1), loose(up2), loose(up3)
	one.sources.named = port(5007) // named one, and a NAT makes it another
	three.sources.named = port(5003)
	s := shareable()
	p := sharing(s, one, two, three)
	for _, a := range []*Association{one, two, three} {
		a.conn = localConn
	}
	two.controlAsked, two.controlUser = true, socketUser{otherUser, lookupFound}
	p.receive(from(5003, 6001, 5001, 6002, 7001))
	want := [][]string{{"5001"}, {"6001", "6002"}, {"5003"}}
	if diff := cmp.Diff(want, [][]string{up1.payloads(), up2.payloads(), up3.payloads()}); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestManySourcesAllocateNothing(t *testing.T) {
	a := loose(uplinkFunc(func([]udpio.Message) {}))
	a.server = shareable()
	a.conn = localConn
	var ms []udpio.Message
	d := datagram(0, body(target4, "x"))
	fill := func() {
		ms = ms[:0]
		for i := range 64 {
			ms = append(ms, udpio.Message{Body: d, Addr: port(uint16(5000 + i%7))}) // more than there are places
		}
	}
	fill()
	a.relayUp(ms)
	if n := testing.AllocsPerRun(100, func() { fill(); a.relayUp(ms) }); n != 0 {
		t.Errorf("%v allocations for 64 datagrams of 7 sources", n)
	}
}

func containsOnce(s, text string) bool {
	i := strings.Index(s, text)
	return i >= 0 && !strings.Contains(s[i+len(text):], text)
}
