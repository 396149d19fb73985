package egress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func addrs(ss ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func everyRoute(netip.Addr) bool { return true }

// outcome collects the results of resolve, now or later.
type outcome struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	calls int
}

func (o *outcome) ask(r *resolver, name string) { o.askFor(new(asker), r, name) }

// askFor asks for a user.
func (o *outcome) askFor(u *asker, r *resolver, name string) {
	addrs, done, err := r.resolve(u, name, keepAnswer, o.set)
	if done {
		o.set(addrs, err)
	}
}

func (o *outcome) set(addrs []netip.Addr, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.addrs, o.err, o.calls = addrs, err, o.calls+1
}

// get returns the last result and the number of results.
func (o *outcome) get() (addrs []netip.Addr, calls int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.addrs, o.calls, o.err
}

func TestQuestionsForOneNameShareOneLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lookups atomic.Int32
		r := newResolver(func(context.Context, string) ([]netip.Addr, error) {
			lookups.Add(1)
			time.Sleep(time.Second)
			return addrs("8.8.8.8"), nil
		}, everyRoute)
		defer r.close()
		os := make([]outcome, 10)
		for i := range os {
			os[i].ask(r, []string{"one.example", "ONE.Example"}[i%2])
		}
		synctest.Wait()
		if _, calls, _ := os[0].get(); calls != 0 {
			t.Fatal("answered before the look-up was")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for i := range os {
			if as, calls, err := os[i].get(); calls != 1 || err != nil || len(as) != 1 {
				t.Errorf("question %d: %v, %v, %d calls", i, as, err, calls)
			}
		}
		var again outcome
		again.ask(r, "one.example")
		if _, calls, _ := again.get(); lookups.Load() != 1 || calls != 1 {
			t.Errorf("%d look-ups, want 1", lookups.Load())
		}
	})
}

func TestAnswersAreCachedLongerThanFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		lookups := map[string]int{}
		r := newResolver(func(_ context.Context, name string) ([]netip.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			lookups[name]++
			if name == "bad.example" {
				return nil, errors.New("no such thing")
			}
			return addrs("8.8.8.8"), nil
		}, everyRoute)
		defer r.close()
		for _, step := range []struct {
			after     time.Duration
			good, bad int
		}{
			{0, 1, 1},
			{keepFailure - time.Millisecond, 1, 1},
			{time.Millisecond, 1, 2},
			{keepAnswer - keepFailure, 2, 3},
		} {
			time.Sleep(step.after)
			var good, bad outcome
			good.ask(r, "good.example")
			bad.ask(r, "bad.example")
			synctest.Wait()
			_, goodCalls, goodErr := good.get()
			_, badCalls, badErr := bad.get()
			if goodErr != nil || badErr == nil || goodCalls != 1 || badCalls != 1 {
				t.Fatalf("good: %v, %d calls; bad: %v, %d calls", goodErr, goodCalls, badErr, badCalls)
			}
			mu.Lock()
			if lookups["good.example"] != step.good || lookups["bad.example"] != step.bad {
				t.Errorf("look-ups %v, want %d and %d", lookups, step.good, step.bad)
			}
			mu.Unlock()
		}
		time.Sleep(keepAnswer)
		r.sweep(time.Now())
		if len(r.answers) != 0 {
			t.Errorf("%d answers after a sweep", len(r.answers))
		}
	})
}

func TestHangingLookupFailsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(func(ctx context.Context, name string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, everyRoute)
		defer r.close()
		var u asker
		os := make([]outcome, 3*maxLookups)
		for i := range os {
			os[i].askFor(&u, r, fmt.Sprintf("n%d.example", i))
		}
		synctest.Wait()
		r.mu.Lock()
		if len(r.running) != maxLookups || u.waiting != len(os) {
			t.Errorf("%d look-ups at once, want %d; %d wait", len(r.running), maxLookups, u.waiting)
		}
		r.mu.Unlock()
		time.Sleep(resolveTimeout)
		synctest.Wait()
		for i := range os {
			if _, calls, err := os[i].get(); calls != 1 || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("question %d: %v, %d calls", i, err, calls)
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.running) != 0 || len(r.lines) != 0 || u.waiting != 0 || u.running != 0 || u.line != nil {
			t.Errorf("left: %d running, %d lines, %+v", len(r.running), len(r.lines), u)
		}
	})
}

func TestResolverIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(func(context.Context, string) ([]netip.Addr, error) { return addrs("8.8.8.8"), nil }, everyRoute)
		defer r.close()
		for i := range maxAnswers + 100 {
			var o outcome
			o.ask(r, fmt.Sprintf("n%d.example", i))
			synctest.Wait()
			if _, calls, err := o.get(); err != nil || calls != 1 {
				t.Fatalf("question %d: %v, %d calls", i, err, calls)
			}
		}
		if len(r.answers) != maxAnswers || r.kept != maxAnswers {
			t.Errorf("%d answers kept, %d counted, want %d", len(r.answers), r.kept, maxAnswers)
		}
	})
}

func TestClosingFailsWhatIsPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newResolver(func(ctx context.Context, name string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, everyRoute)
		var u asker
		os := make([]outcome, 2*maxLookups)
		for i := range os {
			os[i].askFor(&u, r, fmt.Sprintf("n%d.example", i))
		}
		r.close()
		for i := range os {
			if _, calls, err := os[i].get(); calls != 1 || err == nil {
				t.Fatalf("question %d: %v, %d calls", i, err, calls)
			}
		}
		var late outcome
		late.ask(r, "late.example")
		if _, _, err := late.get(); err == nil {
			t.Error("a closed resolver answered")
		}
	})
}

func TestIPv4ComesFirstAndOnlyOfRoutableFamilies(t *testing.T) {
	v4 := func(ip netip.Addr) bool { return ip.Is4() }
	v6 := func(ip netip.Addr) bool { return ip.Is6() }
	none := func(netip.Addr) bool { return false }
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("8.8.8.%d", i))
	}
	tests := []struct {
		name     string
		routable func(netip.Addr) bool
		found    []string
		want     []string
	}{
		{"IPv4 first, else in order", everyRoute, []string{"2606::1", "8.8.8.8", "2606::2", "1.1.1.1"}, []string{"8.8.8.8", "1.1.1.1", "2606::1", "2606::2"}},
		{"no IPv6 route", v4, []string{"2606::1", "8.8.8.8"}, []string{"8.8.8.8"}},
		{"no IPv4 route", v6, []string{"2606::1", "8.8.8.8"}, []string{"2606::1"}},
		{"no route at all", none, []string{"2606::1", "8.8.8.8"}, []string{"8.8.8.8", "2606::1"}},
		{"mapped and double", everyRoute, []string{"::ffff:8.8.8.8", "8.8.8.8"}, []string{"8.8.8.8"}},
		{"too many", everyRoute, many, many[:maxAddrs]},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &resolver{routable: tt.routable}
			if got := r.order(addrs(tt.found...)); !reflect.DeepEqual(got, addrs(tt.want...)) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestInvalidNameIsNotLookedUp(t *testing.T) {
	for name, want := range map[string]bool{
		"example.com": true, "example.com.": true, "localhost": true, "a_b.example": true, "bücher.example": true,
		strings.Repeat("a", 253): true, strings.Repeat("a", 253) + ".": true,
		"": false, ".": false, "a\x00b": false, "a b": false, "a\n": false, "fe80::1%eth0": false, "a\x7f": false,
		strings.Repeat("a", 254): false,
	} {
		if validName(name) != want {
			t.Errorf("validName(%q) = %v", name, !want)
		}
	}
}

func TestLoopbackAddressHasRoute(t *testing.T) {
	if !hasRoute(netip.MustParseAddr("127.0.0.1")) {
		t.Error("127.0.0.1 has none")
	}
}
