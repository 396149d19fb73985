package admit

import (
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"testing"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

func TestFullestNetworkLosesItsOldestConnection(t *testing.T) {
	tests := []struct {
		name    string
		total   int
		enter   []string // addresses, in order; "-N" makes number N leave
		evicted []int    // numbers of the evicted, in order
		remain  int
	}{
		{"none while all fit", 8, []string{"10.0.0.1", "10.0.0.1", "10.0.1.1"}, nil, 3},
		{"one address has a third", 6, []string{"10.0.0.1", "10.0.0.1", "10.0.0.1"}, []int{0}, 2},
		{"one /24 has half", 6, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}, []int{0}, 3},
		{"all together have all", 4, []string{"10.0.0.1", "10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.4.1"}, []int{0}, 4},
		{"the greedy address, although others are older", 7, []string{"10.0.1.1", "10.0.2.1", "10.0.0.1", "10.0.0.1", "10.0.3.1", "10.0.0.1"}, []int{2}, 5},
		{"the greedy address of the fullest /24", 9, []string{"10.0.0.9", "10.0.0.1", "10.0.0.1", "10.0.1.1", "10.0.2.1", "10.0.0.1"}, []int{1}, 5},
		{"the largest networks are compared first", 9, []string{"10.0.1.1", "10.0.1.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1"}, []int{2}, 5},
		{"one that left makes room", 6, []string{"10.0.0.1", "10.0.0.1", "-0", "10.0.0.1"}, nil, 2},
		{"leaving twice counts once", 6, []string{"10.0.0.1", "10.0.0.1", "-0", "-0", "10.0.0.1", "10.0.0.1"}, []int{1}, 2},
		{"leaving after eviction counts nothing", 3, []string{"10.0.0.1", "10.0.0.1", "-0", "10.0.1.1", "10.0.2.1", "10.0.3.1"}, []int{0, 1}, 3},
		{"a /64 is one address", 8, []string{"2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"}, []int{0}, 2},
		{"a /56 is a network", 9, []string{"2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1"}, []int{0}, 3},
		{"a /48 is a network", 6, []string{"2001:db8::1", "2001:db8:0:100::1", "2001:db8:0:200::1", "2001:db8:0:300::1"}, []int{0}, 3},
		{"two /48 are two", 6, []string{"2001:db8::1", "2001:db8:0:100::1", "2001:db8:0:200::1", "2001:db8:1::1"}, nil, 4},
		{"a zone makes no new address", 4, []string{"fe80::1%eth0", "fe80::1%eth1"}, []int{0}, 1},
		{"IPv4-mapped is IPv4", 3, []string{"10.0.0.1", "::ffff:10.0.0.1"}, []int{0}, 1},
		{"IPv4-mapped addresses are not one /64", 9, []string{"::ffff:10.0.0.1", "::ffff:10.0.1.1", "::ffff:10.0.2.1"}, nil, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := Gate{Total: tt.total}
			var evicted []int
			var leaves []func()
			for _, step := range tt.enter {
				var n int
				if _, err := fmt.Sscanf(step, "-%d", &n); err == nil {
					leaves[n]()
					continue
				}
				number := len(leaves)
				leave, ok := g.Enter(netip.MustParseAddr(step), func() { evicted = append(evicted, number) })
				if !ok {
					t.Fatalf("%s was not admitted", step)
				}
				leaves = append(leaves, leave)
			}
			if !reflect.DeepEqual(evicted, tt.evicted) {
				t.Errorf("evicted %v, want %v", evicted, tt.evicted)
			}
			if g.Len() != tt.remain {
				t.Errorf("Len() = %d, want %d", g.Len(), tt.remain)
			}
			for _, leave := range leaves {
				leave()
			}
			if g.Len() != 0 || g.known != nil || len(g.all.within) != 0 {
				t.Errorf("after all left: %d entries, %d networks", g.Len(), len(g.known))
			}
		})
	}
}

// flood returns a function that returns addresses from adjacent networks in turn. bits is the
// length of their prefixes, of 128.
func flood(first string, networks, bits int) func() netip.Addr {
	i := 0
	return func() netip.Addr {
		b := netip.MustParseAddr(first).As16()
		n := i * 257 % networks // neighbours do not come one after the other
		i++
		low := bits/8 - 1
		b[low] += byte(n)
		b[low-1] += byte(n >> 8)
		return netip.AddrFrom16(b).Unmap()
	}
}

