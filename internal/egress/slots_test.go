package egress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// lookupTime is the time that a DNS server takes if it is not silent.
const lookupTime = 3 * time.Millisecond

// mostlySilent answers names in time, except names of one zone.
func mostlySilent(ctx context.Context, name string) ([]netip.Addr, error) {
	wait := lookupTime
	if strings.HasSuffix(name, ".silent.example") {
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
		return addrs("8.8.8.8"), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// flood looks up twice as many silent names as a user may.
func flood(r *resolver, u *asker, who string) {
	for i := range 2 * maxUserLookups {
		new(outcome).askFor(u, r, fmt.Sprintf("%s%d.silent.example", who, i))
	}
	synctest.Wait()
}

// answered returns the time until all names are answered.
func answered(t *testing.T, r *resolver, u *asker, names ...string) time.Duration {
	t.Helper()
	began := time.Now()
	os := make([]outcome, len(names))
	for i, name := range names {
		os[i].askFor(u, r, name)
	}
	for i := range os {
		_, calls, err := os[i].get()
		for ; calls == 0; _, calls, err = os[i].get() {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if err != nil || calls != 1 {
			t.Fatalf("%s: %v, %d calls", names[i], err, calls)
		}
	}
	return time.Since(began)
}

func TestSilentZoneDelaysNoOtherUser(t *testing.T) {
	for _, attackers := range []int{1, 3, 10} {
		synctest.Test(t, func(t *testing.T) {
			r := newResolver(mostlySilent, everyRoute)
			defer r.close()
			for i := range attackers {
				flood(r, new(asker), fmt.Sprint("a", i, "-"))
			}
			var honest asker
			if took := answered(t, r, &honest, "one.example"); took > 2*lookupTime {
				t.Errorf("%d attackers: a name took %v, want %v", attackers, took, lookupTime)
			}
			if took := answered(t, r, &honest, "a.example", "b.example", "c.example", "d.example"); took > 5*lookupTime {
				t.Errorf("%d attackers: four names took %v, want at most four times %v", attackers, took, lookupTime)
			}
		})
	}
}

func TestZoneIsTheLastTwoLabels(t *testing.T) {
	for name, want := range map[string]string{
		"a.b.example.com": "example.com", "a.b.example.com.": "example.com", "example.com": "example.com", "localhost": "localhost", ".": "",
	} {
		if got := zoneOf(name); got != want {
			t.Errorf("of %q: %q, want %q", name, got, want)
		}
	}
}

func TestSilentZoneDelaysNoOtherZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(mostlySilent, everyRoute)
		defer r.close()
		var u asker
		flood(r, &u, "n")
		var o outcome
		o.askFor(&u, r, "www.example.org")
		flood(r, &u, "m") // later ones do not overtake it
		time.Sleep(2 * lookupTime)
		if _, calls, err := o.get(); calls != 1 || err != nil {
			t.Errorf("after %v: %v, %d calls", 2*lookupTime, err, calls)
		}
	})
}

func TestSilentZoneDelaysItsNamesForOneTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(mostlySilent, everyRoute)
		defer r.close()
		var u asker
		flood(r, &u, "n")
		if took := answered(t, r, &u, "silent.example"); took > lookupTurn+2*lookupTime {
			t.Errorf("it took %v, want %v at most", took, lookupTurn)
		}
	})
}

// With as many users as there are slots, or more, each waits for a turn.
func TestSilentZonesDelayOthersByTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(mostlySilent, everyRoute)
		defer r.close()
		for i := range maxLookups + 10 {
			var u asker
			for k := range 10 {
				new(outcome).askFor(&u, r, fmt.Sprintf("n%d-%d.silent.example", i, k))
			}
		}
		synctest.Wait()
		var honest asker
		if took := answered(t, r, &honest, "one.example"); took > lookupTurn+2*lookupTime {
			t.Errorf("it took %v, want %v at most", took, lookupTurn)
		}
	})
}

func TestNameLeavesAnotherUsersLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(mostlySilent, everyRoute)
		defer r.close()
		var attacker, honest asker
		for i := range maxLookups {
			new(outcome).askFor(&attacker, r, fmt.Sprintf("n%d.silent.example", i))
		}
		synctest.Wait()
		names := []string{"a.example", "b.example"}
		for _, name := range names {
			new(outcome).askFor(&attacker, r, name)
		}
		if took := answered(t, r, &honest, names...); took > 3*lookupTime {
			t.Errorf("it took %v, want %v", took, lookupTime)
		}
	})
}

func TestFailureForLackOfSlotIsNotCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(mostlySilent, everyRoute)
		defer r.close()
		var attacker, honest asker
		flood(r, &attacker, "n")
		var first, shed outcome
		shed.askFor(&attacker, r, "shed.silent.example")
		flood(r, &attacker, "m")
		if _, calls, err := shed.get(); calls != 1 || !errors.Is(err, errBusy) {
			t.Errorf("the oldest name in line: %v, %d calls, want %v", err, calls, errBusy)
		}
		first.askFor(&honest, r, "shed.silent.example")
		synctest.Wait()
		if _, calls, err := first.get(); calls != 0 {
			t.Errorf("the same name for another user: %v, %d calls, want it to be looked up", err, calls)
		}
	})
}

func TestInterruptedLookupIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 300 * time.Millisecond // within a turn
		r := newResolver(func(ctx context.Context, name string) ([]netip.Addr, error) {
			select {
			case <-time.After(slow):
				return addrs("8.8.8.8"), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}, everyRoute)
		defer r.close()
		var many, few asker
		os := make([]outcome, maxLookups)
		for i := range os {
			os[i].askFor(&many, r, fmt.Sprintf("n%d.example", i))
		}
		time.Sleep(slow / 2)
		var one outcome
		one.askFor(&few, r, "one.example")
		synctest.Wait()
		r.mu.Lock()
		if many.running != maxLookups-1 || few.running != 1 || len(many.line) != 1 {
			t.Errorf("%d and %d slots, %d in line", many.running, few.running, len(many.line))
		}
		r.mu.Unlock()
		time.Sleep(2 * slow)
		synctest.Wait()
		for i := range os {
			if _, calls, err := os[i].get(); calls != 1 || err != nil {
				t.Fatalf("question %d: %v, %d calls", i, err, calls)
			}
		}
	})
}

func TestOldAnswerIsLookedUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lookups atomic.Int32
		r := newResolver(func(context.Context, string) ([]netip.Addr, error) {
			lookups.Add(1)
			return addrs("8.8.8.8"), nil
		}, everyRoute)
		defer r.close()
		var u asker
		began := time.Now()
		answered(t, r, &u, "one.example")
		time.Sleep(time.Until(began.Add(time.Second)))
		for _, maxAge := range []time.Duration{time.Second, time.Second - 1} {
			_, done, _ := r.resolve(&u, "one.example", maxAge, func([]netip.Addr, error) {})
			if want := maxAge == time.Second; done != want {
				t.Errorf("an answer one second old, %v at most: answered at once: %v, want %v", maxAge, done, want)
			}
		}
		synctest.Wait()
		if n := lookups.Load(); n != 2 {
			t.Errorf("%d look-ups, want 2", n)
		}
	})
}

// A canceled look-up keeps no socket.
func TestDNSConnectionIsClosedWithItsContext(t *testing.T) {
	r := newRemote(t, "127.0.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	c, err := dialDNS(ctx, "udp", r.at.String())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection reads %v, want %v", err, net.ErrClosed)
	}
}

// For any questions, each callback is called once and in time, and nothing remains.
func TestQuestionsAreAnsweredOnceAndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		takes := map[string]time.Duration{}
		r := newResolver(func(ctx context.Context, name string) ([]netip.Addr, error) {
			mu.Lock()
			after := takes[name]
			mu.Unlock()
			select {
			case <-time.After(after):
				return addrs("8.8.8.8"), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}, everyRoute)
		users := make([]asker, 5)
		var answered, late atomic.Int32
		questions := 0
		for range 5000 {
			name := fmt.Sprintf("n%d.example", random.IntN(1500))
			mu.Lock()
			if _, known := takes[name]; !known {
				takes[name] = time.Duration(1+random.IntN(3)) * time.Duration(random.IntN(3000)) * time.Millisecond
			}
			mu.Unlock()
			began := time.Now()
			_, done, _ := r.resolve(&users[min(random.IntN(10), 4)], name, time.Second, func([]netip.Addr, error) {
				answered.Add(1)
				if time.Since(began) > maxWait {
					late.Add(1)
				}
			})
			if !done {
				questions++
			}
			if random.IntN(10) == 0 {
				time.Sleep(time.Duration(random.IntN(50)) * time.Millisecond)
			}
			r.mu.Lock()
			if len(r.running) > maxLookups {
				t.Fatalf("%d look-ups at once", len(r.running))
			}
			r.mu.Unlock()
		}
		time.Sleep(2 * resolveTimeout)
		synctest.Wait()
		if int(answered.Load()) != questions || late.Load() != 0 {
			t.Errorf("%d of %d questions were answered, %d of them late", answered.Load(), questions, late.Load())
		}
		r.mu.Lock()
		if len(r.running) != 0 || len(r.lines) != 0 || len(r.answers) != r.kept {
			t.Errorf("left: %d running, %d lines, %d answers of which %d are kept", len(r.running), len(r.lines), len(r.answers), r.kept)
		}
		for i := range users {
			if u := &users[i]; u.running != 0 || u.waiting != 0 || len(u.line) != 0 {
				t.Errorf("left of user %d: %+v", i, u)
			}
		}
		r.mu.Unlock()
		r.close()
	})
}
