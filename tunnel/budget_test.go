package tunnel

import (
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/netsim"
	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

// freedBytes returns the bytes of each freed holding, in order.
func freedBytes(freed []holding) (bytes []int64) {
	for _, h := range freed {
		bytes = append(bytes, h.bytes)
	}
	return bytes
}

func holdingsOf(all ...holding) *holdings {
	h := &holdings{users: make(map[*user.User]*holder)}
	for _, one := range all {
		u := h.of(one.user)
		u.all = append(u.all, one)
		u.bytes += one.bytes
	}
	return h
}

func TestBudgetTakesFromWhoHoldsMost(t *testing.T) {
	stalled := func(user string, bytes int64) holding { return holding{user: named(user), bytes: bytes, stalled: true} }
	busy := func(user string, bytes int64) holding { return holding{user: named(user), bytes: bytes} }
	carrier := func(user string, bytes int64) holding { return holding{user: named(user), bytes: bytes, carrier: true} }
	for _, c := range []struct {
		name string
		all  []holding
		want int64
		gave []int64
	}{
		{"stalled streams go first", []holding{busy("a", 90), stalled("a", 10), stalled("b", 50)}, 5, []int64{10}},
		{"the fullest of them", []holding{stalled("a", 10), stalled("a", 40), stalled("a", 20)}, 50, []int64{40, 20}},
		{"of whoever holds most then", []holding{stalled("a", 40), stalled("a", 30), stalled("b", 35), stalled("b", 1)}, 100, []int64{40, 35, 30}},
		{"busy streams go when no others are left", []holding{busy("a", 60), busy("a", 70)}, 100, []int64{70, 60}},
		{"carriers go last", []holding{carrier("a", 300), stalled("a", 20), busy("a", 10)}, 320, []int64{20, 10, 300}},
		{"who holds little gives nothing beside one who holds much", []holding{stalled("a", 400), stalled("b", 40), stalled("b", 41)}, 600, []int64{400}},
		{"carriers of a user who holds little stay", []holding{carrier("a", 100)}, 50, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := freedBytes(holdingsOf(c.all...).reduce(c.want, 1000))
			if diff := cmp.Diff(c.gave, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestBudgetHoldsEachUserToItsShare(t *testing.T) {
	h := holdingsOf(holding{user: named("a"), bytes: 300, stalled: true}, holding{user: named("a"), bytes: 400, stalled: true}, holding{user: named("b"), bytes: 450})
	if diff := cmp.Diff([]int64{400}, freedBytes(h.reduceEach(500, 1000))); diff != "" {
		t.Error(diff)
	}
}

// budgetWorld is a session with streams, and a budget of 1 MiB over it with a heap
// of the test's own.
type budgetWorld struct {
	*world
	b           *Budget
	live, inUse int64
	collected   int
}

func newBudgetWorld(t *testing.T) *budgetWorld {
	w := &budgetWorld{world: newWorld(t)}
	w.mustAttach(netsim.Config{})
	w.b = newBudget(1<<20, w.host.Sessions, slog.New(slog.DiscardHandler))
	w.b.base = 0
	w.b.heap = func() (live, inUse int64) { return w.live, w.inUse }
	w.b.collect = func() { w.collected++; w.inUse = w.live }
	return w
}

// stalledStream returns a stream that the far end no longer reads.
func (w *budgetWorld) stalledStream() carrier.Stream {
	w.t.Helper()
	st, _, err := w.session.OpenStream(w.t.Context(), []byte("target"))
	if err != nil {
		w.t.Fatal(err)
	}
	go func() { // the far end echoes until its own writes wait
		for b := make([]byte, 4096); ; {
			if _, err := st.Write(b); err != nil {
				return
			}
		}
	}()
	return st
}

func TestStalledStreamsGoBeyondTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBudgetWorld(t)
		defer w.close()
		st := w.stalledStream()
		time.Sleep(2 * budgetStalled)
		w.live, w.inUse = 900<<10, 900<<10
		w.b.look()
		if got := w.b.Status(); got.Resets != 0 || got.Used < 900<<10 {
			t.Errorf("below the limit: %+v", got)
		}
		w.live, w.inUse = 2<<20, 2<<20
		w.b.look()
		synctest.Wait()
		if _, err := io.Copy(io.Discard, st); err == nil || w.b.Status().Resets == 0 {
			t.Errorf("beyond the limit: %v, %+v", err, w.b.Status())
		}
	})
}

func TestGarbageIsNotHeldByPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBudgetWorld(t)
		defer w.close()
		st := w.stalledStream()
		defer st.Reset(carrier.CodeNone)
		time.Sleep(2 * budgetStalled)
		w.live, w.inUse = 100<<10, 2<<20
		w.b.look()
		if got := w.b.Status(); w.collected != 1 || got.Resets != 0 {
			t.Errorf("%d collections, %+v; want 1 and no reset", w.collected, got)
		}
		w.inUse = 2 << 20
		w.b.look()
		if w.collected != 1 {
			t.Error("it collects again at once")
		}
	})
}

func TestCrowdedUserGetsNoNewStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBudgetWorld(t)
		defer w.close()
		bob := NewSession(SessionConfig{})
		defer bob.Close(carrier.CodeShutdown, "done")
		if _, _, near, far := w.attach(bob, Credentials{User: "bob", Token: "right"}, netsim.Config{}); near != nil || far != nil {
			t.Fatal(near, far)
		}
		open := func(s *Session) (carrier.Stream, error) {
			st, _, err := s.OpenStream(t.Context(), []byte("target"))
			return st, err
		}
		third := w.b.limit/3/streamCost + 1 // streams that take a third of the limit
		for range third {
			st, err := open(w.session)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Reset(carrier.CodeNone)
		}
		w.live, w.inUse = 900<<10, 900<<10
		w.b.look()
		_, err := open(w.session)
		carriertest.WantReset(t, "a stream of the user with more than its share", err, carrier.CodeLimit)
		for what, s := range map[string]*Session{"the other": bob, "the same, with memory again": w.session} {
			if s == w.session {
				w.live, w.inUse = 0, 0
				w.b.look()
			}
			st, err := open(s)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			st.Reset(carrier.CodeNone)
		}
	})
}

// The race detector finds a wait that has begun already.
func TestBudgetAndCloseAtOnce(t *testing.T) {
	for range 30 {
		w := newWorld(t)
		w.attachQUIC()
		carrier := newBudget(0, nil, nil).sumHoldings(w.host.Sessions()).of(named("alice")).all[0]
		var both sync.WaitGroup
		both.Go(carrier.free)
		both.Go(w.close)
		both.Wait()
	}
}

// attachQUIC attaches a QUIC connection to the session.
func (w *world) attachQUIC() {
	w.t.Helper()
	near, far := quicPendings(w.t)
	attached := make(chan error)
	go func() {
		_, err := w.host.Attach(w.t.Context(), far)
		attached <- err
	}()
	if _, err := w.session.Attach(w.t.Context(), near, alice); err != nil {
		w.t.Fatal(err)
	}
	if err := <-attached; err != nil {
		w.t.Fatal(err)
	}
}

func TestBudgetCountsStreamsThatOutliveTheirCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBudgetWorld(t)
		defer w.close()
		_, far := w.mustAttach(netsim.Config{})
		unread := far.carry(nil)
		count := func(want int, bytes int64) {
			t.Helper()
			u := w.b.sumHoldings(w.host.Sessions()).of(named("alice"))
			if len(u.all) != want || u.bytes != bytes {
				t.Errorf("%d holdings of %d bytes, want %d of %d", len(u.all), u.bytes, want, bytes)
			}
		}
		count(1, streamCost)
		far.c.Close(carrier.CodeNone, "")
		<-far.Done()
		synctest.Wait()
		count(1, streamCost)
		delete(far.carried.all, unread)
		far.streams.Add(-1)
		count(0, 0)
	})
}

// A peer may leave a gap in a stream and send data beyond it, which nobody can read.
func TestBudgetCountsWhatReadQUICStreamsMayHold(t *testing.T) {
	w := newWorld(t)
	defer w.close()
	w.attachQUIC()
	b := newBudget(0, nil, nil)
	holds := func() int64 { return b.sumHoldings(w.host.Sessions()).of(named("alice")).bytes }
	st, _, err := w.session.OpenStream(t.Context(), []byte("target"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Reset(carrier.CodeNone)
	if got := holds(); got < carrierCost+streamCost || got > carrierCost+streamCost+4<<10 {
		t.Errorf("a new stream: %d bytes", got)
	}
	go st.Write(make([]byte, carrier.MaxStreamWindow)) // the far end echoes
	if _, err := io.CopyN(io.Discard, st, carrier.MaxStreamWindow); err != nil {
		t.Fatal(err)
	}
	if got, want := holds(), int64(carrierCost+streamCost+carrier.MaxStreamWindow-64<<10); got < want {
		t.Errorf("a stream with a large window: %d bytes, want at least %d", got, want)
	}
}

func TestBudgetCountsTheShareTakenTowardsTheLimit(t *testing.T) {
	b := newBudget(1000, nil, slog.New(slog.DiscardHandler))
	var freed []string
	one := func(user string, bytes int64) holding {
		return holding{user: named(user), bytes: bytes, stalled: true, free: func() { freed = append(freed, user) }}
	}
	b.reclaim(holdingsOf(one("a", 300), one("a", 300), one("a", 300), one("b", 350)), 1250, 1250)
	if diff := cmp.Diff([]string{"a", "a"}, freed); diff != "" {
		t.Error(diff)
	}
}

func TestBudgetAttributesOverheadToUnreadBytes(t *testing.T) {
	all := []holding{
		{user: named("a"), bytes: 400},
		{user: named("b"), bytes: 100, carrier: true, unread: 50},
		{user: named("c"), bytes: 100, carrier: true, unread: 10},
	}
	for _, c := range []struct {
		name string
		live int64
		want map[string]int64
	}{
		{"nothing beyond what is accounted for", 600, map[string]int64{"a": 400, "b": 100, "c": 100}},
		{"in proportion", 1200, map[string]int64{"a": 400, "b": 600, "c": 200}},
		{"at most what quic-go may hold", 10_000, map[string]int64{"a": 400, "b": 100 + quicFrameCost*50, "c": 100 + quicFrameCost*10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := holdingsOf(all...)
			h.attribute(c.live)
			got := make(map[string]int64)
			for u, held := range h.users {
				got[u.Name] = held.bytes
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
