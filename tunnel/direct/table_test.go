package direct

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/testmain"
)

func addID(t testing.TB, r *Ring) ConnectionID {
	t.Helper()
	id, err := r.AddID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func packetTo(id ConnectionID, size int) []byte {
	b := make([]byte, size)
	b[0] = fixedBit
	copy(b[1:], id[:])
	return b
}

func TestPacketsReachTheRingOfTheirID(t *testing.T) {
	var table Table
	rings := []*Ring{table.NewRing(), table.NewRing()}
	var want [2][]Arrival
	for i := range 6 {
		r := i % 2
		a := Arrival{
			Packet: packetTo(addID(t, rings[r]), 40+i), At: time.Duration(i), CE: i == 3,
			From: netip.MustParseAddrPort("192.0.2.1:9"), To: netip.MustParseAddr("192.0.2.2"),
		}
		if !table.Deliver(&a) {
			t.Fatal("a known ID was not consumed")
		}
		want[r] = append(want[r], a)
	}
	for r, ring := range rings {
		got := make([]Arrival, 10)
		got = got[:ring.Take(got)]
		if diff := cmp.Diff(want[r], got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
	}
}

func TestOthersPacketsAreNotConsumed(t *testing.T) {
	var table Table
	id := addID(t, table.NewRing())
	long := packetTo(id, 100)
	long[0] |= longHeader
	for name, b := range map[string][]byte{
		"unknown": packetTo(ConnectionID{1}, 100), "long header": long, "short": packetTo(id, 100)[:17], "empty": {},
	} {
		if table.Deliver(&Arrival{Packet: b}) {
			t.Errorf("%s: consumed", name)
		}
	}
}

func TestClosedIDsStayKnownForAWhile(t *testing.T) {
	var table Table
	r := table.NewRing()
	removed, closed := addID(t, r), addID(t, r)
	r.RemoveID(removed, 0)
	r.Close(time.Second)
	for _, c := range []struct {
		id   ConnectionID
		at   time.Duration
		want bool
	}{
		{removed, closedTime - 1, true},
		{removed, closedTime, false},
		{closed, closedTime + time.Second - 1, true},
		{closed, closedTime + time.Second, false},
	} {
		if got := table.Deliver(&Arrival{Packet: packetTo(c.id, 50), At: c.at}); got != c.want {
			t.Errorf("at %v: consumed %v, want %v", c.at, got, c.want)
		}
	}
	if n := r.Take(make([]Arrival, 1)); n != 0 {
		t.Error("a closed ring took a packet")
	}
	last := table.NewRing()
	addID(t, last)
	last.Close(time.Hour)
	if len(table.ids) != 1 || len(table.closed) != 1 {
		t.Errorf("%d IDs and %d closed ones are left, want 1", len(table.ids), len(table.closed))
	}
}

func TestIDsAreBounded(t *testing.T) {
	var table Table
	r := table.NewRing()
	for range maxRingIDs {
		addID(t, r)
	}
	if _, err := r.AddID(); err == nil {
		t.Error("no error beyond the bound of a ring")
	}
	for range maxClosed + 100 {
		r := table.NewRing()
		addID(t, r)
		r.Close(0)
	}
	if len(table.closed) != maxClosed || len(table.ids) != maxClosed+maxRingIDs {
		t.Errorf("%d closed IDs of %d", len(table.closed), len(table.ids))
	}
}

func TestFullRingDropsAndRecovers(t *testing.T) {
	for name, size := range map[string]int{"packets": 50, "bytes": 1200} {
		t.Run(name, func(t *testing.T) {
			var table Table
			r := table.NewRing()
			a := Arrival{Packet: packetTo(addID(t, r), size)}
			room := maxRingChunks * min(chunkPackets, chunkSize/size)
			dst := make([]Arrival, 50)
			for range 3 {
				before := r.Dropped()
				for range room + 10 {
					table.Deliver(&a)
				}
				n := 0
				for k := r.Take(dst); k > 0; k = r.Take(dst) {
					n += k
				}
				if n != room || r.Dropped()-before != 10 {
					t.Fatalf("took %d of %d, dropped %d", n, room, r.Dropped()-before)
				}
			}
			if r.first != nil || table.chunks.Load() != 0 {
				t.Errorf("an empty ring keeps memory")
			}
		})
	}
}

func TestRingsTogetherAreBounded(t *testing.T) {
	var table Table
	var rings []*Ring
	for range maxTableChunks/maxRingChunks + 2 {
		r := table.NewRing()
		rings = append(rings, r)
		a := Arrival{Packet: packetTo(addID(t, r), chunkSize)}
		for range maxRingChunks {
			table.Deliver(&a)
		}
		if !table.Deliver(&Arrival{Packet: append(packetTo(r.ids[0], chunkSize), 1)}) {
			t.Error("a packet larger than all bounds was not consumed")
		}
	}
	if n := table.chunks.Load(); n != maxTableChunks {
		t.Errorf("%d chunks, want %d", n, maxTableChunks)
	}
	for _, r := range rings {
		r.Close(0)
	}
	if n := table.chunks.Load(); n != 0 {
		t.Errorf("closed rings keep %d chunks", n)
	}
}

// One goroutine delivers and another takes: nothing is lost or changed as long as there is room, and Ready wakes.
func TestTakenPacketsAreNotOverwritten(t *testing.T) {
	var table Table
	r := table.NewRing()
	id := addID(t, r)
	const packets = 20_000
	slots := make(chan struct{}, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := packetTo(id, 200)
		for i := range uint32(packets) {
			slots <- struct{}{}
			binary.BigEndian.PutUint32(b[50:], i)
			table.Deliver(&Arrival{Packet: b})
		}
	})
	dst := make([]Arrival, 64)
	for next := uint32(0); next < packets; {
		n := r.Take(dst)
		if n == 0 {
			<-r.Ready()
		}
		for _, a := range dst[:n] {
			if got := binary.BigEndian.Uint32(a.Packet[50:]); got != next {
				t.Errorf("packet %d, want %d", got, next)
			}
			clear(a.Packet)
			next++
			<-slots
		}
		if t.Failed() {
			break
		}
	}
	wg.Wait()
}

func TestDeliverAndTakeDoNotAllocate(t *testing.T) {
	if testmain.Race {
		t.Skip("sync.Pool drops values under the race detector")
	}
	var table Table
	r := table.NewRing()
	a := Arrival{Packet: packetTo(addID(t, r), 1200)}
	dst := make([]Arrival, 64)
	if n := testing.AllocsPerRun(1000, func() {
		for range 10 {
			table.Deliver(&a)
		}
		r.Take(dst)
		r.Take(dst)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDeliver(b *testing.B) {
	var table Table
	var a Arrival
	for range 1000 {
		r := table.NewRing()
		a.Packet = packetTo(addID(b, r), 1200)
	}
	r := table.ids[ConnectionID(a.Packet[1:])].ring
	dst := make([]Arrival, 64)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.Deliver(&a)
		if i%32 == 31 {
			r.Take(dst)
			r.Take(dst)
		}
	}
}