func TestFloodEvictsNobodyElse(t *testing.T) {
	for _, test := range []struct {
		name   string
		next   func() netip.Addr
		honest string
	}{
		{"one address", flood("198.18.0.1", 1, 128-8), "203.0.113.9"},
		{"57 addresses", flood("198.18.0.1", 57, 128-8), "203.0.113.9"},
		{"another address of the /24", flood("198.18.0.1", 1, 128), "198.18.0.9"},
		{"one /64", flood("2001:db8::1", 1, 64), "203.0.113.9"},
		{"another /56 of the /48", flood("2001:db8::1", 256, 64), "2001:db8:0:100::9"},
		{"half of a /48", flood("2001:db8::1", 1<<15, 64), "203.0.113.9"},
		{"the other half of it", flood("2001:db8::1", 1<<15, 64), "2001:db8:0:8000::9"},
		{"300 /48", flood("2001:db8::1", 300, 48), "203.0.113.9"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var evicting, refusing Gate
			refusing.Refuse = true
			for range 3 * DefaultTotal {
				a := test.next()
				evicting.Enter(a, func() {})
				refusing.Enter(a, func() { t.Error("the refusing gate evicted a connection") })
			}
			honest := netip.MustParseAddr(test.honest)
			for range 3 { // connections at a time
				leave, _ := evicting.Enter(honest, func() { t.Error("an honest client was evicted") })
				defer leave()
				for range 3 * DefaultTotal {
					evicting.Enter(test.next(), func() {})
				}
			}
			if _, ok := refusing.Enter(honest, nil); !ok {
				t.Error("the refusing gate refused an honest client")
			}
			for _, g := range []*Gate{&evicting, &refusing} {
				if n := g.Len(); n > DefaultTotal {
					t.Errorf("%d admitted, want at most %d", n, DefaultTotal)
				}
			}
		})
	}
}

func TestZeroGateHasBounds(t *testing.T) {
	var g Gate
	evicted := 0
	const of = DefaultTotal/3 + 1 // one address is in three networks
	for range of + 5 {
		g.Enter(netip.MustParseAddr("192.0.2.1"), func() { evicted++ })
	}
	if g.Len() != of || evicted != 5 {
		t.Errorf("%d admitted and %d evicted, want %d and 5", g.Len(), evicted, of)
	}
	next := flood("10.0.0.1", 1<<15, 128-8)
	for range 2 * DefaultTotal {
		g.Enter(next(), func() { evicted++ })
	}
	if g.Len() != DefaultTotal {
		t.Errorf("%d admitted, want %d", g.Len(), DefaultTotal)
	}
}

func TestClosedGateAdmitsNothing(t *testing.T) {
	var g Gate
	evicted := 0
	leave, _ := g.Enter(netip.MustParseAddr("192.0.2.1"), func() { evicted++ })
	g.Enter(netip.MustParseAddr("192.0.2.2"), func() { evicted++ })
	g.Close()
	leave()
	if _, ok := g.Enter(netip.MustParseAddr("192.0.2.3"), func() { evicted++ }); ok {
		t.Error("a closed gate admitted a connection")
	}
	if evicted != 2 || g.Len() != 0 {
		t.Errorf("%d evicted and %d admitted, want 2 and 0", evicted, g.Len())
	}
}

// evict may use the gate, and leave may be called from any goroutine.
func TestConcurrentUseKeepsTheBound(t *testing.T) {
	g := Gate{Total: 8}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 3)})
			for range 500 {
				leave, ok := g.Enter(a, func() { g.Len() })
				if !ok || g.Len() > 8 {
					t.Error("over the bound")
				}
				leave()
				leave()
			}
		})
	}
	wg.Wait()
	if g.Len() != 0 || g.known != nil {
		t.Errorf("%d connections remain", g.Len())
	}
}

func TestRefusingGateEvictsNothing(t *testing.T) {
	g := Gate{Total: 6, Refuse: true}
	enter := func(addr string) (func(), bool) {
		return g.Enter(netip.MustParseAddr(addr), func() { t.Errorf("one of %s was evicted", addr) })
	}
	leave, _ := enter("10.0.0.1")
	enter("10.0.0.1")
	if leave, ok := enter("10.0.0.1"); ok {
		t.Error("a third connection of one address was admitted")
	} else {
		leave() // must do nothing
	}
	if n := g.LenOf(netip.MustParseAddr("::ffff:10.0.0.1")); n != 2 {
		t.Errorf("%d connections of the address, want 2", n)
	}
	for _, addr := range []string{"10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.4.1"} {
		if _, ok := enter(addr); !ok {
			t.Errorf("the first connection of %s was refused", addr)
		}
	}
	if _, ok := enter("10.0.5.1"); ok {
		t.Error("a seventh connection was admitted")
	}
	leave()
	if _, ok := enter("10.0.5.1"); !ok {
		t.Error("no connection was admitted after one left")
	}
	if g.Len() != 6 || g.LenOf(netip.MustParseAddr("10.0.0.9")) != 0 {
		t.Errorf("%d admitted", g.Len())
	}
}

func TestEvictEndsOldestOfFullestNetwork(t *testing.T) {
	var g Gate
	g.Evict() // of none
	var evicted []int
	for i, addr := range []string{"10.0.0.1", "10.0.1.1", "10.0.1.1"} {
		if _, ok := g.Enter(netip.MustParseAddr(addr), func() { evicted = append(evicted, i) }); !ok {
			t.Fatal("not admitted")
		}
	}
	g.Evict()
	g.Evict()
	if !reflect.DeepEqual(evicted, []int{1, 0}) || g.Len() != 1 {
		t.Errorf("evicted %v, %d left", evicted, g.Len())
	}
}
