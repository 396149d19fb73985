package admit

import (
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheOldestGivesWayToTheNewcomer(t *testing.T) {
	tests := []struct {
		name           string
		total, perAddr int
		enter          []string // addresses, in order; "-N" makes number N leave
		evicted        []int    // numbers of the evicted, in order
		left           int
	}{
		{"below the bounds nobody goes", 4, 2, []string{"10.0.0.1", "10.0.0.1", "10.0.0.2"}, nil, 3},
		{"the oldest of the same address", 9, 2, []string{"10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.1"}, []int{1}, 3},
		{"the oldest of all", 3, 2, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}, []int{0}, 3},
		{"its own oldest before anybody else's", 3, 2, []string{"10.0.0.9", "10.0.0.1", "10.0.0.1", "10.0.0.1"}, []int{1}, 3},
		{"one that left makes room", 3, 2, []string{"10.0.0.1", "10.0.0.1", "-0", "10.0.0.1"}, nil, 2},
		{"leaving twice counts once", 3, 2, []string{"10.0.0.1", "10.0.0.1", "-0", "-0", "10.0.0.1", "10.0.0.1"}, []int{1}, 2},
		{"leaving after eviction counts nothing", 2, 1, []string{"10.0.0.1", "10.0.0.1", "-0", "10.0.0.2", "10.0.0.3"}, []int{0, 1}, 2},
		{"a /64 is one address", 9, 2, []string{"2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"}, []int{0}, 2},
		{"two /64s are two", 9, 2, []string{"2001:db8::1", "2001:db8::2", "2001:db8:0:1::3"}, nil, 3},
		{"a zone makes no new address", 9, 1, []string{"fe80::1%eth0", "fe80::1%eth1"}, []int{0}, 1},
		{"IPv4-mapped is IPv4", 9, 1, []string{"10.0.0.1", "::ffff:10.0.0.1"}, []int{0}, 1},
		{"IPv4-mapped addresses are not one /64", 9, 1, []string{"::ffff:10.0.0.1", "::ffff:10.0.0.2"}, nil, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := Gate{Total: tt.total, PerAddr: tt.perAddr}
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
			if got := g.Evicted(); got != uint64(len(tt.evicted)) {
				t.Errorf("Evicted() = %d, want %d", got, len(tt.evicted))
			}
			if g.Len() != tt.left {
				t.Errorf("Len() = %d, want %d", g.Len(), tt.left)
			}
			for _, leave := range leaves {
				leave()
			}
			if g.Len() != 0 || g.byAddr != nil {
				t.Errorf("after all left: %d entries, %d addresses", g.Len(), len(g.byAddr))
			}
		})
	}
}

func TestTheZeroGateHasBounds(t *testing.T) {
	var g Gate
	evicted := 0
	for range DefaultPerAddr + 5 {
		g.Enter(netip.MustParseAddr("192.0.2.1"), func() { evicted++ })
	}
	if g.Len() != DefaultPerAddr || evicted != 5 {
		t.Errorf("%d inside and %d evicted, want %d and 5", g.Len(), evicted, DefaultPerAddr)
	}
	a := netip.MustParseAddr("10.0.0.0")
	for range 2 * DefaultTotal {
		a = a.Next()
		g.Enter(a, func() { evicted++ })
	}
	if g.Len() != DefaultTotal {
		t.Errorf("%d inside, want %d", g.Len(), DefaultTotal)
	}
}

func TestAClosedGateIsEmptyAndStaysSo(t *testing.T) {
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
		t.Errorf("evicted %d, inside %d; want 2 and 0", evicted, g.Len())
	}
}

// The evict function may use the gate, and leave may come from anywhere.
func TestManyEnterAndLeaveAtOnce(t *testing.T) {
	g := Gate{Total: 8, PerAddr: 4}
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
	if g.Len() != 0 || g.byAddr != nil {
		t.Errorf("%d entries are left", g.Len())
	}
}

func TestWhereTheNewcomerIsRefusedNobodyGoes(t *testing.T) {
	g := Gate{Total: 3, PerAddr: 2, Refuse: true}
	enter := func(addr string) (func(), bool) {
		return g.Enter(netip.MustParseAddr(addr), func() { t.Errorf("one of %s was evicted", addr) })
	}
	leave, _ := enter("10.0.0.1")
	enter("10.0.0.1")
	if out, ok := enter("10.0.0.1"); ok {
		t.Error("a third of one address came in")
	} else {
		out() // does nothing
	}
	if n := g.LenOf(netip.MustParseAddr("::ffff:10.0.0.1")); n != 2 {
		t.Errorf("%d of the address, want 2", n)
	}
	if _, ok := enter("10.0.0.2"); !ok {
		t.Error("the first of another address was refused")
	}
	if _, ok := enter("10.0.0.3"); ok {
		t.Error("a fourth in all came in")
	}
	leave()
	if _, ok := enter("10.0.0.3"); !ok {
		t.Error("there was no room after one left")
	}
	if g.Len() != 3 || g.Evicted() != 0 || g.LenOf(netip.MustParseAddr("10.0.0.9")) != 0 {
		t.Errorf("%d in, %d evicted", g.Len(), g.Evicted())
	}
}

func TestTheOldestGoesOnDemand(t *testing.T) {
	var g Gate
	g.EvictOldest() // of none
	var evicted []int
	for i := range 3 {
		if _, ok := g.Enter(netip.MustParseAddr("10.0.0.1"), func() { evicted = append(evicted, i) }); !ok {
			t.Fatal("not admitted")
		}
	}
	g.EvictOldest()
	g.EvictOldest()
	if !reflect.DeepEqual(evicted, []int{0, 1}) || g.Len() != 1 || g.Evicted() != 2 {
		t.Errorf("evicted %v, %d left, %d counted", evicted, g.Len(), g.Evicted())
	}
}
