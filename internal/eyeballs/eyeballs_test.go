package eyeballs

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func addrs(ss ...string) (as []netip.Addr) {
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func texts(as []netip.Addr) (ss []string) {
	for _, a := range as {
		ss = append(ss, a.String())
	}
	return ss
}

func TestFamiliesAlternate(t *testing.T) {
	for _, test := range []struct{ given, want []string }{
		{nil, nil},
		{[]string{"192.0.2.1"}, []string{"192.0.2.1"}},
		{[]string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}, []string{"192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"}},
		{[]string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"}, []string{"2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"}},
		{
			[]string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7", "192.0.2.8", "192.0.2.9", "2001:db8::1"},
			[]string{"192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"},
		},
	} {
		if diff := cmp.Diff(test.want, texts(Order(addrs(test.given...)))); diff != "" {
			t.Errorf("Order(%v) (-want +got):\n%s", test.given, diff)
		}
	}
}

// network is hosts that answer after a time, or refuse after a negative one. Others do not
// answer.
type network struct {
	t     *testing.T
	hosts map[string]time.Duration
	began time.Time

	mu        sync.Mutex
	dialed    map[string]time.Duration // since began
	discarded []string
}

var errRefused = errors.New("refused")

func (n *network) dial(ctx context.Context, addr netip.Addr) (string, error) {
	n.mu.Lock()
	n.dialed[addr.String()] = time.Since(n.began)
	n.mu.Unlock()
	after, known := n.hosts[addr.String()]
	if !known {
		<-ctx.Done()
		return "", ctx.Err()
	}
	select {
	case <-time.After(after.Abs()):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if after < 0 {
		return "", errRefused
	}
	return addr.String(), nil
}

func (n *network) discard(conn string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.discarded = append(n.discarded, conn)
}

func TestSlowAddressCostsOneDelay(t *testing.T) {
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		addrs  []string
		hosts  map[string]time.Duration
		winner string
		took   time.Duration
		dialed map[string]time.Duration
	}{
		"the first answers": {
			[]string{"192.0.2.1", "192.0.2.2"},
			map[string]time.Duration{"192.0.2.1": 200 * ms, "192.0.2.2": 1},
			"192.0.2.1", 200 * ms,
			map[string]time.Duration{"192.0.2.1": 0},
		},
		"the first does not answer": {
			[]string{"192.0.2.1", "192.0.2.2"},
			map[string]time.Duration{"192.0.2.2": 10 * ms},
			"192.0.2.2", Delay + 10*ms,
			map[string]time.Duration{"192.0.2.1": 0, "192.0.2.2": Delay},
		},
		"two do not answer and one refuses": {
			[]string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"},
			map[string]time.Duration{"192.0.2.3": -10 * ms, "192.0.2.4": 10 * ms},
			"192.0.2.4", 2*Delay + 20*ms,
			map[string]time.Duration{"192.0.2.1": 0, "192.0.2.2": Delay, "192.0.2.3": 2 * Delay, "192.0.2.4": 2*Delay + 10*ms},
		},
		"the first is slow and still wins": {
			[]string{"192.0.2.1", "192.0.2.2"},
			map[string]time.Duration{"192.0.2.1": 300 * ms, "192.0.2.2": 100 * ms},
			"192.0.2.1", 300 * ms,
			map[string]time.Duration{"192.0.2.1": 0, "192.0.2.2": Delay},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{t: t, hosts: test.hosts, began: time.Now(), dialed: map[string]time.Duration{}}
				conn, errs := Dial(t.Context(), addrs(test.addrs...), n.dial, n.discard)
				if conn != test.winner || errs != nil || time.Since(n.began) != test.took {
					t.Errorf("got %q, %v after %v; want %q after %v", conn, errs, time.Since(n.began), test.winner, test.took)
				}
				if diff := cmp.Diff(test.dialed, n.dialed); diff != "" {
					t.Errorf("dialed (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestLateConnectionIsDiscarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{t: t, began: time.Now(), dialed: map[string]time.Duration{}}
		// The first connects although its context was canceled.
		dial := func(ctx context.Context, addr netip.Addr) (string, error) {
			if addr == netip.MustParseAddr("192.0.2.1") {
				<-ctx.Done()
			}
			return addr.String(), nil
		}
		conn, _ := Dial(t.Context(), addrs("192.0.2.1", "192.0.2.2"), dial, n.discard)
		if diff := cmp.Diff([]string{"192.0.2.1"}, n.discarded); conn != "192.0.2.2" || diff != "" {
			t.Errorf("got %q, discarded (-want +got):\n%s", conn, diff)
		}
	})
}

func TestErrorsAreInOrderOfAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{t: t, hosts: map[string]time.Duration{"192.0.2.2": -1}, began: time.Now(), dialed: map[string]time.Duration{}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, errs := Dial(ctx, addrs("192.0.2.1", "192.0.2.2"), n.dial, n.discard)
		if len(errs) != 2 || !errors.Is(errs[0], context.DeadlineExceeded) || !errors.Is(errs[1], errRefused) {
			t.Errorf("got %v", errs)
		}
		if took := time.Since(n.began); took != time.Second {
			t.Errorf("took %v", took)
		}
		cancel()
		if _, errs = Dial(ctx, addrs("192.0.2.1", "192.0.2.2"), n.dial, n.discard); len(errs) != 1 {
			t.Errorf("after the end of the context: %v, want the error of the first address alone", errs)
		}
	})
}
