package socks

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRulesOfWhoMaySpeak(t *testing.T) {
	for _, c := range []struct {
		what  string
		claim claim
		owner owner
		want  ruling
		sure  bool
	}{
		{"client's address", claim{ofClient: true}, ownerUnknown, admitted, false},
		{"another address", claim{}, ownerSame, refusedAddress, false},
		{"--udp-from", claim{allowed: true}, ownerUnknown, admitted, false},
		{"--udp-from, from elsewhere", claim{allowed: true}, ownerNone, admitted, false},
		{"--udp-from, another user here", claim{allowed: true}, ownerOther, refusedUser, false},

		{"same user", claim{ofClient: true}, ownerSame, admitted, true},
		{"another user", claim{ofClient: true}, ownerOther, refusedUser, false},
		{"no socket any more", claim{ofClient: true}, ownerNone, refusedUser, false},
		{"named", claim{ofClient: true, named: true}, ownerUnknown, admitted, false},
		{"named, same user", claim{ofClient: true, named: true}, ownerSame, admitted, true},
		{"named, no socket any more", claim{ofClient: true, named: true}, ownerNone, refusedUser, false},
		{"named, as another is", claim{ofClient: true, named: true, rival: true}, ownerUnknown, admitted, false},
		{"named, another user's", claim{ofClient: true, named: true}, ownerOther, refusedUser, false},

		{"beside a named one", claim{ofClient: true, rival: true}, ownerUnknown, refusedNamed, false},
		{"beside a named one, same user", claim{ofClient: true, rival: true}, ownerSame, admitted, true},
		{"beside a named one, --udp-from", claim{allowed: true, rival: true}, ownerUnknown, refusedNamed, false},
	} {
		r, sure := c.claim.judge(func() owner { return c.owner })
		if r != c.want || sure != c.sure {
			t.Errorf("%s: ruling %d, sure %v, want %d, %v", c.what, r, sure, c.want, c.sure)
		}
	}
}

func TestRequestNamesASource(t *testing.T) {
	client := netip.MustParseAddr("192.0.2.7")
	for _, c := range []struct {
		what string
		dst  []byte
		want string // "" is none
	}{
		{"nothing", anywhere, ""},
		{"port alone", []byte{TypeIPv4, 0, 0, 0, 0, 0x13, 0x88}, "192.0.2.7:5000"},
		{"port alone, IPv6", append(append([]byte{TypeIPv6}, make([]byte, 16)...), 0x13, 0x88), "192.0.2.7:5000"},
		{"own address", []byte{TypeIPv4, 192, 0, 2, 7, 0x13, 0x88}, "192.0.2.7:5000"},
		{"own address without a port", []byte{TypeIPv4, 192, 0, 2, 7, 0, 0}, ""},
		{"the target", []byte{TypeIPv4, 192, 0, 2, 8, 0x13, 0x88}, ""},
		{"the name 0, as PySocks", wireName("0", 5000), "192.0.2.7:5000"},
		{"own address as a name", wireName("192.0.2.7", 5000), "192.0.2.7:5000"},
		{"another name", wireName("example.org", 5000), ""},
		{"an empty name", []byte{TypeName, 0, 0x13, 0x88}, ""},
	} {
		got := namedSource(c.dst, client)
		if got.IsValid() != (c.want != "") || got.IsValid() && got.String() != c.want {
			t.Errorf("%s: %v, want %q", c.what, got, c.want)
		}
	}
}

// port is a source of the client.
func port(n uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), n)
}

// target is the nth target as it stands in a datagram.
func target(n byte) []byte { return []byte{TypeIPv4, 10, 0, 0, n, 0, 80} }

// spoken adds sources that each send to one target, a second after the other.
func spoken(s *sources, ports ...uint16) {
	for i, p := range ports {
		now := time.Duration(i) * time.Second
		at := s.find(port(p))
		if at < 0 {
			at, _ = s.add(source{addr: port(p), to: port(p), heard: now})
		}
		s.spoke(at, target(byte(p)), now, netip.Addr{})
	}
}

func TestAnswersGoToTheSourceThatAsked(t *testing.T) {
	var s sources
	if s.answerTo(target(1)) != nil {
		t.Error("an answer has a way before anybody spoke")
	}
	spoken(&s, 1, 2, 3)
	for n, want := range map[byte]uint16{1: 1, 2: 2, 3: 3, 9: 3} { // 9 is unknown: the last to speak
		if got := s.answerTo(target(n)).to; got != port(want) {
			t.Errorf("an answer from target %d goes to %v, want %v", n, got, port(want))
		}
	}
	s.spoke(s.find(port(1)), target(3), 0, netip.Addr{})
	for n, want := range map[byte]uint16{2: 2, 3: 1, 9: 1} {
		if got := s.answerTo(target(n)).to; got != port(want) {
			t.Errorf("then an answer from target %d goes to %v, want %v", n, got, port(want))
		}
	}
}

func TestFifthSourceTakesThePlaceOfTheMostSilent(t *testing.T) {
	var s sources
	spoken(&s, 1, 2, 3, 4, 1)
	_, out := s.add(source{addr: port(5), to: port(5), heard: 9 * time.Second})
	if out.n != 1 || out.addrs[0] != port(2) {
		t.Errorf("%v had to go, want %v", out.addrs[:out.n], port(2))
	}
	for p, want := range map[uint16]bool{1: true, 2: false, 3: true, 4: true, 5: true} {
		if got := s.find(port(p)) >= 0; got != want {
			t.Errorf("source %d is there: %v, want %v", p, got, want)
		}
	}
	if got := s.answerTo(target(2)).to; got != port(5) {
		t.Errorf("the answer to the one that went goes to %v, want the last to come", got)
	}
}

func TestAnswersGoToWhoIsLeft(t *testing.T) {
	var s sources
	spoken(&s, 1, 2, 3)
	s.remove(s.find(port(3)))
	if got := s.answerTo(target(9)); got == nil || got.to != port(2) {
		t.Errorf("an answer goes to %v, want %v, the last to speak of those left", got, port(2))
	}
	s.remove(s.find(port(2)))
	s.remove(s.find(port(1)))
	if got := s.answerTo(target(9)); got != nil {
		t.Errorf("an answer goes to %v, who is gone", got.to)
	}
}

func TestNamedSourceTakesTheAssociationBack(t *testing.T) {
	s := sources{named: port(7)}
	spoken(&s, 1, 2)
	s.list[s.find(port(2))].sure = true
	if s.rival(0) {
		t.Error("a source that has not spoken is a rival")
	}
	at, out := s.add(source{addr: port(7), to: port(7), heard: 5 * time.Second})
	if out.n != 1 || out.addrs[0] != port(1) || s.find(port(1)) >= 0 || s.find(port(2)) < 0 {
		t.Errorf("%v had to go, want %v alone", out.addrs[:out.n], port(1))
	}
	if got := s.answerTo(target(1)).to; got != port(7) {
		t.Errorf("answers go to %v", got)
	}
	for after, want := range map[time.Duration]bool{0: true, sourceSilence - 1: true, sourceSilence: false} {
		if got := s.rival(s.list[at].heard + after); got != want {
			t.Errorf("a rival %v after its last datagram: %v, want %v", after, got, want)
		}
	}
}

// Hashes that fall together push out the oldest: this many never do.
func TestTargetsOfTheFirstSourceAreKnownToTheSecond(t *testing.T) {
	for i := range 1000 {
		var s sources
		at, _ := s.add(source{addr: port(1), to: port(1)})
		for n := range targetWays {
			s.spoke(at, fmt.Appendf(nil, "%d %d", n, i), 0, netip.Addr{})
		}
		at, _ = s.add(source{addr: port(2), to: port(2)})
		s.spoke(at, []byte("another"), 0, netip.Addr{})
		for n := range targetWays {
			if got := s.answerTo(fmt.Appendf(nil, "%d %d", n, i)).to; got != port(1) && n > 0 {
				t.Fatalf("target %d of try %d is %v's", n, i, got)
			}
		}
	}
}

func TestOldestTargetIsForgotten(t *testing.T) {
	s := sources{targets: make([]uint32, targetWays)}
	const one, two, three, four, five = 1 << 2, 2 << 2, 3 << 2, 4 << 2, 5 << 2
	for _, c := range []struct{ entry, want [targetWays]uint32 }{
		{[...]uint32{one, two, three, four}, [...]uint32{four, three, two, one}},
		{[...]uint32{two | 1, two | 1, two | 1, two | 1}, [...]uint32{two | 1, four, three, one}},
		{[...]uint32{five, five, three | 2, five}, [...]uint32{five, three | 2, two | 1, four}},
	} {
		for _, e := range c.entry {
			s.note(e)
		}
		if diff := cmp.Diff(c.want[:], s.targets); diff != "" {
			t.Errorf("after %v: (-want +got)\n%s", c.entry, diff)
		}
	}
}
